from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from thalweg.probe import gradient_starvation
from thalweg.tasks import GPT, MLP


def explicit_margins(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p - log (1 - p) of each target, for classes; y f for one logit."""
    if outputs.shape == targets.shape:
        return targets * outputs
    log_p = outputs.log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    return (log_p - (-log_p.expm1()).log())[targets != -100]


def explicit(model: nn.Module, inputs, targets: torch.Tensor):
    """Margins and their Jacobian, parameter by parameter, of the whole batch at once."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    params = [dict(model.named_parameters())[name] for name in names]

    def margins(*given: torch.Tensor) -> torch.Tensor:
        outputs = functional_call(model, dict(zip(names, given, strict=True)), inputs)
        outputs = outputs.squeeze(-1) if outputs.shape[-1] == 1 else outputs
        return explicit_margins(outputs, targets).flatten()

    blocks = torch.autograd.functional.jacobian(margins, tuple(params))
    found = margins(*params).detach()
    return found, {name: block.reshape(len(found), -1) for name, block in zip(names, blocks, strict=True)}


@pytest.mark.parametrize("chunk", [1, 4])
def test_an_output_with_logits_counts_as_its_logits(chunk):
    """As Hugging Face's models return."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        num_labels=3,
        max_position_embeddings=8,
    )
    model = transformers.BertForSequenceClassification(config).double().eval()
    tokens, targets = torch.arange(20).view(4, 5) % 11, torch.tensor([0, 2, 1, 0])

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids):
            return self.inner(input_ids=input_ids).logits

    found = gradient_starvation(model, {"input_ids": tokens}, targets, chunk=chunk)
    plain = gradient_starvation(Logits(), tokens, targets, chunk=1)
    torch.testing.assert_close(found.strengths, plain.strengths)
    torch.testing.assert_close(found.margins, plain.margins)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def signs(n: int) -> torch.Tensor:
    return torch.where(torch.arange(n) % 3 == 0, -1, 1)


def convolution() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    model.double()(drawn(9, 1, 4, 4))
    return model


POSITIONS = torch.tensor([[1, 2, -100, 0], [3, 3, 1, 4], [0, -100, -100, 2]])
CASES = {
    "one logit": (lambda: MLP((3, 5, 1), activation="tanh", seed=0), drawn(6, 3), signs(6), 4),
    "classes": (lambda: MLP((3, 5, 4), activation="tanh", seed=0), drawn(7, 3), torch.arange(7) % 4, 3),
    "classes one by one": (lambda: MLP((3, 5, 4), seed=0), drawn(7, 3), torch.arange(7) % 4, 1),
    "convolution": (convolution, drawn(5, 1, 4, 4), torch.arange(5) % 4, 32),
    "attention": (
        lambda: GPT(7, 4, layers=1, heads=2, width=4, seed=0, qk_norm=True),
        torch.arange(12).view(3, 4) % 7,
        POSITIONS,
        2,
    ),
    "recurrent": (Tokens, drawn(4, 3, 2), torch.arange(4) % 3, 1),
}


@pytest.fixture(params=sorted(CASES))
def case(request):
    torch.manual_seed(0)
    make, inputs, targets, chunk = CASES[request.param]
    return make().double().eval(), inputs, targets, chunk


def test_reading_is_the_singular_value_decomposition_of_the_explicit_jacobian(case):
    model, inputs, targets, chunk = case
    margins, blocks = explicit(model, inputs, targets)
    jacobian = torch.cat(list(blocks.values()), dim=1)
    u, s, _ = torch.linalg.svd(jacobian, full_matrices=False)
    found = gradient_starvation(model, inputs, targets, chunk=chunk)
    torch.testing.assert_close(found.margins, margins)
    torch.testing.assert_close(found.strengths, s, rtol=1e-6, atol=1e-6 * s[0].item())
    # Singular vectors of distinct values are the same up to their sign, which is said to be that of the sum.
    torch.testing.assert_close(found.features[:, 0], u[:, 0] * u[:, 0].sum().sign())
    assert (found.features.sum(0) >= 0).all()
    torch.testing.assert_close(found.features.T @ found.features, torch.eye(len(s), dtype=s.dtype))
    torch.testing.assert_close(found.features @ found.responses, margins)
    share = (u[:, 0] @ margins) ** 2 / margins.square().sum()
    assert found.top_share == pytest.approx(share.item(), rel=1e-6)
    for name, block in blocks.items():
        expected = (found.features.T @ block).square().sum(1)
        torch.testing.assert_close(found.layers[name], expected, rtol=1e-6, atol=1e-9)


def test_cross_entropy_is_a_function_of_the_margin():
    model, inputs, targets = MLP((3, 5, 4), seed=0), drawn(7, 3).float(), torch.arange(7) % 4
    margins = gradient_starvation(model, inputs, targets).margins
    expected = nn.functional.cross_entropy(model(inputs), targets, reduction="none").double()
    torch.testing.assert_close((1 + (-margins).exp()).log(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strength", [3.0, 6.0])
def test_a_linear_model_has_the_features_it_was_made_of(strength):
    root = math.sqrt(0.75)
    u = torch.tensor([[root, -0.5], [0.5, root]], dtype=torch.float64)
    inputs = u @ torch.diag(torch.tensor([strength, 2.0], dtype=torch.float64))
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight[:] = torch.tensor([[0.4, -0.7]])
    # Labels turn the sign of whole rows, and the margins' Jacobian turns it back.
    labels = torch.tensor([1, -1])
    found = gradient_starvation(model, labels[:, None] * inputs, labels)
    assert found.strengths.tolist() == pytest.approx([strength, 2])
    torch.testing.assert_close(found.features, u)
    assert found.responses.tolist() == pytest.approx([0.4 * strength, -0.7 * 2])
    assert found.layers["weight"].tolist() == pytest.approx([strength**2, 4])


def test_frozen_parameters_have_no_part():
    model = MLP((3, 5, 4), seed=0).double()
    model[0].weight.requires_grad_(False)
    inputs, targets = drawn(7, 3), torch.arange(7) % 4
    found = gradient_starvation(model, inputs, targets)
    _, blocks = explicit(model, inputs, targets)
    assert "0.weight" not in found.layers
    s = torch.linalg.svdvals(torch.cat(list(blocks.values()), dim=1))
    torch.testing.assert_close(found.strengths, s)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(4, 3)

    def forward(self, x, y):
        return self.first(x) + self.second(y)


def test_inputs_may_be_several_tensors():
    torch.manual_seed(0)
    model, x, y, targets = Two().double(), drawn(5, 2), drawn(5, 4), torch.arange(5) % 3
    by_place, by_name, one_by_one = (
        gradient_starvation(model, (x, y), targets),
        gradient_starvation(model, {"y": y, "x": x}, targets),
        gradient_starvation(model, {"y": y, "x": x}, targets, chunk=1),
    )
    torch.testing.assert_close(by_place.strengths, by_name.strengths)
    torch.testing.assert_close(by_place.strengths, one_by_one.strengths)


@pytest.mark.parametrize("chunk", [1, 4])
def test_model_is_left_as_it_was(chunk):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    model[1].eval()
    model(torch.ones(4, 3)).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    before = torch.get_rng_state()
    gradient_starvation(model, drawn(6, 3).float(), torch.arange(6) % 2, chunk=chunk)
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_behind_ddp_is_measured_and_trains_on(process_group):
    model, inputs, targets = MLP((3, 5, 4), seed=0), drawn(7, 3).float(), torch.arange(7) % 4
    wrapped = DistributedDataParallel(model)
    found, alone = (gradient_starvation(m, inputs, targets) for m in (wrapped, model))
    assert found.layers.keys() == alone.layers.keys()
    assert torch.equal(found.responses, alone.responses)
    wrapped(inputs).sum().backward()
    wrapped(inputs).sum().backward()


class Nested(nn.Linear):
    def __init__(self):
        super().__init__(3, 4)

    def forward(self, input):
        return ((super().forward(input), None), None)


ONE, SEVERAL = MLP((3, 1), seed=0), MLP((3, 4), seed=0)


@pytest.mark.parametrize(
    ("model", "targets", "options", "message"),
    [
        (ONE, torch.tensor([0, 1]), {}, "targets must be -1 or 1, got 0"),
        (SEVERAL, torch.tensor([0, 4]), {}, r"targets must be in \[0, 4\), got 4"),
        (SEVERAL, torch.tensor([-100, -100]), {}, "one that counts, got only ignore_index=-100"),
        (SEVERAL, torch.tensor([0.0, 1.0]), {}, r"class numbers for several, got torch\.float32"),
        (SEVERAL, torch.ones(0).long(), {}, r"at least one example, got shape \(0,\)"),
        (SEVERAL, torch.tensor([0, 1]), {"chunk": 0}, "chunk must be an integer >= 1, got 0"),
        (nn.Identity(), torch.tensor([0, 1]), {}, "a parameter that requires a gradient, got none"),
        (Nested(), torch.tensor([0, 1]), {}, "one tensor of logits, got tuple"),
    ],
)
def test_gradient_starvation_refuses(model, targets, options, message):
    with pytest.raises(ValueError, match=message):
        gradient_starvation(model, torch.ones(2, 3), targets, **options)


def test_margins_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite margins, got NaN or infinity"):
        gradient_starvation(SEVERAL, torch.full((2, 3), torch.nan), torch.tensor([0, 1]))


def together(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "image":
        return convolution().double(), drawn(9, 1, 4, 4).double()
    kept = kind != "nothing kept"
    layers = nn.Linear(3, 6), nn.BatchNorm1d(6, track_running_stats=kept), nn.Tanh(), nn.Dropout(0.5)
    return nn.Sequential(*layers, nn.Linear(6, 4)).double(), 2 * drawn(9, 3).double() + 1


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("kind", ["rows", "image", "nothing kept"])
def test_batch_normalisation_in_training_mode_normalises_by_the_batch_and_is_differentiated(kind, chunk):
    model, inputs = together(kind)
    targets = torch.tensor([0, 1, 2, 3, -100, 0, 1, 2, -100])
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    model.train()
    found = gradient_starvation(model, inputs, targets, chunk=chunk)
    assert model.training and all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    norm = next(m for m in model if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)))
    values = inputs
    for module in model:
        if module is norm:
            axes, shape = [0, *range(2, values.dim())], (1, -1, *[1] * (values.dim() - 2))
            spread = (values.var(axes, correction=0, keepdim=True) + norm.eps).sqrt()
            values = (values - values.mean(axes, keepdim=True)) / spread
            values = values * norm.weight.view(shape) + norm.bias.view(shape)
        elif not isinstance(module, nn.Dropout):
            values = module(values)
    counted = (targets != -100).nonzero().flatten()
    margins = explicit_margins(values[counted], targets[counted])
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(m, model.parameters(), retain_graph=True)])
        for m in margins
    ]
    singular = torch.linalg.svdvals(torch.stack(rows))
    torch.testing.assert_close(found.margins, margins.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.strengths, singular, rtol=1e-6, atol=1e-6 * singular[0].item())
    torch.testing.assert_close(sum(found.layers.values()), found.strengths**2, rtol=1e-9, atol=1e-9)
    model.eval()
    running = gradient_starvation(model, inputs, targets).strengths
    assert torch.allclose(running, singular, rtol=0.02) == (kind == "nothing kept")
