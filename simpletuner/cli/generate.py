"""`simpletuner generate`: pictures with a trained adapter. All mistakes are told before torch loads."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import click

from simpletuner import config as configuration
from simpletuner.adapters import lora_file
from simpletuner.adapters.kinds import KINDS, Kind
from simpletuner.adapters.lora_file import LoraFile
from simpletuner.cli import problems, sources
from simpletuner.config import Config
from simpletuner.errors import ConfigError, Problem, raise_errors
from simpletuner.examples import EXAMPLES
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.schema import Ge, Group, Le, Raw, parse
from simpletuner.types import Prompt
from simpletuner.validation import nicknames
from simpletuner.validation.options import Validation
from simpletuner.validation.prompts import Row, prompt_of, read_library

OUT = "generated"
NAME_LETTERS = 48  # of a prompt, in a file's name
# Option of the command -> what a prompt of a library calls it.
SETTINGS = {
    "size": "resolution",
    "steps": "steps",
    "guidance": "guidance",
    "guidance_real": "guidance_real",
    "negative": "negative_prompt",
    "strength": "adapter_strength",
    "seed": "seed",
}


class Amount(Group, title="Pictures"):
    count: Annotated[int, Ge(1), Le(1000)] = 1
    """Pictures of each prompt, each from its own noise."""


@dataclass(frozen=True)
class Given:
    """What the user said, as it was written."""

    asked: sources.Asked
    run: Path | None
    lora: Path | None
    prompts: tuple[str, ...]
    library: Path | None
    settings: Mapping[str, str | None]  # by the names of the command's options
    count: str
    out: Path


@dataclass(frozen=True)
class Order:
    """What is to be made; nothing in it is left to check but whether the weights fit."""

    config: Config
    lora: LoraFile | None
    prompts: tuple[Prompt, ...]
    count: int


@click.command(
    "generate",
    help="""Makes pictures with what a run trained, or with the base model.

\b
  simpletuner generate --run simpletuner-results/nano --prompt "flat emoji of a fox"
  simpletuner generate --example nano --lora my.safetensors --prompt "flat emoji of a bus" --count 4
  simpletuner generate --example nano --prompt "flat emoji of a bus"        the base model
""",
)
@click.option("--run", type=click.Path(path_type=Path), metavar="DIR", help="A run's output folder, with its settings.")
@click.option("--lora", type=click.Path(path_type=Path), metavar="FILE", help="A LoRA file; the base model without.")
@click.option("--prompt", "texts", multiple=True, metavar="TEXT", help="What to show; may be given several times.")
@click.option("--prompts", "library", type=click.Path(path_type=Path), metavar="FILE", help="A prompt library.")
@click.option("--size", metavar="WxH", help="Size in pixels, or a comma list of sizes; that of the run's images.")
@click.option("--steps", metavar="N", help="Sampling steps.")
@click.option("--guidance", metavar="X", help="The model's own guidance.")
@click.option("--guidance-real", metavar="X", help="Real classifier-free guidance; on above 1, at twice the time.")
@click.option("--negative", metavar="TEXT", help="What not to show; needs --guidance-real.")
@click.option("--strength", metavar="X", help="Of the LoRA: 1 as it was trained, 0 the base model.")
@click.option("--seed", metavar="N", help="Number of the start noise; that of the run's images.")
@click.option("--count", metavar="N", default="1", show_default=True, help="Pictures of each prompt.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", default=OUT, show_default=True,
    help="Folder of the pictures; no file in it is ever overwritten.",
)  # fmt: skip
@sources.shared
def command(
    asked: sources.Asked, as_json: bool, run: Path | None, lora: Path | None, texts: tuple[str, ...],
    library: Path | None, count: str, out: Path, **settings: str | None,
) -> None:  # fmt: skip
    order, notices = check(Given(asked, run, lora, texts, library, settings, count, out))
    problems.show(notices)
    from simpletuner.events import EventLog
    from simpletuner.generate import Trained, generate  # torch loads here, after the mistakes were told
    from simpletuner.tracking.console import Console

    events, console = EventLog(None), Console(sys.stderr)
    events.subscribe(console)
    try:
        kind = KINDS[order.config[Model].model_type]
        trained = Trained(order.lora) if order.lora or not run else Trained.of_run(run, kind, events)
        made = generate(order.config, order.prompts, trained, count=order.count, out=out, events=events)
    finally:
        console.close()
    if as_json:
        pictures = [{"file": str(path), "settings": settings} for path, settings in made]
        click.echo(json.dumps({"pictures": pictures}, ensure_ascii=False, indent=2))
    else:
        for path, _ in made:
            click.echo(path)
    print(f"{len(made)} picture{'s' * (len(made) != 1)} in {out}{os.sep}", file=sys.stderr)


def check(given: Given) -> tuple[Order, list[Problem]]:
    """What to make, and notices. One error with every mistake; loads no torch and no model."""
    found: list[Problem] = []
    lora = config = None
    wanted, count, more = _prompts(given)
    found += more
    try:
        lora = lora_file.read(given.lora) if given.lora else None
    except ConfigError as error:
        found += error.problems
    try:
        config, more = _configuration(given, lora)
        found += more
    except ConfigError as error:
        found += error.problems
    if config and Model.__name__ in config.groups:
        kind = KINDS[config[Model].model_type]
        if given.run and not given.lora:
            lora, more = _of_run(given.run, kind)
            found += more
        found += _without_effect(given, config, kind, wanted)
    if given.out.exists() and not given.out.is_dir():
        found.append(Problem(f"--out: {given.out} is a file", fix="name a folder"))
    raise_errors(list(dict.fromkeys(found)))
    assert config is not None
    return Order(config, lora, wanted, count), found


# ---- prompts


def _prompts(given: Given) -> tuple[tuple[Prompt, ...], int, list[Problem]]:
    """(prompts, pictures of each, problems). What the command line says of all prompts wins over the library."""
    fields = {SETTINGS[name]: value for name, value in given.settings.items() if value is not None}
    common, found = prompt_of(Row("command line", {"prompt": "", **fields}, lambda *_: "command line"))
    amount, wrong = parse([Amount], {"count": Raw(given.count, "command line")})
    found = [_by_flag(problem) for problem in (*found, *wrong)]
    wanted = [Prompt(_name(text), text) for text in given.prompts]
    if given.library:
        library, wrong = read_library(given.library)
        found += wrong
        wanted += [replace(prompt, nickname=nicknames.for_file(prompt.nickname)) for prompt in library]
    elif not given.prompts:
        found.append(Problem("nothing to make a picture of", fix='give --prompt "...", or a file with --prompts'))
    told = vars(common) if common else {}
    own = {key: told[key] for key in told if key not in ("nickname", "text") and told[key] not in (None, ())}
    count = amount["Amount"].count  # type: ignore[attr-defined]
    return tuple(replace(prompt, **own) for prompt in wanted), count, found


def _by_flag(problem: Problem) -> Problem:
    """The same, saying --size where a prompt library has resolution."""
    for name, field in {**SETTINGS, "count": "count"}.items():
        if problem.message.startswith(f"{field}:"):
            flag = f"--{name.replace('_', '-')}"
            return replace(problem, message=flag + problem.message[len(field) :], where="")
    return problem


def _name(text: str) -> str:
    """The first words of a prompt, as they may stand in a file's name."""
    # Letters, marks and digits: a Hindi word keeps its vowels, which are marks.
    kept = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in text)
    whole = "-".join(kept.split())
    name = whole if len(whole) <= NAME_LETTERS else whole[: NAME_LETTERS + 1].rpartition("-")[0] or whole[:NAME_LETTERS]
    return nicknames.for_file(name or "picture")


# ---- where settings and weights come from


def _configuration(given: Given, lora: LoraFile | None) -> tuple[Config, list[Problem]]:
    """The configuration, and what is wrong with it. Only what pictures need is looked at. ConfigError as in `find`."""
    overrides, found = configuration.command_line(given.asked.words)
    raise_errors(found)
    if given.run:
        if given.asked.example or given.asked.config_path or given.asked.env:
            fix = "drop --example, --config and --env"
            raise ConfigError("--run brings the settings of its run, so no other can be named", fix=fix)
        path = given.run / "config.resolved.json"
        if not path.is_file():
            raise ConfigError(
                f"--run: {given.run} is no folder of a run: it has no {path.name}",
                fix="give the output_dir of a run, such as simpletuner-results/nano",
            )
        # What the environment said when the run began is in the file; what it says today is another run's.
        return configuration.load(path, {**overrides, "output_dir": str(given.run)}, {})  # it may have been moved
    source = sources.find(given.asked)
    if source.by_default and (flavour := lora and lora.metadata.get("simpletuner.flavour")):
        example = next((example for example in EXAMPLES.values() if example.flavour == flavour), None)
        home = example.folder / "config.json" if example else None
        return configuration.load(home, {} if example else {"model_flavour": flavour}, {})
    config, found = configuration.load(source.path, source.overrides)
    told = [_notice("no configuration in this folder: the example nano is used")] if source.by_default else []
    return config, [*told, *source.notices, *found]


def _of_run(run: Path, kind: Kind) -> tuple[LoraFile | None, list[Problem]]:
    """The LoRA file of a run that kept no checkpoint; an error if it kept nothing at all."""
    result = run / kind.published
    if any(run.glob("checkpoint-*")) or result.is_dir():
        return None, []
    if result.is_file():
        return lora_file.read(result), []
    return None, [Problem(f"--run: {run} has no checkpoint yet", fix="wait for the first one, or give --lora")]


def _without_effect(given: Given, config: Config, kind: Kind, wanted: tuple[Prompt, ...]) -> list[Problem]:
    """Settings that cannot do what they say."""
    flavour = families()[config[Model].model_family].flavours[config[Model].model_flavour]
    base = not given.lora and not given.run
    found = []
    if given.settings["guidance"] is not None and not flavour.guidance:
        found.append(_notice(f"--guidance has no effect: {flavour.name} has no guidance input"))
    if given.settings["strength"] is not None and base:
        found.append(_notice("--strength has no effect: there is no LoRA, so this is the base model"))
    real = [prompt.guidance_real or config[Validation].validation_guidance_real or 1.0 for prompt in wanted]
    if given.settings["negative"] is not None and max(real, default=2.0) <= 1:
        found.append(_notice("--negative has no effect without --guidance-real above 1"))
    if given.lora and not kind.base_stays:
        fix = "give the LoRA's base with --config or --example"
        found.append(Problem("--lora: this run trained the model itself, which a LoRA cannot be put upon", fix=fix))
    if not base and not kind.base_stays and any(p.adapter_strength not in (None, 1.0) for p in wanted):
        found.append(Problem("--strength: this run trained the whole model, which has no strength", fix="drop it"))
    return found


def _notice(message: str) -> Problem:
    return Problem(message, severity="notice")
