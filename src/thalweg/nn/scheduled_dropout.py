"""Early and late dropout (arXiv 2303.01500): the rate of the dropout that a model has, on a schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from thalweg._core.checks import check_choice, check_count, check_unit_interval

__all__ = ["EarlyDropout", "LateDropout", "RateDropout"]

KINDS = ("dropout", "stochastic depth")
DEPTH = ("DropPath", "StochasticDepth")  # of timm and torchvision, by name


class RateDropout(nn.Module):
    """``nn.Dropout`` whose rate is a tensor, so that a compiled model does not compile again as it moves.

    .. code-block:: python

        model = nn.convert(model, {torch.nn.Dropout: nn.RateDropout.of})

    Args:
        p: in [0, 1); read and written as ``module.p``. No part of the state dict, as in ``nn.Dropout``.

    Shape: any, to the same.

    Raises:
        ValueError: ``p`` is out of range.
    """

    rate: Tensor
    unitwise = True  # what follows units through a model may pass

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(check_unit_interval("p", p)), persistent=False)

    @classmethod
    def of(cls, module: nn.Module) -> RateDropout:
        """The same dropout with its rate in a tensor.

        Raises:
            ValueError: ``module`` is no ``nn.Dropout``, or has a rate of 1.
        """
        if type(module) is not nn.Dropout:
            raise ValueError(f"module must be an nn.Dropout, got {type(module).__name__}")
        return cls(module.p)

    @property
    def p(self) -> float:
        return self.rate.item()

    @p.setter
    def p(self, value: float) -> None:
        self.rate.fill_(check_unit_interval("p", value))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        # In float32 whatever x is: half-precision random numbers are too coarse for a small rate. And drawn
        # like x: what depends on no input torch.compile may draw once more in the backward pass.
        rate = self.rate.float()
        kept = torch.rand_like(x, dtype=torch.float32) >= rate
        return (x * kept / (1 - rate)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class _Schedule(ABC):
    """A rate that is written to every module concerned when made and at each :meth:`step`."""

    def __init__(self, model: nn.Module, rate: float, steps: int, kind: str) -> None:
        self.peak = check_unit_interval("rate", rate)
        self.steps = check_count("steps", steps, low=0)
        check_choice("kind", kind, KINDS)
        self._places = _depth(model) if kind == "stochastic depth" else _dropouts(model)
        if not self._places:
            raise ValueError(
                f"model must have modules for {kind}, got {type(model).__name__} without: calls of functions "
                "are not seen, nor what was built with a rate of 0 and left out"
            )
        self.done = 0
        self._write()

    @abstractmethod
    def rate_at(self, step: int) -> float:
        """The rate for the forward pass before update ``step``, which counts from 0."""

    @property
    def rate(self) -> float:
        """The rate that is set now."""
        return self.rate_at(self.done)

    def step(self) -> None:
        """Call after each update of the optimizer, not after each micro-batch."""
        self.done += 1
        self._write()

    def state_dict(self) -> dict[str, int]:
        """The number of updates done; the rest is in the arguments."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved state, and write its rate."""
        self.done = check_count("done", state.get("done"), low=0)
        self._write()

    def _write(self) -> None:
        for module, name, share in self._places:
            setattr(module, name, self.rate * share)


class EarlyDropout(_Schedule):
    r"""Dropout in the first ``steps`` updates alone, for a model that underfits (arXiv 2303.01500).

    .. code-block:: python

        schedule = nn.EarlyDropout(model, 0.1, steps=50 * len(loader))
        for x, y in batches:
            ...
            optimizer.step()
            schedule.step()

    Args:
        model: its dropout is written to: ``nn.Dropout`` and its kin, :class:`RateDropout`, and the rates of
            ``nn.MultiheadAttention`` and recurrent layers, whatever they were. Under ``torch.compile``
            convert to :class:`RateDropout` first.
        rate: in [0, 1), of the first update.
        steps: T, how many updates it lasts; 50 of 300 epochs in the paper.
        shape: ``linear``, from ``rate`` down to exactly 0 at update T - 1; or ``constant``, with a jump of
            the loss at its end.
        kind: ``dropout``, or ``stochastic depth``: modules called ``DropPath`` or ``StochasticDepth``, each
            with the share of ``rate`` that its own rate is of the largest among them, so that a rule of
            depth is kept.

    Raises:
        ValueError: an argument is out of range, or the model has no such modules; nothing is written then.
    """

    def __init__(
        self,
        model: nn.Module,
        rate: float = 0.1,
        *,
        steps: int,
        shape: str = "linear",
        kind: str = "dropout",
    ) -> None:
        self.shape = check_choice("shape", shape, ("linear", "constant"))
        super().__init__(model, rate, steps, kind)

    def rate_at(self, step: int) -> float:
        if step >= self.steps:
            return 0.0
        if self.shape == "constant" or self.steps == 1:
            return self.peak
        return self.peak * (1 - step / (self.steps - 1))


class LateDropout(_Schedule):
    """No dropout in the first ``steps`` updates, for a model that overfits; a constant ``rate`` from then on.

    Used like :class:`EarlyDropout` (arXiv 2303.01500), with the same arguments but for ``shape``.
    """

    def __init__(self, model: nn.Module, rate: float = 0.1, *, steps: int, kind: str = "dropout") -> None:
        super().__init__(model, rate, steps, kind)

    def rate_at(self, step: int) -> float:
        return self.peak if step >= self.steps else 0.0


Places = list[tuple[nn.Module, str, float]]


def _dropouts(model: nn.Module) -> Places:
    kinds = {_DropoutNd: "p", RateDropout: "p", nn.MultiheadAttention: "dropout", nn.RNNBase: "dropout"}
    return [
        (module, name, 1.0)
        for module in model.modules()
        for kind, name in kinds.items()
        # A single recurrent layer has nowhere to drop.
        if isinstance(module, kind) and getattr(module, "num_layers", 2) > 1
    ]


def _depth(model: nn.Module) -> Places:
    found: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        if type(module).__name__ in DEPTH:
            name = "drop_prob" if hasattr(module, "drop_prob") else "p"
            found.append((module, name, getattr(module, name)))
    largest = max((rate for _, _, rate in found), default=0)
    return [(module, name, rate / largest) for module, name, rate in found] if largest else []
