"""Where sensors find which layers normalise by the batch: it is the same for probes."""

from thalweg.probe._normalising import mixing_examples, normalising_as_in_training

__all__ = ["mixing_examples", "normalising_as_in_training"]
