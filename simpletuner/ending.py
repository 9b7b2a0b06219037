"""The last lines of a run: what it left, and the exact words that make pictures with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from simpletuner import check
from simpletuner.plan.words import shown_path
from simpletuner.tracking.report import FILE as REPORT
from simpletuner.tracking.words import generate_command
from simpletuner.validation import sizes
from simpletuner.validation.options import Validation
from simpletuner.validation.shots import Defaults

if TYPE_CHECKING:
    from simpletuner.recipe import Run

WIDTH = 13  # of the names in front of the lines


def last_lines(run: Run, result: Path) -> str:
    """What to open, what to type, what to paste, and last the result itself."""
    step, prompt = run.progress.step, _prompt(run)
    rows = [
        ("report", [shown_path(path) for path in [run.output_dir / REPORT] if path.is_file()]),
        (
            "before/after",
            [shown_path(path) for path in [run.output_dir / "sheets" / f"step_{step}.jpg"] if path.is_file()],
        ),
        ("pictures", [generate_command(shown_path(run.output_dir), prompt)]),
        ("in diffusers", diffusers_lines(run, result, prompt)),
        (run.kind.title, [str(result)]),
    ]
    return "\n".join(
        f"{name if first else '':<{WIDTH}} {line}".rstrip()
        for name, lines in rows
        for first, line in zip([True] + [False] * len(lines), lines, strict=False)
    )


def diffusers_lines(run: Run, result: Path, prompt: str) -> list[str]:
    """Python that opens the result in diffusers and makes a picture with the settings of the last validation."""
    options, (steps, guidance, real) = run.config[Validation], Defaults.of(run.config[Validation])
    resolution, _ = sizes.parse(options.validation_resolution)
    lines = run.family.opening(None if run.kind.base_stays else result)
    if run.kind.base_stays:
        folder, name = (json.dumps(str(value), ensure_ascii=False) for value in (result.parent, result.name))
        lines.append(f"pipeline.load_lora_weights({folder}, weight_name={name})")
    return [*lines, run.family.picture(prompt, resolution[0], steps=steps, guidance=guidance, real=real)]


def _there(path: Path) -> list[str]:
    return [shown_path(path)] if path.is_file() else []


def _prompt(run: Run) -> str:
    """The main prompt of the run, or the trigger phrase of a run without images."""
    texts = [prompt.text for prompt in run.prompts if prompt.text]
    return texts[-1] if texts else check.instance_prompt(run.config, run.datasets) or "..."
