"""A command on a pseudo-terminal: what it shows, and what a person types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")
SECONDS = 60
QUIET = 2  # seconds without a word, after which Ctrl-C is pressed again


def _on_its_own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Tests that run in the background of a shell would hand down that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Talk:
    """One process; closing it ends it."""

    def __init__(self, home: Path, *words: str, term: str = "xterm", columns: int = 80, rows: int = 24, **more: str):
        self.terminal, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        env |= {"TERM": term, "SIMPLETUNER_STATE_DIR": str(home.parent / "state"), "CUDA_VISIBLE_DEVICES": ""} | more
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simpletuner.cli.main", *words],
            stdin=inner, stdout=inner, stderr=inner, cwd=home, env=env, start_new_session=True,
            preexec_fn=_on_its_own_terminal,
        )  # fmt: skip
        os.close(inner)
        self.raw, self.read_to = "", 0

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.terminal)

    @property
    def shown(self) -> str:
        """All that was shown, without colours and cursor movements."""
        return SEQUENCE.sub("", self.raw).replace("\r\n", "\n")

    def wait_for(self, text: str, seconds: float = SECONDS) -> None:
        """Until the text has been shown, after all that was waited for before."""
        deadline = time.monotonic() + seconds
        while text not in self.shown[self.read_to :]:
            assert self._more(deadline), f"no {text!r} after:\n{self.shown[self.read_to :]}"
        self.read_to = self.shown.index(text, self.read_to) + len(text)

    def send(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def answer(self, prompt: str, text: str = "") -> None:
        """Waits for the prompt, and types the answer with Enter."""
        self.wait_for(prompt)
        self.send(text + "\r")

    def end(self, seconds: float = SECONDS) -> int:
        """Waits for the end; the exit code."""
        deadline = time.monotonic() + seconds
        while self._more(deadline):
            pass
        return self.process.wait(5)

    def interrupt(self) -> int:
        """Ctrl-C, again if nothing happens, as a person would; the exit code.

        Python's readline misses one that comes between the prompt and its waiting for keys.
        """
        for _ in range(5):
            self.send("\x03")
            while select.select([self.terminal], [], [], QUIET)[0]:
                if not self._more(time.monotonic() + QUIET):
                    return self.process.wait(5)
        raise AssertionError(f"Ctrl-C does not end it:\n{self.shown}")

    def _more(self, deadline: float) -> bool:
        """Reads what has come. False at the end."""
        ready, _, _ = select.select([self.terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more after:\n{self.shown}"
        try:
            data = os.read(self.terminal, 65536)
        except OSError:  # the other side is closed
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)
