"""Prompts as lines of text, one each, with flags behind: `a cat --w 1024 --h 768 --d 7` (conventions.md section 6)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from simpletuner.errors import Problem
from simpletuner.registry import did_you_mean

FLAGS = {
    "n": "negative_prompt", "w": "width", "h": "height", "d": "seed", "seed": "seed", "s": "steps", "steps": "steps",
    "l": "guidance_real", "cfg": "guidance_real", "g": "guidance", "m": "adapter_strength",
    "network_multiplier": "adapter_strength",
}  # fmt: skip
UNUSED = ("fs", "ss", "ctr", "rcfg", "p2", "n2", "gr")  # samplers and shifts of other programs
INPUTS = ("cn", "ctrl_img")
FLAG = re.compile(r"(?:^|\s+)--([A-Za-z]\w*)")


def fields(line: str, where: str) -> tuple[dict[str, Any], list[Problem]]:
    """The entry keys of one line, values still as text, and what is wrong with its flags."""
    text, *pieces = FLAG.split(line)
    found: dict[str, Any] = {"prompt": text.strip()}
    problems = []
    for flag, value in zip(pieces[::2], pieces[1::2], strict=True):
        name = flag.lower()
        if name in UNUSED:
            problems.append(Problem(f"--{flag} is not used here", severity="notice", where=where))
        elif name in INPUTS:
            problems.append(
                Problem(
                    f"--{flag}: input pictures need an editing model, which is not there yet",
                    where=where,
                    fix=f"remove --{flag}",
                )
            )
        elif name not in FLAGS:
            problems.append(Problem(f"unknown flag --{flag}", where=where, fix=did_you_mean(name, FLAGS)))
        else:
            found[FLAGS[name]] = value.strip()
    width, height = found.pop("width", None), found.pop("height", None)
    if width or height:
        found["resolution"] = f"{width or height}x{height or width}"
    return found, problems


def read(path: Path) -> tuple[list[tuple[dict[str, Any], str]], list[Problem]]:
    """([(entry keys, file:line)], problems) of a text file; empty lines and lines that start with # are skipped."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        message = f"user_prompt_library: cannot be read: {error.strerror}"
        return [], [Problem(message, where=str(path), fix="correct the path", keys=("user_prompt_library",))]
    except UnicodeDecodeError as error:
        return [], [
            Problem(
                f"user_prompt_library: not UTF-8 (byte {error.start})",
                where=str(path),
                fix="save the file as UTF-8",
                keys=("user_prompt_library",),
            )
        ]
    entries, problems = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            where = f"{path}:{number}"
            entry, wrong = fields(line.strip(), where)
            entries.append((entry, where))
            problems += wrong
    return entries, problems
