from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg.probe import softmax_collapse, weight_gradient_alignment


def at_margin(margin: float, position: int = 0, classes: int = 113) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.zeros(1, classes)
    logits[0, position] = margin
    return logits, torch.tensor([position])


def test_float32_collapses_at_the_published_margin():
    collapsed = [softmax_collapse(*at_margin(margin)).fraction for margin in range(1, 41)]
    assert collapsed == [0.0] * 19 + [1.0] * 21


def test_the_margin_depends_on_the_place_of_the_maximum_by_at_most_two():
    for position in range(113):
        assert softmax_collapse(*at_margin(19, position)).fraction == 0
        assert softmax_collapse(*at_margin(22, position)).fraction == 1


def test_one_competitor_is_lost_below_half_a_unit_in_the_last_place():
    # exp(-16) > 2**-24 > exp(-17): the tie at 2**-24 itself rounds to even, which is 1.
    assert math.exp(-16) > 2**-24 > math.exp(-17)
    assert softmax_collapse(*at_margin(16, classes=2)).fraction == 0
    assert softmax_collapse(*at_margin(17, classes=2)).fraction == 1


def test_precision_is_that_of_the_loss():
    logits, targets = at_margin(20)
    assert softmax_collapse(logits, targets, dtype=torch.float64).fraction == 0
    assert softmax_collapse(logits, targets, dtype=torch.bfloat16).fraction == 1
    assert softmax_collapse(logits.double(), targets).fraction == 0
    assert softmax_collapse(logits.double(), targets, dtype=torch.float32).fraction == 1


def test_zero_loss_needs_the_right_class_and_collapse_does_not():
    logits = torch.tensor([[40.0, 0, 0], [40.0, 0, 0], [1.0, 0, 0], [500.0, 0, 0]])
    found = softmax_collapse(logits, torch.tensor([0, 1, 0, 0]))
    assert (found.fraction, found.zero_loss, found.examples) == (0.75, 0.5, 4)


def test_adding_a_constant_changes_nothing():
    logits, targets = at_margin(25)
    assert softmax_collapse(logits + 64, targets) == softmax_collapse(logits, targets)


def test_token_logits_and_ignored_or_masked_positions():
    logits = torch.tensor([[[40.0, 0], [0, 0]], [[0, 0], [40.0, -math.inf]]])
    found = softmax_collapse(logits, torch.tensor([[0, 1], [-100, 0]]))
    assert (found.fraction, found.zero_loss, found.examples) == (2 / 3, 2 / 3, 3)


def test_a_collapsed_and_correct_batch_has_no_gradient():
    logits, targets = at_margin(40)
    logits.requires_grad_()
    nn.functional.cross_entropy(logits, targets).backward()
    assert softmax_collapse(logits, targets).fraction == 1
    assert logits.grad[0, 0] == 0 and logits.grad.abs().max() < 1e-16


@pytest.mark.parametrize(
    ("logits", "targets", "arguments", "message"),
    [
        (torch.ones(2, 3), torch.ones(3).long(), {}, r"got \(3,\) for logits \(2, 3\)"),
        (torch.ones(2, 3), torch.tensor([0, 3]), {}, r"targets must be in \[0, 3\), got 0 to 3"),
        (torch.ones(2, 3), torch.tensor([-100, -100]), {}, "only ignore_index=-100"),
        (torch.full((1, 3), math.nan), torch.tensor([0]), {}, "got NaN or"),
        (
            torch.full((1, 3), 1e6),
            torch.tensor([0]),
            {"dtype": torch.float16},
            r"infinity in torch\.float16",
        ),
        (torch.ones(1, 3), torch.tensor([0]), {"dtype": torch.int32}, "dtype must be a floating type"),
    ],
)
def test_softmax_collapse_refuses(logits, targets, arguments, message):
    with pytest.raises(ValueError, match=message):
        softmax_collapse(logits, targets, **arguments)


def weighted(weight: list[float], gradient: list[float] | None, dtype=torch.float32) -> nn.Parameter:
    p = nn.Parameter(torch.tensor(weight, dtype=dtype))
    p.grad = None if gradient is None else torch.tensor(gradient, dtype=dtype)
    return p


def test_alignment_is_the_cosine_of_weight_and_descent_direction():
    params = {
        "scaling up": weighted([1.0, 2.0], [-2.0, -4.0]),
        "decaying": weighted([1.0, 2.0], [1.0, 2.0]),
        "turning": weighted([1.0, 0.0], [0.0, 5.0]),
        "between": weighted([1.0, 0.0], [-3.0, 4.0]),
        "no gradient": weighted([1.0], None),
        "zero weight": weighted([0.0], [1.0]),
        # The dot product overflows float16.
        "half": weighted([300.0, 300.0], [-300.0, -300.0], torch.float16),
    }
    assert weight_gradient_alignment(params) == pytest.approx(
        {"scaling up": 1, "decaying": -1, "turning": 0, "between": 0.6, "zero weight": 0, "half": 1}
    )


def test_alignment_of_a_scaled_linear_classifier_is_near_one():
    # On separable data that is already classified, descent only scales the weight up.
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[5.0, 0], [-5.0, 0]]))
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    assert weight_gradient_alignment(model) == {"weight": pytest.approx(1)}


def test_alignment_refuses():
    with pytest.raises(ValueError, match="must hold a parameter with a gradient"):
        weight_gradient_alignment({"a": weighted([1.0], None)})
    with pytest.raises(ValueError, match="'a' must be finite"):
        weight_gradient_alignment({"a": weighted([1.0], [math.nan])})
