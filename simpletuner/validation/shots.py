"""Which images one validation makes: a Shot for every prompt, size and number, with all that decides how it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from simpletuner.diffusion import draw
from simpletuner.types import Prompt, Size
from simpletuner.validation import sizes
from simpletuner.validation.options import Validation

LARGEST_NUMBER = 2**31  # drawn numbers stay within what every other program's seed box takes


class Defaults(NamedTuple):
    """What the model's flavour samples with unless the options or the prompt say otherwise."""

    steps: int
    guidance: float
    guidance_real: float

    @classmethod
    def of(cls, options: Validation) -> Defaults:
        """Those of the options, which hold the flavour's own values already."""
        guidance = 3.0 if options.validation_guidance is None else options.validation_guidance
        return cls(options.validation_num_inference_steps or 20, guidance, options.validation_guidance_real or 1.0)


@dataclass(frozen=True)
class Shot:
    """One image to make."""

    prompt: Prompt
    index: int  # of the images of this prompt and size
    asked: Size
    size: Size  # smaller than asked if memory does not hold it
    number: int  # of the start noise
    steps: int
    guidance: float
    guidance_real: float
    negative: str | None  # None while real guidance is off
    skip_real_steps: int
    strength: float  # of the adapter

    @property
    def place(self) -> tuple[str, int, str]:
        """What stays the same from one validation to the next."""
        return self.prompt.nickname, self.index, str(self.asked)

    def halved(self) -> Shot:
        return replace(self, size=sizes.halved(self.size))

    def sample_name(self, step: int) -> str:
        return f"step_{step}_{self.prompt.nickname}_{self.index}_{self.size}"

    def benchmark_name(self) -> str:
        return f"{self.prompt.nickname}_{self.size}" + (f"_{self.index}" if self.index else "")

    def settings(self, facts: Mapping[str, Any], adapter: str | None = None) -> dict[str, Any]:
        """All that decides the picture, as plain data: for the file, and to tell whether it is still the one wanted.

        `facts` are those of the model; without `adapter`, the hash of its weights, the picture is the base model's.
        The size is the one asked for.
        """
        found: dict[str, Any] = {
            "prompt": self.prompt.text,
            "seed": self.number,
            "size": str(self.asked),
            "steps": self.steps,
            "guidance": self.guidance,
            "guidance_real": self.guidance_real,
        }
        if self.negative is not None:
            found |= {"negative_prompt": self.negative, "no_cfg_steps": self.skip_real_steps}
        own = {"adapter": adapter, "adapter_strength": self.strength} if adapter else {}
        return found | dict(facts) | own


def _number(prompt: Prompt, options: Validation, seed: int, step: int) -> int:
    if prompt.seed is not None:
        return prompt.seed
    if options.validation_randomize:
        return draw.integer(LARGEST_NUMBER, "validation", seed, step, prompt.nickname)
    return seed if options.validation_seed is None else options.validation_seed


def plan(
    prompts: Sequence[Prompt],
    resolution: Sequence[Size],
    options: Validation,
    defaults: Defaults,
    *,
    seed: int,
    step: int,
) -> list[Shot]:
    """All images of one validation, in the order of the prompts. `seed` is the run's."""

    def first(*values: Any) -> Any:
        return next(value for value in values if value is not None)

    shots = []
    for prompt in prompts:
        number = _number(prompt, options, seed, step)
        real = first(prompt.guidance_real, options.validation_guidance_real, defaults.guidance_real)
        for size in prompt.sizes or resolution:
            shots += [
                Shot(
                    prompt=prompt,
                    index=index,
                    asked=size,
                    size=size,
                    number=number + index,
                    steps=first(prompt.steps, options.validation_num_inference_steps, defaults.steps),
                    guidance=first(prompt.guidance, options.validation_guidance, defaults.guidance),
                    guidance_real=real,
                    negative=first(prompt.negative, options.validation_negative_prompt) if real > 1 else None,
                    skip_real_steps=options.validation_no_cfg_until_timestep,
                    strength=first(prompt.adapter_strength, 1.0),
                )
                for index in range(options.num_validation_images)
            ]
    return shots
