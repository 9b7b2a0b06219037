"""One line of the doctor's answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from simpletuner.errors import EXIT_CODES


@dataclass(frozen=True)
class Diagnosis:
    """What was looked at, what was found, and, if it is not right, what to do: a command where there is one."""

    title: str
    text: str
    state: Literal["ok", "warning", "fail"] = "ok"
    fix: str = ""
    area: str = "hardware"  # a key of EXIT_CODES

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.area] if self.state == "fail" else 0

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"exit_code": self.exit_code}
