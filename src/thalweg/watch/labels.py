"""Which tensor of a batch holds the targets, and where they stand beside the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["IGNORED", "NamedLabels", "beside_logits"]

NAMES = ("labels", "label", "targets", "target", "y")
# What torch's cross entropy leaves out.
IGNORED = -100


class NamedLabels:
    """Labels that came by name, in a batch or in the model's keywords, until the logits are there too.

    Those of a causal language model come one place late, and are moved: such a model is known by its class,
    as Hugging Face names them, or by labels that are its ``input_ids``.
    """

    def __init__(self) -> None:
        self._labels: Tensor | None = None
        self._tokens: Tensor | None = None
        self._late: bool | None = None

    def note(self, batch: Mapping[str, Any]) -> None:
        """Keep what a mapping holds as ``labels``, ``targets`` or ``y``, if it does."""
        found = [batch[name] for name in NAMES if isinstance(batch.get(name), Tensor)]
        if found:
            self._labels, self._tokens = found[0], batch.get("input_ids")

    def of_batch(self, batch: Any) -> Tensor | None:
        """The targets of a pair; those of a mapping are kept."""
        if isinstance(batch, Mapping):
            self.note(batch)
        pair = isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)
        return batch[1] if pair else None

    def late(self, model: nn.Module) -> bool:
        """Whether the labels at hand are to be moved one place to stand beside their logits."""
        labels = self._labels
        return labels is not None and labels.ndim > 1 and _late(model, labels, self._tokens)

    def forget(self) -> None:
        self._labels = self._tokens = None

    def beside(self, model: nn.Module | None, logits: Tensor | None) -> Tensor | None:
        """Each beside its logits; None if there are none, or none that belong to these logits."""
        labels = self._labels
        if labels is None or logits is None:
            return None
        if labels.shape != logits.shape[:-1] and labels.numel() != logits.numel():
            return None
        if self._late is None:
            # Asked once: comparing waits for the device.
            self._late = _late(model, labels, self._tokens)
        return _moved(labels) if self._late else labels


def beside_logits(model: nn.Module, inputs: Any, labels: Tensor) -> Tensor:
    """Labels of these inputs, each beside its logits."""
    tokens = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    return _moved(labels) if labels.ndim > 1 and _late(model, labels, tokens) else labels


def _moved(labels: Tensor) -> Tensor:
    return F.pad(labels[..., 1:], (0, 1), value=IGNORED)


def _late(model: nn.Module | None, labels: Tensor, tokens: Any) -> bool:
    kind = str(getattr(model, "loss_type", None) or type(model).__name__)
    if "ForCausalLM" in kind or "LMHead" in kind:
        return True
    if not isinstance(tokens, Tensor) or tokens.shape != labels.shape or labels.ndim < 2:
        return False
    return bool(((labels == tokens) | (labels == IGNORED)).all())
