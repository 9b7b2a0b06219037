"""The training loop: batch, loss, gradient, update, in the order in which things happen."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from simpletuner.diffusion import draw
from simpletuner.diffusion.losses import l2
from simpletuner.errors import HardwareError
from simpletuner.events import EventLog
from simpletuner.protocols import ModelFamily
from simpletuner.training.account import Account
from simpletuner.training.checkpoint import Checkpoints
from simpletuner.training.control import Control
from simpletuner.training.gradients import Gradients
from simpletuner.training.nonfinite import NonFinite
from simpletuner.training.options import Training
from simpletuner.training.precision import Precision
from simpletuner.training.signals import StopRequest
from simpletuner.types import Batch, Progress


class Loader(Protocol):
    """Hands over batches and counts them in the `Progress` that it shares with the trainer."""

    def next(self) -> Batch: ...
    def close(self) -> None: ...  # drops what was read ahead; `next` then goes on from `Progress`
    def batches_in_epoch(self, epoch: int) -> int: ...


class Validation(Protocol):
    def due(self, progress: Progress, last: bool = False, epoch_done: bool = False) -> bool: ...
    def run(self, step: int, last: bool = False) -> None: ...


@dataclass
class Window:
    """The micro-batches of one update, and what becomes known about it."""

    batches: list[Batch]
    before: Progress  # as it was before the first batch
    after: Progress
    begun: float  # time.monotonic() before the first batch
    data_wait: float  # seconds
    rate: float = 0.0
    seconds: float = 0.0
    times: tuple[Tensor, ...] = ()  # (B,) each, on the CPU
    numbers: Tensor | None = None  # (2 + micro-batches,): gradient norm, largest gradient, losses
    ready: Any = None  # the device event after which `numbers` can be read without waiting


class Trainer:
    """Trains `trainable` inside `denoiser` until `total_steps`. It knows no family, adapter or dataset by name."""

    def __init__(
        self,
        *,
        family: ModelFamily,
        denoiser: nn.Module,
        trainable: Mapping[str, Parameter],
        optimizer: torch.optim.Optimizer,  # its groups know their `initial_lr`
        schedule: Callable[[int], float],  # optimizer step, 0 for the first -> factor of the full rate
        times: Callable[[Sequence[int], int, int, float], Tensor],  # numbers, seed, image tokens, offset -> (B,)
        loader: Loader,
        checkpoints: Checkpoints,
        validation: Validation | None,
        events: EventLog,
        metrics: Callable[[int, dict[str, float]], None],
        progress: Progress,
        options: Training,
        precision: Precision,
        stop: StopRequest,
        seed: int,
        total_steps: int,
        total_epochs: int = 0,  # also a limit, unless 0
        max_grad_norm: float = 0.0,
        grad_clip_method: Literal["norm", "value"] = "norm",
        gradient_precision: Literal["unmodified", "fp32"] = "unmodified",
        cache_clear_interval: int = 0,
        control: Control | None = None,
        relief: Sequence[str] = (),  # lines to change when memory is short, best first
        parent: Callable[[], AbstractContextManager[None]] = nullcontext,  # within it the denoiser is the base model
        pace: Callable[[Any, Any], Any] | None = None,  # (plain backward, loss) -> a faster backward, see training.pace
    ):
        self.family, self.denoiser, self.optimizer, self.schedule = family, denoiser, optimizer, schedule
        self.times, self.loader, self.checkpoints, self.validation = times, loader, checkpoints, validation
        self.events, self.progress, self.options = events, progress, options
        self.precision, self.stop, self.control = precision, stop, control
        self.seed, self.total_steps, self.total_epochs = seed, total_steps, total_epochs
        self.max_grad_norm, self.grad_clip_method = max_grad_norm, grad_clip_method
        self.cache_clear_interval, self.relief, self.parent = cache_clear_interval, relief, parent
        self.device, self.scaler = precision.device, precision.scaler
        self.gradients = Gradients(list(trainable.values()), gradient_precision == "fp32", optimizer)
        self.nonfinite = NonFinite(options.nonfinite_action)
        faster = pace(self._backward, self.error) if pace else None
        self.backward: Callable[[Mapping[str, Tensor], float], Tensor] = faster or self._backward
        self.rest: Callable[[], None] = faster.rest if faster else _nothing  # gives memory back for a while
        self.account = Account(events, metrics, self.nonfinite, total_steps)
        self.last_end = 0.0  # time.monotonic() when the device was last known to have ended a step
        self.rate_factor = 1.0  # halved by going back; part of the run's state
        self.pending: Window | None = None  # an update whose numbers the host has not read yet
        # Some optimizers drop a bad update on the device: then the numbers are read one step later, and nobody waits.
        guarded = getattr(optimizer, "_step_supports_amp_scaling", False)
        self.lagging = bool(guarded) and self.device.type == "cuda" and self.scaler is None

    # ---- the loop

    def train(self) -> None:
        """Runs to the last step, saves and validates there. Raises Stopped, once all is saved, if asked to stop."""
        self.events.step = self.progress.step
        while self.progress.step < self.total_steps:
            epochs = self._epochs_done()
            window = self._take()
            if not window.batches:  # the limit in epochs came before that in steps
                self.total_steps = self.account.total_steps = self.progress.step
            else:
                self._step(window)
            if self._reckon(window) and self.progress.step < self.total_steps:
                self._between_steps(epochs)
        self.checkpoints.save(self.progress.step, "final", self.state(), is_final=True)
        if self.validation and self.validation.due(self.progress, last=True):
            self.rest()
            self.validation.run(self.progress.step, last=True)

    def _take(self) -> Window:
        """The batches of one update; fewer at the end of the last epoch."""
        begun, before = time.monotonic(), replace(self.progress)
        batches: list[Batch] = []
        while len(batches) < self.options.gradient_accumulation_steps:
            if self.total_epochs and self._epochs_done() >= self.total_epochs:
                break
            batches.append(self.loader.next())
        return Window(batches, before, replace(self.progress), begun, time.monotonic() - begun)

    def _step(self, window: Window) -> None:
        """One update. Out of memory leads to one more try with the same draws."""
        if not self._fits(window):
            self._make_room()
            self.events.emit("memory.retry", "warning", phase="training", action="same step again, with emptied caches")
            if not self._fits(window):
                self._out_of_memory(window)
        self._update(window)
        self.progress.step = self.events.step = window.after.step = window.before.step + 1
        window.seconds = time.monotonic() - window.begun

    def _fits(self, window: Window) -> bool:
        # The exception ends here: its traceback would keep the activations alive during the second try.
        try:
            self._accumulate(window)
        except torch.OutOfMemoryError:
            return False
        return True

    def _accumulate(self, window: Window) -> None:
        """Gradients of the mean loss over the window; nothing waits for the device."""
        planned, losses, times = self.options.gradient_accumulation_steps, [], []
        for index, batch in enumerate(window.batches):
            self._seed_globals(window.before.step * planned + index)
            inputs, t = self.draw(batch)
            losses.append(self.backward(inputs, planned))
            times.append(t)
        if len(losses) < planned:  # the last window of a run may be short
            self.gradients.scale(planned / len(losses))
        window.times, window.numbers = tuple(times), torch.stack(losses)

    def draw(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """What `error` needs, on the device, and times (B,) on the CPU; draws are addressed by the samples' numbers."""
        height, width = batch.latents.shape[-2:]
        tokens = self.family.shift_tokens(height, width)
        t = self.times(batch.numbers, self.seed, tokens, batch.timestep_offset)  # (B,) in (0, 1), 1 is noise
        shape = tuple(batch.latents.shape[1:])
        noise = torch.stack([draw.normal(shape, "noise", self.seed, number) for number in batch.numbers])
        batch = _moved(replace(batch, text={**batch.text, **self.family.conditions(batch)}), self.device)
        t_device, noise = _sent(t, self.device), _sent(noise, self.device)
        x_0 = batch.latents.float()  # (B, C, H, W); the maths stays in fp32
        x_t = self.family.objective.add_noise(x_0, noise, t_device)
        if batch.parent_target:  # regularisation: what the base model itself would predict
            with torch.no_grad(), self.parent(), self.precision.autocast():
                target = self.family.predict(self.denoiser, x_t, t_device, batch).float()
        else:
            target = self.family.objective.target(x_0, noise, t_device)
        inputs = {"x_t": x_t, "t": t_device, "target": target, "weight": batch.weight}
        return inputs | {f"text.{name}": tensor for name, tensor in batch.text.items()}, t

    def error(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The mean loss () of one prediction: tensors in, a tensor out, so that it can be recorded."""
        text = {name.removeprefix("text."): value for name, value in inputs.items() if name.startswith("text.")}
        batch = Batch(ids=(), latents=inputs["x_t"], text=text, weight=inputs["weight"], dataset="")
        with self.precision.autocast():
            prediction = self.family.predict(self.denoiser, inputs["x_t"], inputs["t"], batch)
            return (l2(prediction.float(), inputs["target"]) * batch.weight).mean()

    def _backward(self, inputs: Mapping[str, Tensor], divisor: float) -> Tensor:
        """The loss; the gradient of loss / divisor is added to the parameters'."""
        loss = self.error(inputs)
        scaled = self.scaler.scale(loss) if self.scaler else loss
        (scaled / divisor).backward()
        return loss.detach()

    def _update(self, window: Window) -> None:
        """Measures, limits and applies the gradient. A NaN or Inf in loss or norm never reaches the weights."""
        assert window.numbers is not None
        try:
            if self.scaler:
                self.scaler.unscale_(self.optimizer)
            measured = self.gradients.measure().to(self.device)
            window.numbers = torch.cat([measured, window.numbers.float()])
            self.gradients.clip(measured[0], self.max_grad_norm, self.grad_clip_method)
            self.gradients.release()
            factor = self.schedule(window.before.step) * self.rate_factor
            for group in self.optimizer.param_groups:  # a pure function of the step: nothing to save
                group["lr"] = group["initial_lr"] * factor
            window.rate = self.optimizer.param_groups[0]["lr"]
            if self.lagging:
                self.optimizer.found_inf = (~window.numbers.isfinite().all()).float()  # type: ignore[attr-defined]
                self.optimizer.step()
                window.numbers = window.numbers.to("cpu", non_blocking=True)
                window.ready = torch.cuda.Event()
                window.ready.record()
            else:
                window.numbers = window.numbers.cpu()  # sync point
                if window.numbers.isfinite().all():
                    _ = self.scaler.step(self.optimizer) if self.scaler else self.optimizer.step()
                if self.scaler:
                    self.scaler.update()
        except torch.OutOfMemoryError:
            self._out_of_memory(window, updating=True)
        self.gradients.clear()

    def _between_steps(self, epochs_before: int) -> None:
        """Checkpoint, validation and stop request, in this order; an asked-for stop does not wait for a validation."""
        step = self.progress.step
        if self.cache_clear_interval and step % self.cache_clear_interval == 0 and self.device.type == "cuda":
            torch.cuda.empty_cache()
        commands = self.control.commands() if self.control else []
        if "stop" in commands:
            self.stop.ask("the control file", 0)
        reason = self.checkpoints.due(step, epochs_before, self._epochs_done())
        reason = reason or ("control" if "checkpoint" in commands else None)
        validation = self.validation
        epoch_done = self._epochs_done() > epochs_before
        if validation and not (validation.due(self.progress, epoch_done=epoch_done) or "validate" in commands):
            validation = None
        if (reason or validation or self.stop.requested) and not self._settle():
            return
        if self.stop.requested:
            self._stop()
        if reason and self.nonfinite.in_a_row:  # a checkpoint amid dropped updates would be no place to go back to
            self.checkpoints.postpone()
        elif reason:
            self.checkpoints.save(step, reason, self.state())
        if validation and not self.stop.requested:
            self.rest()
            validation.run(step)
        if self.stop.requested:
            self._stop()

    def _stop(self) -> None:
        code = self.stop.exit_code
        path = self.checkpoints.save(self.progress.step, "signal" if code else "control", self.state())
        name = path.name if path else ""
        self.events.emit(
            "run.stopped", reason=self.stop.reason, checkpoint=name, exit_code=code, step=self.progress.step
        )
        raise self.stop.stopped(f"{name} is saved, and the next start goes on from there")

    def _epochs_done(self) -> int:
        """Whole epochs consumed."""
        complete = self.progress.position >= self.loader.batches_in_epoch(self.progress.epoch)
        return self.progress.epoch - 1 + complete

    def _seed_globals(self, micro_step: int) -> None:
        """Library code that reads the global generators (module dropout) repeats on resume."""
        number = draw.draw("module dropout", self.seed, micro_step, 0)  # 0: the rank
        random.seed(number)
        np.random.seed(number & 0xFFFFFFFF)
        torch.manual_seed(number & (2**63 - 1))

    # ---- numbers and going back

    def _reckon(self, window: Window) -> bool:
        """Reads the numbers of what is past. False if the run went back to a checkpoint."""
        first = not self.account.durations  # told at once: compiling comes next, and may take longer than a user waits
        if window.batches and self.lagging and not first and self.progress.step < self.total_steps:
            before, self.pending = self.pending, window
            return before is None or self._read(before)
        settled = self._settle()
        return self._read(window) if settled and window.batches else settled

    def _settle(self) -> bool:
        """Waits for the update under way, if any. False if it made the run go back."""
        pending, self.pending = self.pending, None
        return pending is None or self._read(pending)

    def _read(self, window: Window) -> bool:
        assert window.numbers is not None
        if window.ready:
            window.ready.synchronize()
            # The host runs ahead of the device: a step takes from the end of the one before, not from its launch.
            now = time.monotonic()
            window.seconds, self.last_end = now - max(window.begun, self.last_end), now
        norm, largest, *losses = window.numbers.tolist()
        back = False
        if all(map(math.isfinite, (norm, *losses))):
            self.nonfinite.good()
        elif self.scaler and all(map(math.isfinite, losses)):
            self.nonfinite.overflowed()
        else:
            what = self.account.report_nonfinite(window, norm, losses)
            back = self.nonfinite.bad(what)
        if back:
            self._go_back()
        else:
            self.account.report(window, norm, largest, losses)
        return not back

    def _go_back(self) -> None:
        """To the last valid checkpoint, at half the rate."""
        self.pending = None
        self._clear()
        folder = self.checkpoints.find("latest") if self.checkpoints.steps() else None
        if folder is None:
            self.nonfinite.give_up("updates were not finite 3 times in a row, and there is no checkpoint to go back to")
        total = self.nonfinite.total
        self.load_state(self.checkpoints.restore(folder))
        self.rate_factor /= 2
        self.nonfinite.total, self.nonfinite.in_a_row, self.nonfinite.rolled_back = total, 0, True
        message = f"back at step {self.progress.step} ({folder.name}) with half the learning rate"
        self.events.warn("rolled_back", message, "if it happens again the run ends with exit code 6")

    def state(self) -> dict[str, Any]:
        """The trainer's own part of a checkpoint: plain numbers. Draws are addressed, so no generator is in it."""
        progress = self.progress
        return {
            "step": progress.step,
            "epoch": progress.epoch,
            "position": progress.position,
            "samples": progress.samples,
            "seed": self.seed,
            "rate_factor": self.rate_factor,
            "loss_ema": self.account.loss_ema,
            "nonfinite": self.nonfinite.state(),
            "scaler": self.precision.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint whose other parts `Checkpoints.restore` has read already."""
        self._set_progress(Progress(state["step"], state["epoch"], state["position"], state["samples"]))
        self.rate_factor, self.account.loss_ema = state["rate_factor"], state["loss_ema"]
        self.nonfinite.load_state(state["nonfinite"])
        self.precision.load_state(state["scaler"])
        self.loader.close()

    def _set_progress(self, progress: Progress) -> None:
        for name, value in vars(progress).items():  # in place: the loader holds the same object
            setattr(self.progress, name, value)
        self.events.step = progress.step

    # ---- memory

    def _clear(self) -> None:
        self.gradients.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _make_room(self) -> None:
        """Forgets the gradients of the failed try, half added up as they may be, and gives recordings back."""
        self.gradients.clear()
        self.rest()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _out_of_memory(self, window: Window, updating: bool = False) -> NoReturn:
        """Saves what earlier steps of this process learned, and ends the run with what to change."""
        self._make_room()
        saved = ""
        if not updating and self.account.durations and self._settle():  # half an update must not be saved
            self._set_progress(window.before)
            path = self.checkpoints.save(window.before.step, "signal", self.state())
            saved = f"; {path.name} is saved" if path else ""
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else 0.0
        details = [f"peak on the device: {peak:.2f} GB"] if peak else []
        when = "while updating the weights" if updating else "also in a second try with the same draws"
        raise HardwareError(
            f"out of memory in step {window.before.step + 1}, {when}{saved}",
            fix="change one of the lines below; the best comes first" if self.relief else "use less memory",
            details=[*details, *self.relief],
        )


def _nothing() -> None:
    pass


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device. From pageable memory CUDA would wait for all earlier work before it copies."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _moved(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device; a new one, since a batch is never edited."""

    def move(tensor: Tensor) -> Tensor:
        return _sent(tensor, device)

    return replace(
        batch,
        latents=move(batch.latents),
        text={name: move(tensor) for name, tensor in batch.text.items()},
        weight=move(batch.weight),
        mask=None if batch.mask is None else move(batch.mask),
        references=tuple(map(move, batch.references)),
    )
