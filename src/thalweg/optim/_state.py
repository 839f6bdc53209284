"""Loading a checkpoint: refuse another chain's state, keep the dtypes and strides that ours has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.optim._chain import GROUP_KEYS
from thalweg.optim._layout import is_sharded

if TYPE_CHECKING:
    from thalweg.optim._line import Line
    from thalweg.optim.descent import Descent


def refuse_foreign_state(optimizer: Descent, state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError if ``state_dict`` lacks this chain's state or holds another's."""
    for name in ("state", "param_groups"):
        if name not in state_dict:
            raise ValueError(
                f"state_dict must hold 'state' and 'param_groups', got {sorted(map(str, state_dict))}"
            )
    ours = [one.label for one in optimizer.links]
    theirs = state_dict.get("chain", ours)  # torch's own tools may drop it
    name = state_dict.get("optimizer", "one that names no chain, as those of torch.optim")
    other = f"state_dict is of another optimizer, {name}"
    if theirs != ours:
        raise ValueError(
            f"{other} ({', '.join(theirs)}): this is {type(optimizer).__name__} ({', '.join(ours)})"
        )
    for group in state_dict["param_groups"]:
        missing = optimizer.defaults.keys() - group.keys()
        if missing:
            raise ValueError(f"{other}: its groups lack {sorted(missing)}")
        foreign = group.keys() - GROUP_KEYS - {key for own in optimizer.param_groups for key in own}
        if foreign:
            raise ValueError(f"{other}: its groups hold {sorted(foreign)}")
    for p, group, entry in _matched(optimizer, state_dict):
        line = optimizer.line_of(p, group)
        required, found = line.kept(), set(entry) - {"step", "kahan"}
        if found != required or "step" not in entry:
            raise ValueError(f"{other}: it keeps {sorted(found)}, this one {sorted(required)}")
        if (found_misfit := misfit(line, p, group, entry)) is not None:
            raise ValueError(f"state_dict is of other parameters or hyper-parameters: {found_misfit}")


def misfit(line: Line, p: Tensor, group: dict[str, Any], entry: Mapping[str, Tensor]) -> str | None:
    """In words, which slot of ``entry`` has not the shape that it has in the state of ``p`` now."""
    whole = line.other and line.whole is not None and not is_sharded(p)
    first = line.fresh(torch.empty_like(p.detach(), device="meta"), group, None) if whole else {}
    for key, saved in entry.items():
        if key == "step" or (key in line.other and not (key in first and first[key].numel())):
            continue  # a slot that starts empty may have grown
        wanted = (first[key] if key in line.other else p).shape
        if saved.shape != wanted:
            counts = "".join(f" and {key} {group[key]}" for key in line.counts)
            return (
                f"{key} of shape {tuple(saved.shape)}, not {tuple(wanted)}, for a parameter of shape "
                f"{tuple(p.shape)}{counts}"
            )
    return None


def restore_dtypes(optimizer: Descent, state_dict: Mapping[str, Any]) -> None:
    """Undo torch's cast of loaded state to the parameter's dtype, and give it the parameter's strides."""
    for p, group, entry in _matched(optimizer, state_dict):
        other = optimizer.line_of(p, group).other
        for key, saved in entry.items():
            if key in other:
                optimizer.state[p][key] = saved.to(p.device, copy=True)
            elif key != "step":
                optimizer.state[p][key] = torch.empty_like(p, dtype=saved.dtype).copy_(saved)
        optimizer.settle_kahan(p)
        step = entry["step"]
        optimizer.state[p]["step"] = torch.as_tensor(step, dtype=torch.float32, device="cpu").clone()


def _matched(
    optimizer: Descent, state_dict: Mapping[str, Any]
) -> Iterator[tuple[Tensor, dict[str, Any], Mapping[str, Any]]]:
    ours = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    saved = [index for group in state_dict["param_groups"] for index in group["params"]]
    for (p, group), index in zip(ours, saved, strict=False):
        if index in state_dict["state"]:
            yield p, group, state_dict["state"][index]
