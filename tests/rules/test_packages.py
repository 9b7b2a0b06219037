import sys
from pathlib import Path

import pytest
from rules.cases import Case, functions

import simpletuner
from simpletuner import tomlfile
from simpletuner.check import check
from simpletuner.rules import packages
from simpletuner.rules.packages import NEEDS, installed, packages_are_installed

CHOICES = {
    "bnb-*": "bnb-lion8bit-paged", "ao-*": "ao-adamw8bit", "optimi-*": "optimi-lion",
}  # fmt: skip
LIST = [
    (key, CHOICES.get(pattern, pattern), package)
    for key, patterns in NEEDS.items()
    for pattern, package in patterns.items()
]
CASES = [
    Case(43, packages_are_installed, {key: word}, f"{key}={word} needs {package.module}", (key,), {})
    for key, word, package in LIST
]


@pytest.mark.parametrize(("case", "package"), [(c, row[2]) for c, row in zip(CASES, LIST, strict=True)], ids=str)
def test_a_choice_without_its_package_names_the_line_that_installs_it(case, package, config, tmp_path, monkeypatch):
    assert case.rule in functions(43)
    chosen = config(case.broken)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (problem,) = packages_are_installed(chosen)
    assert case.said in problem.message and problem.keys == case.keys and problem.fix == package.install
    folder = tmp_path / package.module.replace(".", "/")
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it is looked for, not imported')")
    assert list(packages_are_installed(chosen)) == []


def test_every_extra_is_declared():
    project = tomlfile.read(Path(simpletuner.__file__).parents[1] / "pyproject.toml").value["project"]
    extras = project["optional-dependencies"]
    asked = {p.install.split("[")[1].rstrip("']") for _, _, p in LIST if "simpletuner[" in p.install}
    assert asked <= {name for name, wanted in extras.items() if wanted}


def test_a_choice_that_has_no_effect_needs_nothing(config, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    assert list(packages_are_installed(config({"lora_type": "lycoris", "model_type": "full"}))) == []
    assert list(packages_are_installed(config({"report_to": "simpletuner"}))) == []


def test_modules_are_found_as_python_finds_them():
    assert installed("torch.optim") and installed("pydantic")
    assert not installed("torch.nothing_like_this") and not installed("nothing_like_this.torch")
    assert packages.PRECISIONS["nf4-bnb"].install == "pip install 'simpletuner[bitsandbytes]'"


def test_a_choice_that_is_refused_is_not_asked_for_its_package(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    found = check(None, {"optimizer": "prodigy", "data_backend_config": "sets.json", "max_train_steps": 1}, {})
    about = [problem.message for problem in found.problems if problem.keys == ("optimizer",)]
    assert about == ["optimizer=prodigy is not yet available in this version"]


def test_quantos_own_way_needs_quanto(config, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    (problem,) = packages_are_installed(config({"base_model_precision": "int4-quanto", "quantize_via": "pipeline"}))
    assert problem.keys == ("quantize_via",) and "pip install 'simpletuner[quanto]'" in problem.fix
    assert list(packages_are_installed(config({"base_model_precision": "int4-quanto"}))) == []
