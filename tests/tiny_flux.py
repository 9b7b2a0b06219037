"""A tiny real Flux folder in the diffusers layout: the true classes with small sizes, made in about a second.

`build` is deterministic: the same arguments give the same weights. Tokenizers are written down piece by piece, not
trained, so nothing varies.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch

HEADS, HEAD_WIDTH, JOINT, POOLED, CHANNELS = 2, 32, 32, 16, 16
TEXT_LENGTH = 64  # what the T5 tokenizer says its longest input is
WORDS = (
    "the",
    "of",
    "on",
    "in",
    "and",
    "photo",
    "cat",
    "dog",
    "red",
    "blue",
    "green",
    "small",
    "large",
    "house",
    "with",
)


def clip_tokenizer():
    """Byte-level, one token a letter, no merges: small, and every text has one."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def t5_tokenizer():
    """Unigram over printable characters and a few words."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(character, -6.0) for character in string.ascii_letters + string.digits + string.punctuation]
    pieces += [("▁" + word, -3.0) for word in WORDS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)


def transformer(
    *, guidance: bool = True, layers: tuple[int, int] = (1, 1), seed: int = 0, head_width: int = HEAD_WIDTH
):
    """A FluxTransformer2DModel of two heads, hence of width 64, with (double, single) blocks, fp32."""
    from diffusers import FluxTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FluxTransformer2DModel(
            in_channels=4 * CHANNELS,
            num_layers=layers[0],
            num_single_layers=layers[1],
            num_attention_heads=HEADS,
            attention_head_dim=head_width,
            joint_attention_dim=JOINT,
            pooled_projection_dim=POOLED,
            guidance_embeds=guidance,
            axes_dims_rope=(head_width // 4, *(head_width * 3 // 8,) * 2),
        ).eval()


def vae(seed: int = 0):
    """An AutoencoderKL of factor 8 with 16 latent channels, fp32."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=CHANNELS,
            sample_size=64,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()


def text_encoders(clip_vocabulary: int, t5_vocabulary: int, seed: int = 0):
    """(CLIP text model, T5 encoder), one layer each, fp32."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=clip_vocabulary,
                hidden_size=POOLED,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=clip_vocabulary - 2,
                eos_token_id=clip_vocabulary - 1,
                pad_token_id=clip_vocabulary - 1,
            )
        )
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=t5_vocabulary,
                d_model=JOINT,
                d_kv=8,
                d_ff=64,
                num_layers=1,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                is_encoder_decoder=False,
                use_cache=False,
            )
        )
    return clip.eval(), t5.eval()


def build(folder: Path, *, guidance: bool = True, layers: tuple[int, int] = (1, 1), seed: int = 0) -> Path:
    """Writes the whole pipeline below `folder` and returns it."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    clip, t5 = text_encoders(len(tokenizer), len(tokenizer_2), seed)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=guidance,  # schnell's scheduler has none
            shift=3.0 if guidance else 1.0,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=vae(seed),
        text_encoder=clip,
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer_2,
        transformer=transformer(guidance=guidance, layers=layers, seed=seed),
    )
    pipeline.save_pretrained(folder)
    return Path(folder)
