"""What can be known about a run without torch, network or pixels: configuration, rules, datasets, prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simpletuner import config as configuration
from simpletuner import rules
from simpletuner.config import Config, Files
from simpletuner.data import datasets
from simpletuner.data.datasets import Datasets
from simpletuner.data.options import Data
from simpletuner.errors import Problem, has_errors
from simpletuner.machine import Machine
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.training import seed
from simpletuner.training.options import Training
from simpletuner.types import Prompt
from simpletuner.validation import prompts
from simpletuner.validation.options import Validation


@dataclass(frozen=True)
class Checked:
    config: Config
    datasets: Datasets | None  # None if the dataset file could not be used
    prompts: list[Prompt]
    problems: list[Problem]

    @property
    def failed(self) -> bool:
        return has_errors(self.problems)


def check(
    source: Files | Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> Checked:
    """Reads and checks everything, and reports all mistakes together."""
    config, problems = configuration.load(source, overrides, environ)
    if len(config.groups) < len(configuration.GROUPS):  # a file or a required option is missing: nothing to go on with
        return Checked(config, None, [], problems)
    answered = {problem.keys for problem in problems if problem.severity == "error"}  # a second answer would mislead
    problems += [finding for finding in rules.check(config) if not finding.keys or finding.keys not in answered]
    found, more = read_datasets(config)
    problems += more
    library, more = read_prompts(config, found)
    problems += more + rules.check_contents(config, found.images if found else None, library)
    return Checked(config, found, library, list(dict.fromkeys(problems)))


def read_datasets(config: Config) -> tuple[Datasets | None, list[Problem]]:
    data, model = config[Data], config[Model]
    if not os.path.isfile(data.data_backend_config):
        return None, []  # a rule has said so
    flavours = families()[model.model_family].flavours
    if "model_flavour" in config.refused:  # which sizes suit it is not known: those that suit any are right
        alignment = min(flavour.alignment for flavour in flavours.values())
    else:
        alignment = flavours[model.model_flavour].alignment
    return datasets.load(
        data.data_backend_config,
        data,
        family=model.model_family,
        alignment=alignment,
        output_dir=config[Training].output_dir,
    )


def read_prompts(config: Config, found: Datasets | None) -> tuple[list[Prompt], list[Problem]]:
    """The validation prompts. The first caption is not known before the scan: the recipe asks again with it."""
    if config[Validation].validation_disable:
        return [], []
    return prompts.load(config[Validation], instance_prompt=instance_prompt(config, found), first_caption=None)


def instance_prompt(config: Config, found: Datasets | None) -> str | None:
    """The run's trigger phrase: the global one, else that of the first dataset that has one."""
    own = [entry.entry.instance_prompt for entry in found.images] if found else []
    return config[Data].instance_prompt or next((text for text in own if text), None)


def on_machine(checked: Checked, machine: Machine) -> Checked:
    """The same with what only those find who would start the run: whether this machine can do it."""
    if len(checked.config.groups) < len(configuration.GROUPS):
        return checked
    found = rules.check_hardware(checked.config, machine)
    return replace(checked, problems=list(dict.fromkeys([*checked.problems, *found])))


def with_seed(checked: Checked) -> Checked:
    """The same with a seed drawn and shown if it is to be drawn; a run that goes on keeps the one it began with."""
    training = checked.config.groups.get(Training.__name__)
    if checked.failed or not isinstance(training, Training) or training.seed >= 0:
        return checked
    drawn = seed.settle(training.output_dir, fresh=training.resume_from_checkpoint.strip().lower() in ("none", "never"))
    told = Problem(f"seed=-1: this run has the seed {drawn}", severity="notice", keys=("seed",))
    config = replace(checked.config.changed(seed=drawn), origins={**checked.config.origins, "seed": "drawn"})
    return replace(checked, config=config, problems=[*checked.problems, told])
