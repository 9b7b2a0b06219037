"""Checks and times the kernels of frozen matrices on one GPU: unpacking, products of every kind, products in 8 bits.

    PYTHONPATH=. python benchmarks/kernels.py --out kernels.json

Random weights of the shapes of Flux, its joined layers as one matrix. Every figure is the median of the device's own
time for a recorded graph, caches emptied before each replay as between the layers of a model. Needs torch, Triton and
this package, nothing else; under a minute. Ends with 1 if a kernel is wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simpletuner.kernels import compute8
from simpletuner.kernels.product import frozen_product, plain
from simpletuner.kernels.weights import BLOCK, GROUP, NESTED, Compute8, Groups, Nf4, Rows

# (out, in) of the matrices of a double block and of a single one; q, k, v (and the MLP) joined.
SHAPES = {
    "qkv": (9216, 3072),
    "out": (3072, 3072),
    "up": (12288, 3072),
    "down": (3072, 12288),
    "qkv+mlp": (21504, 3072),
    "single out": (3072, 15360),
}
ROWS = (1536, 4608)  # tokens at 512 x 512 and 1024 x 1024
REPLAYS = 9
FLUSH_BYTES = 2**28  # several times the second-level cache
LARGEST_ERROR = {"compute int8": 0.0125, "compute fp8": 0.039}  # on Gaussian data; others differ by rounding alone
ROUNDING = 0.006
BF16 = torch.bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--kinds", nargs="*", help="only these kinds")
    arguments = parser.parse_args()
    started, device = time.monotonic(), torch.cuda.get_device_name()
    torch.manual_seed(0)
    makers = {kind: make for kind, make in MAKERS.items() if not arguments.kinds or kind in arguments.kinds}
    capable = torch.cuda.get_device_capability() >= (8, 9)
    makers = {kind: make for kind, make in makers.items() if capable or kind != "compute fp8"}
    clock = Clock()
    unpacking = [line for kind, make in makers.items() for line in unpackings(kind, make, clock)]
    parts = pieces(clock, capable)
    products = []
    for name, shape in SHAPES.items():
        for rows in ROWS:
            products += both_ways(name, shape, rows, makers, clock)
    wrong = [line for line in (*unpacking, *products) if line["error"] > line["bound"]]
    versions = {"device": device, "torch": torch.__version__, "seconds": round(time.monotonic() - started, 1)}
    if arguments.out:
        arguments.out.write_text(
            json.dumps({**versions, "unpack": unpacking, "pieces": parts, "products": products}, indent=1)
        )
    print(*versions.values(), sep=", ")
    show(unpacking, parts, products, list(makers))
    for line in wrong:
        print("WRONG", json.dumps(line))
    sys.exit(bool(wrong))


class Clock:
    """Median seconds of the device for a call without host reads."""

    def __init__(self) -> None:
        self.cache = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def __call__(self, call: Callable[[], Any]) -> float:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call()  # compiles, and asks the libraries for their workspace
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            call()
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPLAYS + 1)]
        for begin, end in pairs:
            self.cache.zero_()  # long enough for the host to be ahead when the clock starts
            begin.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs[1:]) / 1e3


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=BF16)


def _bytes(size: int) -> Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, device="cuda")


def _groups(bits: int) -> Callable[[int, int], Groups]:
    def make(n: int, k: int) -> Groups:
        scale = torch.rand(n * k // GROUP, device="cuda") * 0.1 / 2**bits
        return Groups(_bytes(n * k * bits // 8), scale.to(BF16), (-scale * (2**bits - 1) / 2).to(BF16), n, k)

    return make


def _nf4(n: int, k: int) -> Nf4:
    num = n * k // BLOCK
    scale = torch.rand(-(-num // NESTED), device="cuda") * 0.01
    return Nf4(_bytes(n * k // 2), _bytes(num), scale, torch.full_like(scale, 0.05), n, k)


def _codes(kind: Any, dtype: torch.dtype) -> Callable[[int, int], Any]:
    return lambda n, k: kind(*compute8.quantize_rows(_draw(n, k), dtype))


MAKERS: dict[str, Callable[[int, int], Any]] = {
    "int8": _codes(Rows, torch.int8),
    "fp8": _codes(Rows, torch.float8_e4m3fn),
    "4 bits": _groups(4),
    "2 bits": _groups(2),
    "nf4": _nf4,
    "compute int8": _codes(Compute8, torch.int8),
    "compute fp8": _codes(Compute8, torch.float8_e4m3fn),
}


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def num_bytes(*tensors: Any) -> int:
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


def unpackings(kind: str, make: Callable[[int, int], Any], clock: Clock) -> list[dict[str, Any]]:
    """Seconds and bytes per second of unpacking, for the smallest and the largest matrix."""
    lines = []
    for shape in (SHAPES["out"], SHAPES["qkv+mlp"]):
        weight = make(*shape)
        found, seconds = plain(weight, BF16), clock(lambda weight=weight: plain(weight, BF16))
        line = {"kind": kind, "shape": shape, "ms": seconds * 1e3, "gb_s": num_bytes(*weight, found) / seconds / 1e9}
        lines.append({**line, "error": error(found, weight.dequantize(BF16)), "bound": 1e-4})
    return lines


def pieces(clock: Clock, capable: bool) -> list[dict[str, Any]]:
    """What a product in 8 bits is made of, one by one: milliseconds, and GB or TFLOP per second."""
    lines = []
    for dtype in (torch.int8, torch.float8_e4m3fn)[: 1 + capable]:
        for name, (n, k) in SHAPES.items():
            weight, x, rows = _codes(Compute8, dtype)(n, k), _draw(ROWS[-1], k), ROWS[-1]
            fold = torch.rand(k, device="cuda")
            a, s = compute8.quantize_rows(x, dtype)
            calls: dict[str, tuple[Callable[[], Any], float]] = {
                "quantize": (lambda x=x, dtype=dtype: compute8.quantize_rows(x, dtype), rows * k * 3),
                "fold and quantize": (lambda x=x, d=dtype, f=fold: compute8.quantize_rows(x, d, f), rows * k * 3),
                "transpose": (lambda w=weight: compute8.transposed(w.codes), n * k * 2),
                "multiply": (
                    lambda a=a, s=s, w=weight: compute8.multiply(a, w.codes, s, w.scale, None, BF16),
                    2e-3 * rows * n * k,
                ),
            }
            for piece, (call, work) in calls.items():
                seconds = clock(call)
                line = {"dtype": str(dtype)[6:], "layer": name, "piece": piece, "ms": seconds * 1e3}
                lines.append({**line, "rate": work / seconds / 1e9})
    return lines


def both_ways(
    name: str, shape: tuple[int, int], rows: int, makers: dict[str, Any], clock: Clock
) -> list[dict[str, Any]]:
    """Forward and the gradient of the input, each kind beside bfloat16."""
    x, dy, bias, w = _draw(rows, shape[1]), _draw(rows, shape[0]), _draw(shape[0]), _draw(*shape)
    head = {"layer": name, "shape": shape, "rows": rows}
    times = {"forward": clock(lambda: F.linear(x, w, bias)), "dx": clock(lambda: dy @ w)}
    flop = 2 * rows * shape[0] * shape[1]
    lines = [
        {**head, "kind": "bf16", "way": way, "ms": s * 1e3, "tflop_s": flop / s / 1e12, "error": 0.0, "bound": 0.0}
        for way, s in times.items()
    ]
    for kind, make in makers.items():
        weight, leaf = make(*shape), x.clone().requires_grad_()
        matrix, y = weight.dequantize(BF16), frozen_product(leaf, weight, bias)
        wrong = {"forward": error(y.detach(), F.linear(x, matrix, bias))}
        wrong["dx"] = error(torch.autograd.grad(y, leaf, dy)[0], dy @ matrix)
        tensors, numbers = [t for t in weight if isinstance(t, Tensor)], [str(n) for n in weight if isinstance(n, int)]
        name_ = " ".join((type(weight).__name__, *numbers))
        calls = {
            "forward": lambda weight=weight: frozen_product(x, weight, bias),
            "dx": lambda tensors=tensors, name_=name_: torch.ops.simpletuner.packed_product_dx(
                dy, tensors, name_, None, None
            ),
        }
        for way, call in calls.items():
            seconds, bound = clock(call), LARGEST_ERROR.get(kind, ROUNDING)
            line = {**head, "kind": kind, "way": way, "ms": seconds * 1e3, "tflop_s": flop / seconds / 1e12}
            lines.append({**line, "error": wrong[way], "bound": bound})
    return lines


def show(unpacking: list[Any], parts: list[Any], products: list[Any], kinds: list[str]) -> None:
    """Three short tables."""
    print("\nunpack to bf16      3072x3072           21504x3072")
    for small, large in zip(unpacking[::2], unpacking[1::2], strict=True):
        cells = [f"{line['ms']:9.3f} ms{line['gb_s']:6.0f} GB/s" for line in (small, large)]
        print(f"{small['kind']:14}" + "".join(cells))
    names = ("quantize", "fold and quantize", "transpose", "multiply")
    print(f"\n{'8 bits, 4608 rows':30}" + "".join(f"{name:>24}" for name in names))
    for start in range(0, len(parts), len(names)):
        line = parts[start : start + len(names)]
        units = ["GB/s"] * 3 + ["TFLOP/s"]
        cells = [f"{part['ms']:.3f} ms {part['rate']:5.0f} {unit}" for part, unit in zip(line, units, strict=True)]
        print(f"{line[0]['dtype']:14}{line[0]['layer']:16}" + "".join(f"{cell:>24}" for cell in cells))
    print(f"\n{'time over that of bf16':34}{'bf16 ms':>9}{'TFLOP/s':>9}" + "".join(f"{kind:>14}" for kind in kinds))
    table = {(p["layer"], p["rows"], p["way"], p["kind"]): p for p in products}
    for layer, rows, way, kind in table:
        if kind == "bf16":
            base = table[layer, rows, way, kind]
            ratios = [table[layer, rows, way, other]["ms"] / base["ms"] for other in kinds]
            head = f"{layer:16}{rows:8}{way:>10}{base['ms']:9.3f}{base['tflop_s']:9.0f}"
            print(head + "".join(f"{ratio:14.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
