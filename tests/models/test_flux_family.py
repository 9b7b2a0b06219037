"""The Flux family against diffusers' own pipeline on a tiny random model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from simpletuner.models import families
from simpletuner.models.flux.layout import image_ids, pack, unpack
from simpletuner.protocols import SampleRequest
from simpletuner.types import Batch, Size

RECORD = families()["flux"]


@pytest.fixture(scope="module")
def pipelines(folders):
    """guidance -> diffusers' FluxPipeline over the same folder."""
    from diffusers import FluxPipeline

    found = {guidance: FluxPipeline.from_pretrained(folder) for guidance, folder in folders.items()}
    for pipeline in found.values():
        pipeline.set_progress_bar_config(disable=True)
    return found


def predict(family, denoiser, x_t, t, batch):
    """As the trainer asks: with what the family draws for the samples."""
    batch = replace(batch, text={**batch.text, **family.conditions(batch)})
    return family.predict(denoiser, x_t, t, batch)


def batch_of(text, latents, numbers=(0,)):
    return Batch(("d/a",) * len(latents), latents, text, torch.ones(len(latents)), "d", numbers=numbers)


def inputs_of(denoiser, call) -> list[dict]:
    """What reaches the transformer during call()."""
    seen = []
    hook = denoiser.register_forward_pre_hook(lambda module, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True)
    try:
        call()
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("height", [2, 4, 6, 62, 64, 128])
@pytest.mark.parametrize("width", [2, 6, 128])
def test_unpack_is_the_inverse_of_pack_and_both_are_diffusers(height, width):
    from diffusers import FluxPipeline

    x = torch.randn(2, 16, height, width)
    assert torch.equal(unpack(pack(x), height, width), x)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 16, height, width))
    ids = FluxPipeline._prepare_latent_image_ids(2, height // 2, width // 2, torch.device("cpu"), torch.float32)
    assert torch.equal(image_ids(height, width), ids)


def test_ids_are_zero_row_column():
    expected = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert image_ids(4, 6).tolist() == expected and image_ids(4, 6).dtype == torch.float32


@pytest.mark.parametrize(("guidance", "count"), [(True, 11_901_408_320), (False, 11_891_178_560)])
def test_the_full_model_has_the_known_number_of_parameters(guidance, count):
    from diffusers import FluxTransformer2DModel

    shape = {"joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": guidance}
    with torch.device("meta"):
        model = FluxTransformer2DModel(**shape)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("guidance", [True, False])
def test_the_denoiser_streamed_in_equals_diffusers_and_is_frozen(folders, make, pipelines, guidance):
    denoiser = make(folders[guidance]).load_denoiser("cpu")
    theirs = pipelines[guidance].transformer.state_dict()
    ours = denoiser.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())


@pytest.mark.parametrize("guidance", [True, False])
def test_one_training_prediction_equals_one_pass_of_diffusers_pipeline(folders, make, pipelines, guidance):
    family, pipeline = make(folders[guidance], flux={"flux_guidance_value": 2.5}), pipelines[guidance]
    denoiser = family.load_denoiser("cpu")
    text = family.encode_text(family.load_text_encoders("cpu"), ["a red cat"])
    noise = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    outputs = []
    hook = pipeline.transformer.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    theirs = inputs_of(
        pipeline.transformer,
        lambda: pipeline(
            "a red cat", height=64, width=96, num_inference_steps=1, guidance_scale=2.5, latents=pack(noise),
            max_sequence_length=64, output_type="latent",
        ),
    )[0]  # fmt: skip
    hook.remove()
    with torch.no_grad():
        prediction = predict(family, denoiser, noise, torch.ones(1), batch_of(text, noise))
        ours = inputs_of(denoiser, lambda: predict(family, denoiser, noise, torch.ones(1), batch_of(text, noise)))[0]
    names = ["hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids"]
    for name in names + (["guidance"] if guidance else []):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)
    if not guidance:
        assert ours["guidance"] is None
    torch.testing.assert_close(prediction, unpack(outputs[0], 8, 12), atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize("real", [1.0, 4.0])
def test_a_whole_sample_equals_diffusers_pipeline(folders, make, pipelines, guidance, real):
    family, pipeline = make(folders[guidance]), pipelines[guidance]
    denoiser = family.load_denoiser("cpu")
    encoders = family.load_text_encoders("cpu")
    generator = torch.Generator().manual_seed(11)
    theirs = pipeline(
        "a blue dog", negative_prompt="green", height=64, width=96, num_inference_steps=6, guidance_scale=3.0,
        true_cfg_scale=real, generator=generator, max_sequence_length=64, output_type="latent",
    ).images  # fmt: skip
    noise = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(11))
    text, negative = (family.encode_text(encoders, [words]) for words in ("a blue dog", "green"))
    request = SampleRequest(text, negative, Size(64, 96), 6, 3.0, real, 0, noise)
    denoiser.train()
    ours = family.sampler(denoiser).latents(request)
    assert denoiser.training, "the sampler restores the mode"
    torch.testing.assert_close(pack(ours), theirs, atol=1e-4, rtol=0)


def test_real_guidance_can_skip_the_first_steps(folders, make):
    family = make(folders[True])
    denoiser, encoders = family.load_denoiser("cpu"), family.load_text_encoders("cpu")
    text, negative = (family.encode_text(encoders, [words]) for words in ("a blue dog", ""))
    noise = torch.randn(1, 16, 8, 8)

    def passes(steps, real, skip, negative=negative):
        request = SampleRequest(text, negative, Size(64, 64), steps, 3.0, real, skip, noise)
        return len(inputs_of(denoiser, lambda: family.sampler(denoiser).latents(request)))

    assert [passes(6, 4.0, 2), passes(6, 4.0, 0), passes(6, 1.0, 0), passes(6, 4.0, 0, None)] == [10, 12, 6, 6]


def test_a_decoded_picture_equals_diffusers(folders, make, pipelines):
    import numpy as np

    family, pipeline = make(folders[True]), pipelines[True]
    vae = family.load_vae("cpu")
    latents = torch.randn(1, 16, 8, 12)
    theirs = pipeline.image_processor.postprocess(
        pipeline.vae.decode(latents / 0.3611 + 0.1159, return_dict=False)[0].detach(), output_type="pil"
    )[0]
    ours = family.sampler(pipeline.transformer).decode(vae, latents)
    assert ours.size == (96, 64)
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max() <= 1


@pytest.mark.parametrize("flavour", list(RECORD.flavours))
def test_predict_writes_nothing_into_the_batch(folders, make, flavour):
    family = make(folders[RECORD.flavour(flavour).guidance], flavour, tokenizer_max_length=16)
    denoiser = family.load_denoiser("cpu")
    text = family.encode_text(family.load_text_encoders("cpu"), ["a cat", ""])
    batch = batch_of(text, torch.randn(2, 16, 8, 8), numbers=(4, 5))
    x_t, t = torch.randn(2, 16, 8, 8), torch.tensor([0.25, 0.75])
    before = {name: value.clone() for name, value in {**text, "x": x_t, "t": t, "l": batch.latents}.items()}
    with torch.no_grad():
        first = predict(family, denoiser, x_t, t, batch)
        assert first.shape == x_t.shape and torch.equal(first, predict(family, denoiser, x_t, t, batch))
    for name, value in {**text, "x": x_t, "t": t, "l": batch.latents}.items():
        assert torch.equal(value, before[name]), name


def test_random_guidance_is_drawn_for_the_number_of_the_sample(folders, make):
    family = make(folders[True], flux={"flux_guidance_mode": "random-range", "flux_guidance_min": 1.0})
    many = family.guidance(range(4000))
    assert family.guidance([17, 3]) == [many[17], many[3]]
    assert min(many) >= 1.0 and max(many) <= 4.0 and sum(many) / 4000 == pytest.approx(2.5, abs=0.05)
    assert make(folders[True], flux={"flux_guidance_value": 3.5}).guidance(range(2)) == [3.5, 3.5]


def test_text_is_encoded_without_masks_and_equals_diffusers(folders, make, pipelines):
    family = make(folders[True])
    encoders = family.load_text_encoders("cpu")
    text = family.encode_text(encoders, ["a photo of a cat", ""])
    with torch.no_grad():
        t5, clip, _ = pipelines[True].encode_prompt(["a photo of a cat", ""], max_sequence_length=64)
    torch.testing.assert_close(text["t5"], t5, atol=1e-6, rtol=0)
    torch.testing.assert_close(text["clip"], clip, atol=1e-6, rtol=0)
    assert text["t5_mask"].dtype == torch.bool and text["t5_mask"].sum(1).tolist()[1] == 1
    single = family.encode_text(encoders, ["a photo of a cat"])
    torch.testing.assert_close(single["t5"][0], text["t5"][0], atol=1e-6, rtol=0)


def test_zero_padding_blanks_what_the_mask_hides(folders, make):
    family = make(folders[True], t5_padding="zero", tokenizer_max_length=16)
    text = family.encode_text(family.load_text_encoders("cpu"), ["a cat"])
    assert text["t5"].shape == (1, 16, 32)
    assert not text["t5"][~text["t5_mask"]].any() and text["t5"][text["t5_mask"]].any()


def test_captions_that_are_cut_are_counted_and_the_longest_is_named(folders, make):
    family = make(folders[True], tokenizer_max_length=8)
    family.encode_text(family.load_text_encoders("cpu"), ["a cat", "x" * 30, "y" * 40])
    assert (family.num_cut, family.longest_cut) == (2, "y" * 40)


def test_images_are_encoded_alike_alone_and_in_a_batch(folders, make, pipelines):
    family = make(folders[True])
    vae = family.load_vae("cpu")
    pixels, noise = torch.rand(3, 3, 64, 96) * 2 - 1, torch.randn(3, 16, 8, 12)
    latents = family.encode_images(vae, pixels, noise)
    assert latents.shape == (3, family.latent_channels, 64 // family.latent_factor, 12)
    for i in range(3):
        alone = family.encode_images(vae, pixels[i : i + 1], noise[i : i + 1])
        torch.testing.assert_close(alone[0], latents[i], atol=1e-4, rtol=0)
    with torch.no_grad():
        posterior = pipelines[True].vae.encode(pixels).latent_dist
    torch.testing.assert_close(family.encode_images(vae, pixels, None), (posterior.mode() - 0.1159) * 0.3611)
    sample = posterior.mean + posterior.std * noise
    torch.testing.assert_close(latents, (sample - 0.1159) * 0.3611)


def test_the_tensors_decide_about_guidance_and_the_flavour_is_told(folders, make):
    family = make(folders[False], "dev")
    assert not family.load_denoiser("cpu").config.guidance_embeds
    assert [p.severity for p in family.notices] == ["notice"] and "dev" in family.notices[0].message


def test_a_path_that_wins_over_the_flavour_is_told(folders, make):
    family = make(folders[True], "dev")
    family.prepare()
    assert [p.keys for p in family.notices] == [("pretrained_model_name_or_path",)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bf16_base_trains_an_adapter_of_either_precision(folders, make, dtype):
    family = make(folders[True])
    family.base_dtype = torch.bfloat16
    denoiser = family.load_denoiser("cpu")
    from simpletuner.adapters.lora import Lora
    from simpletuner.adapters.options import Adapter

    lora = Lora(Adapter(), RECORD.targets("all"), seed=1, dtype=dtype)
    lora.attach(denoiser)
    text = family.encode_text(family.load_text_encoders("cpu"), ["a cat"])
    predict(
        family, denoiser, torch.randn(1, 16, 8, 8), torch.tensor([0.5]), batch_of(text, torch.zeros(1))
    ).square().mean().backward()
    grads = {name: p.grad for name, p in lora.parameters().items() if "lora_B" in name}
    assert all(g is not None and g.dtype == dtype and bool(g.any()) for g in grads.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_fp32_base_computes_in_half_precision_and_gets_gradients_in_fp32(folders, make, dtype):
    """Warnings are errors: torch warns if a norm meets a weight of another precision."""
    family = make(folders[True])
    text = family.encode_text(family.load_text_encoders("cpu"), ["a cat"])
    x_t = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    t, batch = torch.tensor([0.5]), batch_of(text, torch.zeros(1))
    exact = predict(family, family.load_denoiser("cpu"), x_t, t, batch)
    family.dtype = dtype
    denoiser = family.load_denoiser("cpu").requires_grad_(True)
    with torch.autocast("cpu", dtype):
        near = predict(family, denoiser, x_t, t, batch)
    near.float().square().mean().backward()
    grads = {name: p.grad for name, p in denoiser.named_parameters()}
    assert all(g is not None and g.dtype == torch.float32 for g in grads.values())
    assert bool(grads["transformer_blocks.0.attn.norm_q.weight"].any())
    error = float((near.detach().float() - exact).norm() / exact.norm())
    assert near.dtype == dtype and error < 0.02, error
    assert torch.equal(predict(family, denoiser, x_t, t, batch), exact), "without autocast it is the fp32 model"


def test_lengths_alignment_and_blocks_follow_flavour_and_model(folders, make):
    assert [make(folders[True], name).text_length for name in ("nano", "dev", "schnell")] == [64, 512, 256]
    assert [make(folders[True], name).alignment for name in ("nano", "dev")] == [16, 64]
    family = make(folders[True], "dev", tokenizer_max_length=99)
    assert family.text_length == 99 and family.shift_tokens(128, 128) == 4096
    kinds = [type(block).__name__ for block in family.blocks(family.load_denoiser("cpu"))]
    assert kinds == ["FluxTransformerBlock"] * 2 + ["FluxSingleTransformerBlock"] * 3


def test_every_preset_and_flavour_default_is_well_formed():
    from simpletuner.adapters.options import Adapter
    from simpletuner.models.options import Model
    from simpletuner.schema import options

    record = families()["flux"]
    choices = options([Adapter])["flux_lora_target"].choices
    assert [name for name, _ in choices] == list(record.lora_targets)
    assert [name for name, _ in options([Model])["model_flavour"].choices] == list(record.flavours)
    assert record.targets("all", ["to_qkv", "proj_mlp"]) == ("to_q", "to_k", "to_v", "proj_mlp")
