"""Steps that become fast on a tiny Flux: the same loss and gradients, few graphs, and a word about whatever failed."""

import contextlib

import pytest
import torch
from functional_flux import adapted, attached, difference, inputs, whole
from packed import packed, shrunk
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.utils._pytree import tree_leaves

from simpletuner.errors import HardwareError
from simpletuner.kernels.attention import Switch, sdpa
from simpletuner.kernels.compile import Compiled
from simpletuner.memory.runner import Runner
from simpletuner.models.flux.forward import FluxForward
from simpletuner.quantization.linear import PackedLinear
from simpletuner.training.pace import Pace

pytestmark = [  # PyTorch's compiler warns of itself
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
KINDS = ["int8", "float8", "nf4", "compute int8", "compute float8"]


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Steps:
    """A tiny Flux, its adapter, and the gradients of micro-batches at some pace."""

    def __init__(self, backend="eager", *, interval=0, dtype=torch.float32, kind="", **more):
        plain_calls, strict = more.pop("plain_calls", 0), more.pop("strict", True)
        attention, dynamic = more.pop("attention", sdpa), more.pop("dynamic", False)
        self.denoiser, self.adapter = quantised(kind, dtype) if kind else adapted("all+ffs", dtype)
        self.dtype, self.told = dtype, []
        self.forward = FluxForward(self.denoiser, self.adapter.low_rank(), attention)
        self.compiled = {
            name: Compiled(function, f"the {name} blocks", strict=strict, backend=backend, dynamic=dynamic, **more)
            for name, function in self.forward.functions.items()
        }
        self.runner = Runner(interval, functions=self.compiled)
        self.forward.runner = self.runner
        self.pace = Pace(
            self.backward,
            self.loss,
            list(self.adapter.parameters().values()),
            compiled=list(self.compiled.values()),
            record=False,
            plain_calls=plain_calls,
            sparing=self.runner.sparing,
            tell=lambda *told: self.told.append(told),
        )

    def loss(self, given):
        named = {"hidden_states" if name == "x_t" else name: tensor for name, tensor in given.items()}
        return self.forward(**named)[0].float().square().mean()

    def backward(self, given, divisor):
        loss = self.loss(given)
        (loss / divisor).backward()
        return loss.detach()

    def step(self, how=None, height=8, divisor=1.0):
        """Loss and all gradients, fast unless `how` is given."""
        for value in self.adapter.parameters().values():
            value.grad = None
        given = inputs(self.dtype, height)
        given["x_t"] = given.pop("hidden_states")
        loss = (how or self.pace)(given, divisor)
        return loss, whole({name: value.grad for name, value in self.adapter.parameters().items()})


def quantised(kind, dtype):
    """The same with packed matrices in its blocks."""
    import tiny_flux

    denoiser = tiny_flux.transformer(layers=(1, 1)).to(dtype).requires_grad_(False)
    blocks = [*denoiser.transformer_blocks, *denoiser.single_transformer_blocks]
    for seed, (parent, name, linear) in enumerate(
        (module, name, child)
        for block in blocks
        for module in block.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    ):
        setattr(parent, name, PackedLinear(shrunk(packed(kind, *linear.weight.shape, seed), 0.1), linear.bias))
    return denoiser, attached(denoiser, "all+ffs", rank=4, dtype=dtype, size=0.1)


def close(found, expected, bound):
    return abs(found[0] - expected[0]) <= bound * abs(expected[0]) and difference(found[1], expected[1]) <= bound


# ---- with a backend that only traces: quick


def broken(graph, _):
    from torch._dynamo.exc import BackendCompilerFailed

    raise BackendCompilerFailed(broken, RuntimeError("no kernel for this"), None)


@pytest.mark.parametrize("dynamic", [False, True])  # at once, and when the backward pass is run
@pytest.mark.parametrize("strict", [False, True])
def test_a_backward_pass_that_cannot_be_compiled_is_run_plain_and_counts_once(strict, dynamic):
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=broken)
    steps = Steps(backend, strict=strict, dynamic=dynamic)
    given = inputs(torch.float32)
    given["x_t"] = given.pop("hidden_states")
    _, expected = steps.step(steps.backward)  # and its gradients lie there, as those of a first micro-batch
    if strict:
        with pytest.raises(HardwareError, match="cannot be compiled: BackendCompilerFailed"):
            steps.pace(given, 1.0)
        return
    steps.pace(given, 1.0)
    found = whole({name: value.grad for name, value in steps.adapter.parameters().items()})
    assert difference(found, 2 * expected) < 1e-5
    assert [told for told in steps.told if told[0] == "warning"][0][1].startswith("blocks run uncompiled")


def test_the_first_call_is_plain_and_recomputed_and_the_rest_compiled():
    counter = CompileCounter()
    steps = Steps(counter, plain_calls=1, interval=0)
    expected = steps.step(steps.backward)
    assert close(steps.step(), expected, 1e-5) and counter.frame_count == 0 and steps.runner.num_recomputed == 4
    assert close(steps.step(), expected, 1e-5) and counter.frame_count == 2 and steps.runner.num_recomputed == 4


@pytest.mark.parametrize(("interval", "each"), [(0, 1), (1, 2), (2, 3)])
def test_graphs_for_each_shape_and_kind(interval, each):
    """One for blocks that keep their activations, two for recomputed ones: without gradients, and then again."""
    counter = CompileCounter()
    steps = Steps(counter, interval=interval, fullgraph=True)
    for height in (8, 12, 8, 12, 8):
        assert close(steps.step(height=height), steps.step(steps.backward, height), 1e-5)
    assert counter.frame_count == 2 * 2 * each


def test_a_divided_gradient_is_added_up():
    steps = Steps(CompileCounter())
    given = inputs(height=8)
    given["x_t"] = given.pop("hidden_states")
    _, once = steps.step()
    steps.pace(given, 2.0)
    twice = whole({name: value.grad for name, value in steps.adapter.parameters().items()})
    assert difference(twice, 1.5 * once) < 1e-5


def test_what_cannot_be_compiled_stays_plain_and_is_told_once():
    def backend(graph, example):
        raise RuntimeError("no compiler here")

    steps = Steps(backend, strict=False)
    expected = steps.step(steps.backward)
    for _ in range(3):
        assert close(steps.step(), expected, 1e-6)
    warnings = [message for severity, message in steps.told if severity == "warning"]
    assert len(warnings) == 1 and "uncompiled" in warnings[0] and "no compiler here" in warnings[0]


def test_what_was_asked_for_and_cannot_be_compiled_stops():
    def backend(graph, example):
        raise RuntimeError("no compiler here")

    with pytest.raises(HardwareError, match="the double blocks cannot be compiled: .*no compiler here"):
        Steps(backend, strict=True).step()


@pytest.mark.parametrize("attention", [sdpa, Switch(sdpa, lambda q, k, v, mask: sdpa(q, k, v, mask) * 2)])
def test_sampling_between_steps_compiles_nothing_even_with_a_kernel_of_its_own(attention):
    counter = CompileCounter()
    steps = Steps(counter, attention=attention, fullgraph=True)
    expected = steps.step(steps.backward)
    assert close(steps.step(), expected, 1e-5)
    with torch.no_grad(), attention.sampling() if attention is not sdpa else contextlib.nullcontext():
        steps.forward(**inputs(height=16))
    assert close(steps.step(), expected, 1e-5) and counter.frame_count == 2


# ---- compiled in earnest


@pytest.mark.slow
@pytest.mark.parametrize("interval", [0, 1])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)], ids=str)
def test_compiled_loss_and_gradients_equal_plain_ones(dtype, bound, interval):
    counter = CompileCounterWithBackend("inductor")
    steps = Steps(counter, interval=interval, dtype=dtype, fullgraph=True)
    found, expected = steps.step(), steps.step(steps.backward)
    assert abs(found[0] - expected[0]) < bound * expected[0]
    assert counter.frame_count == 2 * (1 + bool(interval))
    if dtype == torch.float32:
        assert difference(found[1], expected[1]) < bound
    else:  # two ways of rounding: as close to exact numbers as the plain one
        exact = Steps()
        _, wanted = exact.step(exact.backward)
        assert difference(found[1], wanted) < 1.3 * difference(expected[1], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_packed_kinds_compile_too(kind):
    counter = CompileCounterWithBackend("inductor")
    steps = Steps(counter, kind=kind, fullgraph=True)
    held = {leaf.dtype for leaf in tree_leaves(steps.forward.blocks[0].weights) if isinstance(leaf, torch.Tensor)}
    assert held & {torch.int8, torch.uint8, torch.float8_e4m3fn}
    assert close(steps.step(), steps.step(steps.backward), 1e-4 if "compute" not in kind else 0.02)
    assert counter.frame_count == 2
