"""XGrad (arXiv 2305.18240): take the gradient where the optimizer is about to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg._core.checks import check_choice, check_not_negative, check_number
from thalweg.optim._displaced import Displaced, wide
from thalweg.optim.descent import Descent
from thalweg.optim.recipes import SGD, AdamW

__all__ = ["XGrad"]

# Where a base differs from the recipe that takes its steps.
OWN_DEFAULTS: dict[str, dict[str, float]] = {
    "adamw": {},
    "adam": {"weight_decay": 0.0},
    "sgd": {"momentum": 0.9},
}


class XGrad(Displaced):
    r"""Move the weights :math:`s` steps along the last update, take the gradient there, step from where
    they were.

    .. math:: \hat w = w - s\,\eta\, D, \qquad D = b_t \;\text{(sgd)} \;\text{or}\;
        \frac{m_t/(1-\beta_1^t)}{\sqrt{v_t/(1-\beta_2^t)} + \epsilon} \;\text{(adam, adamw)}

    with the state and step count :math:`t` of the last step and the learning rate of now; weight decay is
    no part of :math:`D`. Where there is no state yet, nothing moves. SGD with :math:`s = \mu` is Nesterov's
    momentum in its original form. One gradient a step, and one copy of the weights.

    Either ``opt.step(closure)``, or ``opt.predict()`` before the forward pass (once a step, also when
    gradients are accumulated) and ``opt.step()``. Evaluate between ``step`` and ``predict``, or after
    ``restore``: that is where the weights are. Loss and running statistics are the prediction's.

    Args:
        params: parameters, (name, parameter) pairs, or groups as dictionaries.
        lr: learning rate, at least 0.
        base: ``adamw``, ``adam`` (without decay) or ``sgd`` (momentum 0.9 unless given).
        ahead: :math:`s`, at least 0, how many steps; the range of stable learning rates shrinks with it.
        arguments: the base's own, as of :class:`thalweg.optim.AdamW` or :class:`thalweg.optim.SGD`.

    Raises:
        ValueError: for an argument that is unknown or out of range.
    """

    first_call = "predict()"
    settings = ("ahead",)
    inner: Descent

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        base: str = "adamw",
        ahead: float = 1.0,
        **arguments: Any,
    ):
        check_choice("base", base, OWN_DEFAULTS)
        check_not_negative("ahead", ahead)
        recipe = SGD if base == "sgd" else AdamW
        super().__init__(_fitting(base, recipe(params, lr=lr, **{**OWN_DEFAULTS[base], **arguments})))
        self.base, self.ahead = base, ahead

    @classmethod
    def around(cls, inner: Optimizer, base: str = "adamw", ahead: float = 1.0) -> XGrad:
        """Predict for an optimizer that is there already, which must be what the constructor would make.

        Raises:
            ValueError: for an argument out of range, or an optimizer that is not of that base.
        """
        made = cls([torch.zeros(1)], base=base, ahead=ahead)
        made.inner = _fitting(base, inner)
        return made

    @torch.no_grad()
    def predict(self) -> None:
        """Move the weights ahead; ``step`` brings them back. Does nothing if they are ahead already."""
        if not self.displaced:
            moves = ((p, group, self._direction(p, group)) for group, p in self._stepped())
            self._move((p, d * (-self.ahead * float(group["lr"]))) for p, group, d in moves)

    def _stepped(self) -> list[tuple[dict[str, Any], Tensor]]:
        """Every parameter that has made a step, with its group, whether or not it has a gradient now."""
        if not self.ahead:
            return []
        return [(g, p) for g in self.param_groups for p in g["params"] if self.inner.state.get(p)]

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """The last update of ``p`` without its decay, local and real."""
        state = self.inner.state[p]
        keys = next(one.slots for one in self.inner.links if one.transform.slots)
        if self.base == "sgd":
            return wide(state[keys["buffer"]])
        mean, square = wide(state[keys["mean"]]), wide(state[keys["square"]])
        first, second = (float(beta) for beta in group["betas"])
        step = float(state["step"])
        root = (square / (1 - second**step)).sqrt() + float(group["eps"])
        return mean / (1 - first**step) / root

    def _passes(self, closure: Callable[[], Any]) -> Any:
        self.predict()
        return self._gradients(closure)

    def _must_displace(self) -> bool:
        return bool(self._stepped()) and super()._must_displace()

    def _label(self) -> dict[str, Any]:
        return {**super()._label(), "base": self.base}

    def load_state_dict(self, state_dict: Any) -> None:
        """As :meth:`Wrapper.load_state_dict`; refuses what another base has saved."""
        label = state_dict.get("wrapper") or {}
        if label.get("base", self.base) != self.base:
            raise ValueError(f"state_dict is of another base: {label['base']}, not {self.base}")
        super().load_state_dict(state_dict)


def _fitting(base: str, inner: Optimizer) -> Descent:
    """``inner``, if its last update can be read off its state as ``base`` says."""
    chain = ["decay", "momentum"] if base == "sgd" else ["adam", "decay"]
    if not isinstance(inner, Descent) or [one.name for one in inner.chain] != chain:
        raise ValueError(
            f"inner must be a Descent of {' and '.join(chain)} with base {base!r}, got {inner!r}"
        )
    if base == "sgd":
        # Without momentum there is no last update to follow.
        check_number("momentum", inner.defaults["momentum"], 0, 1, "()")
    if base == "adam" and inner.defaults["weight_decay"]:
        decay = inner.defaults["weight_decay"]
        raise ValueError(f"weight_decay must be 0 with base 'adam', got {decay!r}: use base 'adamw'")
    return inner
