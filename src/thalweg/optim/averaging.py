"""The exponential average of the iterates (EMA): what to evaluate, roll out and ship (arXiv 2310.11428)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from thalweg._core.checks import check_count, check_not_negative, check_unit_interval
from thalweg.optim._displaced import values, wide
from thalweg.optim._wrapper import Wrapper
from thalweg.optim.second_pass import frozen_statistics

__all__ = ["Average"]

OWN = ("average", "average_steps")


class Average(Wrapper):
    r"""Keep an average of the weights beside the run; evaluate with it, never train with it.

    .. math:: a_n = (1-\beta_n)\, a_{n-1} + \beta_n w, \qquad \beta_n = \max(n^{-p},\, 1 - d)

    With :math:`p = 1` it begins as the plain mean and becomes exponential after :math:`1/(1-d)` updates.
    Steps are those of the inner optimizer, bit for bit; the average is kept in at least float32::

        opt = optim.Average(optim.AdamW(model.parameters(), lr=1e-3), decay=0.99)
        ...                           # train as always
        with opt.averaged():          # or opt.eval() ... opt.train()
            validate(model)

    Buffers are not averaged: running statistics of batch norm belong to the iterates. ``averaged(model,
    loader)`` measures them anew for the average, and puts them back afterwards.

    Args:
        inner: the optimizer that takes the steps.
        decay: :math:`d`, in [0, 1). (Some papers state :math:`\beta = 1 - d`.)
        power: :math:`p`, at least 0; None for constant :math:`\beta_n = 1-d` from a copy of the weights.
        start: steps before averaging begins.
        every: steps between updates of the average.

    Raises:
        ValueError: for an argument out of range.
    """

    settings = ("decay", "power", "start", "every")

    def __init__(
        self,
        inner: Optimizer,
        decay: float = 0.999,
        power: float | None = 1.0,
        start: int = 0,
        every: int = 1,
    ):
        check_unit_interval("decay", decay)
        if power is not None:
            check_not_negative("power", power)
        check_count("start", start, low=0)
        check_count("every", every)
        super().__init__(inner)
        self.decay, self.power, self.start, self.every = decay, power, start, every
        self.steps = 0
        self.averages: dict[Tensor, Tensor] = {}
        self._iterates: list[tuple[Tensor, Tensor]] | None = None

    @property
    def training(self) -> bool:
        """Whether the parameters hold the iterate, not the average."""
        return self._iterates is None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Step the inner optimizer, then move the average towards where it got.

        Raises:
            RuntimeError: while the parameters hold the average.
        """
        self._needs_iterate("step")
        begun: dict[Tensor, Tensor] = {}
        if self.steps >= self.start:  # later for groups that came later
            begun = {p: _copy(p) for p in self.parameters if p not in self.averages}
        skipped = self._skipped()
        loss = self._step_inner(closure)
        if self._overflowed() or self._skipped() > skipped:
            return loss
        self.averages.update(begun)
        self.steps += 1
        since = self.steps - self.start
        if since > 0 and since % self.every == 0:
            share = self.share(since // self.every)
            for p, average in self.averages.items():
                values(average).lerp_(wide(p), share)
        return loss

    def share(self, update: int) -> float:
        """The share :math:`\\beta_n` of the newest weights in update n, from 1."""
        floor = 1 - self.decay
        return floor if self.power is None else max(update**-self.power, floor)

    @torch.no_grad()
    def eval(self) -> None:
        """Put the average into the parameters; the iterate is kept. Does nothing if it is there already."""
        if not self.training:
            return
        self._not_for_another("eval()")
        self._iterates = [(p, values(p).clone()) for p in self.averages]
        for p, average in self.averages.items():
            values(p).copy_(values(average))
            increment_version(p)

    @torch.no_grad()
    def train(self) -> None:
        """Put the iterate back, bit for bit. Does nothing if it is there already."""
        for p, iterate in self._iterates or ():
            values(p).copy_(iterate)
            increment_version(p)
        self._iterates = None

    @contextmanager
    def averaged(self, model: nn.Module | None = None, loader: Iterable[Any] | None = None) -> Iterator[None]:
        """Within this block the parameters hold the average.

        Args:
            model, loader: measure the running statistics of the model's batch norms anew, over ``loader``
                (see ``torch.optim.swa_utils.update_bn``); after the block they are as before.

        Raises:
            ValueError: for one of the two without the other.
        """
        if (model is None) != (loader is None):
            raise ValueError("averaged takes a model and a loader, or neither")
        before = self.training
        with frozen_statistics(model) if model is not None else nullcontext():
            self.eval()
            try:
                if model is not None and loader is not None:
                    update_bn(loader, model)
                yield
            finally:
                if before:
                    self.train()

    def _needs_iterate(self, what: str) -> None:
        if not self.training:
            raise RuntimeError(f"{what} while the parameters hold the average: call train() first")

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's with ``average`` and ``average_steps`` in each parameter's state.

        Raises:
            RuntimeError: while the parameters hold the average: a model saved now would resume from there.
        """
        self._needs_iterate("state_dict")
        return super().state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        """As :meth:`Wrapper.load_state_dict`; refuses what holds no average, and while one is in place."""
        self._needs_iterate("load_state_dict")
        super().load_state_dict(state_dict)

    def _save_own(self, saved: dict[str, Any]) -> None:
        state = dict(saved["state"])
        for index, p in enumerate(self.parameters if self.steps else ()):
            # In the state, where distributed checkpoints find it, and with each parameter, as "step" is.
            own = {"average_steps": torch.tensor(float(self.steps))}
            if p in self.averages:
                own["average"] = self.averages[p]
            state[index] = {**state.get(index, {}), **own}
        saved["state"] = state

    def _split_own(self, given: dict[str, Any]) -> Any:
        own: dict[Any, dict[str, Any]] = {}
        rest: dict[Any, dict[str, Any]] = {}
        for index, entry in given.get("state", {}).items():
            if "average_steps" not in entry:
                raise ValueError("state_dict holds no averages: it is of another optimizer")
            own[index] = {key: entry[key] for key in OWN if key in entry}
            if inner := {key: value for key, value in entry.items() if key not in OWN}:
                rest[index] = inner
        given["state"] = rest
        indices = [index for group in given.get("param_groups", ()) for index in group["params"]]
        found = {p: own[index] for p, index in zip(self.parameters, indices, strict=False) if index in own}
        for p, entry in found.items():
            if "average" in entry and entry["average"].shape != p.shape:
                raise ValueError(
                    f"state_dict is of other parameters: average of shape {tuple(entry['average'].shape)} "
                    f"for a parameter of shape {tuple(p.shape)}"
                )
        return found

    @torch.no_grad()
    def _load_own(self, own: Any) -> None:
        self.averages = {p: _copy(p, entry["average"]) for p, entry in own.items() if "average" in entry}
        self.steps = int(max((float(entry["average_steps"]) for entry in own.values()), default=0))

    def __getstate__(self) -> dict[str, Any]:
        self._needs_iterate("a copy of the optimizer")
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._iterates = None


def _copy(p: Tensor, source: Tensor | None = None) -> Tensor:
    """``source``, or ``p`` itself, laid out and sharded like ``p``, in at least float32."""
    copy = torch.empty_like(p.detach(), dtype=torch.promote_types(p.dtype, torch.float32))
    if isinstance(p, DTensor) and source is not None and not isinstance(source, DTensor):
        # A full checkpoint; every rank has read all of it and cuts out its own part.
        source = distribute_tensor(source, p.device_mesh, p.placements, src_data_rank=None)
    return copy.copy_(p.detach() if source is None else source)
