"""A run with everything real but the family, the data and the validation: small enough to train in milliseconds.

As a program it trains and takes the exit code of the run: `python toy_run.py FOLDER STEPS [SECONDS_PER_BATCH]`.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from simpletuner.diffusion import draw
from simpletuner.diffusion.flow import FlowMatching
from simpletuner.errors import SimpleTunerError
from simpletuner.events import EventLog
from simpletuner.optim.build import build
from simpletuner.optim.options import Optimizer
from simpletuner.optim.schedules import factor
from simpletuner.training.checkpoint import Checkpoints, Contents
from simpletuner.training.control import Control
from simpletuner.training.options import Saving, Training
from simpletuner.training.precision import Precision
from simpletuner.training.signals import StopRequest
from simpletuner.training.state import load_optimizer, save_optimizer
from simpletuner.training.trainer import Trainer
from simpletuner.types import Batch, Progress

IMAGES, SHAPE = 12, (4, 4, 4)  # how many, and (C, H, W)


class Denoiser(nn.Module):
    """Two linear layers over the whole latent, with dropout, which reads a global generator."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner = nn.Linear(65, 24, dtype=dtype)
            self.outer = nn.Linear(24, 64, dtype=dtype)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, t):
        inputs = torch.cat([x.flatten(1), t[:, None]], 1).to(self.inner.weight.dtype)
        return self.outer(self.dropout(self.inner(inputs).tanh())).view_as(x)


class Family:
    objective = FlowMatching()

    def shift_tokens(self, height, width):
        return height * width // 4

    def conditions(self, batch):
        return {}

    def predict(self, denoiser, x_t, t, batch):
        return denoiser(x_t, t)


class Loader:
    """Twelve drawn latents in an order that depends on the epoch."""

    def __init__(self, progress: Progress, batch_size: int, pause: float = 0.0):
        self.progress, self.batch_size, self.pause = progress, batch_size, pause
        self.seen: list[str] = []
        self.closed = 0
        self.poison: set[int] = set()  # numbers of samples whose latent is NaN

    def batches_in_epoch(self, epoch):
        return IMAGES // self.batch_size

    def close(self):
        self.closed += 1

    def next(self):
        p = self.progress
        if p.position >= self.batches_in_epoch(p.epoch):
            p.epoch, p.position = p.epoch + 1, 0
        time.sleep(self.pause)
        order = sorted(range(IMAGES), key=lambda image: draw.draw("order", p.epoch, image))
        images = order[p.position * self.batch_size :][: self.batch_size]
        numbers = tuple(range(p.samples, p.samples + self.batch_size))
        latents = torch.stack([draw.normal(SHAPE, "image", image) for image in images])
        for row, number in enumerate(numbers):
            if number in self.poison:
                latents[row] = float("nan")
        p.position, p.samples = p.position + 1, p.samples + self.batch_size
        ids = tuple(f"toys/{image}.png" for image in images)
        self.seen += ids
        return Batch(ids, latents, {}, torch.ones(self.batch_size), "toys", numbers)


class Validation:
    """Disturbs every global generator, as sampling does."""

    def __init__(self, interval: int):
        self.interval, self.ran = interval, []

    def due(self, progress, last=False, epoch_done=False):
        return last or progress.step % self.interval == 0

    def run(self, step, last=False):
        self.ran.append(step)
        random.random(), np.random.rand(3), torch.randn(3)


def times(numbers, seed, tokens, offset):
    return torch.tensor([0.02 + 0.96 * draw.uniform("sigma", seed, n) for n in numbers])


class Run:
    """All parts of one run; a second one on the same folder resumes."""

    def __init__(
        self,
        folder: Path,
        *,
        steps: int = 10,
        batch: int = 2,
        accumulation: int = 1,
        validate_every: int = 0,
        optimizer: dict | None = None,
        saving: dict | None = None,
        training: dict | None = None,
        precision: str = "no",
        pause: float = 0.0,
        control: bool = False,
        resume: str = "latest",
        device: str = "cpu",
        **trainer,
    ):
        rule = Optimizer(**{"optimizer": "torch-adamw", "learning_rate": 0.01} | (optimizer or {}))
        training_options = Training(gradient_accumulation_steps=accumulation, **(training or {}))
        self.folder, self.steps = folder, steps
        folder.mkdir(parents=True, exist_ok=True)
        self.events = EventLog(folder)
        self.told = []
        self.events.subscribe(self.told.append)
        dtype = torch.bfloat16 if rule.optimizer == "adamw_bf16" else torch.float32
        self.denoiser = Denoiser(dtype).to(device)
        self.weights = dict(self.denoiser.named_parameters())
        names = list(self.weights)
        self.optimizer = build(rule, self.weights, seed=7)
        contents = Contents(
            writers={
                "pytorch_lora_weights.safetensors": lambda path: save_file(self.state_dict(), path),
                "state/adapter.safetensors": lambda path: save_file(self.state_dict(), path),
                "state/optimizer.json": lambda path: save_optimizer(self.optimizer, names, path.parent),
            },
            readers={
                "state/adapter.safetensors": lambda path: self.denoiser.load_state_dict(load_file(path)),
                "state/optimizer.json": lambda path: load_optimizer(self.optimizer, names, path.parent),
            },
            facts={"model_family": "toy"},
            result="pytorch_lora_weights.safetensors",
        )
        self.stop = StopRequest(training_options.stop_timeout)
        self.checkpoints = Checkpoints(folder, Saving(**(saving or {})), self.events, contents)
        self.checkpoints.prepare()
        self.progress = Progress()
        self.loader = Loader(self.progress, batch, pause)
        self.validation = Validation(validate_every) if validate_every else None
        self.metrics: dict[int, dict[str, float]] = {}
        self.trainer = Trainer(
            family=Family(),
            denoiser=self.denoiser,
            trainable=self.weights,
            optimizer=self.optimizer,
            schedule=lambda n: factor(rule, n, steps),
            times=times,
            loader=self.loader,
            checkpoints=self.checkpoints,
            validation=self.validation,
            events=self.events,
            metrics=lambda step, values: self.metrics.__setitem__(step, values),
            progress=self.progress,
            options=training_options,
            precision=Precision(precision, torch.device(device)),
            stop=self.stop,
            seed=7,
            total_steps=steps,
            max_grad_norm=2.0,
            control=Control(folder, self.events) if control else None,
            **trainer,
        )
        found = self.checkpoints.find(resume)
        self.resumed = found is not None
        if found:
            self.trainer.load_state(self.checkpoints.restore(found))

    def state_dict(self):
        return {name: tensor.detach().clone() for name, tensor in self.denoiser.state_dict().items()}

    def train(self) -> Run:
        with self.stop:
            self.trainer.train()
        return self

    def everything(self) -> dict[str, torch.Tensor]:
        """Weights and optimizer state, by name."""
        found = self.state_dict()
        for name, p in self.weights.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                if value is not None:
                    found[f"{name}/{key}"] = torch.as_tensor(value).clone()
        return found

    def losses(self) -> dict[int, float]:
        return {step: values["train_loss"] for step, values in self.metrics.items()}

    def of_type(self, type: str) -> list[dict]:
        return [event.data for event in self.told if event.type == type]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """The same names with the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def main() -> int:
    folder, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float((sys.argv[3:] or ["0"])[0])
    torch.set_num_threads(1)
    run = Run(folder, steps=steps, pause=pause, saving={"checkpoint_step_interval": 2})
    print(f"at step {run.progress.step}", flush=True)
    try:
        run.train()
    except SimpleTunerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
