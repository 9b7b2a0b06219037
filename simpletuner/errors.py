"""Errors a user can act on: what is wrong, where, and how to fix it, with one exit code each.

    SimpleTunerError      1   a bug
    ├── ConfigError       2   usage or configuration
    ├── DataError         3   dataset or cache
    ├── AccessError       4   login, gated model, licence
    ├── HardwareError     5   hardware or memory
    ├── DivergedError     6   NaN or Inf
    ├── DiskError         7   disk or input/output, no valid checkpoint
    ├── RemoteError       8   a required remote service is down
    └── Stopped     130/143   a signal, after the checkpoint was saved

An exception carries `Problem` records, so several mistakes travel together. Commands print them and exit with the
lowest code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning", "notice"]

EXIT_CODES = {
    "bug": 1,
    "config": 2,
    "dataset": 3,
    "cache": 3,
    "auth": 4,
    "hardware": 5,
    "diverged": 6,
    "disk": 7,
    "remote": 8,
}


@dataclass(frozen=True)
class Problem:
    """One finding about the user's input or machine."""

    message: str
    area: str = "config"  # a key of EXIT_CODES
    severity: Severity = "error"
    where: str = ""  # "config/config.json:14:3", "command line", "env SIMPLETUNER_SEED"
    fix: str = ""
    keys: tuple[str, ...] = ()
    details: tuple[str, ...] = ()  # further lines, printed indented

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.area] if self.severity == "error" else 0

    def lines(self, width: int = 0) -> list[str]:
        """The finding for people: what, where (on the first line if it fits into `width`), details, fix."""
        text = f"{self.severity}[{self.area}]: " if self.severity != "notice" else "notice: "
        text += self.message
        if self.where and len(text) + len(self.where) + 3 <= width:
            lines = [f"{text}{self.where:>{width - len(text)}}"]
        else:
            lines = [text, *([f"  where: {self.where}"] if self.where else [])]
        lines += [f"  {detail}" for detail in self.details]
        return lines + ([f"  fix: {self.fix}"] if self.fix else [])

    def record(self) -> dict:
        """Plain data for --json, the web form and the event log."""
        return asdict(self) | {"exit_code": self.exit_code}


def first_line(error: BaseException) -> str:
    """Of what an exception of somebody else says, short; its name if it says nothing.

    A line that only introduces the next one brings that with it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])[:300] or type(error).__name__


class SimpleTunerError(Exception):
    """Base of all errors shown to a user. Takes a message (with fix and where) or ready `Problem` records."""

    area = "bug"

    def __init__(
        self,
        problems: str | Problem | Iterable[Problem],
        *,
        fix: str = "",
        where: str = "",
        details: Sequence[str] = (),
    ):
        if isinstance(problems, str):
            problems = [Problem(problems, self.area, fix=fix, where=where, details=tuple(details))]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems = list(problems)
        super().__init__("; ".join(p.message for p in self.problems if p.severity == "error") or "no error")

    @property
    def exit_code(self) -> int:
        return exit_code(self.problems) or EXIT_CODES[self.area]


class ConfigError(SimpleTunerError):
    area = "config"


class DataError(SimpleTunerError):
    area = "dataset"


class AccessError(SimpleTunerError):
    area = "auth"


class HardwareError(SimpleTunerError):
    area = "hardware"


class DivergedError(SimpleTunerError):
    area = "diverged"


class DiskError(SimpleTunerError):
    area = "disk"


class RemoteError(SimpleTunerError):
    area = "remote"


class Stopped(SimpleTunerError):
    """The run was asked to stop and has saved its state. exit_code is 128 + signal number, or 0 for a polite stop."""

    area = "bug"

    def __init__(self, message: str, exit_code: int):
        super().__init__(Problem(message, severity="notice"))
        self._exit_code = exit_code

    @property
    def exit_code(self) -> int:
        return self._exit_code


def exit_code(problems: Iterable[Problem]) -> int:
    """The lowest code among the errors; 0 without one."""
    return min((p.exit_code for p in problems if p.severity == "error"), default=0)


def has_errors(problems: Iterable[Problem]) -> bool:
    return any(p.severity == "error" for p in problems)


def raise_errors(problems: Sequence[Problem], kind: type[SimpleTunerError] = ConfigError) -> None:
    """Raises one exception with all problems if any of them is an error."""
    if has_errors(problems):
        raise kind(problems)
