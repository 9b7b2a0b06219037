"""A slip of the finger in a name is understood: the first suggestion is the word that was meant."""

from __future__ import annotations

import random
import string

import pytest

from simpletuner import retired
from simpletuner.config import command_line, load
from simpletuner.groups import FORMER, OPTIONS
from simpletuner.registry import nearest, one_slip_apart

LETTERS = string.ascii_lowercase + string.digits + "_"


def slips(key, dice):
    """Every letter left out, every two neighbours swapped; each letter mistaken once, and one put in at each place."""
    places = range(len(key))
    left_out = {key[:at] + key[at + 1 :] for at in places}
    swapped = {key[:at] + key[at + 1] + key[at] + key[at + 2 :] for at in places[:-1]}
    mistaken = {key[:at] + dice.choice(LETTERS) + key[at + 1 :] for at in places}
    put_in = {key[:at] + dice.choice(LETTERS) + key[at:] for at in range(len(key) + 1)}
    return sorted((left_out | swapped | mistaken | put_in) - {key})


def fix_of(key):
    _, problems = load(None, {key: 1}, {})
    (problem,) = [p for p in problems if p.message == f'unknown option "{key}"']
    return problem.fix


@pytest.mark.parametrize(
    ("word", "other", "one"),
    [
        ("seed", "seed", False),
        ("sed", "seed", True),
        ("eed", "seed", True),
        ("see", "seed", True),
        ("seed", "sed", True),
        ("seed", "sead", True),
        ("seed", "esed", True),
        ("", "s", True),
        ("ab", "ba", True),
        ("abc", "cba", False),
        ("seed", "dees", False),
        ("seed", "sedd_", False),
    ],
)
def test_what_one_slip_is(word, other, one):
    assert one_slip_apart(word, other) is one and one_slip_apart(other, word) is one


def test_the_first_suggestion_for_a_slip_is_right_in_98_of_100_cases():
    dice = random.Random(7)
    tried = [(slip, key) for key in OPTIONS for slip in slips(key, dice) if slip not in OPTIONS]
    missed = [(slip, key) for slip, key in tried if nearest(slip, OPTIONS)[:1] != [key]]
    assert len(tried) > 10_000 and len(missed) <= 0.02 * len(tried), missed[:50]


def test_one_slip_is_preferred_to_a_word_that_is_alike_in_more_letters():
    assert nearest("lr_en", ["lr_end", "lr_length", "lr_lend_n"]) == ["lr_end"]
    assert nearest("SEED", ["sede", "seed"]) == ["seed"]
    assert nearest("adam", ["torch-adam", "adamw_bf16", "adan"]) == ["adan"]
    assert nearest("adam", ["torch-adam", "adamw_bf16"]) == ["torch-adam"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("--lora_rnak", "lora_rank"),
        ("LORA_RANK", "lora_rank"),
        ("learning-rtae", "learning_rate"),
        ("resolutoin", "resolution"),
        ("optimizer_beta3", "optimizer_beta1"),
    ],
)
def test_slips_are_understood_in_every_spelling_of_a_key(written, meant):
    values, problems = command_line([f"{written}=1"])
    (key,) = values
    assert problems == [] and fix_of(key).startswith(f'did you mean "{meant}"')
    assert fix_of(key).endswith(f"   more: simpletuner help {meant}")


def test_a_slip_in_a_former_name_leads_to_the_present_one_and_names_both():
    assert FORMER["checkpointing_steps"] == "checkpoint_step_interval"
    assert fix_of("checkpointing_step") == (
        'did you mean "checkpoint_step_interval", formerly "checkpointing_steps"?'
        "   more: simpletuner help checkpoint_step_interval"
    )


def test_a_slip_in_a_key_without_effect_leads_to_the_key_that_has_the_answer():
    assert fix_of("snr_gama") == 'did you mean "snr_gamma"?'
    assert fix_of("deepspeed_confg") == 'did you mean "deepspeed_config"?'
    assert {"snr_gamma", "deepspeed_config"} <= set(retired.answered())
