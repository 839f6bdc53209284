"""What each operation's backward node knows about the per-example gradients of its parameter.

A handler is given the node, which of its inputs is the parameter, and the gradient of its output; it answers
with a form at that input, or None where it has no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from torch import Tensor
from torch.nn import functional

from thalweg.probe._example_forms import Dense, Form, Outer, wide
from thalweg.probe._example_graph import Border, Dim, Graph, Node, by_example
from thalweg.probe._example_shared import Rows

Handler = Callable[[Graph, Border, Tensor], "Form | None"]
VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")


def form_at(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    """Per-example gradients at the border, as a form of the shape of what crosses it."""
    return HANDLERS[border.node.name()](graph, border, grad)


def _out(graph: Graph, border: Border) -> Dim | None:
    return graph.dim(graph.shape(border.node), graph.shape(border.node, few=True))


def _input_shape(graph: Graph, border: Border) -> tuple[int, ...]:
    return graph.shape(border.source, border.output)


def _rows(graph: Graph, node: Node, dim: Dim) -> Callable[[Tensor], Tensor] | None:
    """How a matrix with a row for every position of every example becomes (B, T, n)."""
    if dim.at != 0:
        return None
    if dim.times == 1:
        return lambda t: t[:, None]
    count = graph.shape(node)[0]
    # A flattened batch has been, or will be, a tensor whose shape shows where its examples are.
    for shape, few in _unflattened(graph, node):
        found = graph.dim(shape, few)
        if found is not None and found.times == 1 and prod(shape) == count:
            at = found.at
            return lambda t: t.unflatten(0, shape).movedim(at, 0).flatten(1, len(shape) - 1)
    return lambda t: t.unflatten(0, (-1, dim.times))


def _unflattened(graph: Graph, node: Node) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    found = [
        (graph.shape(parent)[:-1], graph.shape(parent, few=True)[:-1])
        for parent in graph.parents[node]
        if parent.name() in VIEWS
    ]
    for child, _ in node.next_functions:
        if child is not None and child.name() in VIEWS and graph.targets[child] is None:
            before = (tuple(one._saved_self_sym_sizes)[:-1] for one in (child, graph.twin[child]))
            found.append(tuple(before))  # type: ignore[arg-type]
    return found


def _spread(graph: Graph, border: Border, grad: Tensor, shape: Sequence[int] | None = None) -> Dense | None:
    """Undo broadcasting: add up what an entry of the input (seen as ``shape``) went to, by example."""
    dim, own = _out(graph, border), _input_shape(graph, border)
    if dim is None:
        return None
    shape = own if shape is None else shape
    sizes = [1] * (grad.dim() - len(shape)) + list(shape)
    if sizes[dim.at] != 1:
        return None
    values = wide(by_example(grad, dim))
    sizes = [1, *(sizes[: dim.at]), *([1] if dim.times > 1 else []), *sizes[dim.at + 1 :]]
    over = [at for at, size in enumerate(sizes) if at and size == 1 and values.shape[at] > 1]
    values = values.sum(over) if over else values
    return Dense(values.reshape(graph.examples, -1), own)


def _product(graph: Graph, border: Border, left: Tensor, grad: Tensor, scale: float = 1) -> Form | None:
    """``left @ parameter`` has the gradient ``grad``."""
    dim = _out(graph, border)
    arrange = _rows(graph, border.node, dim) if dim else None
    if arrange is None:
        return None
    a, d = wide(arrange(left))[:, None], wide(arrange(grad))[:, None]
    if scale != 1:
        d = d * scale
    sizes = (1, a.shape[2], a.shape[3], d.shape[3])
    return Outer(graph.examples, sizes, _input_shape(graph, border), lambda part: (a[part], d[part]))


def _mm(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    return _product(graph, border, border.node._saved_self, grad) if border.slot == 1 else None


def _addmm(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    node, shape = border.node, _input_shape(graph, border)
    if border.slot == 2:
        return _product(graph, border, node._saved_mat1, grad, node._saved_alpha)
    dim = _out(graph, border)
    arrange = _rows(graph, node, dim) if border.slot == 0 and dim else None
    if arrange is None or prod(shape) != grad.shape[-1]:
        return None
    return Dense(wide(arrange(grad)).sum(1) * node._saved_beta, shape)


def _patches(x: Tensor, kernel: Sequence[int], node: Node) -> Tensor:
    """What each output position of a convolution saw, (n, channels * kernel, positions)."""
    given = [getattr(node, f"_saved_{n}") for n in ("stride", "padding", "dilation")]
    # One number for all dimensions: padding="valid" is saved so.
    stride, padding, dilation = (list(one) * (len(kernel) if len(one) == 1 else 1) for one in given)
    if set(kernel) == {1} and set(stride) == {1} and set(padding) == {0}:
        return x.flatten(2)
    if len(kernel) == 1:
        x, kernel = x[:, :, None], (1, *kernel)
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    if len(kernel) == 2:
        return functional.unfold(x, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
    x = functional.pad(x, [size for size in reversed(padding) for _ in range(2)])
    for at, size in enumerate(kernel):
        reach = dilation[at] * (size - 1) + 1
        x = x.unfold(2 + at, reach, stride[at])[..., :: dilation[at]]
    n, spatial = len(kernel), range(2, 2 + len(kernel))
    seen = x.permute(0, 1, *(at + n for at in spatial), *spatial)
    return seen.reshape(x.shape[0], x.shape[1] * prod(kernel), -1)


def _convolution(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    node, shape, dim = border.node, _input_shape(graph, border), _out(graph, border)
    if dim is None or dim.at != 0 or node._saved_transposed or border.slot == 0:
        return None
    times, flat = dim.times, wide(grad).flatten(2)
    if border.slot == 2:
        return Dense(flat.sum(2).view(-1, times, flat.shape[1]).sum(1), shape)
    groups, x, kernel = node._saved_groups, node._saved_input, shape[2:]

    def grouped(t: Tensor) -> Tensor:
        """(b * times, channels, positions) to (b, groups, times * positions, channels of a group)."""
        split = t.unflatten(1, (groups, -1)).unflatten(0, (-1, times))
        # Without a copy for the usual single one.
        return split[:, 0].mT if times == 1 else split.permute(0, 2, 1, 4, 3).flatten(2, 3)

    def factors(part: slice) -> tuple[Tensor, Tensor]:
        start, stop, _ = part.indices(graph.examples)
        images = slice(start * times, stop * times)
        return grouped(flat[images]), grouped(wide(_patches(x[images], kernel, node)))

    sizes = (groups, times * flat.shape[2], shape[0] // groups, prod(shape[1:]))
    return Outer(graph.examples, sizes, shape, factors, lazy=True)


def _layer_norm(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    node = border.node
    if border.slot == 1:
        grad = (node._saved_input - node._saved_result1).mul_(node._saved_result2).mul_(grad)
    return _spread(graph, border, grad) if border.slot else None


def _channels(
    graph: Graph, border: Border, grad: Tensor, centred: Callable[[], Tensor], scale: Callable[[], Tensor]
) -> Form | None:
    """Scale or shift of dimension 1."""
    if border.slot == 0:
        return None
    if border.slot == 1:
        grad = centred().mul_(grad)
    found = _spread(graph, border, grad, (grad.shape[1], *[1] * (grad.dim() - 2)))
    if border.slot == 1 and found is not None:
        found.values = found.values * scale()
    return found


def _group_norm(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    node = border.node
    x, mean = node._saved_input, node._saved_result1

    def centred() -> Tensor:
        groups = x.reshape(*mean.shape, -1)
        return (groups - mean[..., None]).mul_(node._saved_result2[..., None]).view(x.shape)

    return _channels(graph, border, grad, centred, lambda: x.new_ones(()))


def _batch_norm(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    node = border.node
    if node._saved_training:
        return None
    x, mean = node._saved_input, node._saved_running_mean
    return _channels(
        graph,
        border,
        grad,
        lambda: x - mean.view(-1, *[1] * (grad.dim() - 2)),
        lambda: (node._saved_running_var + node._saved_eps).rsqrt(),
    )


def _embedding(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    node, dim = border.node, _out(graph, border)
    if dim is None or node._saved_scale_grad_by_freq or dim.at == grad.dim() - 1:
        return None
    index = by_example(node._saved_indices, dim).flatten(1) if grad.dim() > 2 or dim.times > 1 else None
    index = node._saved_indices[:, None] if index is None else index
    values = by_example(grad, dim).reshape(*index.shape, grad.shape[-1])
    return Rows(index, values, _input_shape(graph, border)[0], node._saved_padding_idx)


def _sum(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    return _spread(graph, border, grad * border.node._saved_alpha if border.slot == 1 else grad)


def _difference(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    return _spread(graph, border, grad * -border.node._saved_alpha if border.slot == 1 else grad)


def _times(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    other = border.node._saved_other if border.slot == 0 else border.node._saved_self
    return _spread(graph, border, grad * other)


def _expand(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    return _spread(graph, border, grad)


def _repeat(graph: Graph, border: Border, grad: Tensor) -> Form | None:
    dim, shape = _out(graph, border), _input_shape(graph, border)
    if dim is None or grad.numel() != graph.examples * prod(shape):
        return None
    return Dense(by_example(grad, dim).reshape(graph.examples, -1), shape)


HANDLERS: dict[str, Handler] = {
    "AddBackward0": _sum,
    "AddmmBackward0": _addmm,
    "ConvolutionBackward0": _convolution,
    "EmbeddingBackward0": _embedding,
    "ExpandBackward0": _expand,
    "MmBackward0": _mm,
    "MulBackward0": _times,
    "NativeBatchNormBackward0": _batch_norm,
    "NativeGroupNormBackward0": _group_norm,
    "NativeLayerNormBackward0": _layer_norm,
    "RepeatBackward0": _repeat,
    "SubBackward0": _difference,
}
