"""Filling the caches: only what is missing, only once, and nothing in the user's folders."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from simpletuner.data.cache import TensorCache
from simpletuner.data.fill import Encoders, Writer, check_space, fill_text
from simpletuner.data.keys import text_key
from simpletuner.errors import DataError, DiskError


def tree_hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return str([(str(p), p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])


def run(world, *entries, **keys):
    """One start of a program: scan, fill; returns (library, latents, texts) and leaves counts of this start alone."""
    world.vae_loads = world.text_loads = world.images_encoded = world.texts_encoded = 0
    library = world.open(*entries, **keys)
    latents, texts = world.fill(library)
    return library, latents, texts


NOTHING = {"vae_loads": 0, "text_loads": 0, "images": 0, "texts": 0}


def test_the_first_fill_encodes_all_and_the_second_opens_nothing(world, pictures):
    before = tree_hash(world.folder / "images")
    run(world, pictures)
    assert world.counts() == {"vae_loads": 1, "text_loads": 1, "images": 6, "texts": 7}
    run(world, pictures)
    assert world.counts() == NOTHING
    assert tree_hash(world.folder / "images") == before
    progress = [event.data for event in world.seen if event.type == "cache.progress"]
    assert progress[-1] == {"done": 6, "dataset": "cats", "kind": "vae", "total": 6, "hits": 6}


def test_one_edited_picture_is_one_encoded_item(world, pictures):
    run(world, pictures)
    Image.new("RGB", (100, 80), (1, 2, 3)).save(world.folder / "images/a_cat_1.png")
    library, latents, _ = run(world, pictures)
    assert world.counts() == {**NOTHING, "vae_loads": 1, "images": 1}
    assert library.shelves[0].scan.headers_read == 1


def test_touching_or_renaming_a_picture_encodes_no_latent(world, pictures):
    _, latents, _ = run(world, pictures)
    before = latents["cats"].read("cats/a_cat_1.png")
    os.utime(world.folder / "images/a_cat_0.png", (1, 1))
    (world.folder / "images/a_cat_1.png").rename(world.folder / "images/a_dog.png")
    _, latents, _ = run(world, pictures)
    assert world.counts() == {**NOTHING, "text_loads": 1, "texts": 1}
    assert torch.equal(before, latents["cats"].read("cats/a_dog.png"))


def test_what_does_not_change_a_placement_encodes_nothing(world, pictures):
    run(world, pictures)
    for keys in (
        {"repeats": 3, "probability": 0.5, "loss_weight": 2, "vae_batch_size": 1},
        {"resolution": 64**2 / 1e6, "resolution_type": "area"},
        {"minimum_image_size": 64, "max_workers": 1},
    ):
        run(world, {**pictures, **keys})
        assert world.counts() == NOTHING, keys
    run(world, {**pictures, "resolution": 96})
    assert world.counts() == {**NOTHING, "vae_loads": 1, "images": 6}


def test_equal_pictures_in_datasets_that_share_a_cache_are_encoded_once(world, pictures):
    shared = {**pictures, "cache_dir_vae": str(world.folder / "vae")}
    run(world, shared, {**shared, "id": "again"})
    assert world.counts() == {"vae_loads": 1, "text_loads": 1, "images": 6, "texts": 7}


def test_latents_do_not_depend_on_batch_size_order_or_a_rebuilt_cache(world, pictures):
    _, latents, _ = run(world, {**pictures, "vae_batch_size": 1, "cache_dir_vae": str(world.folder / "one")})
    _, again, _ = run(world, {**pictures, "vae_batch_size": 4, "cache_dir_vae": str(world.folder / "two")})
    for id in latents["cats"].keys:
        assert latents["cats"].keys[id] == again["cats"].keys[id]
        assert torch.allclose(latents["cats"].read(id).float(), again["cats"].read(id).float(), atol=0.02)
    other = {"id": "dogs", "vae_batch_size": 1, "cache_dir_vae": str(world.folder / "three")}
    _, exact, _ = run(world, {**pictures, **other})
    for id in latents["cats"].keys:
        assert torch.equal(latents["cats"].read(id), exact["dogs"].read(id.replace("cats/", "dogs/")))


def test_latents_have_the_bucket_of_their_placement(world, pictures):
    library, latents, _ = run(world, pictures)
    for sample, placement in library.shelves[0].items:
        height, width = placement.bucket
        assert latents["cats"].read(sample.id, (4, height // 8, width // 8)).dtype == torch.bfloat16


def test_a_truncated_picture_leaves_the_run_is_listed_and_is_not_tried_again(world, pictures):
    path = world.folder / "images/a_cat_3.png"
    noise = torch.randint(0, 256, (80, 100, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:9000])
    library, latents, _ = run(world, pictures)
    assert world.images_encoded == 5 and len(library.shelves[0].items) == 5
    listed = json.loads((library.shelves[0].dataset.cache / "rejected-cats.jsonl").read_text())
    assert listed["path"] == "a_cat_3.png" and listed["reason"] == "truncated"
    assert any("a_cat_3.png (truncated)" in str(event.data) for event in world.seen if event.type == "warning")
    library, _, _ = run(world, pictures)
    assert world.counts() == NOTHING and len(library.shelves[0].items) == 5


def test_losing_pictures_may_make_a_dataset_too_small(world, pictures):
    for path in (world.folder / "images").glob("*.png"):
        path.write_bytes(path.read_bytes()[:-40])
    library = world.open(pictures)
    with pytest.raises(DataError, match="no image is left"):
        world.fill(library)


def test_a_latent_that_is_not_finite_is_tried_in_fp32_then_left_out(world, pictures):
    world.vae.to(torch.bfloat16)
    first = []

    def encode(vae, pixels, noise):
        wide = next(vae.parameters()).dtype == torch.float32
        latents = world.encode_images(vae.float(), pixels, noise)
        vae.to(torch.float32 if wide else torch.bfloat16)
        first[:] = first or [pixels[0]]
        for i, image in enumerate(pixels):
            # The first picture overflows in bf16 alone, the darkest in fp32 as well.
            if image.max() < -0.9 or (not wide and torch.equal(image, first[0])):
                latents[i] = float("inf")
        return latents

    Image.new("RGB", (80, 80), (0, 0, 0)).save(world.folder / "images/a_cat_2.png")
    library = world.open(pictures)
    latents, _ = world.fill(library, encode)
    assert {i.path: i.reason for i in library.shelves[0].scan.left_out} == {"a_cat_2.png": "non-finite-latent"}
    assert next(world.vae.parameters()).dtype == torch.bfloat16
    assert all(torch.isfinite(latents["cats"].read(item.sample.id)).all() for item in library.shelves[0].items)


def test_an_embedding_that_is_not_finite_is_an_error(world):
    cache = TensorCache.at(world.folder / "t", "e" * 64, "text")
    with pytest.raises(DataError, match="'a cat' is not finite"):
        fill_text(
            cache,
            ["a cat"],
            Encoders(lambda: None, lambda encoders, captions: {"t5": torch.full((1, 2), float("nan"))}),
            batch_size=1,
            events=world.events,
        )
    assert cache.missing([text_key("a cat", cache.encoder)])


def test_encoders_are_released_after_the_fill(world):
    import weakref

    loaded = []

    def load():
        encoders = torch.nn.Linear(2, 2)
        loaded.append(weakref.ref(encoders))
        return encoders

    cache = TensorCache.at(world.folder / "t", "e" * 64, "text")
    encoders = Encoders(load, lambda e, c: {"t5": e(torch.ones(len(c), 2))})
    fill_text(cache, ["a"], encoders, batch_size=1, events=world.events)
    assert loaded[0]() is None


def test_too_little_disk_is_a_disk_error_with_both_numbers(world):
    cache = TensorCache.at(world.folder / "t", "e" * 64, "text")
    check_space(cache, 1000)
    with pytest.raises(DiskError, match=r"GB are needed and .* GB are free") as found:
        check_space(cache, 10**18)
    assert found.value.exit_code == 7


def test_a_failed_write_is_not_lost(world):
    (world.folder / "blocked").write_text("")
    cache = TensorCache.at(world.folder / "blocked", "e" * 64, "text")
    with pytest.raises(DiskError), Writer(cache) as writer:
        writer.put("0" * 64, {"x": torch.zeros(1)})


def test_a_picture_that_changes_while_it_is_read_is_never_stored_under_the_old_key(world, pictures):
    library = world.open(pictures)
    library.shelves[0].hash()
    Image.new("RGB", (100, 80), (7, 7, 7)).save(world.folder / "images/a_cat_1.png")
    world.fill(library)
    assert {i.path: i.detail for i in library.shelves[0].scan.left_out} == {"a_cat_1.png": "changed while it was read"}


def test_a_read_only_dataset_works(world, pictures):
    folder = world.folder / "images"
    for path in [*folder.iterdir(), folder]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        run(world, pictures)
    finally:
        folder.chmod(0o755)
    assert world.images_encoded == 6


def test_descriptions_follow_content_and_placement_only(world, pictures):
    def description(**keys):
        library, _, _ = run(world, {**pictures, **keys})
        return library.describe()[0]

    first = description()
    assert first["images"] == 6 and sum(first["buckets"].values()) == 6 and first["id"] == "cats"
    assert description(vae_batch_size=1)["fingerprint"] == first["fingerprint"]
    assert description(resolution=96)["fingerprint"] != first["fingerprint"]
