"""What an exported file says about its run, in the keys that other tools look for: kohya's, the model spec's, ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Fact of the run -> key in the file. What the run does not know is left out.
SS = {
    "rank": "ss_network_dim",
    "base_name": "ss_sd_model_name",
    "output_name": "ss_output_name",
    "resolution": "ss_resolution",
    "step": "ss_steps",
    "epoch": "ss_epoch",
    "num_images": "ss_num_train_images",
    "learning_rate": "ss_learning_rate",
    "optimizer": "ss_optimizer",
    "lr_scheduler": "ss_lr_scheduler",
    "seed": "ss_seed",
    "mixed_precision": "ss_mixed_precision",
    "guidance": "ss_guidance_scale",
    "shift": "ss_discrete_flow_shift",
}
OURS = {
    "version": "simpletuner.version",
    "flavour": "simpletuner.flavour",
    "step": "simpletuner.step",
    "base_name": "simpletuner.base",
    "base_precision": "simpletuner.base_precision",
    "alpha": "simpletuner.trained_alpha",
    "config_hash": "simpletuner.config_hash",
}
SPEC = {
    "architecture": "modelspec.architecture",
    "output_name": "modelspec.title",
    "licence": "modelspec.license",
    "trigger": "modelspec.trigger_phrase",
    "comment": "modelspec.description",
}

PATH = re.compile(r"/|~|\.\.?/|[A-Za-z]:[\\/]")


def describe(facts: Mapping[str, Any]) -> dict[str, str]:
    """The file's metadata from plain facts of the run: the keys of SS, OURS and SPEC, `network_args` and `tags` (dataset -> caption -> count).

    `base_name` is a hub id, or a path of which only the last part is told.
    """  # noqa: E501
    known = {key: value for key, value in facts.items() if value is not None and value != ""}
    if "base_name" in known:
        known["base_name"] = public_name(str(known["base_name"]))
    found: dict[str, str] = {}
    for table in (SS, OURS, SPEC):
        found |= {key: _text(known[fact]) for fact, key in table.items() if fact in known}
    if "resolution" in known:
        edge = _text(known["resolution"])
        found["modelspec.resolution"] = edge if "x" in edge else f"{edge}x{edge}"
    if "rank" in known:
        found |= _network(found, known.get("network_args", {}))
    return found | {
        "ss_tag_frequency": json.dumps(known.get("tags", {}), sort_keys=True, ensure_ascii=False),
        "ss_base_model_version": "flux1",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _network(found: Mapping[str, str], arguments: Mapping[str, Any]) -> dict[str, str]:
    """What only an adapter's file says, over what a whole model's says."""
    own = {
        "ss_network_alpha": found["ss_network_dim"],  # of the folded tensors
        "ss_network_module": "networks.lora_flux",
        "ss_network_args": json.dumps(arguments, sort_keys=True),
    }
    key = SPEC["architecture"]
    return own | ({key: f"{found[key]}/lora"} if key in found else {})


def limited(metadata: Mapping[str, str], level: str) -> dict[str, str]:
    """What `lora_metadata` = level lets into the file."""
    personal = {"ss_tag_frequency", "ss_output_name", "modelspec.title", "modelspec.date"}
    if level == "none":
        return {}
    return {key: value for key, value in metadata.items() if level == "standard" or key not in personal}


def with_paths(metadata: Mapping[str, str]) -> list[str]:
    """The keys whose value gives away a place on a disk. Texts that the user wrote for the file may look like one."""
    own = (SPEC["trigger"], SPEC["comment"])
    return [key for key, value in metadata.items() if PATH.match(value) and key not in own]


def public_name(place: str) -> str:
    """A hub id as it is; of a path the last part only."""
    path = Path(place)
    return place if len(path.parts) <= 2 and not path.is_absolute() and not place.startswith(("~", ".")) else path.name


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
