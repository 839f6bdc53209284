"""Which layer reads the units of which other one, found by following the model's symbolic trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg._core.checks import nearest
from thalweg._core.traced import UNITWISE_METHODS, UnitTracer, flattens, reads_shape

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

POOLING = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
)
POOLING_FUNCTIONS = {
    *(functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d),
    *(functional.adaptive_max_pool1d, functional.adaptive_max_pool2d, functional.adaptive_max_pool3d),
    *(functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d),
    *(functional.max_pool1d, functional.max_pool2d, functional.max_pool3d),
}
# Each of these treats every unit alone.
UNITWISE = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid),
    *(nn.Mish, nn.ReLU, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity),
)
UNITWISE_FUNCTIONS = {
    *(functional.celu, functional.elu, functional.gelu, functional.hardsigmoid, functional.hardswish),
    *(functional.hardtanh, functional.leaky_relu, functional.logsigmoid, functional.mish, functional.relu),
    *(functional.relu6, functional.selu, functional.sigmoid, functional.silu, functional.softplus),
    *(functional.softsign, functional.tanh, torch.relu, torch.sigmoid, torch.tanh),
    *(functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d),
}


@dataclass(frozen=True)
class Link:
    """Units made by one layer and read by one other.

    Attributes:
        units: number of units.
        columns_per_unit: inputs of the reader that one unit feeds: the positions, behind a flattening.
        norms: normalisations with one entry a unit, between the two.
    """

    maker_name: str
    maker: Layer
    reader_name: str
    reader: Layer
    norms: tuple[nn.Module, ...]
    units: int
    columns_per_unit: int


def _has_matrix(module: nn.Module | None) -> bool:
    return module is not None and any(p.dim() > 1 for p in module.parameters())


class _Model:
    """The model's trace, with its modules by name and what must not be renewed."""

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules())
        try:
            self.graph = UnitTracer().trace(model)
        except Exception as error:
            # Whatever the model's own code raises on a symbolic input ends here.
            raise ValueError(
                f"model must be traceable by torch.fx, got {type(model).__name__} with "
                f"{type(error).__name__}: {error}"
            ) from error
        self.runs = Counter(str(node.target) for node in self.graph.nodes if node.op == "call_module")
        uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        self.shared = {key for key, count in uses.items() if count > 1}

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def kind(self, node: fx.Node) -> str:
        module = self.module(node)
        if module is not None:
            return f"module {node.target!r} ({type(module).__name__})"
        return "the model's output" if node.op == "output" else f"operation {node.name!r}"

    def check_all_known(self) -> None:
        """Refuse modules with weights between units that are none of ours."""
        for node in self.graph.nodes:
            module = self.module(node)
            if not isinstance(module, (*LAYERS, nn.Embedding, type(None))) and _has_matrix(module):
                raise ValueError(
                    f"{self.kind(node)} is not understood: name in layers those whose units may be renewed"
                )

    def makes_output(self, node: fx.Node) -> bool:
        """Whether no other weights stand between ``node`` and the output."""
        seen: set[fx.Node] = set()
        waiting = list(node.users)
        while waiting:
            user = waiting.pop()
            if user not in seen:
                seen.add(user)
                waiting += user.users
        return not any(_has_matrix(self.module(user)) for user in seen)

    def check_layer(self, node: fx.Node, reads: bool) -> Layer:
        """The layer at ``node``, if its weight is its own and dense in what it reads."""
        layer, kind = self.module(node), self.kind(node)
        assert isinstance(layer, LAYERS)
        if type(layer) not in LAYERS or nn.utils.parametrize.is_parametrized(layer):
            raise ValueError(f"{kind} must be a plain Linear or convolution, got one derived or parametrized")
        if self.runs[str(node.target)] > 1:
            raise ValueError(f"{kind} must run once a pass, got {self.runs[str(node.target)]} runs")
        if any(id(p) in self.shared for p in layer.parameters()):
            raise ValueError(f"{kind} must not share its weight with another, got a tied one")
        if any(p.is_meta for p in layer.parameters()):
            raise ValueError(f"{kind} must hold numbers, got a weight on the meta device")
        if any(hasattr(p, "device_mesh") for p in layer.parameters()):
            raise ValueError(f"{kind} must have its whole weight on every rank, got a sharded one")
        if reads and isinstance(layer, CONVOLUTIONS) and layer.groups > 1:
            raise ValueError(f"{kind} must not be grouped, got groups={layer.groups}")
        return layer

    def only_reader(self, node: fx.Node) -> fx.Node:
        readers = [user for user in node.users if not reads_shape(user)]
        if len(readers) != 1:
            raise ValueError(
                f"{self.kind(node)} must be read once, got {len(readers)} readers (a skip connection?)"
            )
        return readers[0]

    def link(self, source: fx.Node) -> Link:
        """From the layer at ``source`` to the one that reads its units."""
        maker = self.check_layer(source, reads=False)
        convolved = isinstance(maker, CONVOLUTIONS)
        units = maker.out_channels if isinstance(maker, CONVOLUTIONS) else maker.out_features
        flattened, norms = False, []
        node = self.only_reader(source)
        while not isinstance(module := self.module(node), LAYERS):
            if node.op == "output":
                raise ValueError(f"{self.kind(source)} makes the model's output, which is never renewed")
            if isinstance(module, (_BatchNorm, nn.LayerNorm)):
                norms.append(self.check_norm(node, module, units, convolved))
            elif flattens(node, module):
                flattened = True
            elif isinstance(module, POOLING) or node.target in POOLING_FUNCTIONS:
                if not convolved:
                    raise ValueError(f"{self.kind(node)} pools over the units of {self.kind(source)}")
            elif not (
                isinstance(module, UNITWISE)
                or getattr(module, "unitwise", False)
                or (isinstance(module, nn.PReLU) and module.num_parameters == 1)
                or node.target in UNITWISE_FUNCTIONS
                or (node.op == "call_method" and node.target in UNITWISE_METHODS)
            ):
                raise ValueError(
                    f"{self.kind(node)} is not understood between {self.kind(source)} and its reader"
                )
            node = self.only_reader(node)
        reader = self.check_layer(node, reads=True)
        inputs = reader.in_channels if isinstance(reader, CONVOLUTIONS) else reader.in_features
        widens = convolved and flattened
        if isinstance(reader, CONVOLUTIONS) != (convolved and not flattened):
            raise ValueError(
                f"{self.kind(node)} reads another dimension than that of the units of {self.kind(source)}"
            )
        if inputs % units if widens else inputs != units:
            raise ValueError(
                f"{self.kind(node)} must read the {units} units of {self.kind(source)}, got {inputs} inputs"
            )
        ends = str(source.target), maker, str(node.target), reader
        return Link(*ends, tuple(norms), units, inputs // units if widens else 1)

    def check_norm(self, node: fx.Node, norm: nn.Module, units: int, convolved: bool) -> nn.Module:
        over_units = (
            norm.normalized_shape == (units,) and not convolved
            if isinstance(norm, nn.LayerNorm)
            else norm.num_features == units
        )
        if not over_units:
            raise ValueError(f"{self.kind(node)} must have one entry for each of {units} units, got {norm}")
        if self.runs[str(node.target)] > 1 or any(id(p) in self.shared for p in norm.parameters()):
            raise ValueError(f"{self.kind(node)} must be one layer's own, got one that is shared")
        return norm


def hidden_links(model: nn.Module, names: Iterable[str] | None) -> dict[str, Link]:
    """For each layer called in ``names``, in the order in which they run, who reads its units.

    None is for every linear and convolutional layer but those that make the output.

    Raises:
        ValueError: the model cannot be traced, has no hidden layer or something is not understood.
    """
    traced = _Model(model)
    layers: dict[str, fx.Node] = {}
    for node in traced.graph.nodes:
        if isinstance(traced.module(node), LAYERS):
            layers.setdefault(str(node.target), node)
    if names is not None:
        wanted = list(names)
        for name in wanted:
            if name not in layers:
                raise ValueError(
                    f"layers must name linear or convolutional layers that the model runs, got {name!r}"
                    f"{nearest(str(name), layers)}"
                )
        found = {name: traced.link(node) for name, node in layers.items() if name in wanted}
    else:
        traced.check_all_known()
        found = {name: traced.link(node) for name, node in layers.items() if not traced.makes_output(node)}
    if not found:
        raise ValueError("model must have a hidden linear or convolutional layer, got none")
    return found
