"""Layers that normalise by the batch in training and by running statistics in evaluation.

By running statistics a sensor would read another function. Its gradient is not that of training: it has parts
along shifts and lengths that normalisation by the batch takes away.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["asks_other_processes", "mixing_examples", "normalising_as_in_training"]


def normalising_as_in_training(model: nn.Module) -> list[nn.Module]:
    """Modules that are in training mode and hold running statistics for evaluation mode.

    To be switched back to training by their own flag: what they hold, such as dropout, stays off. One that
    asks other processes is left in peace.
    """
    return [
        one
        for one in model.modules()
        if one.training and not isinstance(one, nn.SyncBatchNorm) and _holds_statistics(one)
    ]


def asks_other_processes(model: nn.Module) -> bool:
    """Whether a module that is in training mode normalises by the batches of all processes."""
    return any(one.training and isinstance(one, nn.SyncBatchNorm) for one in model.modules())


def mixing_examples(model: nn.Module) -> bool:
    """Whether an example's loss depends, in training as the model is now, on the others in the batch."""
    return any(isinstance(one, _BatchNorm) and not _holds_statistics(one) for one in model.modules()) or any(
        not isinstance(one, _InstanceNorm) for one in normalising_as_in_training(model)
    )


def _holds_statistics(module: nn.Module) -> bool:
    """By name: batch normalisation of other libraries is no subclass of torch's."""
    return all(getattr(module, name, None) is not None for name in ("running_mean", "running_var"))
