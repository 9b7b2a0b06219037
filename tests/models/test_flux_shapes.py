"""What is said of a Flux without torch, against diffusers' own module and what autograd really keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from simpletuner.models import families
from simpletuner.models.flux import shapes as flux
from simpletuner.models.options import Model

RECORD = families()["flux"]
WIDTH, IMAGE, TEXT = 256, 512, 128  # tokens
LAYER_NORMS = {"transformer_blocks": 2.0, "single_transformer_blocks": 1.0}  # CUDA's autocast keeps them in fp32


@pytest.mark.parametrize("guidance", [True, False])
def test_layers_are_those_of_diffusers_at_full_size(guidance):
    with torch.device("meta"):
        module = FluxTransformer2DModel(guidance_embeds=guidance)
    found = RECORD.shapes(Model(model_flavour="dev" if guidance else "schnell"))
    linear = {n: (m.out_features, m.in_features) for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    assert found.layers == linear
    assert found.num_weights == sum(p.numel() for p in module.parameters())


def test_a_model_on_disk_wins_over_the_release(tmp_path):
    module = FluxTransformer2DModel(
        num_layers=1, num_single_layers=2, num_attention_heads=2, attention_head_dim=32, axes_dims_rope=(8, 12, 12),
        joint_attention_dim=48, pooled_projection_dim=16,
    )  # fmt: skip
    module.save_pretrained(tmp_path / "transformer")
    found = RECORD.shapes(Model(model_flavour="dev", pretrained_model_name_or_path=str(tmp_path)))
    assert found.num_weights == sum(p.numel() for p in module.parameters())
    assert (found.width, [stack.count for stack in found.stacks]) == (64, [1, 2])


def kept(names: list[str]) -> dict[str, float]:
    """Units that autograd keeps of the second block of each kind, while the layers `names` of all blocks train."""
    torch.manual_seed(0)
    module = FluxTransformer2DModel(
        num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=128, joint_attention_dim=64,
        pooled_projection_dim=64,
    ).to(torch.bfloat16).requires_grad_(False)  # fmt: skip
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and any(path.endswith(name) for name in names):
            layer.weight.requires_grad_(True)
    here = SimpleNamespace(block="")
    for path, block in module.named_modules():
        if path.endswith("blocks.1"):
            block.register_forward_pre_hook(lambda *_, path=path: setattr(here, "block", path))
            block.register_forward_hook(lambda *_: setattr(here, "block", ""))
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    seen, total = set(weights), {"transformer_blocks": 0, "single_transformer_blocks": 0}
    alive: list = []  # so that no address is used twice

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            alive.append(storage)
            if here.block:
                total[here.block.split(".")[0]] += storage.nbytes()
        return tensor

    bf16 = {"dtype": torch.bfloat16}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(
            hidden_states=torch.randn(1, IMAGE, 64, **bf16), encoder_hidden_states=torch.randn(1, TEXT, 64, **bf16),
            pooled_projections=torch.randn(1, 64, **bf16), timestep=torch.rand(1), img_ids=torch.zeros(IMAGE, 3),
            txt_ids=torch.zeros(TEXT, 3),
        )  # fmt: skip
    return {name: number / (2 * WIDTH * (IMAGE + TEXT)) for name, number in total.items()}


@pytest.mark.parametrize("preset", ["all", "all+ffs", "mmdit"])
def test_units_are_what_autograd_keeps(preset):
    names = [name for name in (*flux.DOUBLE, *flux.SINGLE) if any(
        name == target or name.endswith("." + target) or target.endswith(name) for target in RECORD.targets(preset)
    )]  # fmt: skip
    measured = kept(names)
    for stack in RECORD.shapes(Model()).stacks:
        read = {tensor for name, tensor in stack.reads.items() if name in names}
        counted = stack.kept - LAYER_NORMS[stack.name] + sum(stack.units[tensor] for tensor in read)
        assert counted == pytest.approx(measured[stack.name], rel=0.06), stack.name
