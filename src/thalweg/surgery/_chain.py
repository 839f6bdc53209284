"""Which layer makes a unit and which one reads it, found by following the model's symbolic trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg._core.checks import nearest
from thalweg._core.traced import UNITWISE_METHODS, UnitTracer, flattens, reads_shape

Layer = nn.Linear | nn.Conv2d
Norm = _BatchNorm | nn.LayerNorm

# Each of these treats every unit alone, and keeps a zero weight behind it harmless.
UNITWISE = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
    nn.CELU,
    nn.Dropout,
    nn.Dropout2d,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.MaxPool2d,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
)
UNITWISE_FUNCTIONS = {
    functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool2d,
    functional.avg_pool2d,
    functional.dropout,
    functional.dropout2d,
    functional.elu,
    functional.gelu,
    functional.hardswish,
    functional.leaky_relu,
    functional.max_pool2d,
    functional.mish,
    functional.relu,
    functional.relu6,
    functional.selu,
    functional.sigmoid,
    functional.silu,
    functional.softplus,
    functional.tanh,
    torch.relu,
    torch.sigmoid,
    torch.tanh,
}
POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d)
POOLING_FUNCTIONS = {
    functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool2d,
    functional.avg_pool2d,
    functional.max_pool2d,
}


@dataclass(frozen=True)
class Link:
    """Units made by one layer and read by one other.

    Attributes:
        units: number of units.
        columns_per_unit: inputs of the consumer that one unit feeds: height x width behind a flattening.
        norms: normalisations with one entry a unit, between the two.
    """

    producer_name: str
    producer: Layer
    consumer_name: str
    consumer: Layer
    norms: tuple[Norm, ...]
    units: int
    columns_per_unit: int


def _trace(model: nn.Module) -> fx.Graph:
    if isinstance(model, nn.Linear | nn.Conv2d):
        raise ValueError(f"model must have a layer that reads the units, got a single {type(model).__name__}")
    try:
        return UnitTracer().trace(model)
    except Exception as error:
        # Whatever the model's own code raises on a symbolic input ends here.
        raise ValueError(
            f"model must be traceable by torch.fx, got {type(model).__name__} with "
            f"{type(error).__name__}: {error}"
        ) from error


def _calls(graph: fx.Graph) -> dict[str, fx.Node]:
    """Module runs by name; the second run of a module is ``name[1]``."""
    runs: dict[str, fx.Node] = {}
    counts: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            count = counts.get(node.target, 0)
            runs[f"{node.target}[{count}]" if count else node.target] = node
            counts[node.target] = count + 1
    return runs


def _unitwise(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_method":
        return node.target in UNITWISE_METHODS
    own = getattr(module, "unitwise", False)
    return bool(own) or isinstance(module, UNITWISE) or node.target in UNITWISE_FUNCTIONS


def _pools(node: fx.Node, module: nn.Module | None) -> bool:
    return isinstance(module, POOLING) or node.target in POOLING_FUNCTIONS


def _norm(module: nn.Module | None) -> bool:
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1
    return isinstance(module, _BatchNorm)


def _kind(node: fx.Node, module: nn.Module | None) -> str:
    """A node as an error message names it."""
    return (
        f"module {node.target!r} ({type(module).__name__})"
        if module is not None
        else f"operation {node.name!r}"
    )


class _Walk:
    """Steps along the trace from one layer's units to the neighbouring weights."""

    def __init__(self, model: nn.Module, name: str):
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.name = name
        self.norms: list[Norm] = []
        self.flattened = False
        self.pool: fx.Node | None = None

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def refuse(self, node: fx.Node, why: str) -> ValueError:
        return ValueError(f"cannot reset {self.name!r}: {_kind(node, self.module(node))} {why}")

    def passes(self, node: fx.Node) -> bool:
        """Whether units go through ``node`` one by one; notes normalisations and flattening."""
        module = self.module(node)
        if _norm(module):
            self.norms.append(module)  # type: ignore[arg-type]
            return True
        if flattens(node, module):
            self.flattened = True
            return True
        if _pools(node, module):
            self.pool = node
        return _unitwise(node, module)

    def back(self, node: fx.Node) -> fx.Node:
        """The layer that makes the units that ``node`` puts out."""
        while not isinstance(self.module(node), nn.Linear | nn.Conv2d):
            if node.op in ("placeholder", "get_attr") or not self.passes(node):
                raise self.refuse(node, "is not understood between a Linear or Conv2d and its units")
            node = node.all_input_nodes[0]
            self.only_reader(node)
        return node

    def forth(self, node: fx.Node) -> fx.Node:
        """The layer that reads the units that ``node`` puts out."""
        node = self.only_reader(node)
        while not isinstance(self.module(node), nn.Linear | nn.Conv2d):
            if node.op == "output":
                raise self.refuse(node, "is reached without a Linear or Conv2d that reads the units")
            if not self.passes(node):
                raise self.refuse(node, "is not understood between the units and a Linear or Conv2d")
            node = self.only_reader(node)
        return node

    def only_reader(self, node: fx.Node) -> fx.Node:
        readers = [user for user in node.users if not reads_shape(user)]
        if len(readers) != 1:
            raise self.refuse(node, f"must be read once, got {len(readers)} readers (a skip connection?)")
        return readers[0]


def _plain(walk: _Walk, node: fx.Node, runs: dict[str, fx.Node], grouped: bool) -> Any:
    """The layer at ``node``, if its weight is its own."""
    layer = walk.module(node)
    assert layer is not None
    if type(layer) not in (nn.Linear, nn.Conv2d) or nn.utils.parametrize.is_parametrized(layer):
        raise walk.refuse(node, "must be a plain Linear or Conv2d, got one that is derived or parametrized")
    if f"{node.target}[1]" in runs:
        raise walk.refuse(node, "must run once, got several runs with one weight")
    if grouped and isinstance(layer, nn.Conv2d) and layer.groups > 1:
        raise walk.refuse(node, f"must not be grouped, got groups={layer.groups}")
    return layer


def _link(model: nn.Module, name: str, runs: dict[str, fx.Node]) -> Link:
    if name not in runs:
        raise ValueError(f"scores must name modules that the model runs, got {name!r}{nearest(name, runs)}")
    walk = _Walk(model, name)
    source = walk.back(runs[name])
    if walk.flattened:
        raise walk.refuse(runs[name], "must score the units before they are flattened")
    sink = walk.forth(runs[name])
    producer, consumer = _plain(walk, source, runs, False), _plain(walk, sink, runs, True)
    convolved = isinstance(producer, nn.Conv2d)
    units = producer.out_channels if convolved else producer.out_features
    inputs = consumer.in_channels if isinstance(consumer, nn.Conv2d) else consumer.in_features
    if walk.pool is not None and not convolved:
        raise walk.refuse(walk.pool, "pools over the units of a Linear layer")
    widens = convolved and walk.flattened and isinstance(consumer, nn.Linear)
    if (convolved and isinstance(consumer, nn.Linear) and not walk.flattened) or (
        not convolved and isinstance(consumer, nn.Conv2d)
    ):
        raise walk.refuse(sink, "reads another dimension than that of the units")
    if inputs % units if widens else inputs != units:
        raise walk.refuse(sink, f"must read the {units} units, got {inputs} inputs")
    for norm in walk.norms:
        size = norm.normalized_shape[0] if isinstance(norm, nn.LayerNorm) else norm.num_features
        if size != units or (convolved and isinstance(norm, nn.LayerNorm)):
            raise walk.refuse(
                source, f"is followed by a {type(norm).__name__} over {size}, not over its {units} units"
            )
    return Link(
        producer_name=str(source.target),
        producer=producer,
        consumer_name=str(sink.target),
        consumer=consumer,
        norms=tuple(walk.norms),
        units=units,
        columns_per_unit=inputs // units if widens else 1,
    )


def links(model: nn.Module, names: Iterable[str]) -> dict[str, Link | ValueError]:
    """For each layer name, who makes its units and who reads them, or why that cannot be told.

    The errors name what on the way is not understood; all are the same if the model cannot be traced.
    """
    try:
        runs = _calls(_trace(model))
    except ValueError as error:
        return dict.fromkeys(names, error)
    found: dict[str, Link | ValueError] = {}
    for name in names:
        try:
            found[name] = _link(model, name, runs)
        except ValueError as error:
            found[name] = error
    return found
