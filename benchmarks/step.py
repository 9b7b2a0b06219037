"""Device time and memory of one gradient of the true-size transformer, in every form that the engine has.

    python benchmarks/step.py --out step.json --rows "fp8*" "nf4 512*" [--profile]

The blocks, runners, recordings and packed weights are the product's; weights are drawn on the device, and there is no
loader, no optimizer and no file. engine.py measures whole runs; this one is for many forms in little time, and for
looking where a step goes (--profile).
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simpletuner.adapters.lora import Lora
from simpletuner.adapters.options import Adapter
from simpletuner.kernels import attention
from simpletuner.kernels.compile import Compiled, prepare
from simpletuner.kernels.graphs import Graphs
from simpletuner.memory.budget import moved
from simpletuner.memory.runner import Runner
from simpletuner.memory.stream import Streamed
from simpletuner.models.flux import LORA_TARGETS
from simpletuner.models.flux.forward import FluxForward
from simpletuner.models.flux.layout import image_ids, text_ids
from simpletuner.quantization.linear import PackedLinear
from simpletuner.quantization.quantize import quantise

GIB = 2**30
TEXT = 512  # tokens
DEVICE = torch.device("cuda")


@dataclass(frozen=True)
class Form:
    size: int  # pixels along an edge
    kind: str | None = None  # of packed weights
    recomputed: bool = False
    moved: int = 0  # blocks that wait in RAM
    budget: float = 1.0  # activation_memory_budget

    @property
    def settings(self) -> dict[str, Any]:
        """The options that make a run compute so."""
        found: dict[str, Any] = {"gradient_checkpointing": self.recomputed, "blocks_to_swap": min(self.moved, 56)}
        found |= {"base_model_precision": self.kind} if self.kind else {}
        return found | ({"activation_memory_budget": self.budget} if self.budget < 1 else {})


FORMS = {
    "bf16 512 none": Form(512),
    "bf16 1024 none": Form(1024),
    "bf16 1024 none, budget 0.5": Form(1024, budget=0.5),
    "bf16 1024 ckpt": Form(1024, recomputed=True),
    "fp8-compute 512 none": Form(512, "fp8-compute"),
    "fp8-compute 1024 none": Form(1024, "fp8-compute"),
    "fp8-compute 1024 ckpt": Form(1024, "fp8-compute", True),
    "int8 1024 ckpt": Form(1024, "int8-quanto", True),
    "nf4 512 ckpt": Form(512, "nf4-bnb", True),
    "nf4 1024 ckpt": Form(1024, "nf4-bnb", True),
    "nf4 512 streamed": Form(512, "nf4-bnb", True, 57),
    "bf16 512 streamed": Form(512, None, True, 57),
    "bf16 1024 streamed": Form(1024, None, True, 57),
    "bf16 1024, 40 streamed": Form(1024, None, True, 40),
}


def transformer(kind: str | None) -> Any:
    """Drawn on the device layer by layer; joined layers lie side by side, as the loader puts them."""
    from diffusers import FluxTransformer2DModel

    from simpletuner.models.flux.forward import joined
    from simpletuner.modules import put, put_layer, side_by_side

    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16)
    for paths in joined(model):
        side_by_side(model, paths)
    for name, parameter in list(model.named_parameters()):
        path, _, leaf = name.rpartition(".")
        value = torch.randn(parameter.shape, device=DEVICE, dtype=torch.bfloat16)
        value *= 0.02 if parameter.ndim > 1 else 0.01
        if leaf == "weight" and parameter.ndim == 1:
            value += 1  # norms
        owner = model.get_submodule(path)
        if kind and leaf == "weight" and isinstance(owner, nn.Linear) and "transformer_blocks" in path:
            put_layer(model, path, PackedLinear(quantise(kind, value)))
        else:
            put(model, name, value)
    return model.eval()


def inputs(size: int) -> dict[str, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE)

    tokens = (size // 16) ** 2
    return {
        "hidden_states": draw(1, tokens, 64).bfloat16(),
        "encoder_hidden_states": (draw(1, TEXT, 4096) * 0.2).bfloat16(),
        "pooled_projections": draw(1, 768).bfloat16(),
        "timestep": torch.tensor([0.6], device=DEVICE),
        "guidance": torch.ones(1, device=DEVICE),
        "target": draw(1, tokens, 64),
    }


def engine(form: Form) -> tuple[FluxForward, list[nn.Parameter]]:
    model = transformer(form.kind)
    adapter = Lora(
        Adapter().model_copy(update={"lora_rank": 16}), LORA_TARGETS["all+ffs"], seed=1, dtype=torch.bfloat16
    )
    adapter.attach(model)
    for name, value in adapter.parameters().items():
        if "lora_B" in name:
            value.data.normal_(0, 0.01)
    forward = FluxForward(
        model, adapter.low_rank() or {}, attention.choose("diffusers", DEVICE, torch.bfloat16).training
    )
    chosen = moved(len(forward.blocks), form.moved)
    where = None
    if chosen:
        waiting = [block for block in forward.order if block.index in chosen]
        where = Streamed(waiting, DEVICE)
    prepare(8, form.budget)
    settings: dict[str, Any] = {"strict": True, "backend": "inductor", "dynamic": False}
    compiled = {kind: Compiled(function, kind, **settings) for kind, function in forward.functions.items()}
    for function in compiled.values():
        function.on = True
    forward.runner = Runner(1 if form.recomputed else 0, residency=where, functions=compiled)
    forward.prologue = Runner(residency=where)
    return forward, list(adapter.parameters().values())


def measure(form: Form, steps: int, look: bool) -> dict[str, Any]:
    torch.compiler.reset()
    forward, trained = engine(form)
    given, cells = inputs(form.size), form.size // 8

    def loss(tensors: Any) -> Tensor:
        words = {name: value for name, value in tensors.items() if name != "target"}
        out = forward(**words, img_ids=image_ids(cells, cells, DEVICE), txt_ids=text_ids(TEXT, DEVICE))[0]
        return (out.float() - tensors["target"]).square().mean()

    begun = time.perf_counter()
    loss(given).backward()
    torch.cuda.synchronize()
    compiling = time.perf_counter() - begun
    direct = torch.cat([p.grad.flatten().float() for p in trained if p.grad is not None])
    clear(trained)
    graphs = Graphs(loss, trained)
    graphs.run(given, 1.0)
    assert not graphs.failure, graphs.failure
    recorded = torch.cat([p.grad.flatten().float() for p in trained if p.grad is not None])
    difference = float((direct - recorded).norm() / direct.norm())
    del direct, recorded
    torch.cuda.empty_cache()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        clear(trained)
        value = graphs.run(given, 1.0)
        event.record()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    record = {
        "seconds": round(
            statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)) / 1e3, 4
        ),
        "reserved_gib": round(torch.cuda.memory_reserved() / GIB, 2),
        "driver_gib": round((total - free) / GIB, 2),
        "compile_s": round(compiling, 1),
        "loss": round(float(value), 4),  # type: ignore[arg-type]
        "recorded_against_direct": f"{difference:.1e}",
    }
    if look:
        profile(lambda: graphs.run(given, 1.0))
    clear(trained)
    return record


def clear(trained: list[nn.Parameter]) -> None:
    for parameter in trained:
        parameter.grad = None


def profile(step: Callable[[], Any]) -> None:
    """Prints the kernels of one step, the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as Profile

    with Profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.device_time_total)[:30]
    for row in rows:
        print(f"  {row.device_time_total / 1e3:8.2f} ms {row.count:5d}  {row.key[:140]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=["*"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    records = {}
    for pattern in options.rows:
        for name in fnmatch.filter(FORMS, pattern):
            try:
                form = FORMS[name]
                settings = {"size": form.size, "settings": form.settings}
                records[name] = measure(form, options.steps, options.profile) | settings
            except (RuntimeError, AssertionError) as error:
                records[name] = {"error": str(error)[:300]}
            gc.collect()
            torch.cuda.empty_cache()
            print(name, json.dumps(records[name]), flush=True)
            facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": records}
            options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
