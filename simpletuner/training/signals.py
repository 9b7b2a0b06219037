"""SIGINT, SIGTERM and SIGHUP as a request to stop after the step: the first one asks, the second ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from simpletuner.errors import Stopped

# What ends a run, with its exit code. A closed terminal (SIGHUP) means the same as SIGTERM.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}


class StopRequest:
    """Holds what was asked for. As a context it listens to signals, and gives the old handlers back at the end, unless
    a signal came: then the process is on its way out, and a second signal still ends it at once.

    The first signal sets `exit_code` and starts a clock of `timeout_seconds`. When that runs out,
    or a second signal comes, the process ends where it stands. The last checkpoint is whole either way.
    """

    def __init__(self, timeout_seconds: float = 60.0):
        self.timeout_seconds = timeout_seconds
        self.exit_code: int | None = None  # None: nobody asked
        self.reason = ""
        self._before: dict[int, Any] = {}
        self._clock: threading.Timer | None = None

    def __enter__(self) -> StopRequest:
        for number in EXIT_CODES:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._clock:
            self._clock.cancel()
        if not self.exit_code:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        return self.exit_code is not None

    def ask(self, reason: str, exit_code: int) -> None:
        """A polite stop, for example from the control file."""
        if not self.requested:
            self.reason, self.exit_code = reason, exit_code

    def stopped(self, saved: str) -> Stopped:
        """The exception that ends the run with the asked-for exit code."""
        assert self.exit_code is not None
        return Stopped(f"stopped by {self.reason}; {saved}", self.exit_code)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name, code = signal.Signals(number).name, EXIT_CODES[signal.Signals(number)]
        if self.exit_code is not None and self.exit_code > 0:
            self._end(code, f"second signal ({name}): ending at once; the last checkpoint is whole")
        self.reason, self.exit_code = name, code
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{name}: saving after this step\n".encode())
        timeout = f"{name}: no checkpoint within stop_timeout={self.timeout_seconds:g} s; the previous one is whole"
        self._clock = threading.Timer(self.timeout_seconds, self._end, (code, timeout))
        self._clock.daemon = True
        self._clock.start()

    def _end(self, exit_code: int, message: str) -> None:
        os.write(2, (message + "\n").encode())
        os._exit(exit_code)
