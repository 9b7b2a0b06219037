"""Batches: in the plan's order, the same after a resume, counted when they are handed over."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from simpletuner.data.cache import BadItem
from simpletuner.types import Progress


def taken(loader, count: int) -> list:
    batches = [loader.next() for _ in range(count)]
    loader.close()
    return batches


def same(a, b) -> bool:
    facts = ("ids", "numbers", "captions", "dataset", "parent_target")
    tensors = all(torch.equal(a.text[name], b.text[name]) for name in a.text) and torch.equal(a.latents, b.latents)
    return tensors and all(getattr(a, fact) == getattr(b, fact) for fact in facts)


def test_an_epoch_meets_every_picture_and_progress_counts_what_was_handed_over(world, pictures):
    library = world.open(pictures, batch=2)
    progress = Progress()
    loader = world.loader(library, progress)
    assert loader.batches_in_epoch(1) == 4  # three pictures of each shape
    batches = [loader.next() for _ in range(4)]
    assert (progress.epoch, progress.position, progress.samples) == (1, 4, 8)
    assert len({id for batch in batches for id in batch.ids}) == 6
    assert [n for batch in batches for n in batch.numbers] == list(range(8))
    loader.next()
    assert (progress.epoch, progress.position, progress.samples) == (2, 1, 10)
    loader.close()


def test_a_batch_holds_stacked_latents_text_and_the_flags_of_its_dataset(world, pictures):
    library = world.open({**pictures, "loss_weight": 0.5, "is_regularisation_data": True}, batch=2)
    (batch,) = taken(world.loader(library, Progress()), 1)
    items = {item.sample.id: item for item in library.shelves[0].items}
    height, width = items[batch.ids[0]].placement.bucket
    assert batch.latents.shape == (2, 4, height // 8, width // 8)
    assert batch.text["t5"].shape == (2, 4, 2) and batch.text["t5_mask"].dtype == torch.uint8
    assert batch.weight.tolist() == [0.5, 0.5] and batch.parent_target and batch.dataset == "cats"


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("prefetch", [True, False])
def test_a_resume_goes_on_as_the_unbroken_run(world, pictures, stop, prefetch):
    world.options = world.options.model_copy(update={"dataloader_prefetch": prefetch})
    library = world.open({**pictures, "caption_dropout_probability": 0.4}, batch=2)
    straight = taken(world.loader(library, Progress()), 10)
    progress = Progress()
    first = taken(world.loader(library, progress), stop)
    again = world.open({**pictures, "caption_dropout_probability": 0.4}, batch=2)
    rest = taken(world.loader(again, Progress(**vars(progress))), 10 - stop)
    assert all(same(a, b) for a, b in zip(straight, first + rest, strict=True))


def test_ranks_share_the_global_batch_of_one(world, pictures):
    # batch 2 on one rank equals batch 1 on two ranks
    alone = world.open(pictures, batch=2)
    whole = taken(world.loader(alone, Progress()), 4)
    shares = []
    for rank in range(2):
        library = world.open(pictures, batch=1, ranks=2)
        progress = Progress()
        shares.append(taken(world.loader(library, progress, rank=rank, ranks=2), 4))
        assert (progress.position, progress.samples) == (4, 8)
    for batch, left, right in zip(whole, *shares, strict=True):
        assert batch.ids == left.ids + right.ids
        assert batch.numbers == left.numbers + right.numbers
        assert batch.captions == left.captions + right.captions


def test_dropout_and_variants_are_addressed_by_the_sample_number(world, pictures):
    folder = world.folder / "images"
    for path in folder.glob("*.png"):
        path.with_suffix(".txt").write_text("one\ntwo")
    entry = {**pictures, "caption_strategy": "textfile", "caption_dropout_probability": 0.25}
    library = world.open(entry)
    loader = world.loader(library, Progress())
    counts = Counter(loader._caption("cats/a_cat_0.png", number) for number in range(4000))
    assert 900 < counts[""] < 1100 and abs(counts["one"] - counts["two"]) < 200
    assert loader._caption("cats/a_cat_0.png", 7) == loader._caption("cats/a_cat_1.png", 7)


def test_several_datasets_are_mixed_and_never_in_one_batch(world, pictures):
    library = world.open(pictures, {**pictures, "id": "again", "train_batch_size": 3}, batch=2)
    progress = Progress()
    loader = world.loader(library, progress)
    batches = taken(loader, loader.batches_in_epoch(1))
    assert {(batch.dataset, len(batch.ids)) for batch in batches} == {("cats", 2), ("again", 3)}
    assert all({id.split("/")[0] for id in batch.ids} == {batch.dataset} for batch in batches)
    numbers = [number for batch in batches for number in batch.numbers]
    assert numbers == list(range(progress.samples))


def test_reading_ahead_hands_over_the_same_batches(world, pictures):
    library = world.open(pictures, batch=2)
    ahead = taken(world.loader(library, Progress()), 9)
    world.options = world.options.model_copy(update={"dataloader_prefetch": False})
    assert all(same(a, b) for a, b in zip(ahead, taken(world.loader(library, Progress()), 9), strict=True))


def test_damage_in_the_cache_stops_with_a_cache_error(world, pictures):
    library = world.open(pictures)
    progress = Progress()
    loader = world.loader(library, progress)
    for path in library.shelves[0].dataset.cache.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadItem):
        loader.next()
    loader.close()
    assert progress == Progress()
    world.images_encoded = 0
    world.fill(world.open(pictures))
    assert world.images_encoded >= 1, "what was found damaged is made again"
