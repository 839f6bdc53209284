"""Restricted and excluded loss: what moves while a network on modular addition still looks memorised.

From "Progress measures for grokking via mechanistic interpretability" (arXiv 2301.05217).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_choice, check_count
from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import call, quiet
from thalweg.probe._wrapped import bare
from thalweg.probe.cost import costs
from thalweg.probe.fourier import last_position, pair_rows

__all__ = ["GrokkingProgress", "grokking_progress"]


@dataclass(frozen=True)
class GrokkingProgress:
    r"""Losses are mean cross-entropies in nats, computed in float64.

    Attributes:
        train_loss, test_loss: of the model as it is.
        restricted_loss: on the test pairs, with only the waves of the key frequencies left in the logits (and
            the mean over all pairs of what was taken out). It falls as the generalising circuit forms.
        excluded_loss: on the training pairs, with the waves of the key frequencies taken out. It is the
            training loss while the model memorises and rises as it comes to rely on them.
        excluded_by_frequency: the same with the waves of one key frequency taken out at a time.
        energy: frequency k to the share of the logits' variance over the pairs that lies in
            :math:`\cos(2\\pi k(a+b)/p)` and :math:`\sin(2\\pi k(a+b)/p)`; all k in 1..p // 2; 0 where the
            logits are alike on all pairs.
        squared_weights: name of each parameter to the sum of its squares.
    """

    train_loss: float
    test_loss: float
    restricted_loss: float
    excluded_loss: float
    excluded_by_frequency: dict[int, float]
    energy: dict[int, float]
    squared_weights: dict[str, float]


def _waves(total: Tensor, frequencies: Iterable[int], p: int) -> Tensor:
    """Unit vectors over all pairs, (p², 2) a frequency: cosine and sine of 2πk(a ± b)/p."""
    waves = []
    for k in frequencies:
        angle = 2 * torch.pi * (k * total % p).double() / p
        pair = torch.stack([angle.cos(), angle.sin()], dim=1)
        # The sine of the alternating wave is zero; what rounding leaves of it is not a direction.
        size = torch.linalg.vector_norm(pair, dim=0)
        waves.append(torch.where(size > 1e-6 * p, pair / size, torch.zeros_like(pair)))
    return torch.cat(waves, dim=1)


@costs(1, 0, memory="five times the logits of all pairs, in float64")
def grokking_progress(
    model: nn.Module,
    inputs: Any,
    modulus: int,
    train: Tensor,
    *,
    frequencies: Iterable[int],
    pairs: Tensor | None = None,
    operation: str = "+",
) -> GrokkingProgress:
    r"""Restricted and excluded loss of a network that answers a + b modulo p (arXiv 2301.05217).

    The network that generalises writes its logits with a few waves
    :math:`\cos(2\pi k(a+b)/p),\ \sin(2\pi k(a+b)/p)`. Logits are taken over all p² pairs and projected,
    answer by answer, on those of the key frequencies. Whether a frequency is key is seen best in the trained
    model, by :func:`key_frequencies` or by ``energy``; early measures use the same ones.

    Args:
        model: gives logits (p², classes), or (p², positions, classes) of which the last position counts, as a
            tensor, as ``.logits`` or first in a tuple; the first p classes are the answers. Run once, in
            evaluation mode without gradients. Behind DDP or ``torch.compile`` the module itself is run.
        inputs: all p² pairs as the model takes them.
        modulus: p.
        train: booleans (p²,), the rows that are trained on; the others are the test pairs.
        frequencies: key frequencies, each in 1..p // 2; k and p - k are the same wave.
        pairs: a and b of each row, integers (p², 2); by default row i is (i // p, i % p).
        operation: ``"+"``, or ``"-"`` for answers a - b.

    Raises:
        ValueError: an argument is out of range, ``pairs`` are not all pairs, ``train`` holds all or none of
            them, logits are too few or not finite.
    """
    p = check_count("modulus", modulus, 2)
    check_choice("operation", operation, ("+", "-"))
    keys = [int(k) if isinstance(k, Integral) and not isinstance(k, bool) else k for k in frequencies]
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(f"frequencies must be at least one and different, got {keys}")
    for k in keys:
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= p // 2:
            raise ValueError(f"frequencies must be integers in [1, {p // 2}], got {k!r}")
    train = torch.as_tensor(train)
    if train.shape != (p * p,) or train.dtype is not torch.bool:
        raise ValueError(
            f"train must be booleans of shape ({p * p},), got {train.dtype}, {tuple(train.shape)}"
        )
    if bool(train.all()) or not bool(train.any()):
        raise ValueError(f"train must hold some of the pairs and not all, got {int(train.sum())}")
    model = bare(model)
    with quiet(model):
        outputs = call(model, inputs)
    outputs = logits_of(outputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"model must return one tensor of logits, got {type(outputs).__name__}")
    logits = last_position("logits", outputs, p * p)
    if logits.shape[1] < p:
        raise ValueError(f"model must return at least {p} logits, got {logits.shape[1]}")
    logits = logits[:, :p].double()
    if not bool(logits.isfinite().all()):
        raise ValueError("model must return finite logits, got NaN or infinity")
    a, b = pair_rows(p, pairs).to(logits.device).unbind(1)
    total = a + b if operation == "+" else a - b
    answers = total % p
    train = train.to(logits.device)

    def loss(table: Tensor, rows: Tensor) -> float:
        return torch.nn.functional.cross_entropy(table[rows], answers[rows]).item()

    waves = _waves(total, keys, p)
    every = range(1, p // 2 + 1)
    amplitudes = _waves(total, every, p).T @ logits
    variance = (logits - logits.mean(0)).square().sum()
    shares = amplitudes.square().sum(1).view(-1, 2).sum(1) / variance
    # Of answers that do not depend on the pair, such as a bias alone, rounding errors are left.
    if not variance > 1e-20 * p**2 * logits.square().max():
        shares = torch.zeros_like(shares)
    kept = waves @ (waves.T @ logits)
    left_out = logits - kept
    single = {}
    for k in keys:
        wave = _waves(total, [k], p)
        single[k] = loss(logits - wave @ (wave.T @ logits), train)
    return GrokkingProgress(
        train_loss=loss(logits, train),
        test_loss=loss(logits, ~train),
        restricted_loss=loss(kept + left_out.mean(0), ~train),
        excluded_loss=loss(left_out, train),
        excluded_by_frequency=single,
        energy=dict(zip(every, shares.tolist(), strict=True)),
        squared_weights={
            name: param.detach().double().square().sum().item() for name, param in model.named_parameters()
        },
    )
