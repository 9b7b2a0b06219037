import pytest
from rules.cases import OUR_OWN, Case, speaks_only_when_broken

from simpletuner.rules import validation

OFF, PREVIEW, HOOK, PATH = validation.OFF, validation.PREVIEW, "webhook_config", "validation_adapter_path"
SOURCES = {PATH: "a.safetensors", "validation_adapter_config": {"a": "b"}}
INTERVALS = {"eval_steps_interval": 10, "eval_epoch_interval": 0.5}
SIZE, READABLE = "validation_resolution", validation.sizes_are_readable
PROMPTS = {"validation_prompt": "a", "user_prompt_library": "p.json", OFF: True}
CASES = [
    Case(35, validation.negative_prompt_is_used, {"validation_negative_prompt": "fog"}, "not used",
         ("validation_negative_prompt", "validation_guidance_real"), {"validation_guidance_real": 2}, "notice"),
    Case(36, validation.previews_appear, {PREVIEW: True, OFF: True}, "no previews", (PREVIEW, OFF), {OFF: False},
         "notice"),
    Case(37, validation.previews_are_seen, {PREVIEW: True}, "event log only", (PREVIEW, HOOK),
         {HOOK: {"webhook_url": "https://example.org"}}, "notice"),
    Case(37, validation.previews_are_seen, {PREVIEW: True}, "event log only", (PREVIEW, HOOK), {OFF: True}, "notice"),
    Case(57, validation.one_adapter_source, SOURCES, "both name adapters", tuple(SOURCES), {PATH: None}),
    Case(52, validation.both_eval_intervals, INTERVALS, "both run", tuple(INTERVALS), {"eval_epoch_interval": None},
         "notice"),
    Case(OUR_OWN, READABLE, {SIZE: "big"}, "is not a size", (SIZE,), {OFF: True}),
    Case(OUR_OWN, READABLE, {SIZE: "1000x1000"}, "rounded", (SIZE,), {SIZE: "1024x1024"}, "notice"),
    Case(OUR_OWN, validation.prompts_are_used, PROMPTS, f"{OFF} is on", (OFF,), {OFF: False}, "notice"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_validation(case, config):
    speaks_only_when_broken(case, config)


def test_a_run_that_the_server_started_is_watched(config, monkeypatch):
    chosen = config({PREVIEW: True})
    monkeypatch.setenv(validation.SERVED, "7")
    assert validation.previews_are_seen(chosen) is None
