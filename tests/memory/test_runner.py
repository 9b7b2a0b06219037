import pytest
import torch
from memory.blocks import TEXT, TOKENS, WIDTH, equal, fail, forward, inputs, model, plain, same, step, trained

from simpletuner.memory.activations import Parked
from simpletuner.memory.runner import Runner

COUNT = 7
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def expected():
    return step(model(), plain, *inputs())


@pytest.mark.parametrize(("interval", "recomputed"), [(0, 0), (1, 7), (2, 4), (3, 3)])
@pytest.mark.parametrize("store", [None, Parked(CPU)], ids=["kept", "parked"])
def test_output_and_gradients_are_equal_to_the_bit(expected, interval, recomputed, store):
    runner = Runner(interval, store=store)
    assert equal(step(model(), runner, *inputs()), expected)
    assert runner.num_recomputed == recomputed


def test_57_blocks_give_the_counts_of_the_contract():
    assert [sum(map(Runner(n).recomputes, model(0, 57))) for n in (0, 1, 2, 3)] == [0, 57, 29, 19]


def test_gradients_reach_inputs_and_tables_that_want_them():
    def grads(runner):
        image, text, table = (tensor.requires_grad_() for tensor in inputs())
        shift = torch.zeros(1, 1, WIDTH, requires_grad=True)
        forward(model(), runner, image, text, table * 2, shift * 3).square().mean().backward()
        return [tensor.grad for tensor in (image, text, table, shift)]

    found, wanted = grads(Runner(1)), grads(plain)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) and b.any() for a, b in zip(found, wanted, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found[:2], wanted[:2], strict=True))  # of tables, sums are reordered


def test_only_asked_gradients_are_made():
    blocks, (image, text, table) = model(), inputs()
    wanted = trained(blocks)[-1]
    output = forward(blocks, Runner(1), image, text, table).sum()
    (found,) = torch.autograd.grad(output, [wanted])
    (exact,) = torch.autograd.grad(forward(blocks, plain, image, text, table).sum(), [wanted])
    assert torch.equal(found, exact) and all(leaf.grad is None for leaf in trained(blocks))


@pytest.mark.parametrize("store", [None, Parked(CPU)], ids=["kept", "parked"])
def test_accumulated_gradients_are_those_of_plain_passes(store):
    def grads(blocks, runner):
        for seed in range(3):
            forward(blocks, runner, *inputs(seed=seed)).square().mean().backward()
        return [leaf.grad for leaf in trained(blocks)]

    assert same(grads(model(), Runner(1, store=store)), grads(model(), plain))


@pytest.mark.parametrize("store", [None, Parked(CPU)], ids=["kept", "parked"])
def test_two_forward_passes_may_wait_for_one_backward_pass(store):
    def grads(blocks, runner):
        losses = [forward(blocks, runner, *inputs(seed=seed)).square().mean() for seed in range(2)]
        sum(losses).backward()
        return [leaf.grad for leaf in trained(blocks)]

    assert same(grads(model(), Runner(1, store=store)), grads(model(), plain))


def test_an_output_that_nobody_uses_is_no_matter():
    def grads(runner):
        blocks, (image, text, table) = model(), inputs()
        image, _ = runner(blocks[0], (image, text), (table, None))
        image.sum().backward()
        return [leaf.grad for leaf in trained(blocks[:1])]

    found, wanted = grads(Runner(1)), grads(plain)
    assert same(found, wanted) and sum(gradient is not None for gradient in found) == 2


def test_only_trained_blocks_go_back():
    runner, some = Runner(1), {4, 6}
    assert equal(step(model(trained=some), runner, *inputs()), step(model(trained=some), plain, *inputs()))
    assert runner.num_recomputed == 3  # 4, 5 and 6: nothing before needs a gradient


def test_sampling_keeps_and_recomputes_nothing():
    runner = Runner(1)
    with torch.no_grad():
        assert forward(model(), runner, *inputs()).grad_fn is None
    assert runner.num_recomputed == 0


def test_only_the_inputs_of_recomputed_blocks_are_kept():
    kept = []

    class Counting(Parked):
        def keep(self, tensors):
            kept.extend(tensor.numel() for tensor in tensors)
            return super().keep(tensors)

    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        forward(model(), Runner(1, store=Counting(CPU)), *inputs())
    assert saved == [] and sum(kept) == COUNT * (TOKENS + TEXT) * WIDTH


def test_functions_stand_in_for_those_of_their_kind(expected):
    ran = []

    def stand_in(*arguments):
        ran.append("single")
        return model()[-1].function(*arguments)

    assert equal(step(model(), Runner(2, functions={"single": stand_in}), *inputs()), expected)
    assert len(ran) == 4 + 2  # four single blocks, of which 4 and 6 are recomputed


def test_a_block_goes_back_once():
    blocks = model()
    loss = forward(blocks, Runner(1), *inputs()).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="goes back once"):
        loss.backward()


def test_a_parameter_stays_itself_when_it_is_computed_with_again():
    """A compiled function would be compiled once more for a tensor that is none."""
    block, seen = model()[3], []
    own = torch.nn.Parameter(block.factors()["all"]["a"].detach())
    block.factors()["all"]["a"] = own
    function = block.function

    def watched(weights, factors, *rest):
        seen.append(factors["all"]["a"])
        return function(weights, factors, *rest)

    block.function = watched
    image, _, table = inputs()
    Runner(1)(block, (image,), (table, None))[0].sum().backward()
    assert all(one is own for one in seen) and len(seen) == 2 and own.grad.any()


def test_autocast_holds_in_the_backward_pass():
    def grads(runner):
        blocks = model()
        with torch.autocast("cpu", torch.bfloat16):
            output = forward(blocks, runner, *inputs())
        output.float().square().mean().backward()
        return output.detach(), [leaf.grad for leaf in trained(blocks)]

    assert equal(grads(Runner(1)), grads(plain))
    assert not torch.equal(grads(plain)[0].float(), step(model(), plain, *inputs())[0])


def test_parked_buffers_are_used_again_in_every_step():
    store = Parked(CPU)
    runner, blocks = Runner(1, store=store), model()
    step(blocks, runner, *inputs())
    first = store.num_bytes
    addresses = {buffer.bytes.data_ptr() for buffer in store.free}
    for _ in range(2):
        step(blocks, runner, *inputs())
    assert store.num_bytes == first > 0 and len(addresses) == COUNT
    assert {buffer.bytes.data_ptr() for buffer in store.free} == addresses


@pytest.mark.parametrize("store", [None, Parked(CPU)], ids=["kept", "parked"])
def test_an_exception_inside_a_block_leaves_the_next_step_whole(expected, store):
    blocks, runner = model(), Runner(1, store=store)
    fail(blocks[5], 1, 3)  # a forward pass, then a backward pass
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            step(blocks, runner, *inputs())
    assert equal(step(blocks, runner, *inputs()), expected)
