"""What nano is shown: every subject in drawn and in computed styles, on grounds, with captions.

The computed styles recolour the art. They are there so that the model learns a subject and a style as two things,
which is what a style LoRA builds on. Ink lines come in many colours but never in black: that is what the fine-tuning
example teaches.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64  # pixels; 8x8 latents, packed 2x2 into 16 image tokens
ART = ("3d", "flat", "modern", "line")  # as packed
DRAWN = ART[:3]  # in the words of captions
GROUNDS = {
    "white": (255, 255, 255),
    "red": (230, 70, 70),
    "orange": (250, 165, 80),
    "yellow": (250, 225, 100),
    "green": (110, 200, 120),
    "blue": (100, 150, 240),
    "purple": (160, 110, 220),
    "pink": (250, 170, 200),
    "grey": (170, 170, 170),
}
INKS = {
    "red": (205, 30, 40),
    "orange": (235, 120, 10),
    "brown": (130, 75, 30),
    "green": (20, 140, 60),
    "blue": (30, 80, 210),
    "purple": (120, 50, 180),
    "pink": (235, 70, 150),
}
TONES = {  # dark and light end
    "sepia": ((70, 40, 15), (250, 232, 200)),
    "blue duotone": ((15, 30, 110), (180, 225, 255)),
    "pink duotone": ((100, 10, 80), (255, 200, 225)),
    "grey": ((0, 0, 0), (255, 255, 255)),
}
BOARDS = {"blueprint": ((35, 75, 165), (235, 243, 255)), "chalk": ((25, 70, 55), (250, 245, 200))}  # ground, line
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601
ARTICLES = {"orange": "an"}  # all other colours take "a"
# The plainest wording comes twice: it is the one that examples and tests use.
WORDINGS = (
    "{style} emoji of {subject}{place}",
    "{style} emoji of {subject}{place}",
    "a {style} emoji of {subject}{place}",
    "{style} emoji of {bare}{place}",
    "{bare}, {style} emoji{place}",
)


@dataclass(frozen=True)
class Art:
    """The packed pictures. Each (N, 4, 64, 64) uint8 RGBA, keyed by a name in ART."""

    subjects: list[str]
    lines_unseen: frozenset[str]  # subjects whose line icon nothing is trained on
    words: list[str]  # labels and tags, for the tokenizers
    drawn: dict[str, Tensor]  # in the order of `subjects`
    held_out: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path, device: torch.device) -> "Art":
        names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        with np.load(folder / "pictures.npz") as arrays:  # (N, 4 styles, 64, 64, 4) uint8
            packed = {key: torch.from_numpy(arrays[key]).movedim(-1, 2).contiguous().to(device) for key in arrays}
        by_style = {key: dict(zip(ART, value.unbind(1), strict=True)) for key, value in packed.items()}
        unseen = frozenset(names["lines_unseen"])
        return cls(names["subjects"], unseen, names["words"], by_style["drawn"], by_style["held_out"])

    @cached_property
    def styled(self) -> dict[str, Tensor]:
        """Every subject in every style."""
        return styles(self.drawn)

    def seen_lines(self) -> Tensor:
        """Indices of the subjects whose line icon may be trained on."""
        return torch.tensor([i for i, name in enumerate(self.subjects) if name not in self.lines_unseen])

    def for_vae(self) -> Tensor:
        """(N, 4, H, W) uint8."""
        lines = self.drawn["line"]
        return torch.cat([*(self.drawn[style] for style in DRAWN), lines[self.seen_lines().to(lines.device)]])


def on_background(pictures: Tensor, colours: Tensor) -> Tensor:
    """RGBA (B, 4, H, W) uint8 over colours (B, 3) in [0, 255] -> (B, 3, H, W) in [-1, 1]."""
    rgba = pictures.float() / 255
    alpha = rgba[:, 3:]
    rgb = rgba[:, :3] * alpha + (colours / 255)[:, :, None, None] * (1 - alpha)
    return rgb * 2 - 1


def on_white(pictures: Tensor) -> Tensor:
    return on_background(pictures, torch.full((len(pictures), 3), 255.0, device=pictures.device))


# Computed styles: RGBA (N, 4, H, W) uint8 in and out.


def between(share: Tensor, low: tuple[int, ...], high: tuple[int, ...]) -> Tensor:
    """Colours from `low` at share 0 to `high` at 1: (N, 1, H, W) -> (N, 3, H, W) in [0, 255]."""
    a, b = (torch.tensor(colour, device=share.device).float()[None, :, None, None] for colour in (low, high))
    return a + (b - a) * share


def with_alpha(rgb: Tensor, alpha: Tensor) -> Tensor:
    return torch.cat([rgb.round().clamp(0, 255).to(torch.uint8), alpha], 1)


def toned(flat: Tensor, low: tuple[int, ...], high: tuple[int, ...]) -> Tensor:
    weights = torch.tensor(LUMA, device=flat.device)[None, :, None, None]
    luma = (flat[:, :3].float() / 255 * weights).sum(1, keepdim=True)
    return with_alpha(between(luma, low, high), flat[:, 3:])


def filled(shape: Tensor, colour: tuple[int, ...]) -> Tensor:
    """One colour wherever the picture is."""
    return with_alpha(between(torch.zeros_like(shape[:, 3:]).float(), colour, colour), shape[:, 3:])


def on_board(line: Tensor, ground: tuple[int, ...], colour: tuple[int, ...]) -> Tensor:
    alpha = line[:, 3:]
    return with_alpha(between(alpha.float() / 255, ground, colour), torch.full_like(alpha, 255))


def coarse(flat: Tensor) -> Tensor:
    """16 x 16 large pixels."""
    alpha = flat[:, 3:].float()
    weight = F.avg_pool2d(alpha, 4)
    rgb = F.avg_pool2d(flat[:, :3] * alpha / 255, 4) * 255 / weight.clamp(min=1)
    small = torch.cat([rgb, (weight > 110).float() * 255], 1)
    return F.interpolate(small, scale_factor=4).round().clamp(0, 255).to(torch.uint8)


def styles(drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every style by the words of its captions. Those made of line icons are in LINE_STYLES."""
    flat, line = drawn["flat"], drawn["line"]
    made = {style: drawn[style] for style in DRAWN}
    made |= {name: toned(flat, *ends) for name, ends in TONES.items()}
    made["negative"] = with_alpha(255 - flat[:, :3].float(), flat[:, 3:])
    made["pixel"] = coarse(flat)
    made |= {f"{name} silhouette": filled(flat, ink) for name, ink in INKS.items()}
    made |= {f"{name} line": filled(line, ink) for name, ink in INKS.items()}
    made |= {name: on_board(line, *colours) for name, colours in BOARDS.items()}
    return made


LINE_STYLES = frozenset([*(f"{name} line" for name in INKS), *BOARDS])


# What is trained on


@dataclass(frozen=True)
class Item:
    """One picture of the training set, and how often it is drawn compared with the others."""

    subject: int
    style: str
    ground: str
    weight: float


SHARE_DRAWN = 0.55  # of the batch; the rest are computed styles
SHARE_WHITE = 0.6  # of the drawn styles on white


def items(art: Art) -> list[Item]:
    """All pictures: drawn styles on every ground, computed ones on white; weights sum to 1."""
    computed = [style for style in art.styled if style not in DRAWN]
    found = []
    for subject, name in enumerate(art.subjects):
        for style in DRAWN:
            for ground in GROUNDS:
                share = SHARE_WHITE if ground == "white" else (1 - SHARE_WHITE) / (len(GROUNDS) - 1)
                found.append(Item(subject, style, ground, SHARE_DRAWN / len(DRAWN) * share))
        own = [style for style in computed if name not in art.lines_unseen or style not in LINE_STYLES]
        found += [Item(subject, style, "white", (1 - SHARE_DRAWN) / len(own)) for style in own]
    total = sum(item.weight for item in found)
    return [Item(item.subject, item.style, item.ground, item.weight / total) for item in found]


def pixels(art: Art, wanted: list[Item], device: torch.device) -> Tensor:
    """(len(wanted), 3, 64, 64) in [-1, 1]."""
    rgba = torch.stack([art.styled[item.style][item.subject] for item in wanted]).to(device)
    colours = torch.tensor([GROUNDS[item.ground] for item in wanted], device=device).float()
    return on_background(rgba, colours)


def captions(art: Art, item: Item) -> list[str]:
    """One for each of WORDINGS."""
    subject = art.subjects[item.subject]
    bare = subject.split(" ", 1)[1] if subject.startswith(("a ", "an ", "the ")) else subject
    article = ARTICLES.get(item.ground, "a")
    places = (f" on {article} {item.ground} background", f", {item.ground} background")
    lines = []
    for i, wording in enumerate(WORDINGS):
        # White is what a caption means that names no ground; one of five says so.
        named = item.ground != "white" or (i == 2 and item.style in DRAWN)
        place = places[i % 2] if named else ""
        lines.append(wording.format(style=item.style, subject=subject, bare=bare, place=place))
    return lines
