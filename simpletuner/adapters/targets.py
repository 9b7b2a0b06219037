"""Which linear layers of a model the names of an adapter mean. No torch: paths are enough."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from simpletuner.errors import Problem, raise_errors
from simpletuner.registry import did_you_mean

BLOCK = re.compile(r"(\w+)\.(\d+)\.")


def matches(name: str, path: str) -> bool:
    """A name means a module whose path is it, ends in "." + it, or matches it as a whole as a regular expression."""
    return path == name or path.endswith("." + name) or re.fullmatch(name, path) is not None


def find(paths: Iterable[str], names: Sequence[str]) -> list[str]:
    """Those of the linear layers `paths` that the names mean, in their order. ConfigError for names that mean none."""
    linear = list(paths)
    problems: list[Problem] = []
    chosen: set[str] = set()
    for name in names:
        try:
            found = [path for path in linear if matches(name, path)]
        except re.error as error:
            problems.append(_unmatched(name, f"is not a regular expression: {error}", "correct it"))
            continue
        if not found:
            problems.append(_explained(name, linear))
        chosen.update(found)
    raise_errors(problems)
    return [path for path in linear if path in chosen]


def _unmatched(name: str, what: str, fix: str) -> Problem:
    return Problem(f'adapter target "{name}" {what}', keys=("flux_lora_target", "peft_lora_target_modules"), fix=fix)


def _explained(name: str, linear: Sequence[str]) -> Problem:
    block = BLOCK.match(name)
    blocks = (
        {int(found[2]) for path in linear if (found := BLOCK.match(path)) and found[1] == block[1]} if block else ()
    )
    if block and blocks and int(block[2]) not in blocks:
        what = f"names a block that the model lacks: it has {len(blocks)} {block[1]}, counted from 0"
        return _unmatched(name, what, "choose another flux_lora_target, or a block that exists")
    endings = {".".join(path.split(".")[-depth:]) for path in linear for depth in (1, 2, 3)}
    known = sorted(ending for ending in endings if not ending[0].isdigit())
    return _unmatched(name, "matches no linear layer", did_you_mean(name, known))
