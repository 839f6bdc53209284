"""What of a model's answer its losses are taken of, however it is packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def logits_of(output: Any) -> Any:
    """``output`` itself, its ``.logits`` or entry of that name, and of a tuple or list the first.

    Whether that is a tensor is for the caller to ask.
    """
    found = output.get("logits", output) if isinstance(output, Mapping) else getattr(output, "logits", output)
    return found[0] if isinstance(found, tuple | list) and found else found
