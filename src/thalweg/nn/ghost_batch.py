"""Ghost batch normalisation (arXiv 1705.08741): a large batch normalised as if it came in small ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg._core.checks import check_count, check_not_negative, check_number
from thalweg.nn._full_precision import full_precision

__all__ = ["GhostBatchNorm"]


class GhostBatchNorm(_BatchNorm):
    r"""Batch normalisation over slices of ``size`` examples, in order (arXiv 1705.08741).

    In training each slice is normalised with its own mean and biased variance, and the running statistics
    move once a slice, one after the other: everything is as if the layer had been called on the slices. In
    evaluation, and for a batch of less than two slices, it is plain batch normalisation. A tail shorter than
    a slice joins the slice before it. Shuffle before slicing; under data parallelism ``size`` is per device.

    Args:
        num_features: C, the channels.
        size: examples in a slice, at least 1; 128 in the paper's code.
        eps, momentum, affine, track_running_stats: as in ``torch.nn.BatchNorm2d``, whose state dict fits.

    Shape: (n, C) or (n, C, ...), to the same.

    Raises:
        ValueError: an argument is out of range, the input has no or other channels, or a slice has only one
            value a channel.
    """

    def __init__(
        self,
        num_features: int,
        size: int = 128,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_count("num_features", num_features)
        self.size = check_count("size", size)
        check_not_negative("eps", eps)
        if momentum is not None:
            check_number("momentum", momentum, 0, 1)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)

    @classmethod
    def of(cls, norm: nn.Module, size: int = 128) -> GhostBatchNorm:
        """The same normalisation in slices, with the parameters and running statistics of ``norm`` itself.

        Raises:
            ValueError: ``norm`` is no ``BatchNorm1d``, ``2d`` or ``3d`` (one synchronised over devices undoes
                the slices).
        """
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if not isinstance(norm, _BatchNorm) or type(norm) not in kinds:
            raise ValueError(f"norm must be a BatchNorm1d, 2d or 3d, got {type(norm).__name__}")
        made = cls(norm.num_features, size, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made._parameters = norm._parameters
        made._buffers = norm._buffers
        return made.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"input must have shape (n, {self.num_features}, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training or input.shape[0] < 2 * self.size:
            return super().forward(input)
        tail = input.shape[0] % self.size
        if not tail:
            return self._slices(input, self.size)
        if torch.compiler.is_compiling() and input.dim() > 2:
            with full_precision(input):
                return self._uneven(input)
        last = self.size + tail
        head, rest = input.split([input.shape[0] - last, last])
        return torch.cat([self._slices(head, self.size), self._slices(rest, last)])

    def _uneven(self, input: Tensor) -> Tensor:
        """Slices whose last one is longer: each example's moments, and from them those of its slice.

        Compiled, one kernel serves slices of all lengths, and no batch is put together again; operation by
        operation it takes three times as long as two batch normalisations.
        """
        examples, count = input.shape[0], input.shape[0] // self.size
        slices = torch.arange(count, device=input.device)[:, None]
        where = (torch.arange(examples, device=input.device) // self.size).clamp(max=count - 1)
        x = input.flatten(2).to(torch.promote_types(input.dtype, torch.float32))
        within = (where == slices).to(x.dtype)
        lengths = within.sum(1, keepdim=True)
        spread, mean = torch.var_mean(x, 2, correction=0)
        means = within / lengths @ mean
        variances = within / lengths @ (spread + (mean - within.T @ means).square())
        gain = (variances + self.eps).rsqrt()
        offset = -means * gain
        if self.weight is not None:
            gain, offset = gain * self.weight, offset * self.weight + self.bias
        if self.track_running_stats:
            values = lengths * x.shape[2]
            self._follow(means, variances * values / (values - 1))
        scaled = torch.addcmul((within.T @ offset)[:, :, None], x, (within.T @ gain)[:, :, None])
        return scaled.to(input.dtype).view(input.shape)

    def _slices(self, input: Tensor, size: int) -> Tensor:
        """Slices of one size, seen as channels of their own so that one kernel normalises them all."""
        count, channels = input.shape[0] // size, self.num_features
        if size * input[0, 0].numel() < 2:
            raise ValueError(f"size must leave 2 values a channel in a slice, got {size}")
        # With momentum 1 the kernel leaves each slice's mean and unbiased variance here.
        like = next((t for t in (self.weight, self.running_mean) if t is not None), input)
        means = input.new_zeros(count * channels, dtype=like.dtype)
        variances = torch.ones_like(means)
        if _channels_last(input):
            # Put together, slices would be copied into another layout and come back in it.
            parts = zip(input.split(size), means.split(channels), variances.split(channels), strict=True)
            made = [
                functional.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
                for x, mean, variance in parts
            ]
            output = torch.cat(made)
        else:
            # Rows stay rows: with a third dimension of one the kernel is many times slower.
            merged = (size, count * channels) if input.dim() == 2 else (size, count * channels, -1)
            apart = input.reshape(count, size, channels, -1).transpose(0, 1).reshape(merged)
            gain, offset = (None if p is None else p.repeat(count) for p in (self.weight, self.bias))
            normal = functional.batch_norm(apart, means, variances, gain, offset, True, 1.0, self.eps)
            output = normal.view(size, count, channels, -1).transpose(0, 1).reshape(input.shape)
        if self.track_running_stats:
            self._follow(means.view(count, channels), variances.view(count, channels))
        return output

    @torch.no_grad()
    def _follow(self, means: Tensor, variances: Tensor) -> None:
        """Running statistics after as many updates as there are slices."""
        count = len(means)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(count)
        for running, seen in ((self.running_mean, means), (self.running_var, variances)):
            if self.momentum is None:  # the mean of all slices so far
                running.add_((seen.mean(0) - running) * count / self.num_batches_tracked)
            else:
                wide = torch.promote_types(seen.dtype, torch.float32)
                later = torch.arange(count - 1, -1, -1, dtype=wide, device=seen.device)
                shares = (self.momentum * (1 - self.momentum) ** later).to(seen.dtype)
                with full_precision(seen):  # a product, but of statistics
                    running.mul_((1 - self.momentum) ** count).add_(shares @ seen)

    def extra_repr(self) -> str:
        return f"{self.num_features}, size={self.size}, {super().extra_repr().split(', ', 1)[1]}"


def _channels_last(input: Tensor) -> bool:
    """Whether channels are what lies closest together; compiled, layouts are the compiler's matter."""
    # By strides, since a batch of torch.func.vmap does not tell its layout.
    apart = torch.compiler.is_compiling() or input.dim() < 4 or input.is_contiguous()
    return not apart and input.stride(1) == 1
