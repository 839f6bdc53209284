"""Which layers of a model have a weight matrix, which of them are normalised at once, and which read out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import ParametrizationList

from thalweg._core.traced import reads_shape

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Place:
    """Where a layer stands.

    Attributes:
        norm: name of the normalisation that is all that reads it, or None.
        readout: whether no other such layer comes after it.
    """

    norm: str | None
    readout: bool


def one_for_all(parameter: Tensor) -> bool:
    """Whether it has a batch dimension of one, as class tokens and embeddings of positions have."""
    return parameter.dim() > 2 and parameter.shape[0] == 1


def check_understood(model: nn.Module) -> None:
    """Refuse weights in other modules than linear and convolution layers, normalisations and embeddings.

    Raises:
        ValueError: there are some; the module is named.
    """
    known = (*WEIGHTED, *NORMS, nn.Embedding, nn.EmbeddingBag, nn.PReLU, ParametrizationList)
    for name, module in model.named_modules():
        own = module.parameters(recurse=False)
        if not isinstance(module, known) and any(p.dim() > 1 and not one_for_all(p) for p in own):
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) is not understood: it has weights of its own and "
                "is no Linear or convolution; name in layers those to normalise"
            )


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or super().is_leaf_module(m, module_qualified_name)


def places(model: nn.Module) -> dict[str, Place]:
    """Every linear and convolution layer that the model runs, by name, in order.

    Raises:
        ValueError: the model cannot be traced symbolically, or has weights that are not understood.
    """
    check_understood(model)
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever a forward does with a proxy
        why = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"model must be one that torch.fx can trace, or inputs or layers be given: {why}"
        ) from error
    modules = dict(model.named_modules())

    def module(node: fx.Node) -> nn.Module | None:
        return modules[str(node.target)] if node.op == "call_module" else None

    later: dict[fx.Node, bool] = {}  # whether a weighted layer comes after
    for node in reversed(graph.nodes):
        later[node] = any(later[user] or isinstance(module(user), WEIGHTED) for user in node.users)
    found: dict[str, Place] = {}
    for node in graph.nodes:
        if not isinstance(module(node), WEIGHTED):
            continue
        readers = [user for user in node.users if not reads_shape(user)]
        normalised = len(readers) == 1 and isinstance(module(readers[0]), NORMS)
        norm = str(readers[0].target) if normalised else None
        name = str(node.target)
        past = found.get(name, Place(norm, False))
        # A layer that runs twice is normalised if it is so each time, and reads out if it does so once.
        found[name] = Place(norm if past.norm == norm else None, past.readout or not later[node])
    return found
