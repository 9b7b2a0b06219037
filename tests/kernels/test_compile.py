"""What is compiled once and shared: when it is, how often, and what becomes of a failure. The compiler only traces."""

from functools import partial

import pytest
import torch
import torch._functorch.config
from packed import drawn
from torch._dynamo.testing import CompileCounter

from simpletuner.errors import HardwareError
from simpletuner.kernels import compile as compiling
from simpletuner.kernels.compile import Compiled


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=8), torch._functorch.config.patch(activation_memory_budget=1.0):
        yield
    torch.compiler.reset()


@pytest.fixture
def counter():
    return CompileCounter()


def block(weights, factors, x):
    return (x + torch.tanh(x @ weights["w"]) * factors,)


def scaled(function, weights, factors, x):
    return (x + function(x @ weights["w"]) * factors,)


def shifted(function, weights, factors, x):
    return (x + function(x @ weights["w"]) + factors,)


def breaks(weights, factors, x):
    torch._dynamo.graph_break()
    return (x + weights["w"].sum(),)


def arguments(seed: int = 0, rows: int = 3):
    return {"w": drawn(4, 4, seed=seed)}, drawn(4, seed=seed + 1).requires_grad_(), drawn(rows, 4, seed=seed + 2)


def test_it_is_plain_until_it_is_active_and_afterwards_again(counter):
    function = Compiled(block, "the blocks", strict=True, backend=counter)
    assert torch.equal(function(*arguments())[0], block(*arguments())[0]) and counter.frame_count == 0
    with function.active():
        torch.testing.assert_close(function(*arguments()), block(*arguments()))
    assert counter.frame_count == 1
    function(*arguments(rows=9))
    assert counter.frame_count == 1


def test_blocks_of_a_kind_share_one_graph_and_each_shape_has_its_own(counter):
    function = Compiled(block, "the blocks", strict=True, backend=counter, dynamic=False)
    with function.active():
        for rows in (3, 5, 3, 5):
            for seed in range(4):
                function(*arguments(seed, rows))
    assert counter.frame_count == 2


def test_with_dynamic_sizes_one_graph_is_for_all_shapes(counter):
    function = Compiled(block, "the blocks", strict=True, backend=counter, dynamic=True)
    with function.active():
        for rows in (3, 5, 7, 9):
            function(*arguments(rows=rows))
    assert counter.frame_count == 1


def test_there_is_room_for_every_shape_of_every_kind(counter):
    settings = {"strict": True, "backend": counter, "dynamic": False, "fullgraph": True}
    one = Compiled(partial(scaled, torch.tanh), "the blocks", **settings)
    other = Compiled(partial(shifted, torch.tanh), "the others", **settings)
    compiling.prepare(20, 0.5)
    assert torch._functorch.config.activation_memory_budget == 0.5
    with one.active(), other.active():
        for rows in range(2, 22):
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    assert torch.equal(one(*arguments(rows=rows))[0], scaled(torch.tanh, *arguments(rows=rows))[0])
                    other(*arguments(rows=rows))
    assert counter.frame_count == 80
    compiling.prepare(1, 1.0)  # another run in the process takes no room away
    assert torch._dynamo.config.recompile_limit >= 40


def test_a_failure_leaves_it_plain_and_says_why():
    function = Compiled(breaks, "the blocks", strict=False, backend="eager", fullgraph=True)
    with function.active():
        assert torch.equal(function(*arguments())[0], breaks(*arguments())[0])
        assert function.failure.startswith("Unsupported: ") and "\n" not in function.failure
    with function.active():
        assert not function.on


def test_a_failure_of_what_was_asked_for_stops_with_the_block_and_the_reason():
    function = Compiled(breaks, "the double blocks", strict=True, backend="eager", fullgraph=True)
    said = "the double blocks cannot be compiled: Unsupported: .+"
    with pytest.raises(HardwareError, match=said) as stopped, function.active():
        function(*arguments())
    assert stopped.value.exit_code == 5 and "dynamo_backend=no" in stopped.value.problems[0].fix
    assert not function.on


def test_a_backend_that_fails_without_a_word_is_named():
    def backend(graph, inputs):
        raise ZeroDivisionError

    function = Compiled(block, "the blocks", strict=False, backend=backend)
    with function.active():
        function(*arguments())
    assert "ZeroDivisionError" in function.failure or "BackendCompilerFailed" in function.failure


@pytest.mark.parametrize("strict", [True, False])
def test_memory_that_ran_out_is_not_the_compilers_failure(strict):
    function = Compiled(block, "the blocks", strict=strict, backend="eager")
    function._fast = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room"))
    with pytest.raises(torch.OutOfMemoryError), function.active():
        function(*arguments())
    assert not function.failure
