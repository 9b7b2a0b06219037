"""The fast forward at the width of FLUX.1, on a card: in every form the gradients of diffusers' module with PEFT.

A bf16 result is right if it is about as far from fp32 as that twin is in bf16. 512 text and 1024 image tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from card import CARD, COMPILER
from functional_flux import attached, difference, outcome, whole
from packed import COMPUTE, KINDS, on_card, packed, shrunk
from torch import Tensor, nn

from simpletuner.kernels.attention import cudnn, sdpa
from simpletuner.kernels.compile import Compiled
from simpletuner.kernels.graphs import Graphs
from simpletuner.kernels.weights import Plain, join
from simpletuner.memory.activations import Kept, Parked
from simpletuner.memory.runner import Runner
from simpletuner.memory.stream import Streamed
from simpletuner.models.flux.forward import FluxForward
from simpletuner.models.flux.layout import image_ids, text_ids
from simpletuner.quantization.linear import PackedLinear

pytestmark = [
    *CARD,
    *COMPILER,
]
TEXT, EDGE, CHANNELS, JOINT, POOLED = 512, 64, 64, 4096, 768  # EDGE in latent cells: 1024 image tokens
NOISE = 1.5  # times the distance that the twin in bf16 has from fp32
SMALL = 0.02  # of weights: about one by the root of the width
SMALLER = 0.01  # of packed ones: at full width larger ones make gradients of bf16 mostly noise
ROWS = 1024  # of a packed matrix that are drawn; larger ones repeat them


@pytest.fixture(autouse=True, scope="module")
def as_in_a_run():
    """Exact fp32 products, and PyTorch does not choose cuDNN by itself; see training.precision."""
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cuda.enable_cudnn_sdp(before[1])
    torch.compiler.reset()


def inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator("cuda").manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda").bfloat16().to(dtype)

    return {
        "hidden_states": draw(1, EDGE * EDGE // 4, CHANNELS),
        "encoder_hidden_states": draw(1, TEXT, JOINT),
        "pooled_projections": draw(1, POOLED),
        "timestep": torch.tensor([0.6], device="cuda"),
        "guidance": torch.tensor([3.5], device="cuda"),
        "img_ids": image_ids(EDGE, EDGE).cuda(),
        "txt_ids": text_ids(TEXT).cuda(),
    }


class Flux:
    """A Flux of true width with few blocks and an adapter of rank 16; the same bf16 numbers in every dtype."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, layers: tuple[int, int] = (2, 2), swap=lambda one: one):
        from diffusers import FluxTransformer2DModel

        with torch.random.fork_rng(), torch.device("cuda"):
            torch.manual_seed(0)
            self.denoiser = FluxTransformer2DModel(
                num_layers=layers[0], num_single_layers=layers[1], guidance_embeds=True
            )
        self.denoiser.eval().requires_grad_(False).to(torch.bfloat16).to(dtype)
        for block in (*self.denoiser.transformer_blocks, *self.denoiser.single_transformer_blocks):
            for parent in list(block.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(parent, name, swap(child))
        self.adapter = attached(self.denoiser, "all+ffs", rank=16, dtype=dtype, size=SMALL)
        for value in self.adapter.parameters().values():
            value.data = value.data.bfloat16().to(dtype)
        self.given = inputs(dtype)

    def functional(self, attention=sdpa) -> FluxForward:
        return FluxForward(self.denoiser, self.adapter.low_rank(), attention)

    def gradients(self, forward=None) -> Tensor:
        """Of all factors, in one row."""
        return whole(outcome(forward or self.denoiser, self.adapter, self.given)[1])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


class Twin:
    """What diffusers and PEFT compute: in fp32, and how far from that in bf16."""

    def __init__(self, layers: tuple[int, int] = (2, 2), swap=lambda one: one):
        self.exact = Flux(torch.float32, layers, swap).gradients()
        self.noise = difference(Flux(torch.bfloat16, layers, swap).gradients(), self.exact)
        assert 1e-4 < self.noise < 0.1  # a twin that is all noise would prove nothing

    def near(self, gradients: Tensor) -> bool:
        return difference(gradients, self.exact) < NOISE * self.noise and cosine(gradients, self.exact) > 0.99


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin()


def compiled(forward: FluxForward) -> dict[str, Compiled]:
    settings = {"strict": True, "backend": "inductor", "dynamic": False, "fullgraph": True}
    return {kind: Compiled(function, f"the {kind} blocks", **settings) for kind, function in forward.functions.items()}


class Fast:
    """A Flux whose blocks are compiled: once for all tests of this file."""

    def __init__(self) -> None:
        self.flux = Flux()
        self.forward = self.flux.functional(cudnn)
        self.functions = compiled(self.forward)
        self.parameters = list(self.flux.adapter.parameters().values())
        self.weight = torch.randn(1, EDGE * EDGE // 4, CHANNELS, generator=torch.Generator().manual_seed(7))
        self.weight = self.weight.cuda().bfloat16()

    def gradients(self) -> Tensor:
        with self.active():
            return self.flux.gradients(self.forward)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it the blocks run compiled."""
        with ExitStack() as stack:
            for function in self.functions.values():
                stack.enter_context(function.active())
            yield

    def loss(self, given) -> Tensor:
        return (self.forward(**given)[0] * self.weight).sum()

    def recorded(self, graphs: Graphs, given, times: int = 1) -> Tensor:
        """The gradients of so many micro-batches, each from the recording."""
        for parameter in self.parameters:
            parameter.grad = None
        with self.active():
            for _ in range(times):
                assert graphs.run(given, 1.0) is not None, graphs.failure
        return whole({name: value.grad for name, value in self.flux.adapter.parameters().items()})


@pytest.fixture(scope="module")
def fast() -> Fast:
    return Fast()


# ---- uncompiled


@pytest.mark.parametrize("attention", [sdpa, cudnn])
@pytest.mark.parametrize("interval", [0, 1, 2])
def test_plain_and_recomputed(interval, attention, twin):
    flux = Flux()
    forward = flux.functional(attention)
    forward.runner = runner = Runner(interval)
    assert twin.near(flux.gradients(forward))
    assert runner.num_recomputed == {0: 0, 1: 4, 2: 2}[interval]


@pytest.mark.parametrize("store", [Kept, Parked])
@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (0, 2)], ids=["all moved", "half moved"])
def test_streamed(chosen, store, twin):
    flux, device = Flux(), torch.device("cuda")
    forward = flux.functional()
    moved = [block for block in forward.order if block.index in chosen]
    residency = Streamed(moved, device, depth=2)
    forward.runner = Runner(1, residency=residency, store=store(device) if store is Parked else store())
    forward.prologue = Runner(residency=residency)
    try:
        assert twin.near(flux.gradients(forward)) and twin.near(flux.gradients(forward))
        assert len(residency.copies) == 2 * len(chosen)
    finally:
        residency.close()


def test_cudnn_is_as_exact_as_pytorchs_choice():
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (1, TEXT + EDGE * EDGE // 4, 24, 128)
    wide = [torch.randn(shape, generator=generator, device="cuda").bfloat16().float() for _ in range(4)]

    def results(kernel, dtype: torch.dtype) -> list[Tensor]:
        q, k, v = (x.to(dtype).requires_grad_() for x in wide[:3])
        out = kernel(q, k, v, None)
        return [out, *torch.autograd.grad(out, (q, k, v), wide[3].to(dtype).flatten(2))]

    exact = results(sdpa, torch.float32)
    for ours, theirs, wanted in zip(results(cudnn, torch.bfloat16), results(sdpa, torch.bfloat16), exact, strict=True):
        assert difference(ours, wanted) < NOISE * difference(theirs, wanted)


def test_cudnn_takes_gradients_of_any_layout():
    """PyTorch's own dispatch hands them on as they are, which its kernel reads out of bounds."""
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(1, 1536, 24, 128, generator=generator, device="cuda").bfloat16().requires_grad_() for _ in range(3)
    )
    dy = torch.randn(1, 24 * 128, 1536, generator=generator, device="cuda").bfloat16().transpose(1, 2)
    found, wanted = (
        torch.autograd.grad(kernel(q, k, v, None), (q, k, v), gradient)
        for kernel, gradient in ((cudnn, dy), (sdpa, dy.contiguous()))
    )
    assert all(difference(a, b) < 0.02 for a, b in zip(found, wanted, strict=True))


# ---- compiled and recorded


@pytest.mark.parametrize("interval", [0, 1])
def test_compiled(interval, fast, twin):
    fast.forward.runner = runner = Runner(interval, functions=fast.functions)
    assert twin.near(fast.gradients()) and twin.near(fast.gradients())
    assert runner.num_recomputed == 8 * interval


@pytest.mark.parametrize("how", ["uncompiled", "compiled", "recomputed"])
def test_recorded(how, fast, twin):
    fast.forward.runner = Runner(how == "recomputed", functions={} if how == "uncompiled" else fast.functions)
    fast.gradients()  # kernels are loaded before anything is recorded
    graphs = Graphs(fast.loss, fast.parameters)
    once = fast.recorded(graphs, fast.flux.given)
    assert twin.near(once) and twin.near(fast.recorded(graphs, fast.flux.given))
    assert twin.near(fast.recorded(graphs, fast.flux.given, times=2) / 2)
    other = fast.flux.given | {"hidden_states": fast.flux.given["hidden_states"].flip(1)}
    assert difference(fast.recorded(graphs, other), once) > 10 * twin.noise  # inputs are read anew
    assert len(graphs.recordings) == 1
    graphs.release()


def test_a_recorded_micro_batch_adds_to_a_plain_one(fast, twin):
    fast.forward.runner = Runner(functions=fast.functions)
    graphs = Graphs(fast.loss, fast.parameters)
    fast.gradients()  # leaves its gradient there
    with fast.active():
        assert graphs.run(fast.flux.given, 1.0) is not None
    found = whole({name: value.grad for name, value in fast.flux.adapter.parameters().items()})
    assert twin.near(found / 2)
    graphs.release()


def test_streamed_compiled_and_recorded(twin):
    """A model of its own, since its weights move; what was compiled for the other one serves it."""
    fast, device = Fast(), torch.device("cuda")
    moved = [block for block in fast.forward.order if block.index in (1, 3)]
    residency = Streamed(moved, device, depth=2)
    fast.forward.runner = Runner(1, residency=residency, store=Parked(device), functions=fast.functions)
    fast.forward.prologue = Runner(residency=residency)
    try:
        assert twin.near(fast.gradients()) and residency.capturable
        graphs = Graphs(fast.loss, fast.parameters)
        for _ in range(2):
            assert twin.near(fast.recorded(graphs, fast.flux.given))
        graphs.release()
    finally:
        residency.close()


# ---- packed weights


@functools.cache
def drawn(kind: str, shape: tuple[int, int]):
    """A packed matrix on the card. The rows repeat, which spares the test its minutes."""
    part = on_card(shrunk(packed(kind, ROWS, shape[1]), SMALLER))
    return join([part] * (shape[0] // ROWS))


def holding(kind: str, dtype: torch.dtype | None):
    """Gives a linear layer a packed matrix, or with a dtype the same one unpacked."""

    def swap(linear: nn.Linear) -> nn.Linear:
        weight = drawn(kind, tuple(linear.weight.shape))
        if dtype is None:
            return PackedLinear(weight, linear.bias)
        linear.weight.data = weight.dequantize(torch.float32).to(dtype).to(linear.weight.dtype)
        return linear

    return swap


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_compute_as_their_unpacked_ones(kind):
    layers = (1, 1)
    exact = Flux(torch.float32, layers, holding(kind, torch.float32)).gradients()
    unpacked = Flux(torch.bfloat16, layers, holding(kind, torch.bfloat16))
    noise = difference(unpacked.gradients(unpacked.functional()), exact)
    assert noise < 0.1
    flux = Flux(torch.bfloat16, layers, holding(kind, None))
    forward = flux.functional()
    assert not any(isinstance(leaf, Plain) for leaf in forward.blocks[0].weights.image)
    for interval in (0, 1):
        forward.runner = Runner(interval)
        found = flux.gradients(forward)
        if kind not in COMPUTE:
            assert difference(found, exact) < NOISE * noise
            continue
        most, least = {"compute float8": (0.114, 0.99), "compute int8": (0.06, 0.998)}[kind]  # measured at full depth
        assert difference(found, exact) < math.hypot(most, noise) and cosine(found, exact) > least
