"""The trainer's process: takes the lock, tells the world, and turns every ending into one message and one exit code."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from simpletuner.check import Checked, check, with_seed
from simpletuner.envfile import EXTRA_ARGS
from simpletuner.errors import Problem, SimpleTunerError, Stopped, raise_errors
from simpletuner.events import EventLog
from simpletuner.layers import ENV_PREFIX
from simpletuner.tracking.console import Console
from simpletuner.tracking.logfile import LogFile
from simpletuner.tracking.options import Logging
from simpletuner.tracking.report import ReportFile
from simpletuner.training.lock import Lock
from simpletuner.training.options import Saving, Training
from simpletuner.training.signals import EXIT_CODES
from simpletuner.validation.options import Validation

if TYPE_CHECKING:
    from simpletuner.recipe import Run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m simpletuner.recipe", description="Trains a resolved configuration."
    )
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--json", action="store_true", help="events on stdout, one JSON object per line")
    arguments = parser.parse_args()
    sys.exit(run(arguments.config, json_events=arguments.json))


Job = Callable[[Checked, EventLog], str]  # does the work and tells the events of it; the lines that are said last


def run(path: Path, *, json_events: bool = False, job: Job | None = None) -> int:
    """Trains the configuration at `path`, or does another job with it; returns the exit code.

    Only a training is entered into the run's own log of events.
    """
    # What the environment says is in the resolved file already, under what the command line said.
    environ = {k: v for k, v in os.environ.items() if k not in EXTRA_ARGS and not k.startswith(ENV_PREFIX)}
    try:
        with _ended_by_signals():
            checked = with_seed(check(path, {}, environ))
            raise_errors(checked.problems)
            with Lock(checked.config[Training].output_dir) as lock:
                return _run_locked(checked, json_events, lock, job)
    except _Ended as ended:
        print(ended, file=sys.stderr)
        return ended.exit_code
    except SimpleTunerError as error:
        _print(error.problems, error.exit_code)
        return error.exit_code


def _run_locked(checked: Checked, json_events: bool, lock: Lock, job: Job | None) -> int:
    output_dir = checked.config[Training].output_dir
    events = EventLog(None if job else output_dir)
    if not job:
        events.subscribe(ReportFile(output_dir, events))
    console = Console(sys.stderr, intervals=_intervals(checked))
    events.subscribe(LogFile(checked.config[Logging].logging_dir or output_dir / "logs"))
    events.subscribe(
        (lambda event: print(json.dumps(asdict(event), default=str), flush=True)) if json_events else console
    )
    if lock.taken_over:
        events.warn("lock_taken_over", lock.taken_over)
    try:
        ending = (job or _train)(checked, events)
        console.close()
        _say(ending)
        return 0
    except _Ended as ended:
        console.close()
        events.emit("run.stopped", reason=ended.name, checkpoint="", exit_code=ended.exit_code, step=events.step)
        raise
    except Stopped as stop:
        console.close()
        _say(stop.problems[0].message)
        return stop.exit_code
    except SimpleTunerError as error:
        console.close()
        _record(error, events, checked, error.problems, error.exit_code)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug gets its file and its exit code
        console.close()
        problem = Problem(f"{type(error).__name__}: {error}", "bug", fix="please report it with the traceback file")
        _record(error, events, checked, [problem], 1)
        return 1


def _intervals(checked: Checked) -> dict[str, int]:
    """What the training line counts down to."""
    intervals = {"checkpoint": checked.config[Saving].checkpoint_step_interval}
    if not checked.config[Validation].validation_disable:
        intervals["validation"] = checked.config[Validation].validation_step_interval
    return intervals


def new_run(checked: Checked, events: EventLog) -> Run:
    """The run of a configuration without mistakes, not begun. Torch loads here, after the mistakes were told."""
    from simpletuner.recipe import Run
    from simpletuner.training.signals import StopRequest

    assert checked.datasets is not None
    stop = StopRequest(checked.config[Training].stop_timeout)
    return Run(checked.config, checked.datasets, checked.prompts, events, stop)


def _train(checked: Checked, events: EventLog) -> str:
    started, run = time.monotonic(), new_run(checked, events)
    events.emit("run.started", family=run.record.name, flavour=run.flavour.name, model_type=run.kind.name, world_size=1)
    result = run.train()
    seconds = round(time.monotonic() - started, 1)
    events.emit("run.finished", step=run.progress.step, result=result.name, seconds=seconds, pending_uploads=0)
    from simpletuner.ending import last_lines  # needs torch, which has loaded by now

    return last_lines(run, result)


class _Ended(BaseException):
    """A signal while preparing. No library that expects an Exception may take it for its own."""

    def __init__(self, number: int):
        self.name, self.exit_code = signal.Signals(number).name, EXIT_CODES[signal.Signals(number)]
        super().__init__(f"stopped by {self.name} while preparing; what is cached stays")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """While preparing, a signal ends the run where it is: caches are whole item by item, so nothing is lost."""

    def end(number: int, frame: object) -> None:
        raise _Ended(number)

    before = {number: signal.signal(number, end) for number in EXIT_CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _record(error: BaseException, events: EventLog, checked: Checked, problems: list[Problem], exit_code: int) -> None:
    """The traceback goes to a file, the event log knows, and the user reads what to do."""
    folder = checked.config[Logging].logging_dir or checked.config[Training].output_dir / "logs"
    file = folder / f"traceback-{events.attempt if events.path else 'caches'}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(error)), "utf-8")
        first = next(problem for problem in problems if problem.severity == "error")
        events.emit("run.failed", "error", exit_code=exit_code, kind=first.area, message=first.message, fix=first.fix)
    except OSError:
        traceback.print_exception(error)  # a full disk must not hide the reason
    _print(problems, exit_code, f"Traceback: {file}" if exit_code == 1 else "The run has ended.")


def _print(problems: list[Problem], exit_code: int, ending: str = "Nothing was started.") -> None:
    for problem in problems:
        if problem.severity == "error":
            _say("\n".join(problem.lines()))
    _say(f"{ending} (exit {exit_code})")


def _say(text: str) -> None:
    """A line for people. The reader may have gone; that changes nothing about the outcome."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
