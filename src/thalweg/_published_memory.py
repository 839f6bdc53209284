"""The memory table of GaLore (arXiv 2403.03507, Table 2) in that table's own accounting.

It differs from what is really kept: sizes are those in the models' names (1B is 1.3), G stands for 1024
million bytes, gradients are left out, and of a matrix's m r + 2 n r numbers the table charges three quarters
of LoRA's state, 2 m r + 2 n r, as if all weights were square and the embedding were projected too. So a byte
of state counts 3/4 and one of a projection 3/2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from thalweg.optim import MemoryPlan

G = 1.024e9
SIZES = {"llama-60m": 60e6, "llama-130m": 130e6, "llama-350m": 350e6, "llama-1b": 1.3 * 1.024e9}


def as_published(model: str, plans: Mapping[str, MemoryPlan]) -> dict[str, float]:
    """Weights and optimizer state of each plan in the table's G.

    Args:
        model: a size that the table has.
        plans: what was planned in bfloat16: GaLore's plan first, then AdamW's and LoRA's among others.

    Raises:
        ValueError: the table has no such model or optimizer.
    """
    if model.lower() not in SIZES:
        raise ValueError(
            f"--model must be one of {', '.join(SIZES)} with --accounting published, got {model!r}"
        )
    first = next(iter(plans))
    if first.partition(",")[0] != "GaLore":
        raise ValueError(f"--optimizer must be GaLore with --accounting published, got {first!r}")
    weights, found = 2 * SIZES[model.lower()], {}
    for name, one in plans.items():
        frozen = one.groups.get("frozen weights")
        if name == first:
            bytes_ = weights + 0.75 * one.state + 1.5 * one.projection
        elif frozen is not None:
            bytes_ = weights + (one.weights - frozen.weights) + one.state
        elif name == "AdamW":
            bytes_ = (one.weights + one.state) / one.parameters * SIZES[model.lower()]
        else:
            continue  # 8-bit states are in another table, in other units
        found[name] = bytes_ / G
    return found


def published_table(model: str, plans: Mapping[str, MemoryPlan]) -> Table:
    """The same as a table to print, beside what is really kept without gradients."""
    title = f"{model}: weights and state in bfloat16; G (1.024 10^9 bytes)"
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("as arXiv 2403.03507 counts", justify="right")
    table.add_column("really kept", justify="right")
    for name, size in as_published(model, plans).items():
        one = plans[name]
        table.add_row(Text(name), f"{size:.3f}", f"{(one.total - one.gradients) / G:.3f}")
    return table
