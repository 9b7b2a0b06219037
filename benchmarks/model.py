"""A Flux of the true size with random weights, and jobs that train a LoRA on it: what the other programs here run.

19 + 38 blocks, 11.9 G parameters, sharded safetensors; VAE and text encoders are small random ones that give latents
and embeddings of the true shapes.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from simpletuner.examples import EXAMPLES

TRANSFORMER = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}
GIB = 2**30
ENCODERS = ("text_encoder", "text_encoder_2")
SHARD_BYTES = 4_000_000_000


def write_transformer(folder: Path, device: str, **other: int) -> None:
    """Random weights of the true shapes, small and normal, never zeros. other: entries of TRANSFORMER to replace."""
    from diffusers import FluxTransformer2DModel

    folder.mkdir(parents=True)
    config = TRANSFORMER | other
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config)
    generator = torch.Generator(device).manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in model.state_dict().items():
        if sum(t.nbytes for t in shards[-1].values()) + tensor.numel() * 2 > SHARD_BYTES:
            shards.append({})
        spread = 0.02 if tensor.ndim > 1 else 0.01
        value = torch.randn(tensor.shape, generator=generator, device=device) * spread
        if name.endswith(("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight")):
            value += 1
        shards[-1][name] = value.bfloat16().cpu()
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"diffusion_pytorch_model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file)
        index |= dict.fromkeys(shard, file)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )


def write_small_parts(folder: Path) -> None:
    """Encoders and VAE that are small but have Flux's output shapes: T5 4096, CLIP 768, 16 channels at 1/8."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    nano = EXAMPLES["nano"].folder / "model"
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(nano / part, folder / part)
    shutil.copyfile(nano / "model_index.json", folder / "model_index.json")
    words = {part: json.loads((nano / part / "config.json").read_text())["vocab_size"] for part in ENCODERS}
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words["text_encoder"],
            hidden_size=768,
            intermediate_size=768,
            num_hidden_layers=1,
            num_attention_heads=12,
        )
    ).save_pretrained(folder / "text_encoder")
    T5EncoderModel(
        T5Config(
            vocab_size=words["text_encoder_2"],
            d_model=4096,
            d_kv=64,
            d_ff=1024,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).save_pretrained(folder / "text_encoder_2")


def write_encoders(folder: Path, device: str) -> None:
    """VAE and text encoders of FLUX.1's own shapes, T5-XXL and CLIP-L, in place of the small ones."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    words = {part: json.loads((folder / part / "config.json").read_text())["vocab_size"] for part in ENCODERS}
    clip = CLIPTextConfig(
        vocab_size=words["text_encoder"], hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, hidden_act="quick_gelu",
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=words["text_encoder_2"], d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 16, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
        "norm_num_groups": 32, "sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159,
        "use_quant_conv": False, "use_post_quant_conv": False,
    }  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        made = {
            "vae": AutoencoderKL(**vae),
            "text_encoder": CLIPTextModel(clip),
            "text_encoder_2": T5EncoderModel(t5).bfloat16(),
        }
    for part, module in made.items():
        shutil.rmtree(folder / part)
        module.bfloat16().save_pretrained(folder / part)


def write_model(folder: Path) -> None:
    """The whole model, unless it is there."""
    if not (folder / "transformer/config.json").exists():
        write_transformer(folder / "transformer", "cuda" if torch.cuda.is_available() else "cpu")
        write_small_parts(folder)


def write_job(work: Path, *, size: int, steps: int, target: str, **settings: Any) -> Path:
    """Pictures, dataset list and the configuration, which is returned; settings: further options. No result is left."""
    pictures = work / "pictures"
    pictures.mkdir(exist_ok=True)
    for number in range(8):
        noise = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(noise.byte().numpy()).save(pictures / f"a picture of thing {number}.png")
    datasets = [{"id": "random", "type": "local", "instance_data_dir": str(pictures), "resolution": size}]
    (work / "multidatabackend.json").write_text(json.dumps(datasets))
    config = {
        "model_flavour": "dev",
        "pretrained_model_name_or_path": str(work / "model"),
        "output_dir": str(work / "out"),
        "data_backend_config": str(work / "multidatabackend.json"),
        "resolution": size,
        "lora_rank": 16,
        "flux_lora_target": target,
        "max_train_steps": steps,
        "mixed_precision": "bf16",
        "validation_disable": True,
        "checkpoint_step_interval": 10_000,
        **settings,
    }
    shutil.rmtree(work / "out", ignore_errors=True)
    path = work / "config.json"
    path.write_text(json.dumps(config))
    return path


def estimated(path: Path, size: int) -> dict[str, list[float]]:
    """The plan's phases for that configuration: GiB of the GPU and of RAM."""
    from simpletuner import config
    from simpletuner.plan import memory

    loaded, _ = config.load(path, {}, os.environ)
    return {
        phase.name: [round(phase.vram_bytes / GIB, 2), round(phase.ram_bytes / GIB, 2)]
        for phase in memory.estimate(loaded, [(size, size)])
    }
