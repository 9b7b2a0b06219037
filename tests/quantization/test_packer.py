"""Packed while it is read, kept for the next start, and never half read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quantization.conftest import CPU, KEEP
from quantization.kinds import EVERY, missing
from torch import nn

from simpletuner.errors import DiskError, HardwareError
from simpletuner.modules import unfilled
from simpletuner.quantization import packer as packing
from simpletuner.quantization import shelf, store
from simpletuner.quantization.linear import PackedLinear
from simpletuner.quantization.packer import Packer
from simpletuner.quantization.quantize import quantise

KIND = "int8-compute"  # which needs no library
needs_quanto = pytest.mark.skipif(missing("quanto"), reason="without quanto")


def packed(module) -> set[str]:
    return {path for path, layer in module.named_modules() if isinstance(layer, PackedLinear)}


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = store.contents(one), store.contents(other)
    same = (
        a[n].dtype == b[n].dtype and torch.equal(a[n].view(-1).view(torch.uint8), b[n].view(-1).view(torch.uint8))
        for n in a
    )
    return a.keys() == b.keys() and all(same)


# ---- packed while it is read


@EVERY
def test_the_linear_layers_of_blocks_are_packed_and_the_rest_is_as_it_was(kind, loaded, plain):
    module, packer = loaded(kind)
    linear = {path for path, layer in plain.named_modules() if isinstance(layer, nn.Linear)}
    kept = {path for path in linear if "blocks" not in path}
    assert packed(module) == linear - kept and packer.num_packed == len(linear - kept) == 20
    assert {"proj_out", "x_embedder", "norm_out.linear"} < kept and "time_text_embed.timestep_embedder.linear_1" in kept
    assert "single_transformer_blocks.0.proj_out" in packed(module) and "transformer_blocks.0.norm1.linear" in packed(
        module
    )
    for path in packed(module):
        layer, matrix = module.get_submodule(path), plain.get_submodule(path)
        assert torch.equal(
            layer.packed.dequantize(torch.float32), quantise(kind, matrix.weight).dequantize(torch.float32)
        )
        assert torch.equal(layer.bias, matrix.bias)
    own = dict(plain.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in module.named_parameters())
    assert unfilled(module) == [] and not any(p.requires_grad for p in module.parameters())


@needs_quanto
def test_layers_that_no_group_fits_stay_and_are_told(part, plain):
    packer = Packer("int4-quanto", torch.float32, keep=KEEP)
    made = part()
    layer = made.module.transformer_blocks[0].attn
    layer.to_q = nn.Linear(64, 128, device="meta")  # as in a narrower model

    def fill(*, device, pack, home):
        assert pack("transformer_blocks.0.attn.to_q", torch.zeros(128, 64)) is None
        assert pack("x_embedder", torch.zeros(128, 64)) is None

    packer.load(made._replace(fill=fill), CPU)
    (told,) = [notice.message for notice in packer.notices if "stay" in notice.message]
    assert told == "1 layers of transformer stay in float32: their inputs are not a multiple of 128"


@pytest.mark.parametrize("start", [1, 2])
def test_each_tensor_and_each_packed_layer_goes_to_its_own_place(start, part, tmp_path):
    asked, packer, made = [], Packer(KIND, torch.float32, keep=KEEP, root=tmp_path), part()
    if start == 2:
        packer.load(part(), CPU)
    packer.load(made, CPU if start == 1 else torch.device("cuda", 7), home=lambda path: asked.append(path) or CPU)
    own = {name for name in store.contents(made.module) if name.rpartition(".")[0] not in packed(made.module)}
    assert {path for path in asked if path in packed(made.module)} == packed(made.module)
    assert own < set(asked) and {t.device for t in store.contents(made.module).values()} == {CPU}


def test_the_precision_of_what_stays_is_that_of_the_base(loaded):
    module, _ = loaded(KIND, torch.bfloat16)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=repr,
)
def test_too_little_memory_is_told_with_need_and_advice(error, loaded, monkeypatch):
    def full(*_):
        raise error

    monkeypatch.setattr(packing, "quantise", full)
    with pytest.raises(HardwareError, match="RAM ran out while the transformer was packed: about 0.0 GB") as raised:
        loaded(KIND)
    assert raised.value.exit_code == 5 and "fewer bytes" in raised.value.problems[0].fix


def test_another_error_is_not_taken_for_too_little_memory(loaded, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(packing, "quantise", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        loaded(KIND)


# ---- kept for the next start


@EVERY
def test_the_second_start_packs_nothing_and_has_equal_bytes(kind, loaded, tmp_path, monkeypatch):
    first, _ = loaded(kind, root=tmp_path / "weights")
    monkeypatch.setattr(packing, "quantise", lambda *_: pytest.fail("a matrix was packed"))
    second, packer = loaded(kind, root=tmp_path / "weights")
    assert equal(first, second) and packer.num_packed == 0 and unfilled(second) == []
    assert "weights from" in packer.notices[-1].message


def test_an_entry_says_what_it_holds(loaded, part, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 100_000)
    module, packer = loaded(KIND, root=tmp_path)
    (folder,) = shelf.folders(tmp_path)
    entry = shelf.read(folder)
    assert folder.name == packer.key("source") and entry.title == f"transformer {KIND}"
    assert (
        len(entry.files) > 3 and entry.num_bytes == shelf.num_bytes(folder) - (folder / shelf.MANIFEST).stat().st_size
    )
    assert abs(entry.num_bytes / packer.num_bytes(part().module) - 1) < 0.05
    assert entry.manifest["versions"]["torch"] == torch.__version__ and entry.manifest["keep"] == list(KEEP)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        (tmp_path / "x").touch() or 0o666 & (tmp_path / "x").stat().st_mode
    }
    again, _ = loaded(KIND, root=tmp_path)
    assert equal(module, again)


def test_everything_that_decides_the_bytes_is_in_the_key():
    def key(source="a", kind=KIND, dtype=torch.float32, **more):
        return Packer(kind, dtype, **more).key(source)

    keys = [key(), key("b"), key(kind="fp8-compute"), key(dtype=torch.bfloat16), key(keep=["x"]), key(via="pipeline")]
    keys += [key(via="pipeline", settings={"modules_to_not_convert": ["x"]})]
    assert len({*keys}) == len(keys) and key() == key(via="cpu") == key(suspicious=True)


@pytest.mark.parametrize("damage", ["truncated", "gone", "torn manifest", "other tensors"])
def test_a_damaged_entry_is_found_and_made_again(damage, loaded, tmp_path):
    first, _ = loaded(KIND, root=tmp_path)
    (folder,) = shelf.folders(tmp_path)
    (file,) = folder.glob("*.safetensors")
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "gone":
        file.unlink()
    elif damage == "torn manifest":
        (folder / shelf.MANIFEST).write_text('{"schema": 1, "fi')
    else:
        manifest = json.loads((folder / shelf.MANIFEST).read_text())
        manifest["tensors"].popitem()
        (folder / shelf.MANIFEST).write_text(json.dumps(manifest))
    again, packer = loaded(KIND, root=tmp_path)
    assert equal(first, again) and packer.num_packed == 20
    (warning,) = [n for n in packer.notices if n.severity == "warning"]
    assert "are damaged" in warning.message and "made again" in warning.message
    assert shelf.damaged(folder) == [] and shelf.abandoned(tmp_path) == [] and len(list(tmp_path.iterdir())) == 1


def test_an_entry_of_another_model_is_not_loaded(loaded, part, tmp_path):
    loaded(KIND, root=tmp_path)
    (folder,) = shelf.folders(tmp_path)
    manifest = json.loads((folder / shelf.MANIFEST).read_text())
    manifest["layers"].pop("transformer_blocks.0.attn.to_q")
    (folder / shelf.MANIFEST).write_text(json.dumps(manifest))
    _, packer = loaded(KIND, root=tmp_path)
    assert packer.num_packed == 20


def test_changed_bytes_are_found_after_an_unclean_end_and_by_verify(loaded, tmp_path):
    loaded(KIND, root=tmp_path)
    (folder,) = shelf.folders(tmp_path)
    (file,) = folder.glob("*.safetensors")
    with file.open("r+b") as handle:
        handle.seek(-5, os.SEEK_END)
        byte = handle.read(1)
        handle.seek(-5, os.SEEK_END)
        handle.write(bytes([byte[0] ^ 1]))
    assert shelf.flaws(folder) == [] and shelf.damaged(folder) == [f"{file.name} does not have its hash"]
    assert loaded(KIND, root=tmp_path)[1].num_packed == 0
    assert loaded(KIND, root=tmp_path, suspicious=True)[1].num_packed == 20
    assert shelf.damaged(folder) == []


def test_without_a_cache_nothing_is_written(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "write", lambda *_: pytest.fail("it was written"))
    loaded(KIND)


def test_room_is_checked_before_anything_is_packed(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "disk_free", lambda path: 1000)
    monkeypatch.setattr(packing, "quantise", lambda *_: pytest.fail("a matrix was packed"))
    with pytest.raises(DiskError, match="the quantised weights take about") as raised:
        loaded(KIND, root=tmp_path)
    assert "quantize_cache=false" in raised.value.problems[0].fix and list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_warning(loaded, tmp_path):
    (tmp_path / "weights").write_text("a file")
    module, packer = loaded(KIND, root=tmp_path / "weights")
    assert packed(module)
    (warning,) = [n for n in packer.notices if n.severity == "warning"]
    assert "could not be kept" in warning.message and "the run goes on" in warning.fix


def test_two_starts_at_once_keep_one_entry(loaded, tmp_path):
    module, packer = loaded(KIND, root=tmp_path)
    (folder,) = shelf.folders(tmp_path)
    before = (folder / shelf.MANIFEST).stat().st_mtime_ns
    store.write(tmp_path, packer.key("source"), module, {"part": "transformer", "kind": KIND})
    assert (folder / shelf.MANIFEST).stat().st_mtime_ns == before and list(tmp_path.iterdir()) == [folder]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from simpletuner.quantization import store
from simpletuner.quantization.linear import PackedLinear
from simpletuner.quantization.quantize import quantise

calls, when = 0, int(sys.argv[2])
def counted(name, call):
    def struck(*args, **kwargs):
        global calls
        calls += 1
        if calls == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return struck
torch.manual_seed(0)
module = nn.Sequential(*(PackedLinear(quantise("int8-compute", torch.randn(64, 64))) for _ in range(3)))
store.SHARD_BYTES = 5000
for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"), (store, "save_file")):
    setattr(owner, name, counted(name, getattr(owner, name)))
root = Path(sys.argv[1])
for _ in range(50):  # one process is forked for each point, so that torch is loaded once
    when += 1
    pid = os.fork()
    if pid == 0:
        store.write(root / str(when), "0" * 64, module, {"part": "x", "kind": "int8-compute"})
        os._exit(0)
    if os.waitpid(pid, 0)[1] == 0:
        break
print(when)
"""


def test_a_kill_at_any_write_leaves_nothing_or_a_whole_entry(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    points = int(done.stdout)
    assert points > 10
    states = []
    for point in range(1, points + 1):
        root = tmp_path / str(point)
        states.append([shelf.damaged(folder) for folder in shelf.folders(root)])
        hidden = [path for path in root.iterdir() if path.name.startswith(".")] if root.is_dir() else []
        assert shelf.abandoned(root) == hidden
    assert all(state in ([], [[]]) for state in states) and states[0] == [] and states[-1] == [[]]


# ---- as diffusers makes it


@pytest.mark.parametrize(
    "kind", ["int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto", "int8-torchao", "fp8-torchao"]
)
def test_what_diffusers_quantises_is_taken_over(kind, loaded):
    if missing(kind.partition("-")[2]):
        pytest.skip(f"without {kind}")
    ours, _ = loaded(kind)
    theirs, packer = loaded(kind, via="pipeline")
    assert equal(ours, theirs) and packer.num_packed == 20


@needs_quanto
def test_settings_reach_diffusers(loaded):
    module, _ = loaded("int8-quanto", via="pipeline", settings={"modules_to_not_convert": ["to_q"]})
    assert not any("to_q" in path for path in packed(module)) and len(packed(module)) == 18


def test_the_source_decides_the_key(folder, tmp_path):
    """One changed byte of the weights is another fingerprint, hence another key."""
    from simpletuner.models.digests import digests

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (file,) = copy.glob("*.safetensors")
    before = Packer(KIND, torch.float32).key(digests([file], remember=False)[0])
    with file.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"\x01")
    assert Packer(KIND, torch.float32).key(digests([file], remember=False)[0]) != before
