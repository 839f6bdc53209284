"""What was evaluated, in which mode, with which weights and statistics; and what is trained as if it were."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg.watch.evaluations import minds_the_mode
from thalweg.watch.moment import Moment, Raw, sensor


@sensor("evaluation", share=0.1, every=1, passes=0.05, needs=("model",), runs=False)
def evaluation(at: Moment) -> list[Raw]:
    """Of each evaluation since the last reading: modules in training mode, weights, and initial statistics.

    ``evaluation of the iterate`` is 1 where the run keeps an average and the evaluation did not use it.
    ``initial statistics`` is the share that their first values, 0 and 1, still have in what batch
    normalisation has stored, the largest of all.

    ``steps in evaluation mode``: before a step of a model that is in evaluation mode, and was in training
    mode before such steps, how many of its modules mind that; and 0 once it has been put back.
    """
    assert at.model is not None
    raws = _mode(at, at.model)
    for one in at.evaluations:
        extra = {"after": float(one.after)}
        on = torch.ones(len(one.training))
        raws.append(Raw("modules in training mode", float(len(on)), one.training, on, extra))
        if one.averaged is not None:
            kept = {**extra, "kept by the optimizer": float(one.keeper == "optimizer")}
            raws.append(Raw("evaluation of the iterate", float(not one.averaged), extra=kept))
        if one.stored:
            shares = torch.tensor([_initial(at.model.get_submodule(name)) for name in one.stored])
            raws.append(Raw("initial statistics", shares.max(), one.stored, shares, extra))
    at.evaluations.clear()
    return raws


def _mode(at: Moment, model: torch.nn.Module) -> list[Raw]:
    memory, forgotten = at.memory, bool(at.memory.get("trained")) and not model.training
    memory["trained"] = memory.get("trained") or model.training
    before, memory["forgotten"] = memory.get("forgotten", False), forgotten
    if not (before or forgotten):
        return []
    off = [name for name, one in model.named_modules() if minds_the_mode(one) and not one.training]
    off = off if forgotten else []
    extra = {"after": float(at.step)}
    return [Raw("steps in evaluation mode", float(len(off)), tuple(off), torch.ones(len(off)), extra)]


def _initial(norm: torch.nn.Module) -> float:
    """The share of 0 and 1 in the stored mean and variance; 0 if they were measured elsewhere."""
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None
    if norm.momentum is None:
        left = float(int(norm.num_batches_tracked or 0) == 0)
    else:
        left = (1 - norm.momentum) ** int(norm.num_batches_tracked or 0)
    return left if left < 1 or not bool(norm.running_mean.any()) else 0.0
