"""Parameters that share launches are updated as one by one, by the classes as bitsandbytes has them, to the bit."""

import json

import pytest
import torch
from torch.nn import Parameter

from simpletuner.rules.packages import installed
from simpletuner.training.state import SCALARS, TENSORS, load_optimizer, save_optimizer

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not installed("bitsandbytes"), reason="needs bitsandbytes"),
]
CLASSES = ["Lion8bit", "AdamW8bit", "Adam8bit", "Adagrad8bit", "Lion", "AdamW", "Adam", "Adagrad", "PagedLion8bit"]
# Blocks of 256 numbers; one that has a part of a block, and one that is too small for 8 bits.
SHAPES = [(16, 256), (256, 17), (8192,), (16, 257), (4, 256), (16, 512), (32, 256), (5000,)]


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {str(i): Parameter(torch.randn(shape, generator=generator).to(dtype)) for i, shape in enumerate(SHAPES)}


def joined(name, trained):
    from simpletuner.optim import bnb

    return getattr(bnb, "Bnb" + name)(groups(trained), lr=1e-2)


def apart(name, trained):
    from bitsandbytes import optim

    from simpletuner.optim.bnb import Queued

    return type("Bnb" + name, (Queued, getattr(optim, name)), {})(groups(trained), lr=1e-2)


def groups(trained):
    every = list(trained.values())
    return [{"params": every[:5], "weight_decay": 0.1}, {"params": every[5:], "weight_decay": 0.0}]


def steps(trained, optimizer, first, count, without=()):
    for step in range(first, first + count):
        for i, (name, p) in enumerate(trained.items()):
            drawn = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))
            p.grad = None if (step, name) in without else drawn.to(p.dtype)
        optimizer.step()


def equal(one, other):
    return all(torch.equal(p, other[name]) for name, p in one.items())


def updates(trained, optimizer):
    """How many tensors bitsandbytes is called for in a step."""
    with torch.profiler.profile() as profile:
        steps(trained, optimizer, 50, 1)
    return sum(event.name.startswith("bitsandbytes::optimizer_update") for event in profile.events())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_steps_are_those_of_bitsandbytes_itself_to_the_bit(name, dtype):
    from bitsandbytes import optim

    ours, theirs, start = weights(dtype), weights(dtype), weights(dtype)
    steps(ours, joined(name, ours), 0, 5)
    steps(theirs, getattr(optim, name)(groups(theirs), lr=1e-2), 0, 5)
    assert equal(ours, theirs) and not any(torch.equal(p, start[key]) for key, p in ours.items())


@pytest.mark.parametrize("name", CLASSES)
def test_a_parameter_without_a_gradient_is_left_alone_and_the_others_are_not(name):
    without = {(0, "1"), (2, "0"), (2, "2"), (3, "6")}  # before its first update, and later
    ours, theirs = weights(), weights()
    one, other = joined(name, ours), apart(name, theirs)
    for step in range(5):
        before = {key: p.detach().clone() for key, p in ours.items()}
        steps(ours, one, step, 1, without)
        steps(theirs, other, step, 1, without)
        assert equal(ours, theirs)
        assert {(step, key) for key, p in ours.items() if torch.equal(p, before[key])} == {
            (when, key) for when, key in without if when == step
        }


def test_one_update_serves_a_group_and_what_does_not_fit_goes_alone():
    ours, theirs = weights(), weights()
    assert updates(ours, joined("Lion8bit", ours)) == 2 + 3  # one for each group, and the three that do not fit
    assert updates(theirs, apart("Lion8bit", theirs)) == len(SHAPES)


def test_tensors_that_are_measured_as_a_whole_are_not_joined():
    from bitsandbytes.optim.optimizer import Optimizer1State

    from simpletuner.optim import bnb

    cls = type("Measured", (bnb.Joined, Optimizer1State), {})
    optimizer = cls("lion", groups(weights()), max_unorm=0.1)
    assert not any(optimizer._rows)
    every = weights()
    bnb.BnbAdEMAMix8bit(groups(every))  # its state has two numbers for each
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in every.values())


def test_parameters_stay_the_same_objects_and_their_data_is_a_view_from_the_start():
    ours = weights()
    before, objects = weights(), list(ours.values())
    optimizer = joined("AdamW8bit", ours)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in objects]
    assert equal(ours, before)
    where = [p.data_ptr() for p in objects]
    assert len({p.untyped_storage().data_ptr() for p in objects}) < len(objects)
    steps(ours, optimizer, 0, 2)
    assert [p.data_ptr() for p in objects] == where


@pytest.mark.parametrize("when", [0, 2], ids=["before the first update", "later"])
def test_data_given_by_somebody_else_is_what_is_updated(when):
    ours, theirs = weights(), weights()
    one, other = joined("AdamW8bit", ours), apart("AdamW8bit", theirs)
    steps(ours, one, 0, when)
    steps(theirs, other, 0, when)
    for trained in (ours, theirs):
        for key in ("1", "6"):
            trained[key].data = trained[key].detach() * 0.5
    used = ours["1"].data  # what the model reads
    before = used.clone()
    steps(ours, one, when, 2)
    steps(theirs, other, when, 2)
    assert equal(ours, theirs) and ours["1"].data_ptr() == used.data_ptr() and not torch.equal(used, before)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("writer", [joined, apart])
@pytest.mark.parametrize("reader", [joined, apart])
def test_checkpoints_of_both_are_the_same_and_either_resumes_them(name, writer, reader, tmp_path):
    without = {(0, "0"), (1, "0"), (2, "0"), (1, "2")}  # one that has no state yet, one that is a step behind
    straight, twin = weights(), weights()
    optimizer, other = writer(name, straight), apart(name, twin)
    steps(straight, optimizer, 0, 3, without)
    steps(twin, other, 0, 3, without)
    (tmp_path / "plain").mkdir()
    save_optimizer(optimizer, list(straight), tmp_path)
    save_optimizer(other, list(twin), tmp_path / "plain")
    assert (tmp_path / TENSORS).read_bytes() == (tmp_path / "plain" / TENSORS).read_bytes()
    assert json.loads((tmp_path / SCALARS).read_text()) == json.loads((tmp_path / "plain" / SCALARS).read_text())

    saved = {key: p.detach().clone() for key, p in straight.items()}
    steps(straight, optimizer, 3, 3)
    resumed = {key: Parameter(value.clone()) for key, value in saved.items()}
    again = reader(name, resumed)
    assert load_optimizer(again, list(resumed), tmp_path)
    steps(resumed, again, 3, 3)
    assert equal(resumed, straight)
    with torch.no_grad():  # and within the process, when state is there that the checkpoint lacks
        for key, p in resumed.items():
            p.copy_(saved[key])
    assert load_optimizer(again, list(resumed), tmp_path)
    steps(resumed, again, 3, 3)
    assert equal(resumed, straight)


def test_a_resumed_run_shares_launches_as_before(tmp_path):
    straight, resumed = weights(), weights()
    optimizer, again = joined("AdamW8bit", straight), joined("AdamW8bit", resumed)
    steps(straight, optimizer, 0, 2)
    save_optimizer(optimizer, list(straight), tmp_path)
    assert load_optimizer(again, list(resumed), tmp_path)
    assert updates(resumed, again) == updates(straight, optimizer) == 5


def test_state_that_torch_itself_put_back_is_used():
    straight, resumed = weights(), weights()
    optimizer, again = joined("AdamW8bit", straight), joined("AdamW8bit", resumed)
    steps(straight, optimizer, 0, 2)
    steps(resumed, again, 7, 1)  # other state is there
    again.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        for key, p in resumed.items():
            p.copy_(straight[key])
    steps(straight, optimizer, 2, 2)
    steps(resumed, again, 2, 2)
    assert equal(straight, resumed)
