"""What the pages of docs/ show: screens and tables that the program prints, and commands that run.

    <!-- output: simpletuner examples list -->        a fenced text block follows, as the program prints it
    <!-- output like: simpletuner plan -e nano -->    the same, but its numbers are of the machine it was printed on
    <!-- output once: simpletuner doctor -->          printed by the program, on another machine with other lines
    <!-- table: image datasets -->                    a table follows, of TABLES
    <!-- not run: needs a GPU -->                     the bash block that follows is only shown

`python tests/docs/screens.py` writes screens and tables anew.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import simpletuner
from simpletuner import surfaces
from simpletuner.cli.surfaces import ROOT
from simpletuner.data.options import ImageEntry, TextEntry
from simpletuner.data.shuffle import Shuffle
from simpletuner.data.table import TableKeys
from simpletuner.schema import options

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "options.md") + [ROOT / "README.md"]
TABLES = {"image datasets": ImageEntry, "text caches": TextEntry, "caption_shuffle": Shuffle, "tables": TableKeys}
COLUMNS = "90"
INSTALLS = "pip install . && "
SCREEN = re.compile(
    r"<!-- output(?P<how> like| once|): (?P<command>[^\n]+?) -->\n```text\n(?P<text>.*?)```\n", re.DOTALL
)
TABLE = re.compile(r"<!-- table: (?P<name>.+?) -->\n(?P<text>(?:\|.*\n)*)")
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]+?) -->\n)?```bash\n(?P<code>.*?)```", re.DOTALL)
NUMBER = re.compile(r" *\d[\d.,]*(?: (?:[kMGT]i?B|s|min|h)\b)?")  # with its unit and the blanks that line it up


class Screen(NamedTuple):
    page: Path
    command: str
    text: str
    how: str  # "": to the letter, "like": but for numbers, "once"


class Block(NamedTuple):
    page: Path
    line: int
    code: str
    mark: str  # the comment before it

    @property
    def runs(self) -> bool:
        return not self.mark.startswith(("not run: ", "command two"))

    @property
    def commands(self) -> str:
        """What is run. The first command of the README begins with an installation, and there is one here."""
        return self.code.partition(INSTALLS)[2] if self.mark == "command one" else self.code


def screens() -> list[Screen]:
    found = ((page, match) for page in PAGES for match in SCREEN.finditer(page.read_text("utf-8")))
    return [Screen(page, m["command"], m["text"], m["how"].strip()) for page, m in found]


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = BLOCK.finditer(text)
    return [Block(page, text.count("\n", 0, m.start("code")), m["code"], m["mark"] or "") for m in found]


def workplace(folder: Path) -> Path:
    """A folder like a fresh clone, as far as commands of the pages look: config/ with its examples, and pictures."""
    shutil.copytree(ROOT / "config", folder / "config")
    pictures = sorted((Path(simpletuner.__file__).parent / "nano/pictures").iterdir())
    (folder / "datasets/dreambooth-subject").mkdir(parents=True)
    for picture in pictures[:24]:
        shutil.copy(picture, folder / "datasets/dreambooth-subject")
    return folder


def run(code: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """What bash does with the code there: offline, on the CPU, with a home of its own. stderr goes to stdout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SIMPLETUNER_", "HF_"))}
    here = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder / "home"), "COLUMNS": COLUMNS,
        "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive",
    }  # fmt: skip
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env=kept | here | environ,
    )


def printed(command: str, folder: Path) -> str:
    """What the command prints, without the places of this machine."""
    text = run(command, folder).stdout.replace(f"{folder}{os.sep}", "")
    text = text.replace(str(Path(simpletuner.__file__).parent), ".../simpletuner")
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def masked(text: str) -> str:
    """The text with each number as #, and the words around it on one line: a longer number may wrap it elsewhere."""
    return " ".join(NUMBER.sub(" #", text).split())


def table(name: str) -> str:
    lines = surfaces.markdown(options([TABLES[name]]).values()).splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith("|"))


def rewritten(page: Path, folder: Path) -> str:
    """The page as it should be; a screen whose numbers alone differ stays as it is."""

    def screen(match: re.Match[str]) -> str:
        text = printed(match["command"], folder)
        same = match["how"] and masked(text) == masked(match["text"])
        head = match[0].split("```text\n")[0]
        return f"{head}```text\n{match['text'] if same else text}```\n"

    text = SCREEN.sub(screen, page.read_text("utf-8"))
    return TABLE.sub(lambda match: f"<!-- table: {match['name']} -->\n{table(match['name'])}", text)


if __name__ == "__main__":
    for page in PAGES:
        with tempfile.TemporaryDirectory() as place:
            text = rewritten(page, workplace(Path(place).resolve()))
        if text != page.read_text("utf-8"):
            page.write_text(text, "utf-8")
            print(page.relative_to(ROOT))
