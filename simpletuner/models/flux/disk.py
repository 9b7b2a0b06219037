"""What of a Flux is on this disk: the bytes still to be fetched, and the names of its caches. No torch, no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from simpletuner.errors import SimpleTunerError
from simpletuner.models import Flavour, digests
from simpletuner.models.flux.shapes import PARTS
from simpletuner.models.flux.weights import KINDS, TEXT_PARTS, Weights
from simpletuner.models.options import Model
from simpletuner.models.places import Place
from simpletuner.models.shapes import Shapes

PUBLISHED_BYTES = 2  # of a weight in the releases' files
MOST_BYTES_READ = 10**9  # to learn the name of a cache; the first start of a run reads any number


class OnDisk:
    """The parts that the options name, as far as they are here."""

    def __init__(self, model: Model, flavour: Flavour):
        self.weights = Weights(model, flavour, offline=True)

    @property
    def place(self) -> Place:
        """Of the whole model."""
        return self.weights.main

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Parts that are not here, or not whole."""
        return tuple(part for part in KINDS if not self._here(part))

    def bytes_to_fetch(self, shapes: Shapes) -> int:
        """An estimate from the sizes of the releases."""
        weights = {**PARTS, "transformer": shapes.num_weights}
        return sum(weights.get(part, 0) for part in self.missing) * PUBLISHED_BYTES

    def fingerprint(self, part: str) -> str | None:
        """Of the files of one part; None if it is missing, or if gigabytes would have to be read to know it."""
        return self.weights.fingerprint(part) if self._quick([part]) else None

    def text_fingerprint(self, dtype: str, kinds: Sequence[str]) -> str | None:
        """As the family's; None as above."""
        return self.weights.text_fingerprint(dtype, kinds) if self._quick(TEXT_PARTS) else None

    def vae_fingerprint(self, dtype: str, tiling: bool) -> str | None:
        """As the family's; None as above."""
        return self.weights.vae_fingerprint(dtype, tiling) if self._quick(["vae"]) else None

    def _here(self, part: str) -> bool:
        try:
            return bool(self.weights.named_by(part))
        except (SimpleTunerError, OSError):
            return False

    def _quick(self, parts: Iterable[str]) -> bool:
        wanted = list(parts)
        if set(wanted) & set(self.missing):
            return False
        files = [path for part in wanted for path in self.weights.named_by(part) if digests.known(path) is None]
        return sum(path.stat().st_size for path in files) < MOST_BYTES_READ
