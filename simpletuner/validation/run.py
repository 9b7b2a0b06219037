"""The validations of a run: images of the base model once, then the same images at intervals, each beside its base."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from simpletuner.errors import raise_errors
from simpletuner.events import EventLog
from simpletuner.protocols import Adapter, Sampler
from simpletuner.types import Progress, Prompt, Size, remark
from simpletuner.validation import grid, media, sizes, times
from simpletuner.validation.options import Validation
from simpletuner.validation.sample import ImageMaker
from simpletuner.validation.shots import Defaults, Shot, plan

if TYPE_CHECKING:
    from PIL.Image import Image

SHEET_QUALITY = 90


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that change with any weight."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()  # sync point
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class ValidationRun:
    """Knows when images are due, makes them, and never ends the run.

    `embed` gives the cached embeddings of one text, `latent_shape` the (1, C, H, W) of an image size. `free` returns
    memory after a large thing was let go. `seed` is the run's, `base_id` names base weights and precision, `facts` go
    into each image (sampler, flavour): plain values, no paths. `stopping` tells between images that the run shall end.
    Without `base_stays` the base's own weights are trained, so that it can be seen only before the first step.
    `stage` makes room for the VAE while it decodes.
    """

    def __init__(
        self,
        *,
        options: Validation,
        prompts: Sequence[Prompt],
        sampler: Sampler,
        load_vae: Callable[[], nn.Module],
        free: Callable[[], Any],
        embed: Callable[[str], Mapping[str, Tensor]],
        adapter: Adapter,
        latent_shape: Callable[[Size], tuple[int, int, int, int]],
        output_dir: Path,
        events: EventLog,
        seed: int,
        defaults: Defaults,
        base_id: str,
        facts: Mapping[str, Any] | None = None,
        stopping: Callable[[], bool] = lambda: False,
        base_stays: bool = True,
        stage: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext,
    ):
        self.options, self.prompts, self.adapter = options, prompts, adapter
        self.output_dir, self.events = output_dir, events
        self.seed, self.defaults = seed, defaults
        self.facts = {**(facts or {}), "base": base_id}
        self.stopping, self.base_stays = stopping, base_stays
        self.resolution, problems = sizes.parse(options.validation_resolution)
        raise_errors(problems)
        self.media = media.MediaList(output_dir)
        self.base: dict[tuple[str, int, str], Path] = {}  # benchmark images by place
        self.maker = ImageMaker(
            sampler=sampler,
            load_vae=load_vae,
            free=free,
            embed=embed,
            latent_shape=latent_shape,
            events=events,
            stopping=stopping,
            stage=stage,
        )

    def due(self, progress: Progress, last: bool = False, epoch_done: bool = False) -> bool:
        """Whether images are made after this step. `epoch_done` says that it was the last one of `progress.epoch`."""
        return times.due(self.options, progress, last=last, epoch_done=epoch_done)

    def start(self, step: int) -> None:
        """What comes before the first step of this process: images of the base model, and of this step if wanted."""
        self.benchmark(step)
        if self.options.validation_on_startup:
            self.run(step)

    def benchmark(self, step: int = 0) -> None:
        """Makes the base model's images that are not there yet, or no longer those that would be made today."""
        if self.options.validation_disable or self.options.disable_benchmark:
            return
        folder = self.output_dir / "benchmarks" / "base_model"
        index = {record["file"]: record for record in media.read_index(folder / "index.json")}
        missing = []
        for shot in self._plan(0):
            settings = self._settings(shot)
            record = next(
                (
                    r
                    for r in index.values()
                    if media.same(r.get("settings"), settings) and r.get("nickname") == shot.prompt.nickname
                ),
                None,
            )
            if record and record["file"].endswith(self._extension) and (folder / record["file"]).is_file():
                self.base[shot.place] = folder / record["file"]
            else:
                missing.append(shot)
        if not missing or self._past(step, len(missing)):
            return

        def keep(shot: Shot, image: Image) -> None:
            settings, path = self._settings(shot), folder / (shot.benchmark_name() + self._extension)
            digest = self._save(image, path, settings | {"size": str(shot.size), "step": 0})
            index[path.name] = self._record(shot, path.name, digest, settings)
            media.write_index(folder / "index.json", index.values())
            self.base[shot.place] = path

        base = self.adapter.disabled if self.base_stays else nullcontext
        self._make("benchmark_base_model", "images of the base model", missing, lambda _: base(), keep)

    def _past(self, step: int, count: int) -> bool:
        """Whether there is no base model any more; says what is missing for it."""
        if self.base_stays or step == 0:
            return False
        message = f"{count} image{'s' * (count != 1)} of the base model cannot be made: its weights have been trained"
        self.events.emit("log", "notice", message=message, fix="they are made before the first step of a new run")
        return True

    def run(self, step: int, last: bool = False) -> None:
        """Makes the images of this step, except those already made with the same weights and settings."""
        if self.options.validation_disable:
            return
        started, shots, adapter = time.monotonic(), self._plan(step), weights_hash(self.adapter.parameters())
        wanted = [shot for shot in shots if not self._listed(shot, step, adapter)]
        self.events.emit("validation.started", step=step, images=len(wanted), skipped=len(shots) - len(wanted))
        made = 0

        def keep(shot: Shot, image: Image) -> None:
            nonlocal made
            self._keep(shot, image, step, adapter)
            made += 1

        key = "final_validation" if last else "validation"
        self._make(key, f"validation at step {step}", wanted, lambda shot: self.adapter.scaled(shot.strength), keep)
        if made:
            with self.maker.forgiving("contact sheet"):
                self._contact_sheet(shots, step)
        seconds = round(time.monotonic() - started, 3)
        self.events.emit("validation.finished", step=step, images=made, skipped=len(shots) - made, seconds=seconds)

    @property
    def _extension(self) -> str:
        return "." + media.EXTENSIONS[self.options.validation_image_format]

    def _plan(self, step: int) -> list[Shot]:
        return plan(self.prompts, self.resolution, self.options, self.defaults, seed=self.seed, step=step)

    def _make(
        self,
        key: str,
        label: str,
        shots: Sequence[Shot],
        adapter: Callable[[Shot], AbstractContextManager[None]],
        keep: Callable[[Shot, Image], None],
    ) -> None:
        if not shots:
            return
        self.events.stage(key, label, "started", current=0, total=len(shots))
        self.maker.make(
            shots,
            adapter,
            keep,
            lambda done, total: self.events.stage(key, label, "progress", current=done, total=total),
        )
        self.events.stage(key, label, "done", current=len(shots), total=len(shots))

    def _settings(self, shot: Shot, adapter: str | None = None) -> dict[str, Any]:
        return shot.settings(self.facts, adapter)

    def _listed(self, shot: Shot, step: int, adapter: str) -> bool:
        record = self.media.find(step, shot.place)
        return bool(
            record
            and record["file"].endswith(self._extension)
            and media.same(record["settings"], self._settings(shot, adapter))
        )

    def _save(self, image: Image, path: Path, settings: Mapping[str, Any]) -> str:
        return media.save(
            image, path, self.options.validation_image_format, self.options.validation_image_quality, settings
        )

    def _record(self, shot: Shot, file: str, digest: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "nickname": shot.prompt.nickname, "index": shot.index, "W": shot.size.width, "H": shot.size.height,
            "file": file, "hash": digest, "settings": settings,
        }  # fmt: skip

    def _keep(self, shot: Shot, image: Image, step: int, adapter: str) -> None:
        name = shot.sample_name(step) + self._extension
        settings = self._settings(shot, adapter)
        inside = settings | {"size": str(shot.size), "step": step}
        digest = self._save(image, self.output_dir / "validation_images" / name, inside)
        base = media.load(self.base[shot.place]) if shot.place in self.base else None
        compared = None
        if base:
            compared = f"compared/{name}"
            self._save(grid.beside([("base model", base), (f"step {step}", image)]), self.output_dir / compared, inside)
        media_id = "/".join(map(str, (step, *shot.place)))
        record = {
            "id": media_id,
            "step": step,
            **self._record(shot, f"validation_images/{name}", digest, settings),
            "scores": {},
        }
        self.media.add(record)
        shown = {key: record[key] for key in ("nickname", "index", "W", "H", "file", "hash")}
        self.events.emit("sample.saved", media_id=media_id, compared=compared, **shown)

    def _contact_sheet(self, shots: Sequence[Shot], step: int) -> None:
        """Rows are images, columns base, previous and this; from disk, so that only small copies are in memory."""
        rows = []
        for number, shot in enumerate(shots, 1):
            found, earlier = self.media.find(step, shot.place), self.media.before(step, shot.place)
            files = [self.base.get(shot.place), *(self.output_dir / r["file"] if r else None for r in (earlier, found))]
            cells = [grid.fit(picture) if file and (picture := media.load(file)) else None for file in files]
            rows.append(grid.Row(*self._words(shot, number, several_sizes=len({s.asked for s in shots}) > 1), cells))
        for number, page in enumerate(grid.contact_sheets(("base model", "before", f"step {step}"), rows), 1):
            name = f"step_{step}" + (f"_{number}" if number > 1 else "") + ".jpg"
            path = self.output_dir / "sheets" / name
            media.save(page, path, "jpeg", SHEET_QUALITY, {"step": step})

    def _words(self, shot: Shot, number: int, several_sizes: bool) -> tuple[str, str]:
        """(the prompt, what its nickname, size and number say besides), in letters that the font has."""
        nickname, text = shot.prompt.nickname, shot.prompt.text
        label = grid.readable(text) or grid.readable(nickname) or f"prompt {number}"
        many = self.options.num_validation_images
        notes = [grid.readable(remark(nickname, text)) or "", str(shot.asked) if several_sizes else ""]
        notes += [f"{shot.index + 1} of {many}"] if many > 1 else []
        return label if text else "no prompt", "   ".join(filter(None, notes))
