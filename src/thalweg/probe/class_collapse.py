"""Neural collapse: how far features have shrunk to their class means, and the means to a simplex."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_count, check_names
from thalweg.probe._batches import pair, take
from thalweg.probe._class_sums import ClassSums, Head, Scatter, off_frame, rows_of, sums_of
from thalweg.probe._hidden import activations_heard
from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import modules_named
from thalweg.probe._units import overhear
from thalweg.probe._wrapped import bare, on_every_rank, one_state
from thalweg.probe.cost import costs

__all__ = ["NeuralCollapse", "class_variability", "neural_collapse", "neural_collapse_of"]


@dataclass(frozen=True)
class NeuralCollapse:
    """The four signs of collapse, each 0 when it is complete; K classes.

    Attributes:
        nc1: within-class scatter seen through the pseudoinverse of that between classes,
            Tr(S_W pinv(S_B)) / K.
        variability: Tr S_W / Tr S_B, the same in one number that needs no inverse (arXiv 2210.16658).
        nc2: Frobenius distance of the cosines between centred class means from those of a simplex: 1 on
            the diagonal, -1/(K-1) beside it.
        nc2_norms: standard deviation of the centred means' norms over their mean.
        frame: Frobenius distance of the cosines between class means, not centred, from the identity: what a
            ridge regression head without a bias drives to 0 instead of ``nc2``.
        nc3: Frobenius distance between the head's weight and the centred means, each of norm 1; None
            without a head.
        nc4: share of examples for which the head and the nearest class mean disagree; None without a head.
        layers: layer to its variability, in order of running; infinite where class means coincide, NaN where
            all features do; empty if only features were given.
        classes: how many have examples.
        examples: how many were counted.
    """

    nc1: float
    variability: float
    nc2: float
    nc2_norms: float
    frame: float
    nc3: float | None
    nc4: float | None
    layers: dict[str, float]
    classes: int
    examples: int


def _answer(
    sums: ClassSums, scatter: Scatter, head: Head | None, layers: dict[str, float], group: Any
) -> NeuralCollapse:
    classes, centred = len(sums.means), sums.centred
    norms = torch.linalg.vector_norm(centred, dim=1)
    nc1, nc4 = scatter.summed(group, sums.examples)
    nc3 = None
    if head is not None:
        weight = head.weight[sums.present]
        nc3 = (weight / weight.norm() - centred / centred.norm()).norm().item()
    return NeuralCollapse(
        nc1=nc1,
        variability=sums.variability,
        nc2=off_frame(centred, -1 / (classes - 1)),
        nc2_norms=(norms.std(correction=0) / norms.mean()).item(),
        frame=off_frame(sums.means, 0.0),
        nc3=nc3,
        nc4=nc4 if head is not None else None,
        layers=layers,
        classes=classes,
        examples=sums.examples,
    )


@torch.no_grad()
@costs(0, 0, memory="the features in float64")
def class_variability(
    features: Tensor, labels: Tensor, *, ignore_index: int = -100, group: Any = None
) -> float:
    r"""Within-class over between-class scatter, :math:`\mathrm{Tr}\,S_W / \mathrm{Tr}\,S_B`.

    :math:`S_W` is the mean over all examples of the scatter about their class mean, :math:`S_B` that over the
    classes of the scatter of the class means about their mean (arXiv 2210.16658, where this number provably
    falls along the flow of a model of features, to zero).

    Args:
        features: shape (..., width).
        labels: int64, shape (...).
        ignore_index: label of rows that do not count.
        group: process group whose members each hold a part of the rows and all call this; None for one.

    Raises:
        ValueError: shapes do not fit, features are not finite, fewer than two classes have examples, or their
            means coincide.
    """
    return sums_of(features, labels, ignore_index, group)[0].variability


@torch.no_grad()
@costs(0, 0, memory="the features in float64")
def neural_collapse_of(
    features: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    group: Any = None,
) -> NeuralCollapse:
    """NC1 to NC4 from features and, for the last two, the head that reads them.

    Args:
        features, labels, ignore_index, group: as for :func:`class_variability`.
        weight: shape (classes, width), a row a class.
        bias: shape (classes,).

    Raises:
        ValueError: as :func:`class_variability`; a head that does not fit.
    """
    sums, rows, wanted = sums_of(features, labels, ignore_index, group)
    head = None
    if weight is not None:
        if weight.dim() != 2 or weight.shape[1] != rows.shape[1] or weight.shape[0] <= int(sums.present[-1]):
            raise ValueError(
                f"weight must have shape (classes, {rows.shape[1]}) with a row for class "
                f"{int(sums.present[-1])}, got {tuple(weight.shape)}"
            )
        head = Head(weight.detach().double(), None if bias is None else bias.detach().double())
    scatter = Scatter(sums, head)
    scatter.add(rows, wanted)
    return _answer(sums, scatter, head, {}, group)


@torch.no_grad()
@costs(2, 0, memory="a mean a class for each layer, and two copies of one layer's features in float64")
def neural_collapse(
    model: nn.Module,
    data: tuple[Any, Tensor],
    *,
    classifier: str | None = None,
    layers: Iterable[str] | None = None,
    batch_size: int = 512,
    ignore_index: int = -100,
    group: Any = None,
) -> NeuralCollapse:
    r"""NC1 to NC4 of the features that enter the last linear layer, and the variability of every layer.

    Measures of Papyan, Han and Donoho (arXiv 2008.08186) and of the perturbation analysis (arXiv 2210.16658),
    which looks at the profile over depth: a layer with a higher variability than the one before undoes
    separation. Training features with ``variability`` below 0.05 and a tenfold one on test data transfer
    badly. Unbalanced classes: the global mean is the mean of the class means. Use as many examples of each
    class as you can, more than there are features for a faithful ``nc1``.

    Args:
        model: run twice over the data in evaluation mode without gradients; its ``training`` flags are put
            back. Behind DDP or ``torch.compile`` the module itself is run.
        data: (inputs, labels): inputs a tensor, a tuple of positional or a mapping of keyword arguments;
            labels int64 of shape (examples,), or (examples, time) for a class at every position.
        classifier: name of the last ``nn.Linear``; by default the one whose output is the model's output.
        layers: names of modules for the profile; by default every activation before the classifier, module or
            function call, named as for :func:`dormant_neurons`, that has a row for each label: not what an
            expert makes of a part of them. Features are flattened to a row an example (or position).
        batch_size: examples a forward pass.
        ignore_index: label of positions that do not count.
        group: process group whose members each hold a part of the data and all call this; None for one.

    Raises:
        ValueError: no classifier is found or it is no ``nn.Linear``; a layer is unknown or does not run;
            shapes do not fit; fewer than two classes have examples, or their means coincide.
    """
    check_count("batch_size", batch_size)
    model = bare(model)

    def checked() -> tuple[Any, Tensor]:
        inputs, labels = pair("data", data)
        if not labels.dim() or not len(labels):
            raise ValueError("data must hold at least one example, got none")
        return inputs, labels

    inputs, labels = on_every_rank(checked, group, model, "data")
    with one_state(model, group):
        return _collapse(model, inputs, labels, classifier, layers, batch_size, ignore_index, group)


def _collapse(
    model: nn.Module,
    inputs: Any,
    labels: Tensor,
    classifier: str | None,
    layers: Iterable[str] | None,
    batch_size: int,
    ignore_index: int,
    group: Any,
) -> NeuralCollapse:
    parts = [slice(start, start + batch_size) for start in range(0, len(labels), batch_size)]
    batches = [(take(inputs, part, len(labels)), labels[part]) for part in parts]

    def first() -> tuple[str, nn.Linear, dict[str, ClassSums]]:
        return _sums(model, batches, classifier, layers, ignore_index)

    name, head, found = on_every_rank(first, group, model)
    # Of a layer that is silent nothing can be said, and of the others no less.
    summed = {run: sums.over(group, coincide=run != name) for run, sums in found.items()}
    bias = None if head.bias is None else head.bias.detach().double()
    last, top = Head(head.weight.detach().double(), bias), int(summed[name].present[-1])
    if len(last.weight) <= top:
        raise ValueError(f"labels must be below the {len(last.weight)} outputs of {name!r}, got {top}")
    scatter = Scatter(summed[name], last)
    for batch, wanted in batches:

        def measure(run: str, output: Tensor, wanted: Tensor = wanted) -> None:
            scatter.add(*rows_of(run, output, wanted, ignore_index))

        overhear(model, batch, {}, {name: head}, measure)
    layered = {run: sums.variability for run, sums in summed.items()}
    return _answer(summed[name], scatter, last, layered, group)


def _sums(
    model: nn.Module,
    batches: list[tuple[Any, Tensor]],
    classifier: str | None,
    layers: Iterable[str] | None,
    ignore_index: int,
) -> tuple[str, nn.Linear, dict[str, ClassSums]]:
    """The classifier's name, itself, and the sums of its inputs and of every layer, of this process."""
    name = classifier or _classifier(model, batches[0][0], len(batches[0][1]))
    head = modules_named(model, [name])[name]
    if not isinstance(head, nn.Linear):
        raise ValueError(f"classifier must name an nn.Linear, got {name!r} ({type(head).__name__})")
    profile = {} if layers is None else modules_named(model, check_names("layers", layers))
    profile.pop(name, None)
    found: dict[str, ClassSums] = {}
    headed: set[str] = set()  # the head, once it has run
    for batch, wanted in batches:

        def collect(run: str, output: Tensor, wanted: Tensor = wanted) -> None:
            headed.update({run} & {name})
            if run == name and output.dim() > wanted.dim() + 1:
                raise ValueError(
                    f"labels must be classes of every position that {name!r} reads, since its inputs have "
                    f"shape {tuple(output.shape)}, got labels {tuple(wanted.shape)}"
                )
            found.setdefault(run, ClassSums()).add(*rows_of(run, output, wanted, ignore_index))

        def collect_any(run: str, output: Tensor, wanted: Tensor = wanted) -> None:
            # What follows the head is no feature, nor is what has other examples: an expert's, a table's.
            places = wanted.dim()
            if not headed and output.dim() > places and output.shape[:places] == wanted.shape:
                collect(run, output)

        headed.clear()
        with activations_heard(model, collect_any) if layers is None else nullcontext():
            overhear(model, batch, profile, {name: head}, collect)
    if f"{name}[1]" in found:
        raise ValueError(f"classifier must run once a forward pass, got more runs of {name!r}")
    return name, head, found


def _classifier(model: nn.Module, batch: Any, examples: int) -> str:
    """The linear layer whose output the model returns as it is."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    outputs: dict[str, Tensor] = {}

    def note(run: str, output: Tensor) -> None:
        outputs[run] = output

    result = (
        overhear(model, take(batch, slice(1), examples), linear, {}, note, all_run=False) if linear else None
    )
    result = logits_of(result)
    for name, output in outputs.items():
        if isinstance(result, Tensor) and output.data_ptr() == result.data_ptr():
            return name
    raise ValueError("classifier must name the last nn.Linear where its output is not the model's, got None")
