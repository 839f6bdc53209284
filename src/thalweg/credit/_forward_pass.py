"""One forward pass that also carries the derivative of the loss along a tangent of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

LossFn = Callable[[nn.Module, Any], Tensor]


class _Loss(nn.Module):
    """The loss as a module around the model, so that its parameters can be given from outside."""

    def __init__(self, model: nn.Module, loss_fn: LossFn):
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """As in training, but without the fused kernels for inference that have no forward-mode rule."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        # Hooks and models that ask see a training pass; nothing requires a gradient, so no graph is kept.
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.LSTM) for module in model.modules()):
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        yield


def _check_loss(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise ValueError(f"loss_fn must return one number as a tensor, got {type(loss).__name__}")
    if loss.numel() != 1 or not loss.is_floating_point():
        raise ValueError(
            f"loss_fn must return one real number, got a tensor of shape {tuple(loss.shape)} and {loss.dtype}"
        )
    return loss.reshape(())


def _without_rule(error: Exception) -> str | None:
    """The operation that has no forward-mode rule, in words; None if the error is another."""
    if not isinstance(error, NotImplementedError) and "setup_context" not in str(error):
        return None
    frame = error.__traceback__
    while frame is not None:
        own = frame.tb_frame.f_locals.get("cls")
        if isinstance(own, type) and issubclass(own, torch.autograd.Function):
            return f"Trying to use forward AD with {own.__qualname__}, an autograd.Function"
        frame = frame.tb_next
    return str(error).split(" that does not support")[0]


class ForwardPass:
    """The loss as a function of the trainable parameters, differentiated along tangents.

    The model's own buffers do not move: the ones after the last pass are in ``buffers``.
    """

    def __init__(self, model: nn.Module, batch: Any, loss_fn: LossFn):
        self.batch, self.model = batch, model
        self.whole = _Loss(model, loss_fn)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, tangents: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss and its derivative along ``tangents``, both 0-d and in the loss's dtype."""

        def loss_at(parameters: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            buffers = {name: buffer.clone() for name, buffer in self.whole.named_buffers()}
            # After the call the mapping holds the buffers that a module has put in the place of old ones.
            given = {**{f"model.{name}": p for name, p in parameters.items()}, **buffers}
            loss = _check_loss(functional_call(self.whole, given, (self.batch,)))
            return loss, {name: given[name] for name in buffers}

        primals = {name: p.detach() for name, p in self.parameters.items()}
        with _differentiable(self.model):
            try:
                passed: Any = jvp(loss_at, (primals,), (dict(tangents),), has_aux=True)
            except (NotImplementedError, RuntimeError) as error:
                what = _without_rule(error)
                if what is None:
                    raise
                raise NotImplementedError(
                    f"model must be made of operations with a forward-mode rule: {what}, which has none"
                ) from error
        loss, slope, buffers = passed
        self.buffers = {name.removeprefix("model."): value for name, value in buffers.items()}
        return loss.detach(), slope.detach()

    @torch.no_grad()
    def advance(self, buffers: Mapping[str, Tensor]) -> None:
        """Let the model's buffers move as an ordinary forward pass would have moved them."""
        for name, buffer in list(self.model.named_buffers()):
            new = buffers[name]
            if new.shape == buffer.shape and new.dtype == buffer.dtype:
                buffer.copy_(new)
            else:
                owner, _, last = name.rpartition(".")
                setattr(self.model.get_submodule(owner), last, new.detach())
