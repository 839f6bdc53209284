"""How the error changes on its way back through the layers, and through time (arXiv 1211.5063)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.conv import _ConvNd

from thalweg._core.checks import check_count
from thalweg.probe._head import statistics_of_the_batch
from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import call, quiet
from thalweg.probe._wrapped import bare
from thalweg.probe.cost import costs

__all__ = ["BackwardSignal", "backward_signal"]


@dataclass(frozen=True)
class BackwardSignal:
    """Norms of the error at each place that it passes, in the order in which the forward pass came by.

    Attributes:
        norms: layer to the Euclidean norm of the error at its output, over the whole batch. A layer that is
            called several times, as in a recurrent network, appears as ``layer[0]``, ``layer[1]``, ...; so do
            the time steps of the input of ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``.
        ratio: the first norm over the last; below 1 the error shrinks on its way back, above 1 it grows.
    """

    norms: dict[str, float]
    ratio: float


@costs(1, 1, memory="the activations of one pass")
def backward_signal(model: nn.Module, batch: Any, *, seed: int = 0) -> BackwardSignal:
    r"""Send one random error back from the output, and see how large it is at every layer.

    .. math:: d_l = \Big(\frac{\partial f}{\partial a_l}\Big)^{\!\top} v, \qquad v \sim \mathcal{N}(0, I)

    with :math:`f` the model's output on the batch and :math:`a_l` the output of layer :math:`l`, linear,
    convolutional or a recurrent cell. Since :math:`v` is random and not the gradient of a loss, a loss that
    is nearly zero, or large, changes nothing. What leads to no parameter that is being trained is left out.

    The model runs in evaluation mode, but batch normalisation with the statistics of the batch, as in
    training; gradients, modes, running statistics and the random state stay as they are.

    Args:
        model: gives a floating-point tensor, a tuple that begins with one, or something with ``.logits``.
            Behind DDP or ``torch.compile`` the module itself is run.
        batch: ``model(batch)`` is called; a tuple is spread over positions and a mapping over keywords.
        seed: of :math:`v`.

    Raises:
        ValueError: the model gives no floating-point tensor, or calls no such layer on the way to it.
    """
    check_count("seed", seed, 0)
    model = bare(model)
    passed: list[tuple[str, Any, int | None]] = []
    with ExitStack() as stack:
        # Not batch normalisation in training mode: one that spans processes would wait for the others there.
        ways = (quiet(model), statistics_of_the_batch(model), _heard(model, passed), torch.enable_grad())
        for way in (torch.inference_mode(False), *ways):
            stack.enter_context(way)
        # Some fused recurrent kernels have no backward pass in evaluation mode.
        with torch.backends.cudnn.flags(enabled=False):
            output = _tensor(call(model, batch))
        source = torch.Generator().manual_seed(seed)
        error = torch.randn(output.shape, generator=source).to(output)
        edges = [edge for _, edge, _ in passed]
        if edges and output.requires_grad:
            found = torch.autograd.grad(output, edges, error, allow_unused=True)
        else:
            found = ()
    names: list[str] = []
    norms: list[float] = []
    for (name, _, time), gradient in zip(passed, found, strict=False):
        if gradient is None:
            continue
        flat = (
            gradient.float().reshape(1, -1) if time is None else gradient.float().movedim(time, 0).flatten(1)
        )
        norms += torch.linalg.vector_norm(flat, dim=1).tolist()
        names += [name] * len(flat)
    if not norms:
        raise ValueError("model must call a linear, convolutional or recurrent layer that is being trained")
    return BackwardSignal(dict(zip(_numbered(names), norms, strict=True)), _ratio(norms[0], norms[-1]))


@contextmanager
def _heard(model: nn.Module, passed: list[tuple[str, Any, int | None]]) -> Iterator[None]:
    """Note (layer, where its error passes, dimension of time) at every call."""

    def note(name: str, tensor: Any, time: int | None = None) -> None:
        if isinstance(tensor, tuple):  # the output of an LSTMCell, and its memory
            tensor = tensor[0]
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            # The edge and not the tensor, into which the next layer may write.
            passed.append((name, get_gradient_edge(tensor), time))

    handles = []
    try:
        for name, module in model.named_modules():
            # transformers' Conv1D is GPT-2's linear layer with its weight transposed.
            linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
            if linear or isinstance(module, _ConvNd | nn.RNNCellBase):
                handles.append(module.register_forward_hook(lambda _, __, out, name=name: note(name, out)))
            elif isinstance(module, nn.RNNBase):
                before = _input_noted(name, note)
                handles.append(module.register_forward_pre_hook(before))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input_noted(name: str, note: Any) -> Any:
    def before(module: nn.RNNBase, inputs: tuple) -> Any:
        first = inputs[0]
        if not isinstance(first, Tensor):
            return None
        if not first.requires_grad:
            first = first.detach().requires_grad_()
        note(name, first, 1 if module.batch_first and first.ndim == 3 else 0)
        return (first, *inputs[1:])

    return before


def _tensor(output: Any) -> Tensor:
    found = logits_of(output)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise ValueError(f"model must give a floating-point tensor, got {type(output).__name__}")
    return found


def _numbered(names: list[str]) -> list[str]:
    often = Counter(names)
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        numbered.append(f"{name}[{seen[name]}]" if often[name] > 1 else name)
        seen[name] += 1
    return numbered


def _ratio(first: float, last: float) -> float:
    return first / last if last else float("nan")
