"""How many directions the features of a few examples use (arXiv 2303.01486)."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.probe import effective_rank
from thalweg.probe._hidden import overhear_units
from thalweg.probe._thinned import thinned
from thalweg.probe._units import NoActivationsError
from thalweg.probe.rank import feature_rows
from thalweg.watch.inputs import as_batch
from thalweg.watch.moment import Moment, Raw, examples, sensor
from thalweg.watch.sensors.neurons import UNHEARD
from thalweg.watch.whole_batches import part

ROWS = 64
COLUMNS = 1024


def _passes(at: Moment) -> float:
    return 0.3 + min(1.0, ROWS / examples(at.inputs))


@sensor("feature rank", share=0.4, every=20, passes=_passes, needs=("model", "inputs"))
def feature_rank(at: Moment) -> list[Raw]:
    """Effective rank of what each activation gives for 64 examples or positions; the value is the last one's.

    Of what makes the model's output, of an expert, which is given some of the examples, and of a model whose
    activations cannot be heard nothing is said.
    """
    assert at.model is not None and at.inputs is not None
    found: dict[str, float] = {}

    def measure(run: str, output: Tensor) -> None:
        if len(rows := feature_rows(run, output)) >= examples(batch):
            found[run] = effective_rank(thinned(thinned(rows, ROWS).mT, COLUMNS))

    batch = part(at, as_batch(at.model, *at.inputs), ROWS)
    try:
        outputs = overhear_units(at.model, batch, measure)
    except NoActivationsError:
        return at.over(UNHEARD)
    for run in outputs:
        found.pop(run, None)
    if not found:
        return at.silent("no activation was given all of the examples")
    at.silent(None)
    ranks = torch.tensor(list(found.values()))
    return [Raw("feature rank", ranks[-1], tuple(found), ranks)]
