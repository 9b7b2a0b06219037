"""One configuration from several sources: which one wins, where each value came from, and how it is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simpletuner import config as configuration
from simpletuner.config import command_line, find, load
from simpletuner.data.options import Data
from simpletuner.models.options import Model
from simpletuner.optim.options import Optimizer
from simpletuner.training.options import Training
from simpletuner.validation.options import Validation


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory and home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def write(path, **values):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2))
    return path


def errors(problems):
    return [p for p in problems if p.severity == "error"]


# ---- layers


def test_later_layers_win_and_every_value_knows_its_origin():
    file = write("config.json", **{"--seed": 1, "lora_rank": 2, "max_train_steps": 3, "model_flavour": "fluxbooru"})
    environ = {"SIMPLETUNER_SEED": "10", "SIMPLETUNER_LORA_RANK": "20", "TRAINER_EXTRA_ARGS": "--lora_rank=200"}
    config, problems = load(file, {"seed": "100"}, environ)
    assert problems == []
    assert [config.values()[k] for k in ("seed", "lora_rank", "max_train_steps")] == [100, 200, 3]
    assert config[Validation].validation_guidance_real == 6.0
    assert {
        k: config.origin(k) for k in ("seed", "lora_rank", "max_train_steps", "validation_guidance_real", "optimizer")
    } == {
        "seed": "command line",
        "lora_rank": "env TRAINER_EXTRA_ARGS",
        "max_train_steps": "config.json:4:3",
        "validation_guidance_real": "flavour fluxbooru",
        "optimizer": "default",
    }
    assert {"seed", "lora_rank", "max_train_steps"} <= config.given and "validation_guidance_real" not in config.given


def test_an_explicit_value_wins_over_the_flavours():
    config, _ = load(None, {"model_flavour": "fluxbooru", "validation_guidance_real": 2}, {})
    assert config[Validation].validation_guidance_real == 2.0


def test_the_default_rate_is_that_of_a_lora():
    assert load(None, {}, {})[0][Optimizer].learning_rate == 1e-4
    assert load(None, {"model_type": "full"}, {})[0][Optimizer].learning_rate == 1e-5
    assert load(None, {"learning_rate": "2e-3"}, {})[0][Optimizer].learning_rate == 2e-3


def test_a_flavour_to_come_is_refused_with_those_that_are_there():
    _, (problem,) = load(write("c.json", model_flavour="kontext"), {}, {})
    assert "not yet available" in problem.message and problem.where == "c.json:2:3" and "krea, dev" in problem.fix


def test_only_variables_with_the_prefix_count_and_a_near_miss_is_told():
    config, problems = load(
        None, {}, {"SEED": "1", "OUTPUT_DIR": "x", "SIMPLETUNER_DEBUG": "1", "SIMPLETUNER_CONFIG_DIR": "x"}
    )
    assert config.given == frozenset() and problems == []
    _, (problem,) = load(None, {}, {"SIMPLETUNER_LORA_RNAK": "4"})
    assert problem.severity == "warning" and "SIMPLETUNER_LORA_RANK" in problem.fix


def test_extra_args_are_split_like_a_shell_line():
    text = '--seed=1 \\\n --instance_prompt "a cat, b"\n# --seed=2\n  lora_rank=4 --no-dataloader_prefetch'
    config, problems = load(None, {}, {"TRAINER_EXTRA_ARGS": text})
    assert problems == [] and config[Data].instance_prompt == "a cat, b"
    assert [config.values()[k] for k in ("seed", "lora_rank", "dataloader_prefetch")] == [1, 4, False]
    _, (problem,) = load(None, {}, {"TRAINER_EXTRA_ARGS": '--instance_prompt "a'})
    assert problem.where == "env TRAINER_EXTRA_ARGS" and problem.severity == "error"


def test_variables_in_values():
    file = write("config.json", output_dir="{env:SCRATCH}/run", validation_prompt="{env:NOPE}")
    config, problems = load(file, {}, {"SCRATCH": "/scratch"})
    assert config[Training].output_dir == Path("/scratch/run")
    (problem,) = problems
    assert "NOPE is not set" in problem.message and problem.where == "config.json:3:3"


def test_one_key_under_two_names():
    for second, severities in ((7, ["notice"]), (8, ["notice", "error"])):
        _, problems = load(write("c.json", validation_step_interval=7, validation_steps=second), {}, {})
        assert [p.severity for p in problems] == severities
    assert "c.json:2:3 and c.json:3:3" in problems[1].where


def test_an_unknown_key_is_an_error_even_if_it_is_empty():
    for value in (1, None, ""):
        (problem,) = load(write("c.json", lora_rnak=value), {}, {})[1]
        assert problem.severity == "error" and problem.where == "c.json:2:3" and '"lora_rank"' in problem.fix


def test_null_and_empty_texts_are_unset():
    config, problems = load(write("c.json", seed=None, lora_rank="", validation_negative_prompt=""), {}, {})
    assert problems == [] and config.values()["seed"] == 42 and config.values()["lora_rank"] == 16


@pytest.mark.parametrize(
    ("text", "said"),
    [("[]", "expected an object"), ("null", "holds null"), ('{"a": ', "not valid JSON"), ("7", "expected an object")],
)
def test_a_file_that_is_no_configuration(text, said):
    Path("c.json").write_text(text)
    (problem,) = load(Path("c.json"), {}, {})[1]
    assert problem.severity == "error" and said in problem.message and "c.json" in problem.where


def test_other_kinds_of_file_are_refused_and_not_passed_over():
    for name in ("config.toml", "config.env"):
        Path(name).write_text("seed=1")
        assert find(None, None, {})[0] == Path(name)
        assert "not yet" in load(Path(name), {}, {})[1][0].message
        Path(name).unlink()
    for value in ("toml", "env", "cmd"):
        assert "not yet" in errors(find(None, None, {"CONFIG_BACKEND": value})[1])[0].message
    assert find(None, None, {"CONFIG_BACKEND": "json"}) == (None, [])


# ---- paths and the resolved file


def test_relative_paths_start_at_the_working_directory(here):
    config, _ = load(
        write("deep/c.json", output_dir="out", user_prompt_library="p.json"), {"cache_dir_vae": "~/vae"}, {}
    )
    assert config[Training].output_dir == here / "out" and config[Validation].user_prompt_library == here / "p.json"
    assert config[Data].cache_dir_vae == here / "home/vae"
    assert config[Data].data_backend_config == here / "config/multidatabackend.json"


def test_packaged_examples_have_a_path_of_their_own():
    config, _ = load(None, {"data_backend_config": "config/examples/nano/multidatabackend.json"}, {})
    assert config[Data].data_backend_config.is_file()


def test_placeholders_in_paths_are_kept_for_those_who_know_them():
    config, _ = load(None, {"cache_dir_vae": "{output_dir}/vae"}, {})
    assert str(config[Data].cache_dir_vae) == "{output_dir}/vae"


def test_the_resolved_file_reads_back_to_the_same_values_and_origins():
    file = write(
        "config.json",
        model_flavour="fluxbooru",
        max_train_steps=5,
        flow_custom_timesteps=[0.5, 1],
        validation_prompt="ä",
    )
    config, _ = load(
        file, {"optimizer_config": "rounding=kahan", "resume_from_checkpoint": "none"}, {"SIMPLETUNER_SEED": "9"}
    )
    config.write(Path("resolved.json"))
    again, problems = load(Path("resolved.json"), {}, {})
    assert problems == [] and again.values() == config.values()
    assert again.origins == config.origins and again.given == config.given
    changed, _ = load(Path("resolved.json"), {"seed": "1"}, {"SIMPLETUNER_LORA_RANK": "4"})
    assert changed.values() == config.values() | {"seed": 1, "lora_rank": 4}
    assert changed.origin("seed") == "command line" and changed.origin("max_train_steps") == "config.json:3:3"


def test_the_resolved_file_is_strict_json_and_replaces_the_old_one_whole():
    config, _ = load(None, {"max_train_steps": 5}, {})
    for _ in range(2):
        config.write(Path("resolved.json"))
    record = json.loads(Path("resolved.json").read_text())
    assert record["max_train_steps"] == 5 and record["_origins"]["max_train_steps"] == "command line"
    assert [p.name for p in Path().iterdir()] == ["resolved.json"]


def test_a_configuration_is_frozen():
    config, _ = load(None, {}, {})
    with pytest.raises(ValueError, match="frozen"):
        config[Model].model_flavour = "dev"


# ---- words of the command line


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["seed=1"], {"seed": "1"}),
        (["--seed", "1"], {"seed": "1"}),
        (["--seed=1"], {"seed": "1"}),
        (["--lora-rank", "4"], {"lora_rank": "4"}),
        (["--seed", "-1"], {"seed": "-1"}),
        (["--validation_on_startup"], {"validation_on_startup": True}),
        (["--validation_on_startup", "false"], {"validation_on_startup": "false"}),
        (["--no-gradient-checkpointing"], {"gradient_checkpointing": False}),
        (["--validation_on_startup", "seed=1"], {"validation_on_startup": True, "seed": "1"}),
        (["--validation_on_startup", "env=here"], {"validation_on_startup": True, "env": "here"}),
        (["--validation_on_startup", "--seed", "1"], {"validation_on_startup": True, "seed": "1"}),
        (["--instance_prompt", "a=b"], {"instance_prompt": "a=b"}),
        (["instance_prompt=a=b"], {"instance_prompt": "a=b"}),
        (["optimizer_config=a=1,b=2"], {"optimizer_config": "a=1,b=2"}),
        (["seed=1", "seed=2"], {"seed": "2"}),
        (["--validation_prompt", ""], {"validation_prompt": ""}),
    ],
    ids=" ".join,
)
def test_every_spelling_of_an_option(words, values):
    assert command_line(words) == (values, [])


@pytest.mark.parametrize(
    ("words", "said"),
    [(["loose"], '"loose" is not an option'), (["--seed"], "needs a value"), (["--seed", "--json"], "needs a value")],
)
def test_words_that_are_no_options(words, said):
    _, problems = command_line(words)
    assert said in problems[0].message and problems[0].where == "command line"


# ---- finding the file


def test_nothing_asked_for_and_nothing_there():
    assert find(None, None, {}) == (None, [])


def test_a_file_here_comes_before_one_in_config():
    inner = write("config/config.json")
    assert find(None, None, {})[0] == inner
    outer = write("config.json")
    assert find(None, None, {})[0] == outer


def test_a_second_candidate_in_the_folder_is_named():
    write("config.json")
    Path("config.env").write_text("")
    path, (notice,) = find(None, None, {})
    assert path == Path("config.json") and notice.severity == "notice" and "config.env" in notice.message


def test_config_names_a_file_or_a_folder():
    file = write("some/config.json")
    assert find("some", None, {}) == find("some/config.json", None, {}) == (file, [])
    path, (problem,) = find("none.json", None, {})
    assert path is None and "none.json" in problem.where


def test_an_environment_is_looked_for_in_order(here):
    places = ["home/config/x/config.json", "config/x/config.json", "x/config.json"]
    environ = {"SIMPLETUNER_CONFIG_DIR": "shared"}
    write("shared/x/config.json")
    assert find(None, "x", environ)[0] == Path("shared/x/config.json")
    for place in places:
        write(place)
        assert find(None, "x", environ)[0].resolve() == (here / place).resolve()


def test_an_environment_may_be_a_packaged_example():
    assert find(None, "nano", {})[0].is_file()


def test_variables_that_name_an_environment():
    (
        write("config/a/config.json"),
        write("config/b/config.json"),
        write("config/c/config.json"),
        write("config/d/config.json"),
    )
    environ = {"ENV": "c", "SIMPLETUNER_ENV": "b", "SIMPLETUNER_ENVIRONMENT": "a"}
    assert find(None, "d", environ)[0] == Path("config/d/config.json")
    for name in ("a", "b", "c"):
        assert find(None, None, environ)[0] == Path(f"config/{name}/config.json")
        environ.popitem()
    assert find(None, None, {"ENV": "default"})[0] is None
    write("config/config.json")
    assert find(None, None, {"ENV": "default"})[0] == Path("config/config.json")


@pytest.mark.parametrize("value", ["/etc/profile", "~/.shrc", "startup"])
def test_env_may_be_a_shells_startup_file(value):
    Path("startup").write_text("")
    file = write("config/config.json")
    path, (notice,) = find(None, None, {"ENV": value})
    assert path == file and notice.severity == "notice" and value in notice.message


def test_config_path_is_a_folder_a_file_or_a_stem():
    for value, file in (("folder", "folder/config.json"), ("one.json", "one.json"), ("two", "two.json")):
        written = write(file)
        assert find(None, None, {"CONFIG_PATH": value}) == (written, [])


def test_what_was_asked_for_and_is_missing_names_every_path_and_the_cure():
    write("config/config.json.example")
    _, (problem,) = find(None, "x", {})
    assert problem.exit_code == 2 and problem.fix == "cp config/config.json.example config/config.json"
    for place in ("x/config.json", "config/x/config.json", "home/config/x/config.json"):
        assert place in problem.where
    Path("config/config.json.example").unlink()
    assert "simpletuner examples copy" in configuration.first_step()
