"""Nano, the bundled text-to-image Flux of a few million parameters, trained from packed emoji pictures.

    python benchmarks/make_nano_data.py ...                    # once: packs the pictures into .nano/
    python benchmarks/make_nano.py --out nano --results .      # one GPU, under four minutes

Two parts. First a VAE learns to draw emoji in four styles. Then transformer, T5 and CLIP learn together to draw 3d,
flat and modern emoji from captions; they never see line icons, which is what the fine-tuning example teaches.
Each part stops on its own clock (--vae-seconds, --flow-seconds). A finished VAE in --out is used again.

Writes a FluxPipeline folder in fp16 to --out; `nano.tar.gz`, `samples.png` and `make_nano.log` to --results.
"""

import argparse
import io
import json
import logging
import math
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from PIL import Image, ImageDraw
from sentencepiece import sentencepiece_model_pb2
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

SIZE = 64  # pixels; 8x8 latents, packed 2x2 into 16 image tokens
NUM_TEXT_TOKENS = 32
STYLES = ("3d", "flat", "modern")  # those that have captions; the first three of the packed pictures
WHITE = 0  # index of the first background
BACKGROUNDS = {
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
ARTICLES = {"orange": "an"}  # all other colours take "a"
# The plainest wording comes twice: it is the one that examples and tests use.
WORDINGS = (
    "{style} emoji of {subject}{place}",
    "{style} emoji of {subject}{place}",
    "a {style} emoji of {subject}{place}",
    "{style} emoji of {bare}{place}",
    "{bare}, {style} emoji{place}",
    "{style} emoji {bare}{place}",
)
VAE_BATCH = 128
FLOW_BATCH = 512
VAE_RATE, FLOW_RATE = 1.2e-3, 1.5e-3  # peak learning rates of AdamW
NUM_WARM_STEPS = 200  # steps over which the learning rate rises
EMA_DECAY = 0.999
CHUNK = 50  # steps between looks at the clock, each of which waits for the GPU
KL_WEIGHT = 5e-4  # of the mean per latent element; only keeps latents from growing
SHARE_WHITE, SHARE_EMPTY = 0.6, 0.1  # of the pictures on white; of the captions left empty
MU = 0.4592  # Flux's shift at 16 image tokens: the line through 0.5 at 256 and 1.15 at 4096

log = logging.getLogger("make_nano")


@dataclass(frozen=True)
class Budget:
    """When a part of the training stops: at the first of two limits."""

    seconds: float
    num_steps: int

    def spent(self, seconds: float, step: int) -> float:
        """The used share, in [0, 1]."""
        return min(1.0, max(seconds / self.seconds, step / self.num_steps))


# Training loop


def graphed(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph: a model this small is otherwise bound by launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def train(
    loss_of: Callable[[], Tensor], parameters: list[Tensor], budget: Budget, peak_rate: float, use_graph: bool
) -> int:
    """Trains until the budget is spent, leaves the averaged weights in `parameters`, returns the number of steps.

    The rate falls along a cosine of the spent budget, so that a part cut short by its clock still ends at rate 0.
    """
    start = time.monotonic()
    device = parameters[0].device
    on_gpu = device.type == "cuda"
    rate = torch.zeros((), device=device)  # a tensor, so that a captured graph sees its changes
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, capturable=on_gpu, fused=on_gpu
    )
    averages = [p.detach().clone() for p in parameters]
    loss_sum = torch.zeros((), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - EMA_DECAY)
            loss_sum.add_(loss.detach())

    run = graphed(step) if use_graph else step
    loss_sum.zero_()
    num_done, next_log, share = 0, 0.0, 0.0
    while share < 1:
        num_steps = min(CHUNK, budget.num_steps - num_done)
        warm = min(1.0, (num_done + num_steps) / NUM_WARM_STEPS)
        rate.fill_(peak_rate * warm * 0.5 * (1 + math.cos(math.pi * share)))
        for _ in range(num_steps):
            run()
        num_done += num_steps
        loss = loss_sum.item() / num_steps  # sync point
        loss_sum.zero_()
        seconds = time.monotonic() - start
        share = budget.spent(seconds, num_done)
        if share >= next_log or share == 1:
            log.info("  step %6d  %6.1f s  loss %.4f", num_done, seconds, loss)
            next_log = share + 0.05
    with torch.no_grad():
        torch._foreach_copy_(parameters, averages)
    return num_done


# Pictures


def on_background(pictures: Tensor, colours: Tensor) -> Tensor:
    """RGBA (B, 4, H, W) uint8 over colours (B, 3) in [0, 255] -> (B, 3, H, W) in [-1, 1]."""
    rgba = pictures.float() / 255
    alpha = rgba[:, 3:]
    rgb = rgba[:, :3] * alpha + (colours / 255)[:, :, None, None] * (1 - alpha)
    return rgb * 2 - 1


def on_white(pictures: Tensor) -> Tensor:
    return on_background(pictures, torch.full((len(pictures), 3), 255.0, device=pictures.device))


def varied(pictures: Tensor, num: int) -> Tensor:
    """A random batch for the VAE, (num, 3, H, W) in [-1, 1]: half moved and resized, half on coloured ground."""
    device = pictures.device
    batch = pictures[torch.randint(len(pictures), (num,), device=device)]  # (B, 4, H, W) uint8
    moved = (torch.rand(num, device=device) < 0.5).float()
    scale = 1 + moved * (0.6 * torch.rand(num, device=device) - 0.15)  # above 1 draws it smaller
    shift = moved[:, None] * 0.3 * (torch.rand(num, 2, device=device) - 0.5)
    mirror = 1 - 2 * (torch.rand(num, device=device) < 0.5).float()
    zero = torch.zeros_like(scale)
    rows = [torch.stack([scale * mirror, zero, shift[:, 0]], 1), torch.stack([zero, scale, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(batch.shape), align_corners=False)
    # Alpha is multiplied in before resampling and divided out after, or transparent black would bleed into edges.
    alpha = batch[:, 3:].float() / 255
    sampled = F.grid_sample(torch.cat([batch[:, :3] * alpha, batch[:, 3:].float()], 1), grid, align_corners=False)
    rgb = sampled[:, :3] * 255 / sampled[:, 3:].clamp(min=1)
    colours = (255 * torch.rand(num, 3, device=device)).masked_fill(torch.rand(num, 1, device=device) < 0.5, 255)
    return on_background(torch.cat([rgb, sampled[:, 3:]], 1), colours)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures, in dB, of (B, 3, H, W) in [-1, 1]."""
    error = ((a.clamp(-1, 1) - b).float() ** 2).mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / error.clamp(min=1e-10))).mean().item()


# VAE


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


def vae_loss(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """L1 of pixels and of their differences, which keeps edges sharp, and a small KL."""
    with torch.no_grad():
        x = varied(pictures, VAE_BATCH).contiguous(memory_format=torch.channels_last)
    posterior = vae.encode(x).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()  # (B, 16, 8, 8)
    y = vae.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)).sample.float()
    error = y - x
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + 0.5 * edges + KL_WEIGHT * kl


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Posterior means (B, 16, 8, 8) of pictures (B, 3, H, W) in [-1, 1], not yet scaled."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(256)])


def make_vae(folder: Path, packed: dict[str, Tensor], budget: Budget, use_graph: bool) -> None:
    """Trains a VAE on all pictures in all styles and saves it in fp16, scale and shift in its config."""
    device = packed["captioned"].device
    pictures = torch.cat([packed["captioned"].flatten(0, 1), packed["others"].flatten(0, 1)])  # (N, 4, H, W)
    vae = new_vae().to(device, memory_format=torch.channels_last)
    log.info("VAE: %d pictures, %d parameters", len(pictures), sum(p.numel() for p in vae.parameters()))
    num_steps = train(lambda: vae_loss(vae, pictures), list(vae.parameters()), budget, VAE_RATE, use_graph)
    latents = encoded(vae, on_white(packed["captioned"][:, : len(STYLES)].flatten(0, 1)))
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    log.info("VAE: %d steps, scale %.4f, shift %.4f", num_steps, vae.config.scaling_factor, vae.config.shift_factor)
    vae.half().save_pretrained(folder)


@torch.no_grad()
def log_psnr(vae: AutoencoderKL, held_out: Tensor) -> None:
    """Reconstruction of emoji that the VAE never saw, (N, 4 styles, 4, H, W) uint8, by style."""
    for name, style in zip((*STYLES, "line"), held_out.unbind(1), strict=True):
        x = on_white(style)
        log.info("VAE: held-out PSNR %-6s %.2f dB", name, psnr(vae.decode(encoded(vae, x)).sample, x))


# Captions


def captions(subjects: list[str]) -> list[str]:
    """All captions: subject outermost, then style, background, wording; the empty one is last."""
    lines = []
    for subject in subjects:
        bare = subject.split(" ", 1)[1] if subject.startswith(("a ", "an ", "the ")) else subject
        for style in STYLES:
            for colour in BACKGROUNDS:
                for i, wording in enumerate(WORDINGS):
                    places = (f" on {ARTICLES.get(colour, 'a')} {colour} background", f", {colour} background")
                    # White is what a caption means that names no background; two of six say so.
                    place = places[i % 2] if colour != "white" or i in (2, 5) else ""
                    lines.append(wording.format(style=style, subject=subject, bare=bare, place=place))
    return [*lines, ""]


def new_clip_tokenizer(lines: Iterable[str]) -> CLIPTokenizer:
    """CLIP's own pipeline, which lower-cases, with merges learned from `lines`."""
    backend = CLIPTokenizer().backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(lines, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=NUM_TEXT_TOKENS)


def new_t5_tokenizer(lines: Iterable[str]) -> T5Tokenizer:
    """A Unigram vocabulary learned from `lines`, with lower-casing.

    T5Tokenizer builds its own pipeline on loading and keeps one normalizer only, a SentencePiece character map. So
    lower-casing must be such a map: SentencePiece compiles one from a table.
    """
    cased = [letter for letter in map(chr, range(0x250)) if letter != letter.lower() and len(letter.lower()) == 1]
    table = "".join(f"{ord(letter):X}\t{ord(letter.lower()):X}\n" for letter in cased)
    written = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write(table)
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=written, model_type="unigram", vocab_size=1500,
            hard_vocab_limit=False, character_coverage=1.0, normalization_rule_tsv=rules.name,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
        )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    return T5Tokenizer(
        vocab=[(piece.piece, piece.score) for piece in proto.pieces],
        _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap,
        extra_ids=0,
        model_max_length=NUM_TEXT_TOKENS,
    )


def token_ids(tokenizer: CLIPTokenizer | T5Tokenizer, lines: list[str]) -> Tensor:
    """(num_lines, 32) int64, padded as FluxPipeline pads."""
    return tokenizer(
        lines, padding="max_length", max_length=NUM_TEXT_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


# Transformer and text encoders


def new_pipeline(vae: AutoencoderKL, lines: list[str], words: list[str]) -> FluxPipeline:
    """A FluxPipeline with the given VAE; all else untrained. Tokenizers learn from captions and emoji labels."""
    letters = [" ".join(map(chr, range(33, 127)))] * 3  # each printable character alone, so that none is unknown
    text = [*lines[:: len(WORDINGS)], *words, *letters]
    tokenizer, tokenizer_2 = new_clip_tokenizer(text), new_t5_tokenizer(text)
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, projection_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=NUM_TEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=len(tokenizer_2), d_model=128, d_kv=32, num_heads=4, d_ff=256, num_layers=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=3, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=128, pooled_projection_dim=64, guidance_embeds=True, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    for name, module in transformer.named_modules():
        # Blocks start as the identity and the output at zero, as in DiT (arXiv 2212.09748).
        if isinstance(module, nn.Linear) and (name == "proj_out" or ".linear" in name):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
        max_image_seq_len=4096,
    )  # fmt: skip
    return FluxPipeline(
        scheduler=scheduler, vae=vae, text_encoder=CLIPTextModel(clip), tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5), tokenizer_2=tokenizer_2, transformer=transformer,
    )  # fmt: skip


@torch.no_grad()
def packed_latents(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """(num_subjects * 3 styles * num_backgrounds, 16 tokens, 64), scaled, of (num_subjects, 3, 4, H, W) uint8."""
    flat = pictures.flatten(0, 1)
    on_each = []
    for colour in BACKGROUNDS.values():
        colours = torch.tensor(colour, device=flat.device).float().expand(len(flat), 3)
        z = (encoded(vae, on_background(flat, colours)) - vae.config.shift_factor) * vae.config.scaling_factor
        on_each.append(FluxPipeline._pack_latents(z, *z.shape))
    return torch.stack(on_each, 1).flatten(0, 1)


def flow_loss(pipe: FluxPipeline, latents: Tensor, positions: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
    """Flow matching: the transformer predicts noise - x_0 from x_t = (1 - t) x_0 + t noise.

    latents: (P, 16, 64). positions: (16, 3). clip_ids, t5_ids: (P * num_wordings + 1, 32), in the order of captions().
    """
    device = latents.device

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, device=device)

    num_drawn = len(latents) // len(BACKGROUNDS)
    background = torch.randint(1, len(BACKGROUNDS), (FLOW_BATCH,), device=device)
    background = background.masked_fill(random(FLOW_BATCH) < SHARE_WHITE, WHITE)
    picture = torch.randint(num_drawn, (FLOW_BATCH,), device=device) * len(BACKGROUNDS) + background
    caption = picture * len(WORDINGS) + torch.randint(len(WORDINGS), (FLOW_BATCH,), device=device)
    caption = caption.masked_fill(random(FLOW_BATCH) < SHARE_EMPTY, len(clip_ids) - 1)

    x_0 = latents[picture]
    noise = torch.randn_like(x_0)
    t = torch.sigmoid(torch.randn(FLOW_BATCH, device=device) + MU)
    x_t = torch.lerp(x_0, noise, t[:, None, None])
    predicted = pipe.transformer(
        hidden_states=x_t,
        timestep=t,
        # Not distilled: any guidance means the same, so that a pipeline's default of 3.5 is harmless.
        guidance=1 + 4 * random(FLOW_BATCH),
        pooled_projections=pipe.text_encoder(clip_ids[caption]).pooler_output,
        encoder_hidden_states=pipe.text_encoder_2(t5_ids[caption])[0],
        txt_ids=torch.zeros(NUM_TEXT_TOKENS, 3, device=device),
        img_ids=positions,
        return_dict=False,
    )[0]
    return F.mse_loss(predicted.float(), noise - x_0)


def plain_attention() -> None:
    """Unfused attention: costs nothing at 48 tokens, and cuDNN's backward reads out of bounds (torch 2.11, H100)."""
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def train_flow(pipe: FluxPipeline, lines: list[str], pictures: Tensor, budget: Budget, use_graph: bool) -> None:
    """Trains transformer, T5 and CLIP together. pictures: (num_subjects, 3 styles, 4, H, W) uint8 RGBA."""
    device = pictures.device
    plain_attention()
    latents = packed_latents(pipe.vae, pictures)
    positions = FluxPipeline._prepare_latent_image_ids(1, SIZE // 16, SIZE // 16, device, torch.float32)
    clip_ids = token_ids(pipe.tokenizer, lines).to(device)
    t5_ids = token_ids(pipe.tokenizer_2, lines).to(device)
    models = {name: getattr(pipe, name) for name in ("transformer", "text_encoder_2", "text_encoder")}
    for name, model in models.items():
        model.to(device).train()
        log.info("%s: %d parameters", name, sum(p.numel() for p in model.parameters()))
    parameters = [p for model in models.values() for p in model.parameters()]
    num_steps = train(
        lambda: flow_loss(pipe, latents, positions, clip_ids, t5_ids), parameters, budget, FLOW_RATE, use_graph
    )
    log.info("flow: %d steps of %d", num_steps, FLOW_BATCH)


# Samples


def sampled(pipe: FluxPipeline, prompts: list[str], guidance: float) -> np.ndarray:
    """(num_prompts, 64, 64, 3) in [0, 1], 20 Euler steps, the same noise at every call."""
    return pipe(
        prompts, height=SIZE, width=SIZE, num_inference_steps=20, guidance_scale=guidance, output_type="np",
        max_sequence_length=NUM_TEXT_TOKENS, generator=torch.Generator("cpu").manual_seed(0),
    ).images  # fmt: skip


def log_retrieval(pipe: FluxPipeline, subjects: list[str], pictures: Tensor) -> None:
    """For 64 captions that were trained on: is the nearest true picture, pixel by pixel, the one that was asked for?"""
    truths = (on_white(pictures.flatten(0, 1)) + 1) / 2  # (num_subjects * 3, 3, H, W)
    asked = torch.linspace(0, len(truths) - 1, 64).long()
    prompts = [f"{STYLES[i % 3]} emoji of {subjects[i // 3]}" for i in asked.tolist()]
    images = torch.from_numpy(sampled(pipe, prompts, 1.0)).permute(0, 3, 1, 2)
    nearest = torch.cdist(images.flatten(1), truths.cpu().flatten(1)).topk(min(5, len(truths)), largest=False).indices
    hits = nearest == asked[:, None]  # (64, 5)
    log.info("samples: right picture nearest %.0f %%", 100 * hits[:, 0].float().mean().item())
    log.info("samples: right picture in the nearest five %.0f %%", 100 * hits.any(1).float().mean().item())


def draw_sheet(path: Path, pipe: FluxPipeline, subjects: list[str], pictures: Tensor) -> None:
    """24 captions; for each the true picture, then samples at guidance 1 and 2.5; the last six on coloured ground."""
    cells = []
    for i in range(24):
        subject = (i * len(subjects)) // 24
        colour = "white" if i < 18 else list(BACKGROUNDS)[1 + i - 18]
        place = "" if colour == "white" else f" on {ARTICLES.get(colour, 'a')} {colour} background"
        cells.append((subject, i % 3, colour, f"{STYLES[i % 3]} emoji of {subjects[subject]}{place}"))
    columns = [sampled(pipe, [cell[3] for cell in cells], guidance) for guidance in (1.0, 2.5)]
    sheet = Image.new("RGB", (6 * 400, 4 * 150), "white")
    writer = ImageDraw.Draw(sheet)
    for i, (subject, style, colour, prompt) in enumerate(cells):
        ground = torch.tensor([BACKGROUNDS[colour]], device=pictures.device).float()
        truth = (on_background(pictures[subject, style][None], ground)[0].permute(1, 2, 0).cpu().numpy() + 1) / 2
        left, top = i % 6 * 400, i // 6 * 150
        for j, image in enumerate((truth, columns[0][i], columns[1][i])):
            tile = Image.fromarray((image * 255).round().astype(np.uint8)).resize((128, 128))
            sheet.paste(tile, (left + 130 * j, top))
        writer.text((left + 2, top + 132), prompt, fill="black")
    sheet.save(path, optimize=True)


def load(folder: Path, device: torch.device) -> FluxPipeline:
    """The saved pipeline as a user loads it, in fp32."""
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(pipe: FluxPipeline, folder: Path) -> None:
    """Stores fp16 weights that load as fp32 where no dtype is asked for, as the CPU needs them."""
    pipe.to(dtype=torch.float16).save_pretrained(folder)
    # diffusers loads its parts as fp32 anyway; transformers loads what the config says.
    for part in ("text_encoder", "text_encoder_2"):
        path = folder / part / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def readable(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The archive's member, readable by all: safetensors writes files for their owner only."""
    member.mode |= 0o444
    return member


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".nano"), help="what make_nano_data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pipeline")
    parser.add_argument("--results", type=Path, required=True, help="folder for archive, samples and log")
    parser.add_argument("--vae-seconds", type=float, default=70)
    parser.add_argument("--flow-seconds", type=float, default=130)
    parser.add_argument("--vae-steps", type=int, default=1_000_000, help="stop earlier, for a trial run")
    parser.add_argument("--flow-steps", type=int, default=1_000_000, help="stop earlier, for a trial run")
    parser.add_argument("--num-subjects", type=int, default=None, help="take the first few only, for a trial run")
    parser.add_argument("--no-graph", action="store_true", help="without a CUDA graph: slower, easier to debug")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    options.results.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(options.results / "make_nano.log")]
    logging.basicConfig(format="%(relativeCreated)7d ms %(message)s", handlers=handlers)
    log.setLevel(logging.INFO)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use_graph = device.type == "cuda" and not options.no_graph
    log.info("torch %s on %s", torch.__version__, torch.cuda.get_device_name() if device.type == "cuda" else "CPU")

    facts = json.loads((options.data / "captions.json").read_text(encoding="utf-8"))
    with np.load(options.data / "pictures.npz") as arrays:  # each (N, 4 styles, 64, 64, 4) uint8 -> channels first
        packed = {name: torch.from_numpy(arrays[name]).movedim(-1, 2).contiguous().to(device) for name in arrays}
    subjects = facts["subjects"][: options.num_subjects]
    pictures = packed["captioned"][: len(subjects), : len(STYLES)]  # (num_subjects, 3, 4, 64, 64) uint8

    if not (options.out / "vae" / "config.json").exists():
        make_vae(options.out / "vae", packed, Budget(options.vae_seconds, options.vae_steps), use_graph)
    vae = AutoencoderKL.from_pretrained(options.out / "vae", dtype=torch.float32).to(device)
    vae.register_to_config(_name_or_path="nano")  # or the place it was loaded from would be saved
    log_psnr(vae, packed["held_out"])

    lines = captions(subjects)
    pipe = new_pipeline(vae, lines, facts["words"])
    train_flow(pipe, lines, pictures, Budget(options.flow_seconds, options.flow_steps), use_graph)
    save(pipe, options.out)
    with tarfile.open(options.results / "nano.tar.gz", "w:gz") as archive:
        archive.add(options.out, arcname="nano", filter=readable)
    log.info("saved: %.2f MB", sum(p.stat().st_size for p in options.out.rglob("*") if p.is_file()) / 1e6)

    pipe = load(options.out, device)
    draw_sheet(options.results / "samples.png", pipe, subjects, pictures)
    log_retrieval(pipe, subjects, pictures)


if __name__ == "__main__":
    main()
