"""What has no second derivative, or seems to have none: computed another way, or refused by its name."""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.probe import ggn_operator, hvp_operator, sharpness


class Marked(torch.autograd.Function):
    """A cube."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (a,) = ctx.saved_tensors
        return 3 * a**2 * g


class Unrecorded(Marked):
    @staticmethod
    def backward(ctx, g):
        (a,) = ctx.saved_tensors
        with torch.no_grad():
            return 3 * a**2 * g


class Recorded(Marked):
    @staticmethod
    def backward(ctx, g):
        (a,) = ctx.saved_tensors
        return 3 * a**2 * g


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        return a.round()

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize("function", [Marked, Unrecorded])
def test_a_function_of_one_derivative_has_not_the_curvature_zero(function):
    w = torch.tensor([0.5, 1.5], requires_grad=True)
    words = f"must have second derivatives.* {function.__name__} in it has none"
    with pytest.raises(ValueError, match=f"loss_fn {words}"):
        sharpness(lambda: function.apply(w).square().sum() / 2, [w])
    with pytest.raises(ValueError, match=f"output_fn {words}"):
        ggn_operator(lambda: function.apply(w), lambda out: out.square().sum() / 2, [w])
    with pytest.raises(ValueError, match=f"loss_fn {words}"):
        ggn_operator(lambda: 1 * w, lambda out: function.apply(out).square().sum() / 2, [w])


def test_hand_written_functions_of_two_derivatives_are_read():
    w = torch.tensor([0.5, 1.5], requires_grad=True)
    found = sharpness(lambda: Recorded.apply(w).square().sum() / 2, [w])
    assert found.top == pytest.approx(15 * 1.5**4)  # of w^6 / 2
    found = sharpness(lambda: (3 * StraightThrough.apply(w)).square().sum() / 2, [w])
    assert found.top == pytest.approx(9)
    product = ggn_operator(lambda: StraightThrough.apply(w), lambda out: out.square().sum() / 2, [w])
    torch.testing.assert_close(product.matvec(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


class Attention(nn.Module):
    def __init__(self, chosen):
        super().__init__()
        self.project, self.chosen = nn.Linear(8, 24), chosen

    def forward(self, x):
        q, k, v = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.chosen == "operator":
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION if self.chosen == "flash" else SDPBackend.MATH):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_a_kernel_that_the_model_chooses_itself_gives_way_to_one_of_two_derivatives():
    torch.manual_seed(0)
    x, vector = torch.randn(5, 6, 8), torch.randn(8 * 24 + 24)
    products = []
    for chosen in ("flash", "math"):
        torch.manual_seed(1)
        model = Attention(chosen)
        operator = hvp_operator(lambda model=model: model(x).square().mean(), model.parameters())
        products.append(operator.matvec(vector))
    torch.testing.assert_close(*products)


def test_an_operator_without_a_second_derivative_is_refused_by_its_name():
    model, x = Attention("operator"), torch.randn(5, 6, 8)
    with pytest.raises(ValueError, match="scaled_dot_product_flash_attention_for_cpu in it has none"):
        sharpness(lambda: model(x).square().mean(), model.parameters())
