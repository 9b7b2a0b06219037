"""The trainer's process: takes the lock, tells the world, and turns every ending into one message and one exit code."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simpletuner.check import Checked, check
from simpletuner.errors import Problem, SimpleTunerError, Stopped, raise_errors
from simpletuner.events import EventLog
from simpletuner.tracking.console import Console
from simpletuner.tracking.logfile import LogFile
from simpletuner.tracking.options import Logging
from simpletuner.training.lock import Lock
from simpletuner.training.options import Saving, Training
from simpletuner.validation.options import Validation


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m simpletuner.recipe", description="Trains a resolved configuration."
    )
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--json", action="store_true", help="events on stdout, one JSON object per line")
    arguments = parser.parse_args()
    sys.exit(run(arguments.config, json_events=arguments.json))


def run(path: Path, *, json_events: bool = False) -> int:
    """Trains the configuration at `path`; returns the exit code."""
    try:
        checked = check(path, {})
        raise_errors(checked.problems)
        with Lock(checked.config[Training].output_dir):
            return _run_locked(checked, json_events)
    except SimpleTunerError as error:
        _print(error.problems, error.exit_code)
        return error.exit_code


def _run_locked(checked: Checked, json_events: bool) -> int:
    output_dir = checked.config[Training].output_dir
    events = EventLog(output_dir)
    console = Console(sys.stderr, intervals=_intervals(checked))
    events.subscribe(LogFile(checked.config[Logging].logging_dir or output_dir / "logs"))
    events.subscribe(
        (lambda event: print(json.dumps(asdict(event), default=str), flush=True)) if json_events else console
    )
    started = time.monotonic()
    try:
        with _ended_by_signals():
            result, step = _train(checked, events)
        events.emit(
            "run.finished",
            step=step,
            result=result.name,
            seconds=round(time.monotonic() - started, 1),
            pending_uploads=0,
        )
        console.close()
        print(_ending(result, checked), file=sys.stderr)
        return 0
    except Stopped as stop:
        console.close()
        print(stop.problems[0].message, file=sys.stderr)
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


def _train(checked: Checked, events: EventLog) -> tuple[Path, int]:
    from simpletuner.recipe import Run  # torch loads here, after the mistakes of the configuration were told
    from simpletuner.training.signals import StopRequest

    assert checked.datasets is not None
    stop = StopRequest(checked.config[Training].stop_timeout)
    run = Run(checked.config, checked.datasets, checked.prompts, events, stop)
    events.emit("run.started", family=run.record.name, flavour=run.flavour.name, model_type="lora", world_size=1)
    return run.train(), run.progress.step


@contextmanager
def _ended_by_signals() -> Any:
    """While preparing, a signal ends the run where it is: caches are whole item by item, so nothing is lost."""

    def end(number: int, frame: object) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name} while preparing; what is cached stays", 128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _record(error: BaseException, events: EventLog, checked: Checked, problems: list[Problem], exit_code: int) -> None:
    """The traceback goes to a file, the event log knows, and the user reads what to do."""
    folder = checked.config[Logging].logging_dir or checked.config[Training].output_dir / "logs"
    file = folder / f"traceback-{events.attempt}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(error)), "utf-8")
        first = problems[0]
        events.emit("run.failed", "error", exit_code=exit_code, kind=first.area, message=first.message, fix=first.fix)
    except OSError:
        traceback.print_exception(error)  # a full disk must not hide the reason
    _print(problems, exit_code, f"Traceback: {file}" if exit_code == 1 else "The run has ended.")


def _print(problems: list[Problem], exit_code: int, ending: str = "Nothing was started.") -> None:
    for problem in problems:
        if problem.severity == "error":
            print(f"error[{problem.area}]: {problem.message}", file=sys.stderr)
            for detail in (*([f"where: {problem.where}"] if problem.where else []), *problem.details):
                print(f"  {detail}", file=sys.stderr)
            if problem.fix:
                print(f"  fix: {problem.fix}", file=sys.stderr)
    print(f"{ending} (exit {exit_code})", file=sys.stderr)


def _ending(result: Path, checked: Checked) -> str:
    """The last lines: the result, the before/after picture, and how to use the file."""
    sheets = sorted((result.parent / "sheets").glob("step_*.jpg"), key=lambda p: p.stat().st_mtime)
    lines = [f"before/after: {sheets[-1]}"] if sheets else []
    lines.append(f'use it:  pipeline.load_lora_weights("{result.parent}", weight_name="{result.name}")')
    return "\n".join([*lines, f"LoRA: {result}"])
