"""Batch-Channel Normalization (arXiv 1903.10520): over the batch, or by running estimates, then groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg._core.checks import check_count, check_number, check_positive

__all__ = ["BatchChannelNorm"]


class BatchChannelNorm(nn.Module):
    r"""A batch stage with an affine map a channel, then a group stage with one a group (arXiv 1903.10520).

    With ``estimated=True`` the batch stage trains, too, on running estimates :math:`m, v`, through which no
    gradient goes, so that batches of one or two images will do. Before each use, with :math:`r` the rate,

    .. math:: v \mathrel{+}= r\,(\mathrm{mean}\,(x - m)^2 - v), \qquad
        m \mathrel{+}= r\,(\mathrm{mean}\,x - m)

    where :math:`m` is the old one in both. An empty batch moves no estimate, and neither does a pass that
    activation checkpointing repeats, so that its gradient is that of the first one. Otherwise it is batch
    normalisation. The second stage normalises each example's groups of channels over space; its affine map is
    one gain and one offset *a group*.

    Args:
        num_features: C, the channels.
        groups: G, a divisor of C; 32 in the paper's code.
        estimated: whether the batch stage uses running estimates in training.
        rate: :math:`r`, in [0, 1]: a 0-d buffer ``rate`` that may follow a schedule (``layer.rate.fill_()``)
            without compiling anew. The paper's code leaves it to the training script.
        eps: in both roots.
        momentum: of the running statistics, if they are not ``estimated``; in (0, 1].

    Shape: (n, C) or (n, C, ...), to the same; (n, C) needs groups of 2 channels or more.

    Raises:
        ValueError: an argument is out of range, or the input has other channels.
    """

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        *,
        estimated: bool = False,
        rate: float = 0.01,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.num_features = check_count("num_features", num_features)
        self.groups = check_count("groups", groups)
        if num_features % groups:
            raise ValueError(f"groups must divide the {num_features} channels, got {groups}")
        self.estimated = estimated
        self.eps = check_positive("eps", eps)
        self.momentum = check_number("momentum", momentum, 0, 1, "(]")
        self._first_rate = check_number("rate", rate, 0, 1)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_features, **where))
        self.bias = nn.Parameter(torch.empty(num_features, **where))
        self.group_weight = nn.Parameter(torch.empty(groups, **where))
        self.group_bias = nn.Parameter(torch.empty(groups, **where))
        self.rate: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("rate", torch.empty((), **where))
        self.register_buffer("running_mean", torch.empty(num_features, **where))
        self.register_buffer("running_var", torch.empty(num_features, **where))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Everything as it was made: gains and variances 1, offsets and means 0, the first rate."""
        for one in (self.weight, self.group_weight, self.running_var):
            one.fill_(1)
        for zero in (self.bias, self.group_bias, self.running_mean):
            zero.zero_()
        self.rate.fill_(self._first_rate)

    @classmethod
    def of(
        cls, norm: nn.Module, groups: int = 32, *, estimated: bool = False, rate: float = 0.01
    ) -> BatchChannelNorm:
        """In place of a batch normalisation, whose parameters and statistics the first stage takes over.

        Raises:
            ValueError: ``norm`` is no ``BatchNorm1d``, ``2d`` or ``3d`` with parameters, statistics and a
                momentum, or ``groups`` does not divide its channels.
        """
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if not isinstance(norm, _BatchNorm) or type(norm) not in kinds:
            raise ValueError(f"norm must be a BatchNorm1d, 2d or 3d, got {type(norm).__name__}")
        if norm.weight is None or norm.bias is None or norm.running_mean is None or norm.momentum is None:
            raise ValueError(f"norm must have weight, bias, running statistics and a momentum, got {norm}")
        like: dict[str, Any] = {"device": norm.weight.device, "dtype": norm.weight.dtype}
        features, eps, momentum = norm.num_features, norm.eps, norm.momentum
        made = cls(features, groups, estimated=estimated, rate=rate, eps=eps, momentum=momentum, **like)
        made._parameters.update(norm._parameters)
        made._buffers.update({name: norm._buffers[name] for name in ("running_mean", "running_var")})
        return made.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"input must have shape (n, {self.num_features}, ...), got {tuple(input.shape)}")
        mean, variance = self.running_mean, self.running_var
        if self.training and self.estimated:
            if input.numel() and not _repeated():
                self._estimate(input.detach())
            # What the backward pass reads must outlive the next estimate.
            mean, variance = mean.clone(), variance.clone()
        own = self.training and not self.estimated
        gain, offset = self.weight.to(mean.dtype), self.bias.to(mean.dtype)
        batch = functional.batch_norm(input, mean, variance, gain, offset, own, self.momentum, self.eps)
        per_group = self.num_features // self.groups
        gain, offset = (p.repeat_interleave(per_group) for p in (self.group_weight, self.group_bias))
        return functional.group_norm(batch, self.groups, gain, offset, self.eps)

    @torch.no_grad()
    def _estimate(self, input: Tensor) -> None:
        dims = (0, *range(2, input.dim()))
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dims, correction=0)
        # About the old mean, without a second pass over the input.
        square = variance + (mean - self.running_mean).square()
        for running, seen in ((self.running_var, square), (self.running_mean, mean)):
            running.lerp_(seen.to(running.dtype), self.rate.to(running.dtype))

    def extra_repr(self) -> str:
        return f"{self.num_features}, groups={self.groups}, estimated={self.estimated}, eps={self.eps:g}"


def _repeated() -> bool:
    """Whether this pass runs inside of a backward one: activation checkpointing repeats it there."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
