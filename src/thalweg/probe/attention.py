"""Attention-logit growth (arXiv 2309.14322): the largest logit of every head before the softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thalweg.probe._quiet import call, quiet
from thalweg.probe._wrapped import bare, of_all_processes, on_every_rank, over_processes
from thalweg.probe.cost import costs

__all__ = ["AttentionLogits", "attention_logits"]

# As it was at first: a model may have been given its own by this name.
PRODUCT = F.scaled_dot_product_attention
# What models add to forbid a pair: infinity, the least number, 1e9, or 1e4, which is 9984 in bfloat16.
FORBIDS = -9.9e3


@dataclass(frozen=True)
class AttentionLogits:
    """Largest :math:`|q \\cdot k| / \\sqrt{d}` over all examples and all pairs of positions that may attend.

    Attributes:
        largest: over all layers and heads; training has been seen to fail from about 1e4 on.
        per_head: name of the module that attends to the largest of each of its heads, shape (heads,), float32
            on the CPU.
    """

    largest: float
    per_head: dict[str, Tensor]


@costs(1, 0, memory="the attention logits of one example and layer")
def attention_logits(model: nn.Module, batch: Any, *, group: Any = None) -> AttentionLogits:
    r"""Largest attention logit of every layer and head (arXiv 2309.14322).

    Sees every call of ``F.scaled_dot_product_attention`` and of ``nn.MultiheadAttention`` (also inside
    ``nn.Transformer*``), whichever kernel would run it, and takes the logits anew from queries and keys.
    Attention written out as a product and a softmax is not seen (Hugging Face's "eager"; "sdpa" is). Pairs
    that a mask or causality forbids do not count, and what a mask adds is left out. One or two sequences are
    enough to follow a run.

    Args:
        model: run once in evaluation mode without gradients. Behind DDP or ``torch.compile`` the module
            itself is run, uncompiled.
        batch: the model's input: a tensor, a tuple of positional or a mapping of keyword arguments.
        group: process group whose members each hold a part of the batch and all call this; None for one.

    Returns:
        :class:`AttentionLogits`; a second call inside the same module is called ``name[1]``. NaN or infinite
        logits are given as they are.

    Raises:
        ValueError: no attention was seen.
    """
    model = bare(model)
    seen = on_every_rank(lambda: _heard(model, batch), group, model)
    per_head = {
        layer: over_processes(heads, group, "max").cpu()
        for layer, heads in of_all_processes(seen, group).items()
    }
    return AttentionLogits(torch.cat(list(per_head.values())).max().item(), per_head)


def _heard(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Largest logit of each head of every call."""
    seen: dict[str, Tensor] = {}
    with quiet(model), _current_module(model) as name:

        def note(heads: Tensor) -> None:
            repeats = sum(other == name() or other.startswith(f"{name()}[") for other in seen)
            seen[f"{name()}[{repeats}]" if repeats else name()] = heads

        with _Listening(note):
            call(model, batch)
    if not seen:
        raise ValueError(
            "model must call F.scaled_dot_product_attention or nn.MultiheadAttention, got no such call"
        )
    return seen


@contextmanager
def _current_module(model: nn.Module) -> Iterator[Callable[[], str]]:
    """Gives a function that names the innermost module at work."""
    stack = ["model"]

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    handles = []
    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(enter(name)))
                handles.append(module.register_forward_hook(lambda *_: void(stack.pop()), always_call=True))
        yield lambda: stack[-1]
    finally:
        for handle in handles:
            handle.remove()


def void(_: Any) -> None:
    """A hook that returns something would replace the output."""


class _Listening(TorchFunctionMode):
    """Hands the largest logit of each head of every attention call to ``note``."""

    def __init__(self, note: Callable[[Tensor], None]):
        super().__init__()
        self.note = note

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is PRODUCT:
            self.note(_of_product(*args, **kwargs))
        elif func is F.multi_head_attention_forward:
            self.note(_of_module(*args, **kwargs))
        return func(*args, **kwargs)


def _largest(query: Tensor, key: Tensor, scale: float, forbidden: Tensor | None) -> Tensor:
    """Of each head: ``query`` (b, h, l, d), ``key`` (b, h, s, d), ``forbidden`` (b, h, l, s) or nothing."""
    found = query.new_zeros(query.shape[1], dtype=torch.float32)
    for example in range(len(query)):
        logits = query[example].float() @ key[example].float().mT * scale
        if forbidden is not None:
            logits = logits.masked_fill(forbidden[example], 0)
        found = torch.maximum(found, logits.abs().amax((-2, -1)))
    return found


def _forbids(mask: Tensor) -> Tensor:
    """Where an additive mask leaves nothing of a pair."""
    return mask <= FORBIDS


def _of_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Arguments of ``F.scaled_dot_product_attention``; without a dimension of heads, one head."""
    if query.is_nested:
        examples = zip(query.unbind(), key.unbind(), strict=True)
        found = [
            _of_product(q[None], k[None], k[None], None, 0.0, is_causal, scale, enable_gqa)
            for q, k in examples
        ]
        return torch.stack(found).amax(0)
    if query.dim() < 4 and key.dim() < 4 and not enable_gqa:
        query, key = query.unsqueeze(-3), key.unsqueeze(-3)
        attn_mask = attn_mask.unsqueeze(-3) if attn_mask is not None and attn_mask.dim() > 2 else attn_mask
    heads = max(query.shape[-3], key.shape[-3])
    (length, width), source = query.shape[-2:], key.shape[-2]
    # One head is shared by all others, and grouped keys are by those of their group.
    query, key = (x.repeat_interleave(heads // x.shape[-3], dim=-3) for x in (query, key))
    # Not torch.broadcast_shapes, whose first call imports for seconds.
    lead = numpy.broadcast_shapes(query.shape[:-3], key.shape[:-3])
    forbidden = None
    if is_causal:
        forbidden = torch.ones(length, source, dtype=torch.bool, device=query.device).triu(1)
    elif attn_mask is not None:
        forbidden = ~attn_mask if attn_mask.dtype is torch.bool else _forbids(attn_mask)
    if forbidden is not None:
        forbidden = forbidden.expand(*lead, heads, length, source).reshape(-1, heads, length, source)
    return _largest(
        query.expand(*lead, -1, -1, -1).reshape(-1, heads, length, width),
        key.expand(*lead, -1, -1, -1).reshape(-1, heads, source, width),
        1 / math.sqrt(width) if scale is None else scale,
        forbidden,
    )


def _of_module(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    *_: Any,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """Arguments of ``F.multi_head_attention_forward``: positions first, and True in a mask forbids."""
    if query.dim() == 2:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    length, batch, _width = query.shape
    if in_proj_weight is not None:
        q_proj_weight, k_proj_weight, _value = in_proj_weight.chunk(3)
    assert q_proj_weight is not None and k_proj_weight is not None
    q_bias, k_bias = (None, None) if in_proj_bias is None else in_proj_bias.chunk(3)[:2]
    q, k = F.linear(query, q_proj_weight, q_bias), F.linear(key, k_proj_weight, k_bias)
    k = k if bias_k is None else torch.cat([k, bias_k.expand(1, batch, -1)])
    q, k = (x.unflatten(2, (num_heads, -1)).permute(1, 2, 0, 3) for x in (q, k))
    k = k if static_k is None else static_k.unflatten(0, (batch, num_heads))
    forbidden = torch.zeros(batch, num_heads, length, k.shape[2], dtype=torch.bool, device=q.device)
    if key_padding_mask is not None:
        key_padding_mask = key_padding_mask.view(batch, 1, 1, -1)
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.unflatten(0, (batch, num_heads))
    for mask in (attn_mask, key_padding_mask):
        if mask is not None:
            # A learned key stands behind the others and is never masked.
            forbidden[..., : mask.shape[-1]] |= mask if mask.dtype is torch.bool else _forbids(mask)
    return _largest(q, k, 1 / math.sqrt(q.shape[-1]), forbidden)
