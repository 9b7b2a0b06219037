"""Which modules of a model the names of an adapter mean."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from simpletuner.errors import Problem, raise_errors
from simpletuner.registry import did_you_mean

BLOCK = re.compile(r"(\w+)\.(\d+)\.")


def matches(name: str, path: str) -> bool:
    """A name means a module whose path is it, ends in "." + it, or matches it as a whole as a regular expression."""
    return path == name or path.endswith("." + name) or re.fullmatch(name, path) is not None


def find(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Paths of the linear layers that the names mean, in the model's order. ConfigError for names that mean none."""
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    problems: list[Problem] = []
    chosen: set[str] = set()
    for name in names:
        try:
            found = [path for path in linear if matches(name, path)]
        except re.error as error:
            problems.append(_unmatched(name, f"is not a regular expression: {error}", "correct it"))
            continue
        if not found:
            problems.append(_explained(model, name, linear))
        chosen.update(found)
    raise_errors(problems)
    return [path for path in linear if path in chosen]


def _unmatched(name: str, what: str, fix: str) -> Problem:
    return Problem(f'adapter target "{name}" {what}', keys=("flux_lora_target", "peft_lora_target_modules"), fix=fix)


def _explained(model: nn.Module, name: str, linear: Sequence[str]) -> Problem:
    block = BLOCK.match(name)
    blocks = getattr(model, block.group(1), None) if block else None
    if block and isinstance(blocks, nn.ModuleList) and int(block.group(2)) >= len(blocks):
        what = f"names a block that the model lacks: it has {len(blocks)} {block.group(1)}, counted from 0"
        return _unmatched(name, what, "choose another flux_lora_target, or a block that exists")
    endings = {".".join(path.split(".")[-depth:]) for path in linear for depth in (1, 2, 3)}
    known = sorted(ending for ending in endings if not ending[0].isdigit())
    return _unmatched(name, "matches no linear layer", did_you_mean(name, known))
