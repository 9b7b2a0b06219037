"""LoRA on a tiny real Flux: where it sits, how it starts, how it is switched and restored."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_flux import transformer

from simpletuner import schema
from simpletuner.adapters import targets
from simpletuner.adapters.lora import Lora
from simpletuner.adapters.options import Adapter
from simpletuner.errors import ConfigError
from simpletuner.models import families
from simpletuner.models.options import Model

RECORD = families()["flux"]


@pytest.fixture(scope="module")
def full_size():
    """The linear layers of FLUX.1's 19 + 38 blocks at true width."""
    return RECORD.shapes(Model()).layers


@pytest.mark.parametrize(
    ("preset", "count", "parameters"),
    [
        ("all", 266, 26_148_864),
        ("attention", 266, 26_148_864),
        ("mmdit", 190, 18_677_760),
        ("context", 76, 7_471_104),
        ("context+ffs", 114, 16_809_984),
        ("mlp", 152, 39_223_296),
        ("all+ffs", 419, 65_422_336),
        ("all+ffs+embedder", 420, 65_472_512),
        ("ai-toolkit", 495, 85_967_872),
        ("tiny", 2, 589_824),
        ("nano", 1, 294_912),
    ],
)
def test_every_preset_has_the_known_count(full_size, preset, count, parameters):
    paths = targets.find(full_size, RECORD.targets(preset))
    assert (len(paths), sum(16 * sum(full_size[path]) for path in paths)) == (count, parameters)
    assert ("proj_out" in paths) == (preset in ("all+ffs", "all+ffs+embedder", "ai-toolkit"))


def test_names_may_be_endings_or_whole_regular_expressions(full_size):
    assert targets.find(full_size, [r"transformer_blocks\.[02]\.attn\.to_q"]) == [
        f"transformer_blocks.{i}.attn.to_q" for i in (0, 2)
    ]
    assert targets.find(full_size, ["18.ff.net.2"]) == ["transformer_blocks.18.ff.net.2"]


def test_a_name_that_means_nothing_gets_the_nearest_ones(full_size):
    with pytest.raises(ConfigError) as caught:
        targets.find(full_size, ["to_qq", "proj_mpl", "to_k", "("])
    assert len(caught.value.problems) == 3 and caught.value.exit_code == 2
    assert '"to_q"' in caught.value.problems[0].fix and '"proj_mlp"' in caught.value.problems[1].fix


def test_a_preset_for_a_block_that_the_model_lacks_says_how_many_there_are(denoiser):
    with pytest.raises(ConfigError, match="it has 2 single_transformer_blocks"):
        linear = [path for path, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)]
        targets.find(linear, RECORD.targets("nano"))


def test_own_names_may_stand_in_a_file(tmp_path):
    file = tmp_path / "names.json"

    def read():
        groups, problems = schema.parse([Adapter], {"peft_lora_target_modules": schema.Raw(str(file), "here")})
        return groups["Adapter"].peft_lora_target_modules, [problem.message for problem in problems]

    file.write_text(json.dumps(["to_q", "proj_mlp"]))
    assert read() == (["to_q", "proj_mlp"], [])
    file.write_text('{"a": 1}')
    assert read() == (None, ['peft_lora_target_modules: {"a": 1} is not a list'])


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 1.0),
        ({"lora_rank": 4, "lora_alpha": 8.0}, 2.0),
        ({"lora_rank": 16, "lora_alpha": 8.0, "flux_lora_module_type": "rslora"}, 2.0),
    ],
)
def test_the_scale_is_alpha_over_rank_or_its_root(denoiser, inputs, options, scale):
    lora = Lora(Adapter(**options), RECORD.targets("all"), seed=1, dtype=torch.float32)
    lora.attach(denoiser)
    assert lora.scale == scale and {layer.scaling["default"] for layer in lora.layers.values()} == {scale}


@pytest.mark.parametrize("kind", ["standard", "rslora"])
@pytest.mark.parametrize("start", ["default", "gaussian"])
def test_a_fresh_adapter_changes_nothing_to_the_bit(denoiser, inputs, kind, start):
    before = denoiser(**inputs)[0]
    options = Adapter(flux_lora_module_type=kind, lora_init_type=start, lora_alpha=7.0)
    lora = Lora(options, RECORD.targets("all+ffs"), seed=1, dtype=torch.float32)
    lora.attach(denoiser)
    assert torch.equal(denoiser(**inputs)[0], before)


def test_only_the_adapter_is_trained_and_a_step_changes_the_output(denoiser, inputs):
    before = denoiser(**inputs)[0].detach()
    lora = attached(denoiser)
    parameters = lora.parameters()
    assert len(parameters) == 2 * len(lora.layers)
    assert {id(p) for p in denoiser.parameters() if p.requires_grad} == {id(p) for p in parameters.values()}
    denoiser(**inputs)[0].square().mean().backward()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter -= parameter.grad
    assert not torch.equal(denoiser(**inputs)[0], before)


def test_the_start_depends_on_seed_and_module_name_only():
    torch.manual_seed(0)
    few, many = attached(transformer(), preset="mmdit"), attached(transformer(), preset="all+ffs")
    other = attached(transformer(), preset="mmdit", seed=2)
    state, before = few.state(), torch.random.get_rng_state()
    assert all(torch.equal(value, many.state()[name]) for name, value in state.items())
    assert any(not torch.equal(value, other.state()[name]) for name, value in state.items())
    attached(transformer())
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"


def test_what_is_trained_is_on_the_device_also_where_its_base_waits_in_ram():
    model = transformer(layers=(1, 2))
    for module in (model.x_embedder, model.single_transformer_blocks[1]):
        module.to("meta")  # another device than RAM, on every machine
    lora = attached(model)
    assert {weight.device.type for weight in lora.parameters().values()} == {"meta"}
    assert {weight.device.type for weight in attached(transformer()).parameters().values()} == {"cpu"}


def test_start_values_have_the_stated_spread():
    a = {start: attached(transformer(), lora_init_type=start).state() for start in ("default", "gaussian")}
    name = "transformer_blocks.0.attn.to_q.lora_A.weight"  # (16, 64)
    assert float(a["default"][name].abs().max()) == pytest.approx(1 / 8, rel=0.01)
    assert float(a["gaussian"][name].std()) == pytest.approx(1 / 16, rel=0.1)
    assert not any(value.any() for key, value in a["gaussian"].items() if "lora_B" in key)


def test_disabled_is_the_base_model_and_scaled_zero_too(denoiser, inputs):
    before = denoiser(**inputs)[0].detach()
    lora = attached(denoiser)
    shake(lora)
    trained = denoiser(**inputs)[0].detach()
    with lora.disabled():
        assert torch.equal(denoiser(**inputs)[0], before)
        with lora.disabled():
            pass
        assert torch.equal(denoiser(**inputs)[0], before), "nested"
    with lora.scaled(0.0):
        assert torch.equal(denoiser(**inputs)[0], before)
    with lora.scaled(0.5):
        assert not torch.equal(denoiser(**inputs)[0], trained)
    assert torch.equal(denoiser(**inputs)[0], trained)
    assert all(p.requires_grad for p in lora.parameters().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_exact_and_restores(inputs, dtype):
    one, other = attached(transformer(), dtype=dtype), attached(transformer(), dtype=dtype, seed=9)
    shake(one)
    other.load_state(one.state())
    assert all(torch.equal(value, other.state()[name]) and value.dtype == dtype for name, value in one.state().items())
    snapshot = one.state()
    shake(one)
    assert any(not torch.equal(value, one.state()[name]) for name, value in snapshot.items())


def test_a_state_of_another_shape_is_refused():
    lora = attached(transformer())
    for state in (attached(transformer(), lora_rank=4).state(), attached(transformer(), preset="mmdit").state()):
        with pytest.raises(ConfigError, match="does not fit"):
            lora.load_state(state)


def attached(model, preset="all", seed=1, dtype=torch.float32, **options) -> Lora:
    lora = Lora(Adapter(**options), RECORD.targets(preset), seed=seed, dtype=dtype)
    lora.attach(model)
    return lora


def shake(lora: Lora) -> None:
    """Weights as after some training."""
    with torch.no_grad():
        for parameter in lora.parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
