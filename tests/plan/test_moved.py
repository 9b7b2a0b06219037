"""Blocks that wait elsewhere, as the plan sees them: what they take, what they cost, and how few are enough."""

from __future__ import annotations

import pytest
from plan.conftest import gpu, machine
from plan.test_memory import GIB, estimate
from plan.test_plan import FULL_SIZE

from simpletuner import config as configuration
from simpletuner import plan
from simpletuner.memory.moves import moves
from simpletuner.memory.options import Offload
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.plan import memory, words

GROUPED = {"enable_group_offload": True}


def loaded(**settings):
    given = {"model_flavour": "dev", "data_backend_config": "sets.json", "max_train_steps": 10} | settings
    config, problems = configuration.load(None, given, {})
    assert problems == []
    return config, families()["flux"].shapes(config[Model])


@pytest.mark.parametrize(("given", "expected"), [
    ({}, (0, 2, True)), ({"blocks_to_swap": 20}, (20, 2, True)), (GROUPED, (57, 1, False)),
    (GROUPED | {"group_offload_use_stream": True}, (57, 2, True)),
    (GROUPED | {"group_offload_blocks_per_group": 4, "group_offload_use_stream": True}, (57, 5, True)),
    (GROUPED | {"group_offload_blocks_per_group": 57, "group_offload_use_stream": True}, (57, 57, True)),
    (GROUPED | {"group_offload_type": "leaf_level", "group_offload_blocks_per_group": 4}, (57, 1, False)),
], ids=str)  # fmt: skip
def test_options_become_moves(given, expected):
    found = moves(Offload(**given), 57)
    assert (len(found.chosen), found.depth, found.ahead) == expected and bool(found) == bool(given)


def test_a_small_model_moves_all_it_has():
    assert moves(Offload(blocks_to_swap=56), 3).chosen == {0, 1, 2}


def test_blocks_hold_nearly_all_weights():
    for kind, each in (("bf16", 2), ("nf4-bnb", 0.53)):
        config, shapes = loaded(base_model_precision=kind)
        sizes = memory.block_bytes(config, shapes)
        assert len(sizes) == 57 and sizes[0] == sizes[18] > 2 * sizes[19] == 2 * sizes[56]
        assert sum(sizes) == pytest.approx(11.83e9 * each, rel=0.03) and sum(sizes) < memory.base_bytes(config, shapes)


def test_what_moves_leaves_the_device_for_ram_and_the_slots_come():
    before, after = estimate({})["training"], estimate({"blocks_to_swap": 28})["training"]
    moved = after.ram["waiting blocks"]
    assert before.vram["base"] - after.vram["base"] == moved and 10e9 < moved < 13e9
    assert 0.5e9 < after.vram["slots"] < 1.5e9 and "slots" not in before.vram
    assert after.vram["activations"] == before.vram["activations"]
    assert after.ram_bytes - before.ram_bytes == moved


def test_less_memory_with_each_block_and_least_with_all_of_them():
    needed = [estimate({"blocks_to_swap": n})["training"].vram_bytes for n in (0, 5, 20, 56)]
    assert needed == sorted(needed, reverse=True)
    leaf = estimate(GROUPED | {"group_offload_type": "leaf_level"})["training"].vram_bytes
    assert leaf < needed[-1] and leaf < 5.5 * GIB


def test_moved_blocks_are_recomputed_in_the_estimate_too():
    plain = {"gradient_checkpointing": False}
    kept, some = (estimate(plain | more)["training"].vram["activations"] for more in ({}, {"blocks_to_swap": 28}))
    assert some < 0.7 * kept


def test_parked_activations_change_places():
    before, after = estimate({})["training"], estimate({"gradient_checkpointing_backend": "offload"})["training"]
    parked = after.ram["parked activations"]
    assert parked == pytest.approx(1.61e9, rel=0.02)  # 28.3 MB a block at 1024 x 1024
    assert before.vram["activations"] - after.vram["activations"] == pytest.approx(parked, rel=0.05)
    assert "parked activations" not in before.ram


def test_on_disk_nothing_waits_in_ram(project):
    settings = GROUPED | {"group_offload_to_disk_path": str(project.home / "disk")}
    assert "waiting blocks" not in estimate(settings)["training"].ram
    project.entry["resolution"] = 512
    made = plan.make(project.checked(**FULL_SIZE, **settings), machine(gpu(16)))
    assert made.details.disk.offloaded == made.details.moved.waiting_bytes > 20e9
    text = " ".join(words.text(made).split())
    assert "offloaded weights 23" in text and "57 wait on disk" in text


def test_text_encoders_in_groups_and_a_transformer_that_makes_way():
    assert estimate(GROUPED | {"group_offload_text_encoder": True})["text cache"].vram_bytes < 3 * GIB
    plain, away = estimate({})["validation"], estimate({"enable_model_cpu_offload": True})["validation"]
    assert away.vram_bytes <= plain.vram_bytes and away.ram["base"] == plain.vram["base"]


def test_the_plan_tells_what_stays_what_waits_and_what_it_costs(project):
    project.entry["resolution"] = 512
    made = plan.make(project.checked(**FULL_SIZE, blocks_to_swap=20), machine(gpu(24)))
    text = words.text(made, width=200)
    assert "37 blocks stay on the device, 20 wait in RAM" in text and "are copied in a step" in text
    assert made.record()["memory"]["moved"]["move"] == 20
    assert plan.make(project.checked(**FULL_SIZE), machine(gpu(80))).details.moved is None


def test_the_plan_names_the_fewest_that_fit_with_a_twentieth_to_spare(project):
    project.entry["resolution"] = 512

    def needed(count):
        made = plan.make(project.checked(**FULL_SIZE, blocks_to_swap=count), machine(gpu(16)))
        return made.details.fit.needed

    made = plan.make(project.checked(**FULL_SIZE), machine(gpu(16)))
    [change] = [one.change for one in made.details.remedies if "blocks_to_swap" in one.change.values]
    count = change.values["blocks_to_swap"]
    limit = 0.95 * 16 * GIB
    assert needed(count) <= limit < needed(count - 1) and f"it fits with blocks_to_swap={count}: " in words.text(made)


def test_what_uses_another_strategy_is_not_told_to_swap():
    from simpletuner.plan import relief

    for given in (GROUPED, {"enable_model_cpu_offload": True}, {"model_type": "full"}):
        assert not any("blocks_to_swap" in change.values for change in relief.changes(loaded(**given)[0], ()))
    assert [c.values for c in relief.changes(loaded()[0], ())][0] == {"blocks_to_swap": 14}
