"""The cache: keys name content, items are whole and checked, damage is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from simpletuner.data.cache import BadItem, TensorCache
from simpletuner.data.keys import item_path, latent_key, text_key
from simpletuner.data.stores.memory import MemoryStore
from simpletuner.types import Placement, Size

PLACEMENT = Placement(Size(64, 80), (0, 8), Size(64, 64))
KEY = text_key("a cat", "enc")


@pytest.fixture(params=["local", "memory"])
def cache(request, tmp_path):
    return (
        TensorCache.at(tmp_path, "enc" * 20, "text")
        if request.param == "local"
        else TensorCache(MemoryStore(), "enc", "text")
    )


def item() -> dict[str, torch.Tensor]:
    return {"t5": torch.randn(3, 5).bfloat16(), "t5_mask": torch.ones(3, dtype=torch.uint8)}


def test_what_is_written_is_read_to_the_bit(cache):
    tensors = item()
    assert cache.missing([KEY, "0" * 64, KEY]) == [KEY, "0" * 64]
    cache.write(KEY, tensors)
    assert cache.missing([KEY, "0" * 64]) == ["0" * 64]
    found = cache.read(KEY)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert found["t5"].dtype == torch.bfloat16


def test_an_item_is_a_safetensors_file_that_says_what_it_is(tmp_path):
    cache = TensorCache.at(tmp_path, "0123456789abcdef", "vae")
    cache.write(KEY, {"latent": torch.zeros(2, 3)})
    path = tmp_path / "0123456789ab" / KEY[:2] / f"{KEY}.safetensors"
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        assert (
            facts["kind"] == "vae" and facts["key"] == KEY and facts["convention"] == "1" and len(facts["sha256"]) == 64
        )
        assert file.get_tensor("latent").shape == (2, 3)
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_keys_follow_content_placement_and_encoder_only():
    base = latent_key("d", PLACEMENT, "e")
    moved = Placement(PLACEMENT.resize, (0, 9), PLACEMENT.bucket)
    others = {latent_key("x", PLACEMENT, "e"), latent_key("d", moved, "e"), latent_key("d", PLACEMENT, "x")}
    assert len(others | {base, latent_key("d", PLACEMENT, "e", mode="mode")}) == 5
    assert base == latent_key("d", PLACEMENT, "e")
    assert text_key("a", "e") != text_key("b", "e") != text_key("b", "f")
    # Keys outlive versions: a change here means that every cache in the world is encoded again.
    assert base == "34f1e30f25805a9e402b3d26c6369780fad40a8c77d2a5e7377d5c4064817879"


def broken(data: bytes, how: str) -> bytes:
    middle = len(data) - 3
    return {
        "bit flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "cut": data[:-4],
        "empty": b"",
        "header cut": data[:20],
        "other item": data.replace(KEY.encode(), KEY[::-1].encode()),
        "huge header": b"\xff" * 8 + data[8:],
    }[how]


@pytest.mark.parametrize("how", ["bit flipped", "cut", "empty", "header cut", "other item", "huge header"])
def test_damage_is_found_on_read_and_the_item_is_missing_afterwards(cache, how):
    cache.write(KEY, item())
    path = item_path(KEY)
    cache.store.write(path, broken(cache.store.read(path), how))
    with pytest.raises(BadItem) as found:
        cache.read(KEY)
    assert found.value.exit_code == 3
    assert cache.missing([KEY]) == [KEY] and cache.store.exists(path + ".bad")
    cache.write(KEY, item())
    cache.read(KEY)


def test_a_wrong_shape_is_damage(cache):
    cache.write(KEY, {"latent": torch.zeros(4, 8, 8)})
    cache.read(KEY, {"latent": (4, 8, 8)})
    with pytest.raises(BadItem):
        cache.read(KEY, {"latent": (4, 8, 9)})


def test_a_missing_item_says_so(cache):
    with pytest.raises(BadItem, match="missing"):
        cache.read(KEY)


WRITE_FOREVER = """
import sys, torch
from pathlib import Path
from simpletuner.data.cache import TensorCache
from simpletuner.data.keys import text_key
cache = TensorCache.at(Path(sys.argv[1]), "e" * 64, "text")
for n in range(100000):
    cache.write(text_key(str(n), "e"), {"x": torch.full((50000,), float(n))})
    print(n, flush=True)
"""


def test_a_kill_leaves_whole_items_only(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    cache = TensorCache.at(tmp_path, "e" * 64, "text")
    cache.store.clear_leftovers()
    names = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert names and all(path.suffix == ".safetensors" for path in names)
    for path in names:
        cache.read(path.stem)


def test_metadata_is_json_that_other_readers_take(cache):
    cache.write(KEY, item())
    data = cache.store.read(item_path(KEY))
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0 and "t5" in json.loads(data[8 : 8 + length])


def test_a_flaw_is_named_and_nothing_is_changed(cache):
    latent = {"latent": torch.ones(4, 8, 16)}
    cache.write(KEY, latent)
    picture = Size(64, 128)
    assert cache.flaw(KEY) == cache.flaw(KEY, 4 * 8 * 16 * 4, picture) == ""
    assert "2048 bytes in place of 100" in cache.flaw(KEY, 100)
    assert "[4, 8, 16]" in cache.flaw(KEY, 2048, Size(128, 64))
    cache.write(KEY, {"latent": torch.full((2, 2), float("nan"))})
    assert "not finite" in cache.flaw(KEY)
    data = cache.store.read(item_path(KEY))
    cache.store.write(item_path(KEY), data[:-1] + bytes([data[-1] ^ 1]))
    assert cache.flaw(KEY) == "its checksum differs"
    assert cache.store.exists(item_path(KEY))
    cache.store.write(item_path(KEY), b"")
    assert cache.flaw(KEY) == "the file is cut off"
    cache.store.write(item_path(KEY), (2).to_bytes(8, "little") + b"{}")
    assert cache.flaw(KEY) == "its header is not that of a cache item"
    cache.store.delete(item_path(KEY))
    assert cache.flaw(KEY) == "is missing"
