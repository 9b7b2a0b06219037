"""What a LoRA adds to a layer, B A: its size, the difference of two, and the nearest one of another rank.

B A is never built, as it is as large as the layer: all is done on two small triangles, in fp64.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # A (r, in), B (out, r)


def norm(pair: Pair) -> float:
    """Of B A, Frobenius."""
    a, b = pair
    left, right = (torch.linalg.qr(x.double(), mode="r").R for x in (b, a.T))  # Q keeps lengths
    return float((left @ right.T).norm())


def difference(one: Pair, other: Pair) -> float:
    """Of the two changes of one layer, Frobenius; the ranks may differ."""
    (a, b), (a_2, b_2) = one, other
    return norm((torch.cat([a.double(), a_2.double()]), torch.cat([b.double(), -b_2.double()], dim=1)))


def of_rank(pair: Pair, rank: int) -> tuple[Pair, float]:
    """(the nearest change of that rank, share of the squared norm that is kept). Beyond its own rank nothing is lost.

    By the singular values of B A (Eckart and Young 1936); each half gets the root of them.
    """
    a, b = pair
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)  # s: falling
    kept = float((s[:rank] ** 2).sum() / (s**2).sum()) if bool(s.any()) else 1.0
    root = s[:rank].sqrt()
    down, up = root[:, None] * (v[:rank] @ q_a.T), (q_b @ u[:, :rank]) * root
    return padded((down.float(), up.float()), rank), kept


def padded(pair: Pair, rank: int) -> Pair:
    """The same change with `rank` rows in A: those beyond its own are zero."""
    a, b = pair
    more = rank - a.shape[0]
    return (torch.cat([a, a.new_zeros(more, a.shape[1])]), torch.cat([b, b.new_zeros(b.shape[0], more)], dim=1))
