"""How the error shrinks or grows on its way back through layers and time (arXiv 1211.5063)."""

from __future__ import annotations

import torch

from thalweg.probe import backward_signal
from thalweg.watch.inputs import as_batch
from thalweg.watch.moment import Moment, Raw, examples, sensor
from thalweg.watch.whole_batches import part

EXAMPLES = 16
FEWEST = 4
UNJUDGED = (
    "is read and not judged: vanishing and exploding take four layers or steps at least, of linear, "
    "convolutional and recurrent layers; heard were {}"
)


def _passes(at: Moment) -> float:
    return 1.0 + 3 * min(1.0, EXAMPLES / examples(at.inputs))


@sensor("backward signal", share=0.5, every=10, passes=_passes, needs=("model", "inputs"))
def backward(at: Moment) -> list[Raw]:
    """Norm of a random error at each layer, first to last, on few examples; the value is first/last."""
    assert at.model is not None and at.inputs is not None
    try:
        found = backward_signal(at.model, part(at, as_batch(at.model, *at.inputs), EXAMPLES))
    except ValueError as error:
        # No layers that it knows, so there will be none later.
        return at.over(str(error))
    # Fewer are not judged, which is worth saying where there is depth in time that cannot be heard.
    few_layers = len(found.norms) < FEWEST
    at.memory["unjudged"] = UNJUDGED.format(", ".join(found.norms)) if few_layers else None
    return [Raw("backward signal", found.ratio, tuple(found.norms), torch.tensor(list(found.norms.values())))]
