"""A multilayer perceptron whose activations are modules, so that hooks see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from thalweg._core.checks import check_choice, check_count
from thalweg.tasks._seeds import seeded

__all__ = ["MLP"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


class MLP(nn.Sequential):
    """Linear layers with an activation between them; inputs [n, sizes[0]], outputs [n, sizes[-1]].

    Args:
        sizes: widths from input to output, at least two: ``(64, 128, 10)`` has one hidden layer.
        activation: a name (relu, leaky_relu, elu, gelu, silu, softplus, tanh, sigmoid, identity) or anything
            that makes a module when called without arguments.
        bias: whether the linear layers have biases.
        norm: None, or ``"layer"`` or ``"batch"``: a normalisation before each activation.
        seed: weights that depend on this number only, with the global random state left alone; None draws
            from the global state.
        init: ``"torch"`` keeps torch's default; ``"xavier"`` is Xavier uniform (Glorot & Bengio 2010) and
            ``"he"`` is He normal on the fan-in with gain √2 (arXiv 1502.01852), both with zero biases.

    Raises:
        ValueError: for a bad argument.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Callable[[], nn.Module] = "relu",
        bias: bool = True,
        norm: str | None = None,
        seed: int | None = None,
        init: str = "torch",
    ) -> None:
        widths = list(sizes)
        if len(widths) < 2:
            raise ValueError(f"sizes must have at least an input and an output width, got {sizes!r}")
        for width in widths:
            check_count("sizes", width)
        if isinstance(activation, str):
            activation = ACTIVATIONS[check_choice("activation", activation, ACTIVATIONS)]
        if norm is not None:
            check_choice("norm", norm, ("layer", "batch"))
        check_choice("init", init, ("torch", "xavier", "he"))

        layers: list[nn.Module] = []
        with seeded(seed):
            for number, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
                layers.append(_linear(fan_in, fan_out, bias, init))
                if number == len(widths) - 1:
                    break
                if norm is not None:
                    layers.append(nn.LayerNorm(fan_out) if norm == "layer" else nn.BatchNorm1d(fan_out))
                layers.append(activation())
        super().__init__(*layers)


def _linear(fan_in: int, fan_out: int, bias: bool, init: str) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    if init == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    elif init == "he":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if bias and init != "torch":
        nn.init.zeros_(layer.bias)
    return layer
