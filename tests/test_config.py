"""One configuration from several sources: which one wins, and where each value came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simpletuner import tomlfile
from simpletuner.config import OPTIONS, Files, command_line, load
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


def test_former_and_retired_names_count_with_the_prefix_too():
    config, problems = load(None, {}, {"SIMPLETUNER_VALIDATION_STEPS": "7", "SIMPLETUNER_USE_DORA": "true"})
    assert config.values()["validation_step_interval"] == 7
    assert config.values()["flux_lora_module_type"] == "dora"
    assert ("use_dora=true is read as flux_lora_module_type=dora", "env SIMPLETUNER_USE_DORA") in [
        (p.message, p.where) for p in problems if p.severity == "notice"
    ]
    _, (problem,) = load(None, {}, {"SIMPLETUNER_DELETE_UNWANTED_IMAGES": "true"})
    assert problem.severity == "error" and "is not offered" in problem.message


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


def test_a_missing_variable_is_told_once_for_a_value():
    file = write("config.json", validation_prompt="{env:NOPE} and {env:NOPE}", webhook_config=["{env:A}", "{env:A}"])
    missing = [(p.message, p.where) for p in errors(load(file, {}, {})[1]) if "is not set" in p.message]
    assert missing == [
        ("the environment variable NOPE is not set", "config.json:2:3"),
        ("the environment variable A is not set", "config.json:3:3"),
    ]


def test_values_see_what_config_env_exports_unless_the_shell_has_it():
    Path("config.env").write_text("SCRATCH=/scratch\n")
    file = write("config.json", output_dir="{env:SCRATCH}/run")
    files = Files(file, beneath=Path("config.env"))
    config, problems = load(files, {}, {})
    assert errors(problems) == [] and config[Training].output_dir == Path("/scratch/run")
    assert load(files, {}, {"SCRATCH": "/theirs"})[0][Training].output_dir == Path("/theirs/run")


def test_one_key_under_two_names():
    for second, severities in (("7", ["notice", "notice"]), (8, ["notice", "error"])):
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


def test_the_same_configuration_in_every_kind_of_file():
    write("a.json", **{"--seed": 1, "learning-rate": "2e-4", "validation_disable": True, "lora_type": "standard"})
    Path("a.toml").write_text("--seed = 1\nlearning-rate = 2e-4\nvalidation_disable = true\nlora_type = 'standard'\n")
    Path("a.env").write_text("TRAINING_SEED=1\nLEARNING_RATE=2e-4\nVALIDATION_DISABLE=True\nLORA_TYPE=standard\n")
    configs = [load(Path(f"a.{kind}"), {}, {}) for kind in ("json", "toml", "env")]
    assert all(problems == [] for _, problems in configs)
    assert configs[0][0].values() == configs[1][0].values() == configs[2][0].values()
    assert [config.origin("seed") for config, _ in configs] == ["a.json:2:3", "a.toml:1:1", "a.env:1:1"]


def test_config_env_lies_beneath_the_file_beside_it_and_a_clash_is_told():
    Path("c.env").write_text("TRAINING_SEED=1\nLORA_RANK=2\nLEARNING_RATE=1e-4\nHF_HOME=/x\n")
    files = Files(write("c.json", seed=3, learning_rate=0.0001, max_train_steps=4), Path("c.env"))
    config, (problem,) = load(files, {}, {})
    assert [config.values()[key] for key in ("seed", "lora_rank", "max_train_steps")] == [3, 2, 4]
    assert problem.severity == "notice" and problem.where == "c.env:1:1 and c.json:2:3"
    assert problem.message == "seed has two values; 3 of c.json:2:3 is used"
    assert config.exports == {"HF_HOME": "/x"} and config.written == {}


def test_nothing_is_guessed_about_a_configuration_that_could_not_be_read():
    Path("c.env").write_text("SEED=$(x)\n")
    Path("c.json").write_text('{"seed": }')
    config, problems = load(Files(Path("c.json"), Path("c.env")), {"lora_rnak": 2}, {})
    assert dict(config.groups) == {}
    assert sorted(p.where for p in problems) == ["c.env:1:6", "c.json:1:10", "command line"]


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        ("seed = 1\nseed = 2\n", '"seed" is given twice (first at 1:1)', "c.toml:2:1"),
        ("[a]\nb = 1\n[c]\nb = 1\nb = 2\n", "not valid TOML: Cannot overwrite a value", "c.toml:5:6"),
        ("seed = \n", "not valid TOML: Invalid value", "c.toml:1:8"),
        ('seed = "a\n', "not valid TOML: Illegal character", "c.toml:1:10"),
        ("a = " + "[" * 4000, "not valid TOML: ", "c.toml"),
        ("--seed = 1\nseed = 2\n", '"seed" is given twice with different values (first at 1:1)', "c.toml:2:1"),
        ("\n[webhook]\nseed = 1\n", 'unknown option "webhook"', "c.toml:2:2"),
        ("x = '''\nseed = 1\n'''\nlora_rnak = [\n1]\n", 'unknown option "x"', "c.toml:1:1"),
    ],
)
def test_mistakes_in_toml_have_their_place(text, message, where):
    Path("c.toml").write_text(text)
    problem = errors(load(Path("c.toml"), {}, {})[1])[0]
    assert problem.message.startswith(message) and problem.where.startswith(where)


def test_toml_places_are_found_behind_texts_lists_and_tables():
    text = 'a = """\nseed = 1\n"""  # seed = 2\n"--b" = [ # ]\n  "x]",\n]\nc.d = 1\n\n'
    text += "[e]\nf = 1\n[[g]]\nh = 1\n[[g]]\nh = 2\n"
    document = tomlfile.parse_text(text, "t")
    places = {"a": (1, 1), "b": (4, 1), "c": (7, 1), "e": (9, 2), "g": (11, 3)}
    assert {path[0]: place for path, place in document.places.items() if len(path) == 1} == places
    assert document.where("c", "d") == "t:7:3" and document.where("g", 1, "h") == "t:14:1"
    assert set(document.value) == {"a", "--b", "c", "e", "g"} and document.problems == []


def test_equal_values_under_two_spellings_are_a_notice():
    Path("c.json").write_text('{"--seed": 1, "seed": 1}')
    Path("c.toml").write_text("--seed = 1\nseed = 1\n")
    for name, where in (("c.json", "c.json:1:15"), ("c.toml", "c.toml:2:1")):
        config, (problem,) = load(Path(name), {}, {})
        assert (problem.severity, problem.where, config.values()["seed"]) == ("notice", where, 1)
        assert "first at 1:" in problem.message


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


def test_every_option_that_is_a_path_becomes_absolute(here):
    paths = [key for key, option in OPTIONS.items() if option.kind == "path"]
    config, _ = load(write("c.json", **dict.fromkeys(paths, "./a/../b")), {}, {})
    assert {config.values()[key] for key in paths} == {str(here / "b")} and len(paths) >= 7


@pytest.mark.parametrize("path", ["a\0b", "a/" + "b" * 256 + "/c"])
def test_what_can_be_no_path_is_told_before_anybody_opens_it(path):
    _, (problem,) = load(write("c.json", output_dir=path), {}, {})
    assert "can be no path" in problem.message and problem.where == "c.json:2:3"


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


def test_the_resolved_file_keeps_former_names_and_the_version():
    config, _ = load(write("c.json", checkpointing_steps=7, use_dora=False, flux_lora_init="default"), {}, {})
    config.write(Path("resolved.json"))
    record = json.loads(Path("resolved.json").read_text())
    assert record["_written"] == {"checkpoint_step_interval": "checkpointing_steps", "lora_init_type": "flux_lora_init"}
    assert record["_version"] and record["_source"] == "c.json" and set(OPTIONS) <= set(record)
    again, problems = load(Path("resolved.json"), {}, {})
    assert problems == [] and again.written == config.written


def test_what_a_variable_stood_for_is_neither_shown_nor_stored():
    file = write("c.json", validation_prompt="{env:TOKEN} b", output_dir="{env:TOKEN}/x", report_to=["{env:KIND}"])
    config, problems = load(file, {}, {"TOKEN": "hf_secret", "KIND": "none"})
    assert errors(problems) == [] and config[Validation].validation_prompt == "hf_secret b"
    assert config.values()["validation_prompt"] == "{env:TOKEN} b" and config.values()["report_to"] == ["{env:KIND}"]
    config.write(Path("resolved.json"))
    again, _ = load(Path("resolved.json"), {}, {"TOKEN": "other", "KIND": "none"})
    assert again[Validation].validation_prompt == "other b"
    assert str(again[Training].output_dir).endswith("/hf_secret/x")  # a folder is no secret, and must not move
    assert "hf_secret" not in Path("resolved.json").read_text().replace("hf_secret/x", "")


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
