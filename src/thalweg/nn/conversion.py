"""Replace modules of a model by drop-in parts: the one-line conversion that every layer of this room uses."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from thalweg._core.checks import nearest

__all__ = ["convert"]

Kind = type[nn.Module] | str
Make = Callable[[nn.Module], nn.Module]
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# They know the parameters that they were given, and would neither average nor shard new ones.
WRAPPERS = frozenset({"DataParallel", "DistributedDataParallel", "FSDPModule", "FullyShardedDataParallel"})


def convert(model: nn.Module, parts: Mapping[Kind, Make], *, skip: Collection[str] = ()) -> nn.Module:
    """A copy of ``model`` in which modules are replaced; ``model`` itself stays as it is.

    .. code-block:: python

        nn.convert(model, {torch.nn.BatchNorm2d: lambda norm: nn.GhostBatchNorm.of(norm, size=32)})
        nn.convert(model, {torch.nn.Conv2d: nn.WeightStandardization.of}, skip=["stem"])
        nn.convert(model, {"features.*.act": lambda act: MyActivation()})

    A part gets the copy of the old module and gives back the new one: another, one that holds it, or the
    same, changed or not. What it takes over as the same ``Parameter`` stays tied to whatever shares it. A
    module with several names is converted once and stays shared. Device and training mode are those of the
    old one. Make the optimizer, compile and wrap afterwards: parameters are new.

    Args:
        model: any module in eager form.
        parts: what to replace, by what. A class stands for itself and its subclasses, a text for names, with
            ``*`` and ``?``. The first key that fits decides; what has been replaced is not searched further.
        skip: names, with ``*`` and ``?``, that stay as they are, and all that is inside.

    Raises:
        ValueError: a key or a name in ``skip`` fits nothing; a module that would be replaced holds no
            numbers yet, is read past its ``forward``, or has hooks, a parametrization or a shared parameter
            that would be lost; the model cannot be copied; or a part refuses (the message names the module).
    """
    _check(model, parts)
    if isinstance(skip, str):
        raise ValueError(f"skip must be a collection of names, got the string {skip!r}")
    try:
        made = copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"model must be one that can be copied, got {type(model).__name__}: {error}"
        ) from error
    names: dict[nn.Module, list[str]] = {}
    for name, module in made.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    every = [name for found in names.values() for name in found]
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise ValueError(f"skip must name modules of the model, got {pattern!r}{nearest(pattern, every)}")
    uses = _uses(made)
    used: set[Kind] = set()
    new: dict[nn.Module, nn.Module] = {}
    for module, key in _chosen(made, names, list(parts), skip):
        used.add(key)
        new[module] = _made(module, names[module][0], parts[key], uses, _device(module, made))
        if new[module] is not module and any("_orig_mod" in name.split(".") for name in names[module]):
            # What torch.compile made of it would go on with the old one.
            raise ValueError(f"module {names[module][0]!r} is compiled: convert first, compile afterwards")
    for key in parts:
        if key not in used:
            kinds = sorted({type(module).__name__ for module in names})
            raise ValueError(
                f"parts must fit modules of the model, got {_word(key)}"
                + (nearest(key, every) if isinstance(key, str) else f", and the model has {', '.join(kinds)}")
            )
    return _replaced(made, new)


def _check(model: nn.Module, parts: Mapping[Kind, Make]) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise ValueError(f"model must be in eager form, got {type(model).__name__}: compile it afterwards")
    for name, module in model.named_modules():
        if wrapper := [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in WRAPPERS]:
            where = f"module {name!r}" if name else "model"
            raise ValueError(f"{where} must not be wrapped yet, got {wrapper[0]}: convert first")
    if not isinstance(parts, Mapping) or not parts:
        raise ValueError(f"parts must map classes or names to functions, got {parts!r}")
    for key, make in parts.items():
        if not (isinstance(key, str) or (isinstance(key, type) and issubclass(key, nn.Module))):
            raise ValueError(f"parts must have module classes or names as keys, got {key!r}")
        if not callable(make) or isinstance(make, nn.Module):
            raise ValueError(f"parts[{_word(key)}] must be a function of the old module, got {make!r}")


def _word(key: Kind) -> str:
    return repr(key) if isinstance(key, str) else key.__name__


def _uses(model: nn.Module) -> Counter[Tensor]:
    return Counter(p for module in model.modules() for p in module._parameters.values() if p is not None)


def _fits(key: Kind, module: nn.Module, names: list[str]) -> bool:
    if isinstance(key, str):
        return any(fnmatchcase(name, key) for name in names)
    return isinstance(module, key)


def _chosen(
    module: nn.Module,
    names: Mapping[nn.Module, list[str]],
    keys: list[Kind],
    skip: Collection[str],
    seen: set[nn.Module] | None = None,
) -> Iterator[tuple[nn.Module, Kind]]:
    """Modules to replace with the key that says so, outermost first, each once."""
    seen = set() if seen is None else seen
    if module in seen or any(_fits(pattern, module, names[module]) for pattern in skip):
        return
    seen.add(module)
    key = next((key for key in keys if _fits(key, module, names[module])), None)
    if key is not None:
        yield module, key
        return
    inner = list(_chosen_inside(module, names, keys, skip, seen))
    if inner and isinstance(module, nn.MultiheadAttention):
        name, attention = names[inner[0][0]][0], names[module][0]
        hint = f": skip {attention!r} and its like" if attention else ""
        raise ValueError(
            f"module {name!r} must be run by its parent, but MultiheadAttention reads its weight{hint}"
        )
    yield from inner


def _chosen_inside(
    module: nn.Module,
    names: Mapping[nn.Module, list[str]],
    keys: list[Kind],
    skip: Collection[str],
    seen: set[nn.Module],
) -> Iterator[tuple[nn.Module, Kind]]:
    for child in module.children():
        yield from _chosen(child, names, keys, skip, seen)


def _device(module: nn.Module, model: nn.Module) -> torch.device | None:
    """Where a module's tensors are, or the model's if it has none and they are in one place."""
    for owner in (module, model):
        places = {tensor.device for tensor in (*owner.parameters(), *owner.buffers())}
        if len(places) == 1:
            return places.pop()
    return None


def _made(
    old: nn.Module, name: str, make: Make, uses: Counter[Tensor], device: torch.device | None
) -> nn.Module:
    where = f"module {name!r} ({type(old).__name__})"
    tensors = [*old.parameters(), *old.buffers()]
    if any(is_lazy(tensor) for tensor in tensors):
        raise ValueError(f"{where} must have its shapes, got a lazy one: run the model once first")
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError(f"{where} must hold numbers, got one on the meta device")
    shared = {p for p, count in _uses(old).items() if count < uses[p]}
    special = is_parametrized(old)
    hooked = any(getattr(old, hooks) for hooks in HOOKS)
    training, before = old.training, set(old.modules())
    try:
        new = make(old)
    except Exception as error:  # whatever a part may raise
        known = isinstance(error, ValueError | TypeError | NotImplementedError)
        raise ValueError(f"{where}: {error if known else repr(error)}") from error
    if not isinstance(new, nn.Module):
        raise ValueError(f"{where} must be replaced by a module, got {new!r}")
    if (special or hooked) and all(module is not old for module in new.modules()):
        kept = "a parametrization" if special else "hooks"
        raise ValueError(f"{where} has {kept} that {type(new).__name__} would lose: convert first")
    if not shared <= set(new.parameters()):
        raise ValueError(f"{where} shares a parameter that {type(new).__name__} would not keep tied")
    if device is not None and any(t.device != device for t in (*new.parameters(), *new.buffers())):
        new = new.to(device)
    for module in set(new.modules()) - before:
        module.training = training
    return new


def _replaced(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
    for module in model.modules():
        # In evaluation these two compute with their layers' weights and never call them.
        if isinstance(module, nn.TransformerEncoderLayer) and set(module.modules()) & set(new.values()):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and set(module.modules()) & set(new.values()):
            module.use_nested_tensor = False
    return new.get(model, model)
