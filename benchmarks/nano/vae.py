"""Part one: the VAE, trained on all art in all colours, measured on emoji that it never saw."""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.nano.fit import fit
from benchmarks.nano.pictures import SIZE, Art, on_background, on_white

BATCH = 128
PEAK_RATE = 1.2e-3  # of AdamW
KL_WEIGHT = 2e-5  # of the mean per latent element; only keeps latents from growing

log = logging.getLogger("nano")


def varied(pictures: Tensor, num: int) -> Tensor:
    """A random batch for the VAE, (num, 3, H, W) in [-1, 1]: half moved and resized, half on coloured ground."""
    device = pictures.device
    batch = pictures[torch.randint(len(pictures), (num,), device=device)]  # (B, 4, H, W) uint8
    moved = (torch.rand(num, device=device) < 0.5).float()
    scale = 1 + moved * (0.6 * torch.rand(num, device=device) - 0.15)  # above 1 draws it smaller
    shift = moved[:, None] * 0.3 * (torch.rand(num, 2, device=device) - 0.5)
    mirror = 1 - 2 * (torch.rand(num, device=device) < 0.5).float()
    zero = torch.zeros_like(scale)
    plain = torch.arange(3, device=device).expand(num, 3)
    rows = [torch.stack([scale * mirror, zero, shift[:, 0]], 1), torch.stack([zero, scale, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(batch.shape), align_corners=False)
    # Alpha is multiplied in before resampling and divided out after, or transparent black would bleed into edges.
    alpha = batch[:, 3:].float() / 255
    sampled = F.grid_sample(torch.cat([batch[:, :3] * alpha, batch[:, 3:].float()], 1), grid, align_corners=False)
    rgb = sampled[:, :3] * 255 / sampled[:, 3:].clamp(min=1)
    colours = (255 * torch.rand(num, 3, device=device)).masked_fill(torch.rand(num, 1, device=device) < 0.5, 255)
    # A quarter in swapped colours, so that it learns colour itself and not which emoji has which.
    order = torch.rand(num, 3, device=device).argsort(1).where(torch.rand(num, 1, device=device) < 0.25, plain)
    rgb = rgb.gather(1, order[:, :, None, None].expand_as(rgb))
    return on_background(torch.cat([rgb, sampled[:, 3:]], 1), colours)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures, in dB, of (B, 3, H, W) in [-1, 1]."""
    error = ((a.clamp(-1, 1) - b).float() ** 2).mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / error.clamp(min=1e-10))).mean().item()


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 96),  # about 2.4 M parameters; four blocks make factor 8
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=16,
        sample_size=SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def loss_of(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """L1 and a share of L2 of pixels, L1 of their differences, which keeps edges sharp, and a small KL."""
    with torch.no_grad():
        x = varied(pictures, BATCH).contiguous(memory_format=torch.channels_last)
    posterior = vae.encode(x).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()  # (B, 16, 8, 8)
    y = vae.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)).sample.float()
    error = y - x
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * edges + KL_WEIGHT * kl


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Posterior means (B, 16, 8, 8) of pictures (B, 3, H, W) in [-1, 1], not yet scaled."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(256)])


def make(folder: Path, art: Art, seconds: float) -> None:
    """Trains a VAE and saves it in fp16, scale and shift in its config."""
    pictures = art.for_vae()  # (N, 4, H, W) uint8
    vae = new_vae().to(pictures.device, memory_format=torch.channels_last)
    log.info("VAE: %d pictures, %d parameters", len(pictures), sum(p.numel() for p in vae.parameters()))
    num_steps = fit(lambda: loss_of(vae, pictures), list(vae.parameters()), seconds, PEAK_RATE)
    latents = encoded(vae, on_white(pictures[:4096]))
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    log.info(
        "VAE: %d steps of %d, scale %.4f, shift %.4f",
        num_steps, BATCH, vae.config.scaling_factor, vae.config.shift_factor,
    )  # fmt: skip
    vae.half().save_pretrained(folder)


def load(folder: Path, device: torch.device) -> AutoencoderKL:
    """The saved VAE in fp32."""
    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32).to(device)
    return vae.requires_grad_(False).eval()


@torch.no_grad()
def log_psnr(vae: AutoencoderKL, art: Art) -> None:
    """Reconstruction of emoji that the VAE never saw, by style and over all."""
    values = {}
    for name, pictures in art.held_out.items():
        x = on_white(pictures)
        values[name] = psnr(vae.decode(encoded(vae, x)).sample, x)
    values["all"] = sum(values.values()) / len(values)
    for name, value in values.items():
        log.info("VAE: held-out PSNR %-6s %.2f dB", name, value)
