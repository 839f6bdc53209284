"""How a loop's batch becomes the model's inputs, in code: remedies are written for pairs and fitted to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, equal, nn

from thalweg.watch.inputs import as_batch
from thalweg.watch.labels import NAMES
from thalweg.watch.readings import Finding

__all__ = ["Form", "form_of", "logits_in"]

# How remedies write the logits of a batch; what they evaluate may be any output.
EVALUATED = "outputs = model(batch[0])"
DEPTH = 2
MOVED = "torch.nn.functional.pad({}[..., 1:], (0, 1), value=-100)"


@dataclass(frozen=True)
class Form:
    """Pieces of code over a ``batch``.

    Attributes:
        inputs: what the model takes; a tensor, a tuple of positional or a dict of keyword arguments.
        first: the first tensor of them, whose length is the number of examples.
        targets: what the logits are compared with; empty where nobody knows.
        stars: in front of the inputs in a call.
        logits: behind a call.
    """

    inputs: str
    first: str
    targets: str
    stars: str = ""
    logits: str = ""

    @property
    def pair(self) -> bool:
        """Whether it is inputs and targets, as remedies are written."""
        return (self.inputs, self.targets) == ("batch[0]", "batch[1]")

    def fit(self, finding: Finding) -> Finding:
        """The same finding, its remedies as code for this batch."""
        remedies = (replace(one, code=self.fitted(one.code)) for one in finding.remedies)
        return replace(finding, remedies=tuple(remedies))

    def fitted(self, code: str) -> str:
        """Code for a pair, as code for this batch; as it is where it needs targets that nobody knows."""
        if not self.targets and ("batch[1]" in code or "targets = batch" in code):
            return code
        pair = "batch" if self.pair else f"{self.inputs}, {self.targets}"
        averaged = "loader" if self.pair or self.stars else f"({self.inputs} for batch in loader)"
        changes = {
            "update_bn(loader, model)": f"update_bn({averaged}, model)",
            EVALUATED: f"outputs = model({self.stars}{self.inputs})",
            "model(batch[0])": f"model({self.stars}{self.inputs}){self.logits}",
            "inputs, targets = batch\n": f"inputs, targets = {pair}\n",
            "model(inputs)": f"model({self.stars}inputs){self.logits}",
            "len(batch[0])": f"len({self.first})",
            "batch[0]": self.inputs,
            "batch[1]": self.targets,
        }
        # Each is marked first: what one puts in may be what the next looks for.
        for index, old in enumerate(changes):
            code = code.replace(old, f"\0{index}\0")
        for index, new in enumerate(changes.values()):
            code = code.replace(f"\0{index}\0", new)
        return code


def form_of(
    batch: Any, model: nn.Module, positional: tuple, keywords: dict[str, Any], *, logits: str, late: bool
) -> Form | None:
    """The form of a batch of which the model was given these arguments; None if they are not found in it.

    Args:
        logits: code behind a call of the model, as of :func:`logits_in`.
        late: labels are moved one place to stand beside their logits.
    """
    leaves = dict(_leaves(batch, "batch"))
    given = as_batch(model, positional, keywords)
    # Single numbers, such as the count of items that a trainer adds, are for the loss and in no batch.
    arguments = dict(given if isinstance(given, Mapping) else enumerate(given))
    arguments = {key: one for key, one in arguments.items() if key not in NAMES and not _number(one)}
    targets = _targets(batch, leaves)
    # Last: labels may be a copy of the inputs.
    leaves = {**{key: leaf for key, leaf in leaves.items() if key != targets}, **leaves}
    found = {key: _code(one, leaves, targets) for key, one in arguments.items()}
    if None in found.values():
        return None
    codes = {key: code for key, code in found.items() if code is not None}
    first = next((codes[key] for key, one in arguments.items() if isinstance(one, Tensor)), None)
    if first is None:
        return None
    rest = [key for key in leaves if not any(code.startswith(key) for code in codes.values())]
    if targets not in rest:
        targets = rest[0] if len(rest) == 1 else ""
    if late and targets:
        targets = MOVED.format(targets)
    if isinstance(given, Mapping):
        return Form(_keywords(batch, codes), first, targets, "**", logits)
    values = list(codes.values())
    if len(values) == 1:
        return Form(values[0], first, targets, "", logits)
    whole = values == [f"batch[0][{index}]" for index in range(len(values))] and len(batch[0]) == len(values)
    return Form("batch[0]" if whole else f"({', '.join(values)})", first, targets, "*", logits)


def logits_in(output: Any) -> str:
    """Code behind a call that gives ``output``, by which it gives logits."""
    if isinstance(output, Tensor):
        return ""
    if isinstance(getattr(output, "logits", None), Tensor):
        return ".logits"
    return "['logits']" if isinstance(output, Mapping) and "logits" in output else "[0]"


def _leaves(batch: Any, code: str, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        yield code, batch
    elif depth < DEPTH and isinstance(batch, Mapping):
        for key, one in batch.items():
            yield from _leaves(one, f"{code}[{key!r}]", depth + 1)
    elif depth < DEPTH and isinstance(batch, tuple | list):
        for index, one in enumerate(batch):
            yield from _leaves(one, f"{code}[{index}]", depth + 1)
    elif depth < DEPTH and hasattr(batch, "__dict__"):
        for name, one in vars(batch).items():
            yield from _leaves(one, f"{code}.{name}", depth + 1)


def _targets(batch: Any, leaves: Mapping[str, Tensor]) -> str:
    if isinstance(batch, tuple | list):
        return "batch[1]" if len(batch) == 2 and "batch[1]" in leaves else ""
    named = (code for key in NAMES for code in (f"batch[{key!r}]", f"batch.{key}"))
    return next((code for code in named if code in leaves), "")


def _code(argument: Any, leaves: Mapping[str, Tensor], targets: str) -> str | None:
    """Where in the batch an argument is from: the same memory, the same numbers, or the only such shape."""
    if argument is None or isinstance(argument, bool | int | float | str):
        return repr(argument)
    if not isinstance(argument, Tensor):
        return None
    for code, leaf in leaves.items():
        if leaf.numel() == argument.numel() and leaf.data_ptr() == argument.data_ptr():
            return _viewed(code, leaf, argument)
    alike = [code for code, leaf in leaves.items() if leaf.shape == argument.shape]
    for code in alike:
        leaf = leaves[code]
        if leaf.dtype == argument.dtype and leaf.device == argument.device and equal(leaf, argument):
            return code
    alike = [code for code in alike if code != targets]
    return alike[0] if len(alike) == 1 else None


def _number(argument: Any) -> bool:
    return isinstance(argument, Tensor) and not argument.ndim


def _viewed(code: str, leaf: Tensor, argument: Tensor) -> str | None:
    """The view of a leaf that an argument is."""
    if (leaf.shape, leaf.stride()) == (argument.shape, argument.stride()):
        return code
    if not (leaf.is_contiguous() and argument.is_contiguous()):
        return None  # turned round
    if argument.ndim == 2 and len(leaf) == len(argument):
        return f"{code}.flatten(1)"
    return f"{code}.reshape({', '.join(map(str, (-1, *argument.shape[1:])))})"


def _keywords(batch: Any, codes: Mapping[Any, str]) -> str:
    if codes and all(code == f"batch[{key!r}]" for key, code in codes.items()):
        return f"{{name: batch[name] for name in {tuple(codes)!r}}}"
    if codes and all(code == f"batch[0][{key!r}]" for key, code in codes.items()):
        return "batch[0]" if set(batch[0]) == set(codes) else f"{{n: batch[0][n] for n in {tuple(codes)!r}}}"
    return "{" + ", ".join(f"{key!r}: {code}" for key, code in codes.items()) + "}"
