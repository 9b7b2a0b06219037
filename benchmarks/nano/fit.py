"""A training loop that stops on its clock: what the VAE and the joint part share."""

import logging
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

NUM_WARM_STEPS = 200  # steps over which the learning rate rises
EMA_DECAY = 0.999
CHUNK = 50  # steps between looks at the clock, each of which waits for the GPU

log = logging.getLogger("nano")


def graphed(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph: a model this small is otherwise bound by launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def fit(loss_of: Callable[[], Tensor], parameters: list[Tensor], seconds: float, peak_rate: float) -> int:
    """Trains for `seconds`, leaves the averaged weights in `parameters`, returns the number of steps.

    The rate falls along a cosine of the spent time, so that it ends at 0 whatever the speed of the machine.
    """
    start = time.monotonic()
    device = parameters[0].device
    on_gpu = device.type == "cuda"
    rate = torch.zeros((), device=device)  # a tensor, so that a captured graph sees its changes
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, capturable=on_gpu, fused=on_gpu
    )
    averages = [p.detach().clone() for p in parameters]
    loss_sum = torch.zeros((), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - EMA_DECAY)
            loss_sum.add_(loss.detach())

    run = graphed(step) if on_gpu else step
    loss_sum.zero_()
    num_done, next_log, share = 0, 0.0, 0.0
    while share < 1:
        num_steps = CHUNK if on_gpu else 1
        warm = min(1.0, (num_done + num_steps) / NUM_WARM_STEPS)
        rate.fill_(peak_rate * warm * 0.5 * (1 + math.cos(math.pi * share)))
        for _ in range(num_steps):
            run()
        num_done += num_steps
        loss = loss_sum.item() / num_steps  # sync point
        loss_sum.zero_()
        spent = time.monotonic() - start
        share = min(1.0, spent / seconds)
        if share >= next_log or share == 1:
            log.info("  step %6d  %6.1f s  loss %.4f", num_done, spent, loss)
            next_log = share + 0.05
    with torch.no_grad():
        torch._foreach_copy_(parameters, averages)
    return num_done
