"""Grams (arXiv 2412.17107): the size of the step from Adam, its sign from the present gradient."""

from __future__ import annotations

from thalweg.optim.adaptive import adam
from thalweg.optim.recipe_class import recipe
from thalweg.optim.transform import Transform, element, part
from thalweg.optim.weight_decay import decay

__all__ = ["Grams", "signed_by_gradient"]


@part
def signed_by_gradient() -> Transform:
    r"""Give each entry of the update the sign of the gradient: :math:`u' = |u|\,\mathrm{sign}(g)`.

    No entry then moves against its gradient, as stale momentum may make it do; where the gradient is 0
    there is no step. With small batches the sign is mostly noise.
    """
    return element(lambda u, p, state, k: (u.abs() * k.gradient.sign(), state), gradient=True, degree=1)


@recipe(lr=1e-3)
def Grams(betas: tuple = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0) -> tuple[Transform, ...]:
    """Adam's step sizes with the gradient's signs (arXiv 2412.17107), with decoupled weight decay.

    ``eps`` is added before the bias correction, as in the released code. Its learning rate wants to be
    about 3 times Adam's: the mean is small where signs alternate.
    """
    return adam(betas, eps, eps_uncorrected=True), signed_by_gradient(), decay(weight_decay)
