"""Which files are read: the first that is there, never another one than what was asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from simpletuner import finding
from simpletuner.finding import Files, find


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a home of its own below it."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}" if name.endswith("json") else "")


def found(given=None, env=None, environ=None) -> str:
    files, problems = find(given, env, environ or {})
    assert not [p for p in problems if p.severity == "error"]
    return str(files.path)


def error(given=None, env=None, environ=None):
    files, problems = find(given, env, environ or {})
    assert files.path is None
    (problem,) = [p for p in problems if p.severity == "error"]
    assert problem.exit_code == 2 and problem.fix
    return problem


def test_nothing_asked_for_and_nothing_there():
    assert find(None, None, {}) == (Files(), [])


def test_without_a_wish_the_first_of_six_files_is_used():
    last_first = ["config/config.env", "config/config.toml", "config/config.json"]
    last_first += ["config.env", "config.toml", "config.json"]
    for name in last_first:
        put(name)
        assert found() == name


def test_a_folder_of_that_name_is_no_file():
    Path("config.json").mkdir()
    put("config.toml")
    assert found() == "config.toml"


def test_what_cannot_be_read_is_not_passed_over():
    put("config.toml")
    Path("config.json").symlink_to("gone.json")
    assert found() == "config.json"


def test_config_env_beside_another_is_read_first_and_both_are_named():
    put("config/config.json", "config/config.env", "config/config.toml")
    files, problems = find(None, None, {})
    assert files == Files(Path("config/config.json"), Path("config/config.env"))
    assert [p.severity for p in problems] == ["notice", "notice"]
    assert "config/config.toml" in problems[0].message and "not" in problems[0].message
    assert problems[1].message == "config/config.env is read first, and config/config.json over it"


def test_config_names_exactly_one_file_or_a_folder():
    put("some/config.json", "some/config.env", "some/other.toml")
    for name in ("some/config.json", "./some/config.json", "some/other.toml", "some/config.env"):
        assert find(name, None, {}) == (Files(Path(name)), [])
    assert find("some", None, {})[0] == Files(Path("some/config.json"), Path("some/config.env"))
    assert "none.json" in error("none.json").where
    Path("empty").mkdir()
    assert "empty/config.toml" in error("empty").where


def test_an_environment_is_looked_for_in_order(here):
    shared = {"SIMPLETUNER_CONFIG_DIR": "shared"}
    put("shared/x/config.json")
    assert found(env="x", environ=shared) == "shared/x/config.json"
    assert "shared" not in error(env="x").where
    for place in ["home/config/x/config.toml", "config/x/config.env", "x/config.json"]:
        put(place)
        assert os.path.abspath(found(env="x", environ=shared)) == str(here / place)


def test_an_environment_takes_nothing_from_the_one_around_it():
    put("config/config.json", "config/config.env", "config/x/config.toml")
    assert find(None, "x", {})[0] == Files(Path("config/x/config.toml"))
    assert "config/y/config.json" in error(env="y").where


def test_an_environment_may_be_a_path_a_file_or_a_packaged_example(here):
    put("deep/er/config.json", "one.toml")
    assert found(env="deep/er") == "deep/er/config.json" and found(env=str(here / "deep/er")).startswith("/")
    assert found(env="one.toml") == "one.toml"
    packaged = found(env="nano")
    assert packaged == found(env="examples/nano") == found("config/examples/nano") and Path(packaged).is_file()
    assert packaged == found("config/examples/nano/config.json")


def test_variables_that_name_an_environment():
    put(*(f"config/{name}/config.json" for name in "abcd"))
    environ = {"ENV": "c", "SIMPLETUNER_ENV": "b", "SIMPLETUNER_ENVIRONMENT": "a"}
    assert found(env="d", environ=environ) == "config/d/config.json"
    for name in ("a", "b", "c"):
        assert found(environ=environ) == f"config/{name}/config.json"
        environ.popitem()
    assert "config/config.json" in error(environ={"ENV": "default"}).where
    put("config/config.json")
    assert found(environ={"ENV": "default"}) == "config/config.json"


@pytest.mark.parametrize("value", ["/etc/profile", "~/.shrc", "startup"])
def test_env_may_be_a_shells_startup_file(value):
    put("startup", "config/config.json")
    files, (notice,) = find(None, None, {"ENV": value})
    assert files.path == Path("config/config.json") and notice.severity == "notice" and value in notice.message


def test_config_path_is_a_folder_a_file_or_a_stem():
    put("folder/config.json", "folder/config.env", "one.toml", "two.json", "two.env")
    assert find(None, None, {"CONFIG_PATH": "folder"})[0].beneath == Path("folder/config.env")
    assert find(None, None, {"CONFIG_PATH": "one.toml"}) == (Files(Path("one.toml")), [])
    assert find(None, None, {"CONFIG_PATH": "two"}) == (Files(Path("two.json")), [])
    assert found(environ={"CONFIG_PATH": "two", "CONFIG_BACKEND": "env"}) == "two.env"
    assert "three.json" in error(environ={"CONFIG_PATH": "three"}).where


@pytest.mark.parametrize("kind", ["json", "toml", "env"])
def test_a_backend_reads_files_of_its_kind_only(kind):
    others = [name for name in finding.NAMES if not name.endswith(kind)]
    put(*others, *(f"config/{name}" for name in finding.NAMES))
    files, notices = find(None, None, {"CONFIG_BACKEND": kind.upper()})
    assert files == Files(Path(f"config/config.{kind}"), None, kind)
    assert [p.severity for p in notices] == ["notice", "notice"] and all("and not" in p.message for p in notices)
    Path(f"config/config.{kind}").unlink()
    assert f"config/config.{kind}" in error(environ={"CONFIG_BACKEND": kind}).where


def test_the_first_variable_names_the_backend():
    put("config.toml", "config.json", "config.env")
    environ = {"CONFIG_TYPE": "env", "CONFIG_BACKEND": "json", "SIMPLETUNER_CONFIG_BACKEND": "toml"}
    for name in ("config.toml", "config.json", "config.env"):
        assert found(environ=environ) == name
        environ.popitem()


def test_a_backend_that_does_not_exist_is_an_error():
    put("config.json")
    _, problems = find(None, None, {"CONFIG_TYPE": "yaml"})
    assert problems[0].severity == "error" and "json, toml, env, cmd" in problems[0].fix


def test_cmd_reads_no_file_unless_the_command_line_names_one():
    put("config.json")
    assert find(None, None, {"CONFIG_BACKEND": "cmd", "CONFIG_PATH": "config.json"}) == (Files(backend="cmd"), [])
    files, (notice,) = find("config.json", None, {"CONFIG_BACKEND": "cmd"})
    assert files == Files(Path("config.json")) and notice.severity == "notice" and "cmd" in notice.message


def test_the_backend_env_needs_a_file_or_one_of_its_names():
    assert find(None, None, {"CONFIG_BACKEND": "env", "OUTPUT_DIR": "x"}) == (Files(backend="env"), [])
    assert "config.env" in error(environ={"CONFIG_BACKEND": "env"}).where


def test_what_is_missing_names_every_path_and_the_cure():
    put("config/config.json.example")
    problem = error(env="x")
    assert problem.fix == "cp config/config.json.example config/config.json"
    for place in ("x/config.json", "config/x/config.toml", "home/config/x/config.env"):
        assert place in problem.where
    Path("config/config.json.example").unlink()
    assert "simpletuner examples copy" in finding.first_step()
