"""How good the base is: retrieval of 64 held-in captions, and a sheet of 32 samples."""

import logging
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw

from benchmarks.nano.pictures import DRAWN, SIZE, Art, Item, captions, items, pixels
from benchmarks.nano.tokenizers import NUM_TEXT_TOKENS

log = logging.getLogger("nano")


def sampled(pipe: FluxPipeline, prompts: list[str], guidance: float) -> np.ndarray:
    """(num_prompts, 64, 64, 3) in [0, 1], 20 Euler steps, the same noise at every call."""
    return pipe(
        prompts, height=SIZE, width=SIZE, num_inference_steps=20, guidance_scale=guidance, output_type="np",
        max_sequence_length=NUM_TEXT_TOKENS, generator=torch.Generator("cpu").manual_seed(0),
    ).images  # fmt: skip


def shown(art: Art) -> list[Item]:
    """What retrieval chooses from: every subject in the drawn styles, on white."""
    return [item for item in items(art) if item.style in DRAWN and item.ground == "white"]


def log_retrieval(pipe: FluxPipeline, art: Art, device: torch.device) -> None:
    """For 64 captions that were trained on: is the nearest true picture, pixel by pixel, the one that was asked for?"""
    known = shown(art)
    truths = pixels(art, known, device).flatten(1).cpu() / 2 + 0.5
    asked = torch.linspace(0, len(known) - 1, 64).long()
    prompts = [captions(art, known[i])[0] for i in asked.tolist()]
    images = torch.from_numpy(sampled(pipe, prompts, 1.0)).permute(0, 3, 1, 2).flatten(1)
    nearest = torch.cdist(images, truths).topk(5, largest=False).indices  # (64, 5)
    hits = nearest == asked[:, None]
    log.info("samples: %d pictures to choose from", len(known))
    log.info("samples: right picture nearest %.0f %%", 100 * hits[:, 0].float().mean().item())
    log.info("samples: right picture in the nearest five %.0f %%", 100 * hits.any(1).float().mean().item())
    errors = (images - truths[asked]).square().mean(1)
    log.info("samples: PSNR against the true picture, median %.1f dB", (-10 * errors.log10()).median().item())


def tile(image: np.ndarray) -> Image.Image:
    return Image.fromarray((image * 255).round().astype(np.uint8)).resize((128, 128), Image.Resampling.NEAREST)


def draw_sheet(path: Path, pipe: FluxPipeline, art: Art, device: torch.device) -> None:
    """32 captions over subjects, styles and grounds: the true picture beside the sample."""
    everything = items(art)
    cells = [everything[(2 * i + 1) * len(everything) // 64] for i in range(32)]
    white = shown(art)
    cells[:16] = [white[(2 * i + 1) * len(white) // 32] for i in range(16)]
    truths = (pixels(art, cells, device).permute(0, 2, 3, 1).cpu().numpy() + 1) / 2
    samples = sampled(pipe, [captions(art, cell)[0] for cell in cells], 1.0)
    sheet = Image.new("RGB", (4 * 270, 8 * 150), "white")
    writer = ImageDraw.Draw(sheet)
    for i, cell in enumerate(cells):
        left, top = i % 4 * 270, i // 4 * 150
        sheet.paste(tile(truths[i]), (left, top))
        sheet.paste(tile(samples[i]), (left + 130, top))
        writer.text((left + 2, top + 132), captions(art, cell)[0], fill="black")
    sheet.save(path, optimize=True)


def report(pipe: FluxPipeline, art: Art, device: torch.device, sheet: Path) -> None:
    log_retrieval(pipe, art, device)
    draw_sheet(sheet, pipe, art, device)
