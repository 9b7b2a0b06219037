import sys
import typing

import pytest
import torch
from each_optimizer import PACKAGES, each
from torch.nn import Parameter

from simpletuner import retired
from simpletuner.errors import ConfigError
from simpletuner.optim.arguments import arguments
from simpletuner.optim.build import build
from simpletuner.optim.options import TO_COME, Optimizer
from simpletuner.optim.table import TABLE, State, state_bytes
from simpletuner.training.state import load_optimizer, save_optimizer

EVERY = each(TABLE)


def parameters(name):
    dtype = torch.bfloat16 if name == "adamw_bf16" else torch.float32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shapes = {"a": (6, 5), "b": (5,), "large": (16, 512)}  # the last one is kept in 8 bits where that is chosen
        return {name: Parameter(torch.randn(shape).to(dtype)) for name, shape in shapes.items()}


def made(name, trained=None, **changes):
    return build(Optimizer(**{"optimizer": name, "learning_rate": 0.05} | changes), trained or parameters(name), seed=1)


def test_the_choices_of_the_option_are_the_table():
    literal = typing.get_args(Optimizer.model_fields["optimizer"].annotation)
    assert set(literal) == set(TABLE) | set(TO_COME) and not set(TABLE) & set(TO_COME)
    assert retired.NOT_YET_VALUES["optimizer"] == set(TO_COME)


def losses(trained, optimizer, steps):
    """As the trainer does it: the rate is set before each update, as a plain number."""
    seen = []
    for _ in range(steps):
        loss = sum(p.float().square().sum() for p in trained.values())
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize("name", EVERY)
def test_every_optimizer_lowers_a_quadratic(name):
    trained = parameters(name)
    optimizer = made(name, trained, **({"learning_rate": 1.0} if name == "torch-adadelta" else {}))
    assert all(group["initial_lr"] == pytest.approx(float(group["lr"])) for group in optimizer.param_groups)
    seen = losses(trained, optimizer, 60)
    assert seen[-1] < 0.9 * seen[0]


@pytest.mark.parametrize("name", EVERY)
def test_every_optimizer_goes_on_from_its_saved_state_as_if_it_had_not_stopped(name, tmp_path):
    changes = {"optimizer_config": "momentum=0.9"} if name in ("torch-sgd", "optimi-sgd") else {}
    straight = parameters(name)
    optimizer = made(name, straight, **changes)
    losses(straight, optimizer, 4)
    save_optimizer(optimizer, list(straight), tmp_path)
    saved = {k: p.detach().clone() for k, p in straight.items()}
    losses(straight, optimizer, 4)

    def goes_on(trained, optimizer, resumed):
        assert not resumed or load_optimizer(optimizer, list(trained), tmp_path)
        losses(trained, optimizer, 4)
        return all(torch.equal(p, straight[k]) for k, p in trained.items())

    def copies():
        return {k: Parameter(p.clone()) for k, p in saved.items()}

    trained = copies()
    again = made(name, trained, **changes)
    assert goes_on(trained, again, resumed=True)
    with torch.no_grad():  # and within the process, as a run that goes back does
        for k, p in trained.items():
            p.copy_(saved[k])
    assert goes_on(trained, again, resumed=True)
    cold = copies()
    assert not goes_on(cold, made(name, cold, **changes), resumed=False)


def test_no_two_optimizers_are_taken_for_each_other_when_a_run_goes_on():
    names = [entry.target.split(":")[1] for entry in {id(e): e for e in TABLE.values()}.values()]
    assert len(set(names)) == len(names) - 1  # the state of ao-adamfp8 is that of ao-adamwfp8


@pytest.mark.parametrize("name", each(n for n in TABLE if n.startswith(("bnb-", "ao-"))))
def test_state_is_as_large_as_the_plan_counts_it(name):
    trained = parameters(name)
    optimizer = made(name, trained)
    losses(trained, optimizer, 1)

    def held(value):
        if hasattr(value, "__tensor_flatten__"):
            return sum(held(getattr(value, part)) for part in value.__tensor_flatten__()[0] if part != "qmap")
        return value.numel() * value.itemsize if isinstance(value, torch.Tensor) and value.dim() else 0

    kept = sum(held(v) for p in trained.values() for k, v in optimizer.state[p].items() if not k.startswith("qmap"))
    assert kept == state_bytes(name, [p.numel() for p in trained.values()], 4)


@pytest.mark.parametrize(
    ("name", "each", "bytes"),
    [
        ("adamw_bf16", 2, 4), ("torch-adamw", 4, 8), ("bnb-adamw", 4, 8), ("bnb-adamw8bit", 4, 2.03),
        ("bnb-lion", 4, 4), ("bnb-lion8bit-paged", 4, 1.02), ("bnb-adam8bit", 4, 2.03), ("bnb-adagrad", 4, 4),
        ("bnb-adagrad8bit", 4, 1.02), ("bnb-ademamix", 4, 12), ("bnb-ademamix8bit", 4, 3.05), ("ao-adamw8bit", 4, 2.03),
        ("ao-adamw4bit", 4, 1.06), ("optimi-adamw", 2, 6), ("optimi-lion", 2, 4), ("optimi-adan", 2, 10),
        ("optimi-sgd", 2, 2), ("bnb-lion8bit", 2, 1.02),
    ],
)  # fmt: skip
def test_state_has_the_bytes_of_the_contract(name, each, bytes):
    assert state_bytes(name, [10**6], each) / 10**6 == pytest.approx(bytes, abs=0.006)


def test_small_tensors_and_compensations_count_in_full():
    assert State(1.0, 8, 256).bytes(4095, 4) == 4 * 4095 and State(1.0, 8, 256).bytes(4097, 4) == 4097 + 17 * 4
    assert state_bytes("adamw_bf16", [100], 2, {"rounding": "kahan"}) == 600


@pytest.mark.parametrize("name", EVERY)
def test_an_unknown_argument_is_an_error_that_names_it(name):
    with pytest.raises(ConfigError, match='"wieght_decay"') as caught:
        made(name, optimizer_config="wieght_decay=0.1")
    assert caught.value.exit_code == 2
    assert "weight_decay" in caught.value.problems[0].fix


@pytest.mark.parametrize("name", ["bnb-lion8bit", "ao-adamw8bit", "optimi-lion"])
def test_a_missing_package_names_the_line_that_installs_it(name, monkeypatch):
    monkeypatch.delitem(sys.modules, TABLE[name].target.split(":")[0], raising=False)
    for package in PACKAGES.values():
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        made(name)
    assert caught.value.problems[0].fix == f"pip install 'simpletuner[{TABLE[name].needs}]'"


def test_options_of_their_own_reach_the_optimizer_and_one_beta_may_be_given_alone():
    changes = {"optimizer_beta2": 0.95, "adam_weight_decay": 0.3, "adam_epsilon": 1e-5}
    group = made("adamw_bf16", **changes).param_groups[0]
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.9, 0.95), 0.3, 1e-5)


def test_the_defaults_of_adamw_bf16_are_those_of_the_contract():
    group = made("adamw_bf16").param_groups[0]
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.9, 0.999), 1e-2, 1e-6)
    assert group["rounding"] == "stochastic"


def test_an_option_that_the_optimizer_lacks_is_an_error_and_all_are_named():
    with pytest.raises(ConfigError) as caught:
        made("torch-sgd", optimizer_beta1=0.8, adam_epsilon=1e-6)
    assert [p.keys for p in caught.value.problems] == [("optimizer_beta1",), ("adam_epsilon",)]


def test_optimizer_config_is_read_as_text_or_object():
    assert arguments("eps=1e-6, rounding=kahan,amsgrad=True") == {"eps": 1e-6, "rounding": "kahan", "amsgrad": True}
    assert arguments({"eps": 1}) == {"eps": 1} and arguments(None) == {}
    with pytest.raises(ConfigError, match="name=value"):
        arguments("kahan")


def test_a_bad_value_is_an_error_of_the_user_not_a_traceback():
    with pytest.raises(ConfigError, match="sometimes"):
        made("adamw_bf16", optimizer_config="rounding=sometimes")
    with pytest.raises(ConfigError, match="momentum"):
        made("torch-sgd", optimizer_config="momentum=-1")


def test_adamw_bf16_refuses_other_weights_and_says_what_to_use():
    with pytest.raises(ConfigError, match="float32") as caught:
        made("adamw_bf16", parameters("torch-adamw"))
    assert "torch-adamw" in caught.value.problems[0].fix
