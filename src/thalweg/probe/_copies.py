"""A model, and its optimizer, to train on the side: copies that share nothing with the live ones."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from thalweg.probe._randomness import same_randomness
from thalweg.probe._wrapped import bare

T = TypeVar("T")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """A copied hook would report the copy's runs to whoever watches the live model.

    Those of torch.nn.utils stay: spectral and weight normalisation are made of them.
    """
    kept = [(module, name, getattr(module, name)) for module in model.modules() for name in HOOKS]
    try:
        for module, name, hooks in kept:
            own = [(key, hook) for key, hook in hooks.items() if _belongs(hook)]
            setattr(module, name, OrderedDict(own))
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)


def _belongs(hook: object) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")


def copied(model: nn.Module, beside: T) -> tuple[nn.Module, T]:
    """Deep copies of the model (behind DDP or torch.compile, of that inside) and of what goes with it.

    Parameters that ``beside`` refers to are, in its copy, those of the copied model.

    Raises:
        ValueError: something in them cannot be copied.
    """
    model = bare(model)
    # Weights that torch.nn.utils makes of others have a graph, and are made anew when the copy runs.
    made = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    with _without_hooks(model):
        try:
            known = {id(tensor): tensor.detach().clone() for tensor in made}
            twin, with_it = copy.deepcopy((model, beside), known)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"model must be copyable by copy.deepcopy, got {type(model).__name__} with "
                f"{type(error).__name__}: {error}"
            ) from error
    if isinstance(with_it, torch.optim.LBFGS):  # whose copy forgets what it steps
        vars(with_it).update(_params=with_it.param_groups[0]["params"], _numel_cache=None)
    return twin, with_it


@contextmanager
def own_randomness(model: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers from ``seed`` inside; the global states return."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with same_randomness():
        # Not torch.manual_seed, which would also reseed devices that are not the model's.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
