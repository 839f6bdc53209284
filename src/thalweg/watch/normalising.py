"""Where sensors find which layers normalise by the batch: it is the same for probes."""

from thalweg.probe._normalising import asks_other_processes, mixing_examples, normalising_as_in_training

__all__ = ["SYNCHRONISED", "asks_other_processes", "mixing_examples", "normalising_as_in_training"]

SYNCHRONISED = (
    "nn.SyncBatchNorm normalises over processes, and what one of them reads alone is another function"
)
