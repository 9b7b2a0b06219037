import typing

import pytest
import torch
from torch.nn import Parameter

from simpletuner import retired
from simpletuner.errors import ConfigError
from simpletuner.optim.build import arguments, build
from simpletuner.optim.options import TO_COME, Optimizer
from simpletuner.optim.table import TABLE


def parameters(name):
    dtype = torch.bfloat16 if name == "adamw_bf16" else torch.float32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"a": Parameter(torch.randn(6, 5).to(dtype)), "b": Parameter(torch.randn(5).to(dtype))}


def made(name, trained=None, **changes):
    return build(Optimizer(**{"optimizer": name, "learning_rate": 0.05} | changes), trained or parameters(name), seed=1)


def test_the_choices_of_the_option_are_the_table():
    literal = typing.get_args(Optimizer.model_fields["optimizer"].annotation)
    assert set(literal) == set(TABLE) | set(TO_COME) and not set(TABLE) & set(TO_COME)
    assert retired.NOT_YET_VALUES["optimizer"] == set(TO_COME)


@pytest.mark.parametrize("name", TABLE)
def test_every_optimizer_lowers_a_quadratic(name):
    trained = parameters(name)
    optimizer = made(name, trained, **({"learning_rate": 1.0} if name == "torch-adadelta" else {}))
    losses = []
    for _ in range(60):
        loss = sum(p.float().square().sum() for p in trained.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(group["initial_lr"] == group["lr"] for group in optimizer.param_groups)


@pytest.mark.parametrize("name", TABLE)
def test_an_unknown_argument_is_an_error_that_names_it(name):
    with pytest.raises(ConfigError, match='"wieght_decay"') as caught:
        made(name, optimizer_config="wieght_decay=0.1")
    assert caught.value.exit_code == 2
    assert "weight_decay" in caught.value.problems[0].fix


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
