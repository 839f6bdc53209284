"""How much one feature starves another where training ends (arXiv 2011.09468), in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg._core.checks import check_positive
from thalweg.probe.cost import costs

__all__ = ["StarvationCoefficients", "starvation_coefficients"]

STEPS = 200


@dataclass(frozen=True)
class StarvationCoefficients:
    """Where cross-entropy with weight decay ends, in the linear model that the features describe.

    Attributes:
        responses: of each feature there, shape (k,), in nats.
        coefficients: shape (k, k), entry [j, i]: change of the size of response j, in nats, when the squared
            strength of feature i grows by a factor e (to first order). Negative off the diagonal: i starves
            j.
        starvation: of each feature, shape (k,), the sum of its negative coefficients with respect to the
            others.
    """

    responses: Tensor
    coefficients: Tensor
    starvation: Tensor


@torch.no_grad()
@costs(0, 0, memory="a few matrices of examples squared")
def starvation_coefficients(
    strengths: Tensor, features: Tensor, *, weight_decay: float
) -> StarvationCoefficients:
    r"""Responses at the end of training and how they depend on the strengths (arXiv 2011.09468).

    For a model that is linear in its parameters, with margins :math:`m = U S V^\top\theta`, the minimum of
    :math:`\frac1n\sum_i\log(1+e^{-m_i}) + \frac\lambda2\|\theta\|^2` has

    .. math:: z = \frac{S^2 U^\top \alpha}{n\lambda}, \qquad \alpha = \sigma(-U z),

    and by implicit differentiation, with
    :math:`H = U S^2 U^\top/(n\lambda) + \mathrm{diag}(1/(\alpha(1-\alpha)))`,

    .. math:: \frac{\partial z_j}{\partial \log s_i^2} = \delta_{ij} z_j
        - z_i \frac{s_j^2}{n\lambda} u_j^\top H^{-1} u_i .

    A network in the kernel regime behaves like this; one that learns its features is described near its
    present weights only. With spectral decoupling, :math:`\frac\lambda2` mean :math:`m^2` in place of the
    weights' norm, every margin solves :math:`\lambda m = \sigma(-m)`: no strength matters and all
    coefficients are zero.

    Args:
        strengths: s, shape (k,), not negative, as in :class:`thalweg.probe.GradientStarvation`.
        features: U, shape (n, k), columns orthonormal.
        weight_decay: :math:`\lambda` of the mean loss, as ``weight_decay`` of ``torch.optim.SGD``.

    Raises:
        ValueError: shapes do not fit, a strength is negative or not finite, columns are not orthonormal, or
            ``weight_decay`` is not positive.
    """
    check_positive("weight_decay", weight_decay)
    if features.dim() != 2 or strengths.shape != features.shape[1:]:
        raise ValueError(
            f"features must have shape (n, k) and strengths (k,), got {tuple(features.shape)} and "
            f"{tuple(strengths.shape)}"
        )
    s, u = strengths.detach().double(), features.detach().double()
    if not bool((s.isfinite() & (s >= 0)).all()):
        raise ValueError("strengths must be finite and not negative")
    product = u.T @ u
    if not torch.allclose(product, torch.eye(len(s), dtype=u.dtype, device=u.device), atol=1e-4):
        raise ValueError("features must have orthonormal columns")
    penalty = len(u) * weight_decay
    weights = _minimum(u * s, penalty)
    z = s * weights
    margins = u @ z
    alpha = torch.sigmoid(-margins)
    # H^-1 by way of D = diag(alpha (1 - alpha)), which may underflow where its inverse would not fit.
    d = torch.sigmoid(margins) * alpha
    kernel = (u * s.square()) @ u.T / penalty
    inverse = torch.linalg.solve(
        torch.eye(len(u), dtype=u.dtype, device=u.device) + d[:, None] * kernel, d.diag()
    )
    change = z.diag() - (s.square() / penalty)[:, None] * (u.T @ inverse @ u) * z
    coefficients = z.sign()[:, None] * change
    others = coefficients - coefficients.diag().diag()
    return StarvationCoefficients(z, coefficients, others.clamp_max(0).sum(1))


def _minimum(design: Tensor, penalty: float) -> Tensor:
    """Weights w that minimise sum log(1 + exp(-design w)) + penalty/2 |w|², by damped Newton steps."""
    w = design.new_zeros(design.shape[1])

    def value(w: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-(design @ w)).sum() + penalty / 2 * w.square().sum()

    now = value(w)
    for _ in range(STEPS):
        miss = torch.sigmoid(-(design @ w))
        gradient = penalty * w - design.T @ miss
        curvature = design.T @ ((miss * (1 - miss))[:, None] * design)
        step = torch.linalg.solve(
            curvature + penalty * torch.eye(len(w), dtype=w.dtype, device=w.device), gradient
        )
        decrease = gradient @ step
        if not decrease > 1e-28 * now:
            break
        size = 1.0
        # Near the minimum the value is too coarse to compare, and the full step is right.
        if decrease > 1e-9 * now:
            while value(w - size * step) > now - 0.25 * size * decrease:
                size /= 2
        w = w - size * step
        now = value(w)
    return w
