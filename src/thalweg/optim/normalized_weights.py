"""Weight-normalised steps (GradNormLoRP, arXiv 2412.19616): direction and length, each on its own."""

from __future__ import annotations

from typing import Any

import torch

from thalweg._core.checks import check_not_negative
from thalweg._core.factored import OfLengths
from thalweg.optim._betas import check_betas
from thalweg.optim._nested import ALONE, check_inner, diagonal_of, inner_slots, innermost, run_inner
from thalweg.optim._pieces import pieces
from thalweg.optim._subspace import is_matrix
from thalweg.optim.adaptive import adam
from thalweg.optim.transform import Scalars, State, Transform, matrix, part

__all__ = ["normalized"]


@part
def normalized(
    inner: Transform,
    length_betas: tuple[float, float] | None = None,
    length_eps: float | None = None,
) -> Transform:
    r"""Step each row's length by Adam and its direction by ``inner``: weight normalisation, without its copy.

    With :math:`W_i = a_i v_i / \lVert v_i \rVert`, at :math:`v_i = W_i`, :math:`a_i = \lVert W_i \rVert`:

    .. math:: \partial a_i = \langle G_i, \hat w_i \rangle, \qquad
        \partial v_i = G_i - \partial a_i\, \hat w_i, \qquad
        v_i' = v_i - \eta\, \mathrm{inner}(\partial v)_i, \qquad
        W_i \leftarrow (a_i - \eta\, \mathrm{Adam}(\partial a_i)) v_i' / \lVert v_i' \rVert

    Only Adam's two means of :math:`\partial a` are kept, one number a row each. This is the paper's intent:
    the released code sets the length back at every step and uses :math:`G` itself for the direction. A row
    of zeros has no direction and moves by ``inner`` alone. Tensors that are not matrices, and those that
    ``inner`` leaves to another rule, take that rule without any of this.

    Args:
        inner: what makes a step of the direction's gradient, ``project()`` in the paper.
        length_betas, length_eps: Adam's, for the lengths; None for the ones that ``inner`` has, else (0.9,
            0.999) and 1e-6.

    State: ``inner``'s, and ``length_mean`` and ``length_square``, each (rows, 1).
    """
    check_inner("inner", inner, (*ALONE, "matrix"))
    own: dict[str, Any] = {}
    if length_betas is not None or "betas" not in inner.hyper:
        own["length_betas"] = length_betas or (0.9, 0.999)
        check_betas(own["length_betas"], 2)
    if length_eps is not None or "eps" not in inner.hyper:
        own["length_eps"] = 1e-6 if length_eps is None else length_eps
        check_not_negative("length_eps", own["length_eps"])
    lengths = adam(eps_uncorrected=True)

    def steering(k):
        """Adam's hyper-parameters, for the lengths."""
        values = k.values
        betas = values["length_betas" if "length_betas" in own else "betas"][:2]
        return {
            "betas": betas,
            "eps": values["length_eps" if "length_eps" in own else "eps"],
        }

    def rows(p, k):
        return p.new_zeros(p.shape[0], 1)

    def scalars(k):
        assert lengths.scalars is not None
        found = lengths.scalars(Scalars({**steering(k), "step": k.step}))
        found = {f"length_{name}": value for name, value in found.items()}
        return {**(inner.scalars(k) if inner.scalars else {}), **found}

    def update(u, p, state, k):
        before = p.norm(dim=1, keepdim=True)
        there = before > 0
        scale = torch.where(there, 1 / before, 0.0)
        along = torch.cat([(piece * w).sum(1, keepdim=True) for piece, w in pieces(u, p)]) * scale
        turn = torch.addcmul(u, p, along * scale, value=-1, out=u if k.owned else None)
        moved, state = run_inner(inner, turn, p, state, k, owned=True)
        del turn
        means = {"mean": state.length_mean, "square": state.length_square}
        kept = State({name: one.to(along.dtype) for name, one in means.items()})
        found = {name: k.values[f"length_{name}"] for name in ("unbias", "unbias_root", "added")}
        longer, kept = lengths.update(along, None, kept, Scalars({**steering(k), **found}))
        state = state.replace(length_mean=kept.mean, length_square=kept.square)
        if k.lr == 0:
            return moved.zero_(), state
        direction = moved.mul_(-k.lr).add_(p)
        after = direction.norm(dim=1, keepdim=True)
        direction *= torch.where(there & (after > 0), (before - k.lr * longer) / after, 1.0)
        return direction.neg_().add_(p).div_(k.lr), state

    def precondition(state, k):
        assert lengths.precondition is not None
        turning = diagonal_of(inner, state, k)
        if turning is None:
            return None
        p = k.parameter.detach()
        size = p.norm(dim=1, keepdim=True)
        found = {name: k.values[f"length_{name}"] for name in ("unbias", "unbias_root", "added")}
        means = State({"mean": state.length_mean, "square": state.length_square})
        along = lengths.precondition(means, Scalars({**steering(k), **found}))
        return OfLengths(torch.where(size > 0, p / size, 0.0), along, turning)

    like = inner_slots(inner, lambda p, k: p)
    fresh: dict[str, Any] = {**like, "length_mean": rows, "length_square": rows}

    def applies(p, k):
        return is_matrix(p) and (inner.applies is None or inner.applies(p, k))

    return matrix(
        update,
        slots=tuple(fresh),
        fresh=fresh,
        scalars=scalars,
        applies=applies,
        otherwise=inner,
        precondition=precondition,
        # At a minimum lengths and directions move as any weight does: the same betas have the same limit.
        stability=inner.stability if innermost(inner).name == "adam" and not own else None,
        degree=inner.degree,
        **own,
        **inner.hyper,
    )
