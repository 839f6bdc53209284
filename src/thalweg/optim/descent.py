"""Descent: a torch optimizer that runs a chain of transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg._core.checks import check_choice, check_not_negative, nearest
from thalweg._core.factored import Factored
from thalweg.optim._chain import GROUP_KEYS, Link, applied, link, numbers, rebuilt
from thalweg.optim._finite import ANSWERS
from thalweg.optim._layout import is_sharded
from thalweg.optim._line import HALF, Line
from thalweg.optim._place import Place
from thalweg.optim._rounding import ROUNDINGS
from thalweg.optim._state import refuse_foreign_state, restore_dtypes
from thalweg.optim._sweep import Sweep
from thalweg.optim.transform import Scalars, State, Transform

__all__ = ["Descent"]

# Below this many parameters a step costs less than compiling it ever pays back.
WORTH_COMPILING = 4_000_000


class Descent(Optimizer):
    """Run the gradient through ``chain`` and step the parameters by -lr times what comes out.

    A ``torch.optim.Optimizer``: parameter groups (which may override ``lr`` and every hyper-parameter of
    the chain), closures, step hooks, schedulers, ``GradScaler``, checkpoints, DDP and FSDP2. Gradients are
    never changed. State is tensors and numbers only; ``step`` counts each parameter's own steps.

    Args:
        params: parameters, (name, parameter) pairs, or groups as dictionaries.
        chain: transforms, in the order in which they see the gradient.
        lr: learning rate, at least 0.
        rounding: how bfloat16 weights are written: ``none`` (to nearest), ``stochastic``, or ``kahan``
            (keeps the lost part in one more tensor). All arithmetic is in at least float32. The noise of
            stochastic rounding depends on tensor, place and step only, not on torch's seed.
        state_dtype: dtype of the state; by default the parameter's, but float32 for 16-bit parameters.
        nonfinite: what a gradient with NaN or infinite entries does: ``step`` like any other, as in torch;
            ``skip`` the step of all parameters (counted in ``skipped_steps``); or ``raise`` before anything
            has moved. The last two read all gradients once more.
        compile: one fused pass over memory instead of many small ones; by default from 4 million
            parameters. Compiles on the first step, and keeps the result for later runs.

    Raises:
        FloatingPointError: from ``step``, for a gradient that is not finite if ``nonfinite`` says so.
        ValueError: for a hyper-parameter out of range, an unknown group key, a parameter that is not of
            floating point or, in ``step``, a sparse gradient or a matrix method on anything but a matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *chain: Transform,
        lr: float | Tensor = 1e-3,
        rounding: str = "none",
        state_dtype: torch.dtype | None = None,
        nonfinite: str = "step",
        compile: bool | None = None,
    ):
        for item in chain:
            if not isinstance(item, Transform):
                raise ValueError(f"chain must hold transforms such as optim.adam(), got {item!r}")
        check_choice("rounding", rounding, ROUNDINGS)
        if state_dtype is not None and not getattr(state_dtype, "is_floating_point", False):
            raise ValueError(f"state_dtype must be a floating-point torch.dtype, got {state_dtype!r}")
        check_choice("nonfinite", nonfinite, ANSWERS)
        self.nonfinite, self.skipped_steps = nonfinite, 0
        self.links: tuple[Link, ...] = link(chain)
        self.rounding, self.state_dtype, self.compile = rounding, state_dtype, compile
        self._lines: dict[Any, Line] | None = None
        defaults: dict[str, Any] = {"lr": lr}
        for one in self.links:
            for name, key in one.hyper.items():
                defaults.setdefault(key, one.transform.hyper[name])
        super().__init__(params, defaults)
        self._prepare()

    @property
    def chain(self) -> tuple[Transform, ...]:
        """The transforms, in the order in which they see the gradient."""
        return tuple(one.transform for one in self.links)

    def _prepare(self) -> None:
        """Build what is derived from the chain; it holds functions, so it is rebuilt rather than pickled."""
        size = sum(p.numel() for group in self.param_groups for p in group["params"])
        self._compiles = size >= WORTH_COMPILING if self.compile is None else self.compile
        self._places: dict[Tensor, Place] = {}
        self._counts: dict[Tensor, tuple[Any, ...]] = {}
        self._lines = {}
        self._line_by_parameter: dict[Tensor, Line] = {}

    def line_of(self, p: Tensor, group: dict[str, Any]) -> Line:
        """The way of ``p``, which is in ``group``, through the chain."""
        if p not in self._line_by_parameter:
            self._find_lines()
        return self._line_by_parameter[p]

    def _find_lines(self) -> None:
        assert self._lines is not None
        for group in self.param_groups:
            for p in group["params"]:
                hops = applied(self.links, p, group)
                kind = hops, is_sharded(p)
                if kind not in self._lines:
                    how = (self._compiles, self.rounding, is_sharded(p))
                    self._lines[kind] = Line(self.links, hops, group, *how)
                line = self._line_by_parameter[p] = self._lines[kind]
                line.members.setdefault(p, len(line.members))

    def __getstate__(self) -> dict[str, Any]:
        names = ("links", "rounding", "state_dtype", "compile", "nonfinite", "skipped_steps")
        kept = {name: getattr(self, name) for name in names}
        return {**super().__getstate__(), **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it, and it is none of ours
        self._prepare()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its values pass the same checks as the chain's, and nothing is added if one fails."""
        known = self.defaults.keys() | GROUP_KEYS
        for key in param_group:
            if key not in known:
                raise ValueError(f"unknown key {key!r} in a parameter group{nearest(key, known)}")
        check_not_negative("lr", param_group.get("lr", self.defaults["lr"]))
        for one in self.links:
            own = {name: param_group[key] for name, key in one.hyper.items() if key in param_group}
            if rebuilt(one.transform, own).slots != one.transform.slots:
                raise ValueError(
                    f"{one.label} keeps other state with {own}: give such parameters their own optimizer"
                )
        before = len(self.param_groups)
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if not (p.is_floating_point() or p.is_complex()):
                del self.param_groups[before:]
                raise ValueError(f"params must be of floating point, got a tensor of {p.dtype}")
            if self.rounding == "stochastic" and p.dtype == torch.float16:
                del self.param_groups[before:]
                raise ValueError("rounding='stochastic' is for bfloat16, got a float16 tensor: use 'kahan'")
        try:
            for p in self.param_groups[-1]["params"]:
                applied(self.links, p, self.param_groups[-1])
        except ValueError:
            del self.param_groups[before:]
            raise
        if self._lines is not None:
            self._prepare()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move every parameter that has a gradient; ``closure`` is called once, with gradients enabled."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        Sweep(self).run()
        return loss

    def slots_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state of ``p``, which is in ``group``, made on first use: ``step`` and one tensor a slot."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state.update(self.line_of(p, group).fresh(p, group, self.state_dtype))
            self.settle_kahan(p)
        return state

    def reset_slots(self, p: Tensor, line: Line) -> None:
        """Give the state of ``p`` its first values again; ``step`` goes on."""
        group = next(g for g in self.param_groups if any(p is q for q in g["params"]))
        first = line.fresh(p, group, self.state_dtype) if line.other else {}
        for key in line.kept():
            slot = self.state[p][key]
            slot.set_(first[key]) if key in line.other else slot.zero_()

    def settle_kahan(self, p: Tensor) -> None:
        """Keep what storing ``p`` loses if this optimizer's rounding asks for it, and only then."""
        if self.rounding == "kahan" and p.dtype in HALF:
            self.state[p].setdefault("kahan", torch.zeros_like(p))
        else:
            self.state[p].pop("kahan", None)

    def state_dict(self) -> dict[str, Any]:
        """As of every torch optimizer, and the names of the recipe and of its transforms."""
        about = {"optimizer": type(self).__name__, "chain": [one.label for one in self.links]}
        return {**super().state_dict(), **about}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state bit for bit, in the dtypes in which it was saved.

        Raises:
            ValueError: if it was saved by another chain; nothing is loaded then.
        """
        refuse_foreign_state(self, state_dict)
        super().load_state_dict(state_dict)
        restore_dtypes(self, state_dict)

    def preconditioner(self, p: Tensor) -> Tensor | Factored | None:
        """What multiplies the gradient, with its state as it is; None before the first step.

        Mostly a diagonal, shaped like ``p``. Within a subspace (``project``), or of lengths and directions
        (``normalized``), a symmetric matrix that is known by a factor: ``factor``, ``transposed`` and
        ``times`` are its products. None also where a step is no multiple of the gradient: signs, Fira's
        scaled residual, DiffGrad's friction.

        Raises:
            ValueError: for a complex parameter, whose real and imaginary parts are scaled apart.
        """
        if p.is_complex():
            raise ValueError(f"p must be real to have a diagonal of its shape, got {p.dtype}")
        group = next(g for g in self.param_groups if any(p is q for q in g["params"]))
        state = self.state.get(p)
        if not state:
            return None
        line = self.line_of(p, group)
        for index, one in enumerate(line.links):
            if one.transform.precondition:
                plain = line.layout.pack(group, float(state["step"]))
                packed = torch.tensor(plain, dtype=torch.float64).unbind()
                slots = State({slot: state[key] for slot, key in one.slots.items()})
                k = line.layout.unpack(index, packed, ())
                return one.transform.precondition(slots, Scalars({**k.values, "parameter": p}))
        return None

    def stability_limit(self, group: dict[str, Any]) -> float:
        """The sharpness (preconditioned, if the chain preconditions) above which a quadratic diverges.

        Raises:
            ValueError: if no link of the chain has a known limit.
        """
        for one in self.links:
            if one.transform.stability:
                return one.transform.stability(numbers(one, group, 1)) / max(float(group["lr"]), 1e-300)
        if any(one.transform.slots for one in self.links):
            raise ValueError(f"no stability limit is known for the chain {list(self.chain)}")
        return 2 / max(float(group["lr"]), 1e-300)

    def __repr__(self) -> str:
        lr = ", ".join(f"{float(group['lr']):g}" for group in self.param_groups)
        return f"{type(self).__name__}({', '.join(map(repr, self.chain))}, lr={lr})"
