"""What the metrics of a trainer are called among our readings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

# Data that is not trained on has many names; our rules know one.
PARTS = {**dict.fromkeys(("eval", "val", "valid", "validation", "test"), "test"), "train": "train"}
KINDS = {"acc": "accuracy", "accuracy": "accuracy", "loss": "loss"}
# What ``run.log`` takes for something else.
TAKEN = ("step", "batch")
TIMING = re.compile(r"runtime|per_second|^epoch$|total_flos")


def as_readings(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers among a trainer's metrics; ``eval_loss`` and ``val/acc`` get the names that rules know."""
    found = {}
    for key, value in metrics.items():
        one = value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, int | float)
        if one and not TIMING.search(key) and key not in TAKEN:
            found[_reading(key)] = value
    return found


def _reading(key: str) -> str:
    words = re.split(r"[_/.\s-]+", key.lower())
    if len(words) == 2 and words[0] in PARTS and words[1] in KINDS:
        part, kind = PARTS[words[0]], KINDS[words[1]]
        return "loss" if (part, kind) == ("train", "loss") else f"{part} {kind}"
    return key.replace("_", " ")
