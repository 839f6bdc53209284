"""Local complexity (arXiv 2402.15555): how densely the linear regions of a network lie around points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_count, check_names, check_positive
from thalweg.probe._batches import take
from thalweg.probe._hidden import overhear_inputs
from thalweg.probe._quiet import modules_named
from thalweg.probe._units import overhear
from thalweg.probe._wrapped import bare, of_all_processes, on_every_rank, one_state, over_processes
from thalweg.probe.cost import costs

__all__ = ["LocalComplexity", "local_complexity"]

VERTICES = 40

NAME_THEM = (
    "name the modules that return pre-activations with layers= (inputs_of= of the other probes hears "
    "activations), got layers=None"
)


OTHER_ROWS = (
    "layer {!r} must have the points first, and what belongs to one together, got {}; name layers that have, "
    "and return pre-activations, with layers="
)


@dataclass(frozen=True)
class LocalComplexity:
    """How many hidden units switch within a small polytope about each point.

    Attributes:
        total: units that switch, over all layers; mean over the points.
        layers: layer to the number of its units that switch; mean over the points.
        density: layer to the share of its units that switch, in [0, 1]; mean over the points.
        points: units that switch about each point, shape (points,); of this process.
        radius, vertices: as given.
    """

    total: float
    layers: dict[str, float]
    density: dict[str, float]
    points: Tensor
    radius: float
    vertices: int


def _directions(size: int, count: int, seed: int, like: Tensor) -> Tensor:
    """Orthonormal rows, uniformly turned, shape (count, size)."""
    source = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(size, count, generator=source, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.T.to(like)


def _around(points: Tensor, steps: Tensor) -> Tensor:
    """All vertices of all points: the polytope's index runs fastest, shape (points * vertices, ...)."""
    _check_rounding(points, steps)
    return (points[:, None] + steps.view(1, len(steps), *points.shape[1:])).flatten(0, 1)


def _check_rounding(points: Tensor, steps: Tensor) -> None:
    """A step that points round away leaves no polytope, and counts that look like those of a calm region."""
    step = steps[0].view(points.shape[1:])
    wide = torch.promote_types(points.dtype, torch.float32)
    lost = ((points + step).to(wide) - points.to(wide) - step.to(wide)).flatten(1)
    size = torch.linalg.vector_norm(step.to(wide))
    if bool((torch.linalg.vector_norm(lost, dim=1) > size / 2).any()):
        raise ValueError(
            f"radius must be larger than what {points.dtype} rounds points to, got {size.item():.3g}; give "
            "model and points in a wider type, or centre the points"
        )


@contextmanager
def _displacing(module: nn.Module, steps: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let ``module`` return the vertices about what it returns, for an input with each example repeated."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise ValueError(f"at must name a module that returns one tensor, got {type(output).__name__}")
        moves = steps(output)
        repeated = output.unflatten(0, (-1, len(moves)))
        _check_rounding(repeated[:, 0], moves)
        return (repeated + moves.view(1, len(moves), *output.shape[1:])).flatten(0, 1)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@costs(VERTICES, 0, memory="the vertices of 64 points and one layer's signs for them")
def local_complexity(
    model: nn.Module,
    points: Any,
    *,
    radius: float,
    vertices: int | None = None,
    layers: Iterable[str] | None = None,
    at: str | None = None,
    chunk: int = 64,
    seed: int = 0,
    group: Any = None,
) -> LocalComplexity:
    r"""Units whose pre-activation changes sign between the vertices of a cross-polytope (arXiv 2402.15555).

    The vertices are :math:`x \pm r v_j` with orthonormal :math:`v_j`, the same for all points. For the first
    layer a switch means that the unit's hyperplane cuts the polytope, exactly; further in, where the polytope
    arrives bent, it is an approximation. For smooth activations the sign is a proxy. Compare the numbers at
    training, test and random points, over the logarithm of time: a late fall at the training points is when
    regions leave for the decision boundary.

    Args:
        model: run in evaluation mode without gradients on every vertex; its ``training`` flags are put back.
            Behind DDP or ``torch.compile`` the module itself is run.
        points: float tensor (points, ...). With ``at``, any input: a tensor, a tuple of positional or a
            mapping of keyword arguments, whose tensors have the points first.
        radius: :math:`r`, in units of the input: a tenth of the typical distance between points or less. Too
            small a radius gives zeros, and one that is lost to rounding an error.
        vertices: even, 2 to twice the size of a point; by default 40, or twice that size if it is less.
        layers: names of modules whose outputs are pre-activations, such as linear layers before a functional
            ReLU. By default the inputs of every activation, module or function, named as for
            :func:`dormant_neurons`, that of the output too. Each entry counts as a unit: in a convolution
            each channel at each place, in a transformer at each position, also where (points * positions,
            units) have been flattened.
        at: name of a module whose output the polytope is laid about, instead of the input: the embedding of a
            model of tokens.
        chunk: points a forward pass.
        seed: of the directions; the global random state is left alone.
        group: process group whose members each hold a part of the points and all call this; None for one.

    Raises:
        ValueError: a bad argument; points that are not finite floats; no layer, an unknown one, one that does
            not run or does not have the points first, such as an expert that is given some of them.
    """
    radius = check_positive("radius", radius)
    if vertices is not None:
        check_count("vertices", vertices, low=2)
    check_count("chunk", chunk)
    model = bare(model)
    count = _count(points, at)
    outputs = {} if layers is None else modules_named(model, check_names("layers", layers))

    if vertices is None:
        size = on_every_rank(lambda: _size(model, points, at, count), group, model)
        vertices = min(VERTICES, 2 * size)

    def steps(like: Tensor) -> Tensor:
        size = like[0].numel()
        if vertices % 2 or vertices > 2 * size:
            raise ValueError(f"vertices must be even and at most {2 * size}, twice the size, got {vertices}")
        moves = radius * _directions(size, vertices // 2, seed, like)
        return torch.cat([moves, -moves])

    switched: dict[str, list[Tensor]] = {}
    units: dict[str, int] = {}
    last: dict[str, Tensor] = {}

    def compare(run: str, values: Tensor, here: int) -> None:
        if not len(values) or len(values) % (here * vertices):
            raise ValueError(OTHER_ROWS.format(run, f"{len(values)} rows for {here * vertices}"))
        signs = values.sign().reshape(here, vertices, -1)
        if not bool(signs.isfinite().all()):
            raise ValueError(f"layer {run!r} must return finite pre-activations, got NaN")
        switched.setdefault(run, []).append((signs != signs[:, :1]).any(1).sum(1))
        units[run] = signs.shape[2]
        if (rows := len(values) // here) > vertices and run not in last:
            last[run] = values[-rows:].clone()

    def confirm(run: str, values: Tensor, here: int) -> None:
        """Several rows a vertex, such as its tokens, stand together as taken for granted."""
        if run in last and not _alike(values, last[run]):
            raise ValueError(OTHER_ROWS.format(run, "another order"))

    def run_on(start: int, here: int, hear: Callable[[str, Tensor, int], None]) -> None:
        part, module = take(points, slice(start, start + here), count), None
        if at is None:
            batch = _around(part, steps(part))
        else:
            module = modules_named(model, [at])[at]
            batch = take(part, torch.arange(here).repeat_interleave(vertices), here)
        with _displacing(module, steps) if module is not None else nullcontext():
            if layers is None:
                overhear_inputs(model, batch, lambda run, _, values: hear(run, values, here), NAME_THEM)
            else:
                overhear(model, batch, outputs, {}, lambda run, values: hear(run, values, here))

    def run_on_all() -> None:
        for start in range(0, count, chunk):
            run_on(start, here := min(chunk, count - start), compare)
            if not start and last:
                run_on(here - 1, 1, confirm)

    with one_state(model, group):
        on_every_rank(run_on_all, group, model)
    counts = {run: torch.cat(parts) for run, parts in switched.items()}
    means, sizes = _means(counts, units, group)
    return LocalComplexity(
        total=sum(means.values()),
        layers=means,
        density={run: mean / sizes[run] for run, mean in means.items()},
        points=torch.stack(list(counts.values())).sum(0),
        radius=radius,
        vertices=vertices,
    )


def _alike(some: Tensor, others: Tensor) -> bool:
    """Equal, but for how sums of other batches are rounded."""
    close = max(1e-3, 16 * torch.finfo(others.dtype).eps)
    size = others.abs().max().item()
    return some.shape == others.shape and torch.allclose(some, others, rtol=close, atol=close * size)


def _means(
    counts: dict[str, Tensor], units: dict[str, int], group: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean number and number of units of each layer, over the points of the processes in which it ran."""
    own = {
        run: torch.stack([t.double().sum(), *t.new_tensor([len(t), units[run] * len(t)]).double()])
        for run, t in counts.items()
    }
    means, sizes = {}, {}
    for run, packed in of_all_processes(own, group).items():
        switched, points, size = over_processes(packed, group).tolist()
        means[run], sizes[run] = switched / points, size / points
    return means, sizes


def _size(model: nn.Module, points: Any, at: str | None, count: int) -> int:
    """Entries of what the polytope is laid about."""
    if at is None:
        return points[0].numel()
    sizes: list[int] = []
    module = modules_named(model, [at])
    overhear(model, take(points, slice(0, 1), count), module, {}, lambda _, t: sizes.append(t[0].numel()))
    return sizes[0]


def _count(points: Any, at: str | None) -> int:
    """How many points there are."""
    if at is None:
        if not isinstance(points, Tensor) or not points.is_floating_point() or points.dim() < 2:
            got = points.dtype if isinstance(points, Tensor) else type(points).__name__
            raise ValueError(f"points must be a float tensor (points, ...), or at= be given, got {got}")
        if not len(points) or not bool(points.isfinite().all()):
            raise ValueError("points must be finite, at least one, got none or NaN or infinity")
        return len(points)
    tensors = [points] if isinstance(points, Tensor) else list(_values(points))
    sizes = {len(t) for t in tensors if isinstance(t, Tensor) and t.dim()}
    if not sizes or not max(sizes):
        raise ValueError("points must hold a tensor of at least one point, got none")
    return max(sizes)


def _values(points: Any) -> Iterable[Any]:
    return points.values() if hasattr(points, "values") else points
