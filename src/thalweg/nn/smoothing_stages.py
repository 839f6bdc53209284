"""Two-stage label smoothing (arXiv 2006.11653): smoothed labels at first, the given ones from then on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg._core.checks import check_choice, check_count, check_unit_interval

__all__ = ["TwoStageLabelSmoothing", "two_stage_label_smoothing"]


def two_stage_label_smoothing(
    logits: Tensor,
    targets: Tensor,
    step: int | Tensor,
    switch: int,
    *,
    smoothing: float = 0.4,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    r"""Cross-entropy with label smoothing before step ``switch`` and without it from there on (TSLA,
    arXiv 2006.11653).

    .. math:: (1 - \theta_t)\,(-\log p_y) + \theta_t\, \tfrac1K \sum_k -\log p_k, \qquad
        \theta_t = \theta \text{ for } t < T,\ 0 \text{ after}

    :math:`\theta` is all the mass that is moved, as in ``torch``: the true class keeps
    :math:`1 - \theta + \theta/K`. Optimizer and schedule go on over the switch. Losses of the two stages
    cannot be compared: the smoothed one is never below the entropy of its labels. Judge by the plain one.

    Args:
        logits: shape (..., K): classes come last.
        targets: shape (...), class indices; not probabilities, such as mixed or already smoothed labels.
        step: t, of steps or of epochs; as a tensor it changes without recompiling.
        switch: T, at least 0, in the same unit; 0 never smooths.
        smoothing: :math:`\theta`, in [0, 1).
        reduction: ``mean`` or ``sum`` over the positions that count, or ``none``.
        ignore_index: target of positions that do not count.

    Returns:
        A scalar, or shape (...) for ``none``; in float32 at least.

    Raises:
        ValueError: shapes or types do not fit, or an argument is out of range.
    """
    check_count("switch", switch, low=0)
    check_unit_interval("smoothing", smoothing)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if targets.is_floating_point():
        raise ValueError(f"targets must be class indices, got {targets.dtype}: soft labels are not smoothed")
    if targets.dtype not in (torch.int64, torch.uint8):
        raise ValueError(f"targets must be class indices of torch.int64, got {targets.dtype}")
    if not logits.dim() or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets must have the shape of logits without its last dimension, got {tuple(targets.shape)} "
            f"for logits {tuple(logits.shape)}"
        )
    flat = logits.reshape(-1, logits.shape[-1])
    log_p = flat.log_softmax(-1, torch.promote_types(logits.dtype, torch.float32))
    labels = targets.reshape(-1)
    hard = functional.nll_loss(log_p, labels, reduction="none", ignore_index=ignore_index)
    counts = labels != ignore_index
    even = torch.where(counts, -log_p.mean(-1), 0)
    share = smoothing * (torch.as_tensor(step, device=flat.device) < switch).to(log_p.dtype)
    # A masked logit makes ``even`` infinite, and nothing times that is no number.
    loss = torch.where(share > 0, (1 - share) * hard + share * even, hard)
    if reduction == "none":
        return loss.view(targets.shape)
    return loss.sum() if reduction == "sum" else loss.sum() / counts.sum()


class TwoStageLabelSmoothing(nn.Module):
    """:func:`two_stage_label_smoothing` as a loss module, in place of ``nn.CrossEntropyLoss``.

    .. code-block:: python

        loss_fn = nn.TwoStageLabelSmoothing(switch=3000)
        for x, y in batches:
            loss_fn(model(x), y).backward()
            optimizer.step()
            loss_fn.step()

    The step is a buffer, so that a state dict resumes and a compiled loss does not compile again. In
    evaluation mode (``loss_fn.eval()``) labels are never smoothed.

    Args:
        switch, smoothing, reduction, ignore_index: as there.

    Shape: logits (..., K), targets (...), to a scalar, or (...) for ``reduction="none"``.
    """

    steps: Tensor

    def __init__(
        self, switch: int, smoothing: float = 0.4, *, reduction: str = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__()
        self.switch = check_count("switch", switch, low=0)
        self.smoothing = check_unit_interval("smoothing", smoothing)
        self.reduction = check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.ignore_index = ignore_index
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def step(self) -> None:
        """One step, or epoch, is done: the unit of ``switch``."""
        self.steps += 1

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return two_stage_label_smoothing(
            logits,
            targets,
            self.steps,
            self.switch if self.training else 0,
            smoothing=self.smoothing,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        return f"switch={self.switch}, smoothing={self.smoothing:g}, reduction={self.reduction!r}"
