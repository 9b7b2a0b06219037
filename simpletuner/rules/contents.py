"""What the dataset file and the prompt library hold, against the options that need it or forbid it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simpletuner.adapters.kinds import KINDS
from simpletuner.config import Config
from simpletuner.data.datasets import ImageSet
from simpletuner.diffusion.options import Objective
from simpletuner.errors import Problem
from simpletuner.models.options import Model
from simpletuner.registry import did_you_mean
from simpletuner.rules.findings import error, notice
from simpletuner.rules.packages import installed
from simpletuner.types import Prompt
from simpletuner.validation.options import Evaluation

PROBABILITY, CONNECTIONS = "masked_loss_probability", "aws_max_pool_connections"
ALL = "all"  # of eval_dataset_id


def kontext_has_pairs(config: Config, datasets: Sequence[ImageSet]) -> Problem | None:
    if config[Model].model_flavour == "kontext" and not _of_role(datasets, "conditioning"):
        message = "model_flavour=kontext learns from pairs, and there is no dataset of reference images"
        fix = 'add a dataset with "dataset_type": "conditioning", and name it in conditioning_data'
        return error(message, "model_flavour", "data_backend_config", fix=fix)
    return None


def regularisation_has_a_base(config: Config, datasets: Sequence[ImageSet]) -> Iterator[Problem]:
    kind = KINDS[config[Model].model_type]
    for dataset in datasets:
        if dataset.entry.is_regularisation_data and not kind.base_stays:
            message = f"dataset {dataset.id} is for regularisation, and model_type=full leaves no base model to aim at"
            fix = "disable the dataset, or train a LoRA"
            keys = ("model_type", "is_regularisation_data")
            yield Problem(message, where=dataset.where, keys=keys, fix=fix)


def held_out_sets_are_there(config: Config, datasets: Sequence[ImageSet]) -> Iterator[Problem]:
    evaluation = config[Evaluation]
    held_out = [dataset.id for dataset in _of_role(datasets, "eval")]
    intervals = [key for key in ("eval_steps_interval", "eval_epoch_interval") if getattr(evaluation, key)]
    if intervals and not held_out:
        message = f"{' and '.join(intervals)}: there is no held-out dataset to measure"
        yield notice(message, *intervals, fix='add a dataset with "dataset_type": "eval"')
    for name in evaluation.eval_dataset_id or ():
        if name not in (*held_out, ALL):
            fix = did_you_mean(name, held_out) if held_out else 'add a dataset with "dataset_type": "eval"'
            yield error(f'eval_dataset_id: there is no held-out dataset "{name}"', "eval_dataset_id", fix=fix)


def masks_are_there(config: Config, datasets: Sequence[ImageSet]) -> Problem | None:
    """The share counts for segmentation masks only: soft masks always apply."""
    share = config[Objective].masked_loss_probability
    kinds = [getattr(d.entry, "conditioning_type", "") for d in _of_role(datasets, "conditioning")]
    if PROBABILITY in config.given and share != 1 and "segmentation" not in kinds:
        message = f"{PROBABILITY} {share:g} has no effect: there is no dataset of segmentation masks"
        return notice(message, PROBABILITY, fix=f"remove {PROBABILITY}, or add the masks")
    return None


def places_can_be_read(config: Config, datasets: Sequence[ImageSet]) -> Iterator[Problem]:
    for dataset in datasets:
        package = dataset.place.package
        if package and not installed(package.module):
            message = f"dataset {dataset.id}: type={dataset.entry.type} needs {package.module}, which is not installed"
            yield Problem(message, where=dataset.where, keys=("type",), fix=package.install)


def connections_have_a_bucket(config: Config, datasets: Sequence[ImageSet]) -> Problem | None:
    if CONNECTIONS in config.given and not any(dataset.entry.type == "aws" for dataset in datasets):
        fix = f"remove {CONNECTIONS}"
        return notice(f"{CONNECTIONS} has no effect: no dataset is in a bucket", CONNECTIONS, fix=fix)
    return None


def tables_can_be_read(config: Config, datasets: Sequence[ImageSet]) -> Iterator[Problem]:
    for dataset in datasets:
        package = dataset.table and dataset.table.package
        if package and not installed(package.module):
            message = f"dataset {dataset.id}: {dataset.table} needs {package.module}, which is not installed"
            yield Problem(message, where=dataset.where, keys=("parquet",), fix=package.install)


def strength_has_an_adapter(config: Config, prompts: Sequence[Prompt]) -> Iterator[Problem]:
    for prompt in prompts:
        strength = prompt.adapter_strength
        if strength not in (None, 1.0) and not KINDS[config[Model].model_type].base_stays:
            message = f"prompt {prompt.nickname}: adapter_strength is {strength:g}, and model_type=full has no adapter"
            yield error(message, "model_type", "user_prompt_library", fix="remove adapter_strength")


def _of_role(datasets: Sequence[ImageSet], role: str) -> list[ImageSet]:
    return [dataset for dataset in datasets if str(dataset.entry.dataset_type) == role]
