"""What is tried when memory runs out while caches are made, rung by rung, and what the cache holds afterwards."""

from __future__ import annotations

import weakref

import pytest
import torch

from simpletuner.data.cache import TensorCache
from simpletuner.data.fill import Encoders, Images, fill_latents, fill_text
from simpletuner.data.keys import latent_key, text_key, tiled_instead
from simpletuner.data.ladder import Batches, Full, loaded
from simpletuner.errors import HardwareError

PLAIN, TILES = "f" * 64, "a" * 64  # fingerprints


def rungs(world) -> list[tuple[str, str]]:
    return [(e.data["phase"], e.data["action"]) for e in world.seen if e.type == "memory.retry"]


def short(most: int, encode):
    """`encode` of (model, items, ...) where memory is enough for `most` items; notes the sizes that were tried."""

    def limited(model, items, *rest):
        limited.sizes.append(len(items))
        if len(items) > most:
            raise torch.OutOfMemoryError("simulated")
        return encode(model, items, *rest)

    limited.sizes = []
    return limited


# ---- the parts


def test_the_batch_is_halved_for_good_and_every_item_has_its_result(world):
    encode = short(2, lambda model, items: list(items))
    batches = Batches(8, lambda part: encode(None, part), "a phase", world.events)
    assert batches.run(range(8)) == list(range(8)) and encode.sizes == [8, 4, 2, 2, 2, 2]
    assert batches.run(range(3)) == [0, 1, 2] and encode.sizes[6:] == [2, 1]
    assert rungs(world) == [("a phase", "batch size 4"), ("a phase", "batch size 2")]


def test_one_item_that_does_not_fit_is_named(world):
    encode = short(0, None)
    with pytest.raises(Full) as found:
        Batches(8, lambda part: encode(None, part), "a phase", world.events).run(["first", "second"])
    assert found.value.item == "first" and found.value.__context__ is None


def test_nothing_of_a_failed_try_is_alive_in_the_next(world):
    held = []

    def encode(part):
        assert not any(one() for one in held)
        large = torch.zeros(len(part))
        held.append(weakref.ref(large))
        if len(part) > 1:
            raise torch.OutOfMemoryError("simulated")
        return [large.sum()]

    Batches(4, encode, "a phase", world.events).run(range(4))
    assert len(held) == 6


def test_a_loader_may_have_put_it_into_words_of_its_own():
    def packing():
        try:
            raise torch.OutOfMemoryError("simulated")
        except torch.OutOfMemoryError as error:
            raise HardwareError("GPU memory ran out while it was packed") from error

    with pytest.raises(Full):
        loaded(packing)

    def broken():
        raise HardwareError("this card lacks something")

    with pytest.raises(HardwareError, match="lacks something"):
        loaded(broken)
    assert loaded(lambda: 3) == 3


# ---- texts


CAPTIONS = [f"{letter} cat" for letter in "abcdef"]


def texts(world, encoders, batch_size=4) -> TensorCache:
    cache = TensorCache.at(world.folder / "t", "e" * 64, "text")
    fill_text(cache, CAPTIONS, encoders, batch_size=batch_size, events=world.events)
    return cache


def test_texts_are_encoded_on_the_cpu_when_one_at_a_time_does_not_fit(world):
    gone = []

    def load():
        model = torch.nn.Linear(2, 2)
        gone.append(weakref.ref(model))
        return model

    def load_on_cpu():
        assert gone[0]() is None, "the first encoders are still in memory"
        return world.load_encoders()

    encode = short(0, None)
    cache = texts(world, Encoders(load, encode, Encoders(load_on_cpu, world.encode_text)))
    assert encode.sizes == [4, 2, 1] and world.text_loads == 1 and world.texts_encoded == 6
    assert rungs(world)[-1] == ("text cache", "text encoders on the CPU, which takes longer") and len(rungs(world)) == 3
    assert not cache.missing(text_key(caption, cache.encoder) for caption in CAPTIONS)


def test_what_the_first_encoders_made_stays(world):
    made = []

    def encode(encoders, captions):
        if made:
            raise torch.OutOfMemoryError("simulated")
        made.extend(captions)
        return world.encode_text(encoders, captions)

    cache = texts(world, Encoders(str, encode, Encoders(world.load_encoders, world.encode_text)))
    assert len(made) == 4 and world.texts_encoded == 6
    progress = [event.data["done"] for event in world.seen if event.type == "cache.progress"]
    assert progress[-1] == 6 and not cache.missing(text_key(caption, cache.encoder) for caption in CAPTIONS)


def test_encoders_that_cannot_be_loaded_are_loaded_on_the_cpu(world):
    def load():
        raise torch.OutOfMemoryError("simulated")

    cache = texts(world, Encoders(load, world.encode_text, Encoders(world.load_encoders, world.encode_text)))
    assert not cache.missing(text_key(caption, cache.encoder) for caption in CAPTIONS)
    assert [action for _, action in rungs(world)] == ["text encoders on the CPU, which takes longer"]


def test_texts_that_fit_nowhere_are_a_hardware_error_with_advice(world):
    encode = short(0, None)
    with pytest.raises(HardwareError, match="text cache") as found:
        texts(world, Encoders(str, encode, Encoders(str, encode)))
    assert found.value.exit_code == 5 and encode.sizes == [4, 2, 1] * 2
    for option in ("offload_during_startup", "text_encoder_2_precision"):
        assert option in found.value.problems[0].fix


# ---- images


class Tiles:
    """Images with spare ones in tiles; each way has memory for so many pictures at once."""

    def __init__(self, world, whole: int, tiled: int = 4, tile: int = 32):
        self.world = world
        self.whole, self.tiled = (short(most, world.encode_images) for most in (whole, tiled))
        spare = Images(world.load_vae, self.tiled, TILES, 4, 8, tile=tile)
        self.images = Images(world.load_vae, self.whole, PLAIN, 4, 8, spare, tile)

    def fill(self, library):
        return fill_latents(library, self.images, events=self.world.events)


def test_images_are_halved_down_to_one(world, pictures):
    made = Tiles(world, whole=1)
    latents = made.fill(world.open(pictures))["cats"]
    assert made.whole.sizes[:3] == [3, 1, 1] and made.whole.sizes.count(1) == 6 and not made.tiled.sizes
    assert rungs(world) == [("image cache", "batch size 1")]
    assert latents.cache.encoder == PLAIN and not latents.cache.missing(latents.keys.values())


def test_then_all_are_made_in_tiles_under_the_key_of_tiles(world, pictures):
    library = world.open(pictures)
    made = Tiles(world, whole=0)
    latents = made.fill(library)["cats"]
    assert sum(made.tiled.sizes) == 6 and rungs(world)[-1][1].startswith("tiling, for all images; vae_enable_tiling")
    items = {item.sample.id: item for item in library.shelves[0].items}
    for id, key in latents.keys.items():
        assert key == latent_key(items[id].sample.digest, items[id].placement, TILES)
        assert latents.read(id).isfinite().all()
    plain = TensorCache.at(library.shelves[0].dataset.cache, PLAIN, "vae")
    assert len(plain.missing(latent_key(i.sample.digest, i.placement, PLAIN) for i in items.values())) == 6


def test_a_later_start_takes_the_tiles_at_once_and_says_so(world, pictures):
    first = Tiles(world, whole=0).fill(world.open(pictures))["cats"]
    world.vae_loads = 0
    again = Tiles(world, whole=4)  # memory would be enough now: a resumed run goes on with its own numbers
    assert again.fill(world.open(pictures))["cats"].keys == first.keys
    assert world.vae_loads == 0 and not again.whole.sizes and not again.tiled.sizes
    (warned,) = [event.data for event in world.seen if event.type == "warning" and event.data["code"] == "tiled"]
    assert "vae_enable_tiling=true" in warned["fix"]
    root = world.datasets.images[0].cache
    assert tiled_instead(root, PLAIN) and not tiled_instead(root, TILES)
    (mark,) = root.rglob("tiled-instead.txt")
    assert str(mark.relative_to(root)) in warned["fix"]
    mark.unlink()
    assert Tiles(world, whole=4).fill(world.open(pictures))["cats"].cache.encoder == PLAIN


def test_tiles_are_used_up_by_a_run_that_asks_for_them_and_not_by_one_that_does_not(world, pictures):
    """Latents that vae_enable_tiling=true has made are no reason to take tiles without it."""
    asked = Images(world.load_vae, world.encode_images, TILES, 4, 8)
    fill_latents(world.open(pictures), asked, events=world.events)
    made = Tiles(world, whole=4)
    assert made.fill(world.open(pictures))["cats"].cache.encoder == PLAIN and sum(made.whole.sizes) == 6


@pytest.mark.parametrize(("tiled", "tile", "tried"), [(0, 32, True), (4, 512, False)])
def test_an_image_that_does_not_fit_is_named(world, pictures, tiled, tile, tried):
    """Also where a tile would be the whole picture, so that nothing would be won."""
    made = Tiles(world, whole=0, tiled=tiled, tile=tile)
    with pytest.raises(HardwareError, match=r"a_cat_\d\.png: memory ran out") as found:
        made.fill(world.open(pictures))
    assert found.value.exit_code == 5 and bool(made.tiled.sizes) == tried
    assert "offload_during_startup" in found.value.problems[0].fix
    assert not tiled_instead(world.datasets.images[0].cache, PLAIN)


def test_a_picture_that_cannot_be_used_is_left_out_once(world, pictures):
    path = world.folder / "images/a_cat_3.png"
    path.write_bytes(path.read_bytes()[:-40])
    library = world.open(pictures)
    latents = Tiles(world, whole=0).fill(library)["cats"]
    assert len(library.shelves[0].items) == 5 and len(latents.cache.missing(latents.keys.values())) == 1
