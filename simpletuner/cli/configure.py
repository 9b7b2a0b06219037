"""`simpletuner configure`: asks at most twelve questions and writes the configuration that the answers make."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simpletuner.cli import flags, layout, problems
from simpletuner.errors import ConfigError, DiskError, exit_code, raise_errors

if TYPE_CHECKING:
    from simpletuner.wizard.screen import Screen
    from simpletuner.wizard.session import Session
    from simpletuner.wizard.terminal import Conversation

DEFAULT = Path("config/config.json")


@click.command(
    "configure",
    help="""Asks at most twelve questions, looks at GPU, disk and pictures meanwhile, and writes the configuration.

\b
simpletuner configure                               config/config.json
simpletuner configure config/cat/config.json        an environment of its own
simpletuner configure --defaults --images pictures  every proposal, no question
simpletuner configure --answers answers.json        the answers of an earlier time
""",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default=DEFAULT)
@click.option("--answers", type=click.Path(path_type=Path), metavar="FILE", help="Takes the answers from a file.")
@click.option("--save-answers", type=click.Path(path_type=Path), metavar="FILE", help="Writes the answers to a file.")
@click.option("--defaults", is_flag=True, help="Takes every proposal; needs only the pictures.")
@click.option("--images", metavar="FOLDER", help="The folder of the pictures.")
@click.option("--from", "start", metavar="NAME", help="Where to start: a preset, an example, or existing.")
def command(
    file: Path, answers: Path | None, save_answers: Path | None, defaults: bool, images: str | None, start: str | None
) -> None:
    given = {name: value for name, value in (("start", start), ("images", images)) if value is not None}
    if answers and (defaults or given):
        fix = "leave out --defaults, --from and --images"
        raise ConfigError("--answers holds every answer", where="command line", fix=fix)
    may_ask = flags.may_ask() and not flags.current().json
    if not (answers or defaults or may_ask):
        fix = "answer beforehand: --answers FILE, or --defaults --images FOLDER"
        raise ConfigError("there is no terminal to ask on", where="command line", fix=fix)
    with _session(file) as session:
        if answers:
            _replay(session, answers)
        elif defaults:
            _propose(session, given, may_ask)
        else:
            _converse(session, given)
        written = _write(session, save_answers)
    sys.exit(_finish(file, written))


@contextmanager
def _session(file: Path) -> Iterator[Session]:
    from simpletuner import machine
    from simpletuner.wizard import documents
    from simpletuner.wizard.facts import Gallery
    from simpletuner.wizard.graph import QUESTIONS
    from simpletuner.wizard.session import Session

    found = documents.read(file)
    gallery = Gallery()
    try:
        yield Session(found, machine.look(), gallery, QUESTIONS)
    finally:
        gallery.close()


def _replay(session: Session, path: Path) -> None:
    from simpletuner.wizard import answers

    found = answers.replay(session, answers.read(path))
    raise_errors(found)
    problems.show(found)


def _propose(session: Session, given: dict[str, Any], may_ask: bool) -> None:
    """Every proposal; the folder of the pictures is asked for if there is none to propose and somebody to ask.

    The pictures of an example are only for those who chose it.
    """
    from simpletuner.wizard import answers
    from simpletuner.wizard.screen import Screen
    from simpletuner.wizard.topics.pictures import folder_proposal

    if "images" not in given and not folder_proposal(session):
        preset = session.presets.get(given.get("start", ""))
        if may_ask and not (preset and preset.folder):
            given = {**given, "images": Screen().line("Folder of the pictures: ", path=True)}
        elif "start" not in given:
            given = {**given, "images": None}
    answers.propose(session, given)


def _converse(session: Session, given: dict[str, Any]) -> None:
    """Asks on the terminal until somebody agrees to what would be written. Ctrl-C keeps the answers and ends."""
    from simpletuner.wizard import memory
    from simpletuner.wizard.questions import Wrong
    from simpletuner.wizard.screen import Screen
    from simpletuner.wizard.terminal import Conversation

    screen = Screen()
    talk = Conversation(session, screen)
    try:
        talk.greet()
        earlier = memory.recall(session.documents.config)
        if earlier and not given:
            screen.say()
            if not talk.agreed("Go on from the answers of last time"):
                earlier = {}
        accepted = earlier.pop("_accepted", [])
        talk.ask_all({**earlier, **given}, accepted)
        if not _reviewed(session, talk, screen):
            raise KeyboardInterrupt
    except Wrong as wrong:
        raise ConfigError(str(wrong), fix=wrong.fix, where="command line") from wrong
    except (KeyboardInterrupt, EOFError):
        kept = memory.keep(session)
        screen.say()
        screen.say("Nothing was written." + (" simpletuner configure goes on from here." if kept else ""))
        sys.exit(130)
    memory.forget(session.documents.config)


def _reviewed(session: Session, talk: Conversation, screen: Screen) -> bool:
    """Shows what would change until somebody says yes or no to it."""
    from simpletuner.wizard import documents
    from simpletuner.wizard.terminal import GoBack

    while True:
        screen.say()
        for finding in session.findings():
            screen.say(f"Does not go together: {finding.message}; {finding.fix}")
        lines = documents.difference(documents.texts(session.documents, session.changes()))
        for line in lines or ["Nothing changes: the files say all of this already."]:
            screen.raw(line)
        screen.say()
        try:
            return talk.agreed("Write these files")
        except GoBack:
            talk.ask_again()


def _write(session: Session, save_answers: Path | None) -> list[Path]:
    from simpletuner.wizard import answers, documents

    written = documents.write(documents.texts(session.documents, session.changes()))
    if save_answers:
        try:
            save_answers.write_text(answers.text(session), "utf-8")
        except OSError as error:
            raise DiskError(f"{save_answers}: {error.strerror}", fix="name a file that can be written") from error
        written.append(save_answers)
    return written


def _finish(file: Path, written: list[Path]) -> int:
    """Checks what was written, shows its plan, and says how to go on; the exit code."""
    from simpletuner import finding, machine, plan
    from simpletuner.check import check, with_seed
    from simpletuner.finding import Files
    from simpletuner.plan import words

    here = finding.find(None, None, os.environ)[0]
    same = here.path is not None and here.path.resolve() == file.resolve()
    checked = with_seed(check(here if same else Files(file), {}))
    made = plan.make(checked, machine.look({**os.environ, **checked.config.exports}))
    code = exit_code(made.problems)
    if flags.current().json:
        record = {"exit_code": code, "written": [str(path) for path in written],
                  "problems": [problem.record() for problem in made.problems], "plan": made.record()}  # fmt: skip
        click.echo(json.dumps(record, ensure_ascii=False, indent=2))
        return code
    for path in written:
        backup = path.with_name(path.name + ".bak")
        click.echo(f"wrote {path}" + (f"   before: {backup}" if backup.exists() else ""))
    if not written:
        click.echo("nothing had to be written")
    where = "" if same else f" --config {shlex.quote(str(file))}"
    click.echo("\n" + words.text(made, layout.columns(), f"simpletuner train{where}"))
    problems.show(made.problems)
    if code:
        print(f"next: mend that, then simpletuner plan{where} (exit {code})", file=sys.stderr)
    return code
