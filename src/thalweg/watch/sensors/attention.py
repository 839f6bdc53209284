"""The largest attention logit of each layer (arXiv 2309.14322)."""

from __future__ import annotations

import torch

from thalweg.probe import attention_logits
from thalweg.watch.inputs import as_batch
from thalweg.watch.moment import Moment, Raw, examples, sensor
from thalweg.watch.whole_batches import part

EXAMPLES = 2
UNSEEN = "no attention that could be seen, as a module of torch or a call of its function"


def _passes(at: Moment) -> float:
    """Forward passes of the training batch that one on a few sequences amounts to, hooks included."""
    return 0.3 + min(1.0, EXAMPLES / examples(at.inputs))


@sensor("attention logit", share=0.5, every=10, passes=_passes, needs=("model", "inputs"))
def attention_logit(at: Moment) -> list[Raw]:
    """Largest size of a logit before the softmax, on two sequences of the last batch; by layer."""
    assert at.model is not None and at.inputs is not None
    try:
        found = attention_logits(at.model, part(at, as_batch(at.model, *at.inputs), EXAMPLES))
    except ValueError:
        # No attention that could be seen, so there will be none later.
        kinds = {type(module).__name__.lower() for module in at.model.modules()}
        return at.over(UNSEEN if any("attention" in kind or "attn" in kind for kind in kinds) else None)
    largest = torch.stack([heads.amax() for heads in found.per_head.values()])
    return [Raw("attention logit", found.largest, tuple(found.per_head), largest)]
