"""Packages that a choice needs, and the line that installs each. Nothing is imported to find out."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder

from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.kernels.packages import ATTENTION, Package
from simpletuner.quantization.kinds import KINDS
from simpletuner.rules.findings import error


def _extra(module: str, name: str) -> Package:
    return Package(module, f"pip install 'simpletuner[{name}]'")


QUANTO, TORCHAO = _extra("optimum.quanto", "quanto"), _extra("torchao", "torchao")
BITSANDBYTES = _extra("bitsandbytes", "bitsandbytes")
LIBRARIES = {"torchao": TORCHAO, "bitsandbytes": BITSANDBYTES}  # we pack as quanto does without it
PRECISIONS = {name: LIBRARIES[kind.library] for name, kind in KINDS.items() if kind.library in LIBRARIES}

# option -> pattern of its choices -> package. sageattention has a rule of its own: without it a run goes on.
NEEDS: Mapping[str, Mapping[str, Package]] = {
    "base_model_precision": PRECISIONS,
    "text_encoder_1_precision": PRECISIONS,
    "text_encoder_2_precision": PRECISIONS,
    "optimizer": {
        "bnb-*": BITSANDBYTES,
        "ao-*": TORCHAO,
        "optimi-*": _extra("optimi", "optimizers"),
        "prodigy": _extra("prodigyopt", "optimizers"),
        "adamw_schedulefree": _extra("schedulefree", "optimizers"),
        "soap": _extra("pytorch_optimizer", "optimizers"),
    },
    "optimizer_cpu_offload_method": {"torchao": TORCHAO},
    "lora_type": {"lycoris": _extra("lycoris", "lycoris")},
    "lora_init_type": {"loftq": BITSANDBYTES},
    "attention_mechanism": ATTENTION,
    "report_to": {name: _extra(name, name) for name in ("tensorboard", "wandb", "trackio")},
    "caption_strategy": {"parquet": _extra("pyarrow", "datasets"), "huggingface": _extra("datasets", "datasets")},
}


def installed(module: str) -> bool:
    """Whether the module can be found, with its parents."""
    path, name = None, ""
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return True


def packages_are_installed(config: Config) -> Iterator[Problem]:
    values = config.values()
    kind = KINDS.get(values["base_model_precision"])
    if values["quantize_via"] == "pipeline" and kind and kind.own and not installed(QUANTO.module):
        message = f"quantize_via=pipeline needs {QUANTO.module} for {kind.name}, which is not installed"
        yield error(message, "quantize_via", fix=f"{QUANTO.install}, or quantize_via=auto")
    for key, patterns in NEEDS.items():
        chosen = values[key] if isinstance(values[key], list) else [values[key]]
        for word in chosen if config.applies(key) else ():
            package = next((p for pattern, p in patterns.items() if fnmatch.fnmatchcase(word, pattern)), None)
            if package and not installed(package.module):
                message = f"{key}={word} needs {package.module}, which is not installed"
                yield error(message, key, fix=package.install)
