"""An optimizer around another: the same groups and state, with something done before or after its step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)
# torch puts it among the defaults of every optimizer that was loaded or copied, but not into its groups.
LATE_DEFAULTS = {"differentiable"}


class Wrapper(Optimizer):
    """Base of the methods that need more than a gradient; a real optimizer itself.

    ``param_groups``, ``state`` and ``defaults`` are the inner optimizer's own objects: a scheduler, scaler
    or trainer sees one optimizer, whichever of the two it was given. Hooks of both fire once a step, the
    inner one's around its own update.

    Args:
        inner: a :class:`thalweg.optim.Descent`, an optimizer of ``torch.optim`` or another wrapper; one that
            steps without a closure.

    Attributes:
        settings: names of the attributes that a checkpoint restores, as it restores learning rates.
        kept_as: the attribute of each constructor argument that is not kept under its own name; a spec
            reads them. A class that makes its inner optimizer itself has a class method ``around``, which
            takes one that is there already.
    """

    settings: tuple[str, ...] = ()
    kept_as: Mapping[str, str] = {}
    inner: Optimizer

    def __init__(self, inner: Optimizer):
        if not isinstance(inner, Optimizer):
            raise ValueError(f"inner must be a torch.optim.Optimizer, got {type(inner).__name__}")
        if isinstance(inner, torch.optim.LBFGS):
            raise ValueError("inner must step without a closure, got LBFGS")
        self.inner = inner
        self._own_hooks()

    def _own_hooks(self) -> None:
        # In place of Optimizer.__init__, which would make groups and state of its own.
        for name in HOOKS:
            setattr(self, name, OrderedDict())
        self._patch_step_function()

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.inner.param_groups = groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self.inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.inner.defaults = defaults

    @property
    def parameters(self) -> list[Tensor]:
        """Every parameter of every group, in order."""
        return [p for group in self.param_groups for p in group["params"]]

    def __getattr__(self, name: str) -> Any:
        # What reads curvature asks an optimizer for its diagonal, and asks first whether it has one.
        if name == "preconditioner" and "inner" in self.__dict__:
            return getattr(self.inner, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer, whose checks it has to pass."""
        self.inner.add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        return self._step_inner(closure)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler calls ``step`` even for infinite gradients, with ``found_inf`` set."""
        return getattr(self.inner, "_step_supports_amp_scaling", False)

    def _step_inner(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the inner optimizer, with what a GradScaler has left here if it wants that."""
        passed = {name: self.__dict__[name] for name in ("grad_scale", "found_inf") if name in self.__dict__}
        if not getattr(self.inner, "_step_supports_amp_scaling", False):
            passed = {}
        for name, value in passed.items():
            setattr(self.inner, name, value)
        try:
            # An inner optimizer may not take the argument at all.
            return self.inner.step() if closure is None else self.inner.step(closure)
        finally:
            for name in passed:
                delattr(self.inner, name)

    def _skipped(self) -> int:
        """Steps that ``nonfinite="skip"`` has left out so far, however deep inside."""
        inner = self.inner
        return inner._skipped() if isinstance(inner, Wrapper) else getattr(inner, "skipped_steps", 0)

    def _overflowed(self) -> bool:
        """Whether a GradScaler has found that this step's gradients are not finite."""
        found = self.__dict__.get("found_inf")
        return found is not None and bool(found)

    def _not_for_another(self, call: str) -> None:
        """Refuse what an object of our class that only stands for the optimizer would keep to itself.

        Lightning hands out such objects: they read the optimizer's attributes, but set their own.
        """
        if "inner" not in self.__dict__:
            raise RuntimeError(
                f"{call} must be called on the optimizer itself, not on the {type(self).__name__} that "
                "stands for it: the optimizer would not know"
            )

    def _label(self) -> dict[str, Any]:
        return {"name": type(self).__name__, **{name: getattr(self, name) for name in self.settings}}

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, plus ``wrapper``: the name and settings of what is around it."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        saved = dict(self.inner.state_dict())
        label = self._label()
        if "wrapper" in saved:
            label["inner"] = saved["wrapper"]
        saved["wrapper"] = label
        self._save_own(saved)
        for after in self._optimizer_state_dict_post_hooks.values():
            saved = after(self, saved) or saved
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Restore the inner optimizer and the settings.

        A checkpoint of the inner optimizer alone will do where the method keeps no state: that is how it is
        begun in mid-run.

        Raises:
            ValueError: for what another wrapper or another optimizer has saved; nothing is loaded then.
        """
        given: dict[str, Any] = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            given = before(self, given) or given
        label = given.pop("wrapper", None)
        if label is not None:
            if label.get("name") != type(self).__name__ or not set(self.settings) <= label.keys():
                raise ValueError(
                    f"state_dict is of another wrapper: {label.get('name')}, not {type(self).__name__}"
                )
            if "inner" in label:
                if not isinstance(self.inner, Wrapper):
                    raise ValueError(
                        f"state_dict is of another wrapper: around {label['inner']['name']}, "
                        f"not around {type(self.inner).__name__}"
                    )
                given["wrapper"] = label["inner"]
        for group in given.get("param_groups", ()):
            missing = self.defaults.keys() - group.keys() - LATE_DEFAULTS
            if missing:
                raise ValueError(f"state_dict is of another optimizer: its groups lack {sorted(missing)}")
        own = self._split_own(given)
        self.inner.load_state_dict(given)
        for name in self.settings if label is not None else ():
            setattr(self, name, label[name])
        self._load_own(own)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _save_own(self, saved: dict[str, Any]) -> None:
        """Add what the wrapper keeps to the inner optimizer's ``state_dict``."""

    def _split_own(self, given: dict[str, Any]) -> Any:
        """Take what the wrapper keeps out of a ``state_dict`` again; may refuse it."""

    def _load_own(self, own: Any) -> None:
        """Put what :meth:`_split_own` found in its place."""

    def __getstate__(self) -> dict[str, Any]:
        """Hooks and what a scheduler has patched stay behind, as with every torch optimizer."""
        return {key: value for key, value in self.__dict__.items() if key[0] != "_" and key != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._own_hooks()

    def __repr__(self) -> str:
        settings = "".join(f", {name}={getattr(self, name)!r}" for name in self.settings)
        return f"{type(self).__name__}({self.inner!r}{settings})"
