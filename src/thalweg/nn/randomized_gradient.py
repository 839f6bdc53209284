"""Randomised backward of linear layers (arXiv 2201.13195): a projection of the input is kept, not itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg._core.checks import check_choice, check_count, check_number
from thalweg.nn._forward_mode import in_forward_mode
from thalweg.nn._full_precision import full_precision

__all__ = ["RandomizedLinear", "RandomizedVariance", "randomized_linear_variance"]

DISTRIBUTIONS = ("gaussian", "rademacher", "sparse")
AT_ONCE = 1 << 20  # numbers held at one time


@torch.library.custom_op(
    "thalweg::projection_seed", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def _seed(x: Tensor, weight: Tensor) -> Tensor:
    """A new seed, 0-d, for a compiled layer, of whose tensors nothing is read.

    They are there to tie it to the forward pass: torch.compile draws a bare torch.randint once more in the
    backward one, where S would be another matrix and the weight gradient noise about zero.
    """
    return torch.randint(2**62, ())


@_seed.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.int64)


@torch.library.custom_op("thalweg::random_projection", mutates_args=())
def _project(x: Tensor, seed: Tensor, samples: int, distribution: str) -> Tensor:
    """S x / sqrt(samples) for S of shape (samples, rows of x), in float32 at least; a seed gives one S."""
    source = torch.Generator(x.device).manual_seed(int(seed))
    wide = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros(samples, x.shape[1], dtype=wide, device=x.device)
    if distribution == "sparse":
        # All at once: drawn in pieces they would depend on the width of x, which the passes differ in.
        places = torch.randint(samples, (len(x),), generator=source, device=x.device)
        signs = _signs((len(x), 1), source).to(wide)
        size = max(1, AT_ONCE // max(1, x.shape[1]))
        for place, sign, rows in zip(*(t.split(size) for t in (places, signs, x)), strict=True):
            total.index_add_(0, place, sign * rows.to(wide))
        return total
    with full_precision(x):
        for rows in x.split(max(1, AT_ONCE // samples)):
            shape = (samples, len(rows))
            if distribution == "gaussian":
                s = torch.randn(shape, generator=source, device=x.device, dtype=torch.float32)
            else:
                s = _signs(shape, source)
            total.addmm_(s.to(wide), rows.to(wide))
    return total.div_(math.sqrt(samples))


def _signs(shape: tuple[int, int], source: torch.Generator) -> Tensor:
    return (
        torch.empty(shape, device=source.device, dtype=torch.float32)
        .bernoulli_(0.5, generator=source)
        .mul_(2)
        .sub_(1)
    )


@_project.register_fake
def _(x: Tensor, seed: Tensor, samples: int, distribution: str) -> Tensor:
    return x.new_empty(samples, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


@_project.register_vmap
def _(
    info: Any, in_dims: Any, x: Tensor, seed: Tensor, samples: int, distribution: str
) -> tuple[Tensor, int]:
    def each(tensor: Tensor, dim: int | None) -> tuple[Tensor, ...]:
        return (tensor,) * info.batch_size if dim is None else tensor.unbind(dim)

    pairs = zip(each(x, in_dims[0]), each(seed, in_dims[1]), strict=True)
    return torch.stack([_project(one, its, samples, distribution) for one, its in pairs]), 0


class _Randomized(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, samples: int, distribution: str
    ) -> tuple[Tensor, Tensor]:
        out = functional.linear(x, weight, bias)
        # In the type that nn.Linear would have kept, which under autocast is not that of x.
        kept = _project(x.reshape(-1, x.shape[-1]), seed, samples, distribution).to(out.dtype)
        return out, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, seed, ctx.samples, ctx.distribution = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], weight, seed)
        ctx.input_dtype = x.dtype

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, seed = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        to_input = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_input = (flat @ weight.to(grad.dtype)).view(*grad.shape[:-1], -1).to(ctx.input_dtype)
        if ctx.needs_input_grad[1]:
            projected = _project(flat, seed, ctx.samples, ctx.distribution)
            to_weight = (projected.T @ kept.to(projected.dtype)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            to_bias = flat.sum(0).to(weight.dtype)
        return to_input, to_weight, to_bias, None, None, None


class RandomizedLinear(nn.Linear):
    r"""``nn.Linear`` that keeps a random projection of its input for the backward pass (arXiv 2201.13195).

    Output, input gradient and bias gradient are those of ``nn.Linear``, to the bit. With X the input as
    (rows, in), all leading dimensions together, G the gradient that arrives, and S random of shape (p, rows),

    .. math:: \widehat{dW} = \tfrac1p (SG)^\top (SX), \qquad E\,\widehat{dW} = G^\top X.

    Kept are :math:`SX/\sqrt p`, (p, in) in place of (rows, in), and a seed from which S is drawn again. The
    price is noise in the weight gradient: :func:`randomized_linear_variance`.

    Nothing is saved where another operation keeps the same input: a ReLU before the layer, which keeps its
    output, or a sibling such as the other two of query, key and value, until all are replaced. In evaluation,
    without gradients, in forward mode, or with p >= rows, it is ``nn.Linear``. Gradients of gradients are
    refused; those of single examples by ``torch.func.vmap`` need its ``randomness``. Seeds come from the
    global generator of the CPU: give ranks of a data-parallel run different ones, or they share S.

    Args:
        in_features, out_features, bias: of ``nn.Linear``.
        ratio: p / rows, in (0, 1]; p is rounded down and at least 1.
        least, most: bounds on p; ``most`` None for no bound.
        distribution: of S. ``sparse``: a row of X is added to or taken from one row of SX, which costs next
            to nothing (then without :math:`1/\sqrt p`). Dense ones, the paper's, cost a matrix product of p
            by rows by in, and of out: ``rademacher``, plus or minus 1, with the same variance as ``sparse``;
            ``gaussian``, with a larger one.

    Shape: (..., in) to (..., out).

    Raises:
        ValueError: for a bad argument.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        ratio: float = 0.2,
        least: int = 1,
        most: int | None = None,
        distribution: str = "sparse",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        ratio = check_number("ratio", ratio, 0, 1, "(]")
        check_count("least", least)
        if most is not None:
            check_count("most", most, low=least)
        check_choice("distribution", distribution, DISTRIBUTIONS)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.ratio, self.least, self.most, self.distribution = ratio, least, most, distribution

    @classmethod
    def of(cls, layer: nn.Module, **options: Any) -> RandomizedLinear:
        """The same layer with the same parameters; ``options`` are the keywords above.

        Raises:
            ValueError: ``layer`` is no plain ``nn.Linear``, or an option is bad.
        """
        if type(layer) is not nn.Linear:
            raise ValueError(f"layer must be a plain nn.Linear, got {type(layer).__name__}")
        made = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta", **options)
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def samples(self, rows: int) -> int:
        """p for an input of so many rows."""
        # 0.29 of 100 is 29, whatever the rounding of the product; and in whole numbers, which torch.compile
        # keeps as symbols where the number of rows changes.
        share = Fraction(str(self.ratio))
        part = torch.sym_max(rows * share.numerator // share.denominator, self.least)
        return torch.sym_min(part, rows if self.most is None else torch.sym_min(self.most, rows))

    def forward(self, input: Tensor) -> Tensor:
        exact = not (self.training and torch.is_grad_enabled() and self.weight.requires_grad)
        exact = exact or in_forward_mode()
        rows = input.numel() // max(1, self.in_features)
        if exact or (samples := self.samples(rows)) >= rows:
            return functional.linear(input, self.weight, self.bias)
        compiled = torch.compiler.is_compiling()
        seed = _seed(input.detach(), self.weight.detach()) if compiled else torch.randint(2**62, ())
        out, _ = _Randomized.apply(input, self.weight, self.bias, seed, samples, self.distribution)
        return out

    def extra_repr(self) -> str:
        bounds = f"least={self.least}, most={self.most}"
        return f"{super().extra_repr()}, ratio={self.ratio:g}, {bounds}, distribution={self.distribution!r}"


@dataclass(frozen=True)
class RandomizedVariance:
    """Two variances of a layer's weight gradient, each the expected squared Frobenius distance.

    Attributes:
        projection: of the randomised gradient about the exact gradient of this batch.
        sampling: of the exact gradient about that of all data, as the spread inside this batch estimates it:
            noise that is there anyway. NaN for a single row.
    """

    projection: float
    sampling: float


@torch.no_grad()
def randomized_linear_variance(
    inputs: Tensor, grad_outputs: Tensor, samples: int, distribution: str = "sparse"
) -> RandomizedVariance:
    r"""How much noise :class:`RandomizedLinear` adds to one weight gradient, and what noise there is anyway.

    With rows :math:`x_i, g_i` and :math:`T = \|G^\top X\|^2`, for Gaussian entries

    .. math:: E\|\widehat{dW} - dW\|^2 = (\|X\|^2\|G\|^2 + T) / p,

    and :math:`2\sum_i |x_i|^2|g_i|^2 / p` less for the other two. The sampling noise of B rows, taken as
    independent, is :math:`\frac{B}{B-1}\sum_i |x_i|^2|g_i|^2 - \frac{T}{B-1}`.

    Args:
        inputs: X, shape (..., in).
        grad_outputs: G, shape (..., out), the gradient of the loss by the layer's output.
        samples: p, at least 1.
        distribution: ``sparse``, ``rademacher`` or ``gaussian``.

    Raises:
        ValueError: shapes do not fit, or an argument is out of range.
    """
    check_count("samples", samples)
    check_choice("distribution", distribution, DISTRIBUTIONS)
    if not inputs.dim() or inputs.shape[:-1] != grad_outputs.shape[:-1]:
        raise ValueError(
            f"grad_outputs must have the leading dimensions of inputs {tuple(inputs.shape)}, got "
            f"{tuple(grad_outputs.shape)}"
        )
    x, g = (t.reshape(-1, t.shape[-1]).double() for t in (inputs, grad_outputs))
    rows = len(x)
    each = (x.square().sum(1) * g.square().sum(1)).sum()
    exact = (g.T @ x).square().sum()
    noise = x.square().sum() * g.square().sum() + exact
    if distribution != "gaussian":
        noise = noise - 2 * each
    sampling = (rows * each - exact) / (rows - 1) if rows > 1 else torch.tensor(math.nan)
    return RandomizedVariance((noise / samples).item(), sampling.item())
