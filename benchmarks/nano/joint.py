"""Part two: T5, CLIP and a first transformer learn together; training encoders is not the product's business."""

import logging

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from benchmarks.nano.fit import fit
from benchmarks.nano.pictures import SIZE, WORDINGS, Art, Item, captions, items, pixels
from benchmarks.nano.tokenizers import NUM_TEXT_TOKENS, new_clip_tokenizer, new_t5_tokenizer, token_ids
from benchmarks.nano.vae import encoded

BATCH = 384
PEAK_RATE = 1e-3  # of AdamW
SHARE_EMPTY = 0.1  # of the captions
MU = 0.4592  # Flux's shift at 16 image tokens: the line through 0.5 at 256 and 1.15 at 4096

log = logging.getLogger("nano")


def new_pipeline(vae: AutoencoderKL, lines: list[str], words: list[str]) -> FluxPipeline:
    """A FluxPipeline with the given VAE; all else untrained. Tokenizers learn from captions and emoji labels."""
    letters = [" ".join(map(chr, range(33, 127)))] * 3  # each printable character alone, so that none is unknown
    text = [*lines[::7], *words, *letters]  # 7 has no divisor in common with the number of wordings
    tokenizer, tokenizer_2 = new_clip_tokenizer(text), new_t5_tokenizer(text)
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=160, intermediate_size=480, projection_dim=160, num_hidden_layers=2,
        num_attention_heads=5, max_position_embeddings=NUM_TEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=len(tokenizer_2), d_model=192, d_kv=32, num_heads=4, d_ff=384, num_layers=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=2, num_single_layers=5, attention_head_dim=32, num_attention_heads=7,
        joint_attention_dim=192, pooled_projection_dim=160, guidance_embeds=True, axes_dims_rope=(8, 12, 12),
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


class Draws:
    """The training set on the device, and how a batch is drawn from it inside a CUDA graph."""

    def __init__(self, pipe: FluxPipeline, art: Art, wanted: list[Item], lines: list[str], device: torch.device):
        lines = [*lines, ""]
        self.clip_ids = token_ids(pipe.tokenizer, lines).to(device)  # (P * num_wordings + 1, 32)
        self.t5_ids = token_ids(pipe.tokenizer_2, lines).to(device)
        self.ends = torch.tensor([item.weight for item in wanted], dtype=torch.float64).cumsum(0).float().to(device)
        latents = []
        for start in range(0, len(wanted), 4096):
            x = pixels(art, wanted[start : start + 4096], device)
            z = (encoded(pipe.vae, x) - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
            latents.append(FluxPipeline._pack_latents(z, *z.shape))
        self.latents = torch.cat(latents)  # (P, 16 tokens, 64)
        log.info("joint: %d pictures, %d captions", len(wanted), len(set(lines)))

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """x_0 (B, 16, 64), ids for CLIP and T5 (B, 32)."""
        device = self.latents.device
        picture = torch.searchsorted(self.ends, torch.rand(BATCH, device=device)).clamp(max=len(self.ends) - 1)
        caption = picture * len(WORDINGS) + torch.randint(len(WORDINGS), (BATCH,), device=device)
        empty = torch.rand(BATCH, device=device) < SHARE_EMPTY
        caption = caption.masked_fill(empty, len(self.clip_ids) - 1)
        return self.latents[picture], self.clip_ids[caption], self.t5_ids[caption]


def loss_of(pipe: FluxPipeline, draws: Draws, positions: Tensor) -> Tensor:
    """Flow matching: the transformer predicts noise - x_0 from x_t = (1 - t) x_0 + t noise. positions: (16, 3)."""
    device = positions.device
    x_0, clip_ids, t5_ids = draws.batch()
    noise = torch.randn_like(x_0)
    t = torch.sigmoid(torch.randn(BATCH, device=device) + MU)
    predicted = pipe.transformer(
        hidden_states=torch.lerp(x_0, noise, t[:, None, None]),
        timestep=t,
        # Not distilled: any guidance means the same, so that a pipeline's default of 3.5 is harmless.
        guidance=1 + 4 * torch.rand(BATCH, device=device),
        pooled_projections=pipe.text_encoder(clip_ids).pooler_output,
        encoder_hidden_states=pipe.text_encoder_2(t5_ids)[0],
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


def make(vae: AutoencoderKL, art: Art, device: torch.device, seconds: float) -> FluxPipeline:
    """A pipeline in fp32 with trained encoders and a transformer that knows the subjects."""
    plain_attention()
    wanted = items(art)
    lines = [line for item in wanted for line in captions(art, item)]
    pipe = new_pipeline(vae, lines, art.words)
    draws = Draws(pipe, art, wanted, lines, device)
    positions = FluxPipeline._prepare_latent_image_ids(1, SIZE // 16, SIZE // 16, device, torch.float32)
    models = {name: getattr(pipe, name) for name in ("transformer", "text_encoder_2", "text_encoder")}
    for name, model in models.items():
        model.to(device).train()
        log.info("%s: %d parameters", name, sum(p.numel() for p in model.parameters()))
    parameters = [p for model in models.values() for p in model.parameters()]
    num_steps = fit(lambda: loss_of(pipe, draws, positions), parameters, seconds, PEAK_RATE)
    log.info("joint: %d steps of %d", num_steps, BATCH)
    return pipe
