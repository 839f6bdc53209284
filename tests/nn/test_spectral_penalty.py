"""The spectral and the Wasserstein penalty, against singular value decompositions and sorted lists."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from thalweg.nn import BatchChannelNorm, LayerNormGRU, spectral_regularization, wasserstein_regularization


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4, bias=False)
    ).double()


def top(matrix):
    return torch.linalg.svdvals(matrix.detach().flatten(1))[0]


@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_penalty_is_the_formula_by_singular_value_decomposition(exponent):
    model = network()
    conv, norm, linear = model[0], model[1], model[4]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.5, 1.0]))
        norm.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    expected = sum((s**exponent - 1) ** 2 for s in (top(conv.weight), top(linear.weight), 1.5))
    expected += sum(torch.linalg.vector_norm(b.detach()) ** (2 * exponent) for b in (conv.bias, norm.bias))
    found = spectral_regularization(model, 0.3, exponent=exponent, warmup=200)()
    assert found.item() == pytest.approx(0.3 * expected.item(), rel=1e-9)


def test_gradient_is_that_of_the_singular_value():
    layer = nn.Linear(5, 4, bias=False).double()
    u, s, v = torch.linalg.svd(layer.weight.detach())
    spectral_regularization(layer, 1.0, exponent=2, warmup=300)().backward()
    expected = 2 * 2 * s[0] * (s[0] ** 2 - 1) * torch.outer(u[:, 0], v[0])
    assert torch.allclose(layer.weight.grad, expected, atol=1e-9)


def test_nothing_is_asked_of_an_orthogonal_layer_without_bias_and_the_gradient_is_finite_there():
    layer = nn.Linear(6, 6).double()
    nn.init.orthogonal_(layer.weight), nn.init.zeros_(layer.bias)
    penalty = spectral_regularization(layer, 1.0)()
    penalty.backward()
    assert penalty.item() < 1e-20
    assert layer.weight.grad.abs().max() < 1e-10 and torch.equal(layer.bias.grad, torch.zeros(6).double())


def test_one_iteration_from_the_top_vector_is_exact_and_follows_slow_weights():
    torch.manual_seed(0)
    layer = nn.Linear(20, 20, bias=False).double()
    penalty = spectral_regularization(layer, 1.0, warmup=500)
    for _ in range(50):
        with torch.no_grad():
            layer.weight.add_(1e-3 * torch.randn(20, 20).double())
        penalty()
    (estimate,) = penalty.norms().values()
    assert estimate.item() == pytest.approx(top(layer.weight).item(), rel=1e-3)
    assert estimate <= top(layer.weight) + 1e-12


def test_fused_projections_and_gates_are_matrices_of_their_own():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(4, 2), "gates": nn.LSTM(3, 2), "e": nn.Embedding(9, 4)}
    )
    norms = spectral_regularization(model, warmup=2000).norms()
    assert len(norms) == 3 + 1 + 2 * 4
    for index, part in enumerate(model.attention.in_proj_weight.chunk(3)):
        assert norms[f"attention.in_proj_weight[{index}]"].item() == pytest.approx(top(part).item(), rel=1e-3)
    for index, part in enumerate(model.gates.weight_hh_l0.chunk(4)):
        assert norms[f"gates.weight_hh_l0[{index}]"].item() == pytest.approx(top(part).item(), rel=1e-3)


def test_a_shared_weight_counts_once_and_a_parametrized_one_as_it_is_used():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    assert list(spectral_regularization(model).norms()) == ["0.weight"]
    layer = weight_norm(nn.Linear(4, 3))
    norms = spectral_regularization(nn.Sequential(layer), warmup=500).norms()
    assert norms["0.weight"].item() == pytest.approx(top(layer.weight).item(), rel=1e-4)


def test_wasserstein_distance_is_that_of_the_sorted_values_and_blind_to_order():
    model = network()
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    penalty = wasserstein_regularization(model, 0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.flatten()[torch.randperm(p.numel())].view_as(p))
    assert penalty().item() == 0
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    expected = 0.0
    for name, p in model.named_parameters():
        now, then = sorted(p.flatten().tolist()), sorted(first[name].flatten().tolist())
        expected += sum((a - b) ** 2 for a, b in zip(now, then, strict=True)) / len(now)
    assert penalty().item() == pytest.approx(0.5 * expected, rel=1e-9)
    penalty().backward()
    order = model[4].weight.detach().flatten().argsort()
    wanted = torch.empty(48).double()
    now, then = model[4].weight.detach().flatten(), first["4.weight"].flatten().sort().values
    wanted[order] = 2 * 0.5 * (now[order] - then) / 48
    assert torch.allclose(model[4].weight.grad.flatten(), wanted)


@pytest.mark.parametrize("make", [spectral_regularization, wasserstein_regularization])
def test_a_penalty_holds_its_state_alone_restores_it_and_compiles(make):
    model = network().float()
    penalty = make(model, 0.1)
    assert not list(penalty.parameters()) and penalty.state_dict()
    other = make(copy.deepcopy(model), 0.1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    penalty()
    other = make(model, 0.1)
    other.load_state_dict(penalty.state_dict())
    assert torch.equal(other(), penalty())
    other.load_state_dict(penalty.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    expected, found = penalty(), compiled()
    assert torch.allclose(found, expected)
    found.backward()
    assert model[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("make", [spectral_regularization, wasserstein_regularization])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_made_with_its_model_follows_the_copied_model(make, copied):
    model = network().float()
    penalty = make(model, 0.1)
    other, twin = copied((penalty, model))
    with torch.no_grad():
        for p in (*model.parameters(), *twin.parameters()):
            p.mul_(2)
        model[0].weight.fill_(3)
    assert not torch.equal(other(), penalty())
    other().backward()
    assert twin[0].weight.grad.abs().sum() > 0 and model[0].weight.grad is None
    assert not list(other.parameters())


def test_half_precision_weights_are_judged_in_float32():
    layer = nn.Linear(30, 30).to(torch.bfloat16)
    penalty = spectral_regularization(layer, warmup=300)
    assert penalty().dtype == torch.float32
    assert penalty.norms()["weight"].item() == pytest.approx(top(layer.weight.float()).item(), rel=1e-3)


def test_layers_of_the_room_are_understood():
    torch.manual_seed(0)
    norm, cell = BatchChannelNorm(4, 2), LayerNormGRU(3, 5)
    penalty = spectral_regularization(nn.ModuleDict({"norm": norm, "cell": cell}), warmup=300)
    gates = [f"cell.{side}_weight[{i}]" for side in ("input", "hidden") for i in range(3)]
    assert list(penalty.norms()) == gates
    parts = [*cell.input_weight.chunk(3), *cell.hidden_weight.chunk(3)]
    for found, part in zip(penalty.norms().values(), parts, strict=True):
        assert found.item() == pytest.approx(top(part).item(), rel=1e-4)
    before = penalty().item()
    with torch.no_grad():
        norm.group_weight[0] = 3
        norm.group_bias[:] = torch.tensor([3.0, 4.0])
    assert penalty().item() == pytest.approx(before + 1e-3 * ((3**2 - 1) ** 2 + 5**4), rel=1e-3)


def test_under_autocast_values_and_vectors_are_as_exact_as_without():
    torch.manual_seed(0)
    model = nn.Linear(20, 30)
    penalty, other = (spectral_regularization(model, 1.0, warmup=30) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = other()
    assert found.item() == pytest.approx(penalty().item(), rel=1e-6)
    assert torch.allclose(penalty.left0, other.left0, atol=1e-6)
    found.backward()
    assert model.weight.grad.norm() > 0


def test_a_model_that_is_moved_alone_takes_the_vectors_along():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    penalty = spectral_regularization(model, 1.0, warmup=50)
    before = penalty().item()
    model.double()
    assert penalty.half()().item() == pytest.approx(before, rel=1e-3)
    assert penalty.left0.dtype == penalty.right1.dtype == torch.float64
    assert set(penalty.state_dict()) == {"left0", "right0", "left1", "right1"}
    values = wasserstein_regularization(model)
    model.to("meta")  # the only other device that there always is
    assert penalty().is_meta and values().is_meta and values.first0.is_meta


def test_class_tokens_and_embeddings_of_positions_are_left_out():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.ones(1, 1, 4))
            self.places = nn.Parameter(torch.ones(1, 9, 4))
            self.layer = nn.Linear(4, 4)

    model = Patches()
    assert list(spectral_regularization(model).norms()) == ["layer.weight"]
    wasserstein_regularization(model)().backward()
    assert model.token.grad is None and model.layer.weight.grad is not None
    model.mixing = nn.Parameter(torch.ones(9, 9))
    with pytest.raises(ValueError, match=r"module '' \(Patches\) has parameters that are not understood"):
        spectral_regularization(model)


def test_refusals():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    model = nn.Sequential(nn.Linear(2, 2), Own())
    with pytest.raises(
        ValueError, match=r"module '1' \(Own\) has parameters that are not understood: skip it"
    ):
        spectral_regularization(model)
    assert list(spectral_regularization(model, skip=["1"]).norms()) == ["0.weight"]
    with pytest.raises(ValueError, match="skip must name modules of the model, got '7'"):
        wasserstein_regularization(model, skip=["7"])
    with pytest.raises(ValueError, match="skip must be a collection of names, got the string '1'"):
        spectral_regularization(model, skip="1")
    with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module, got list"):
        wasserstein_regularization([model])
    with pytest.raises(ValueError, match=r"coefficient must be in \[0, inf\), got -1"):
        spectral_regularization(model[0], -1)
    with pytest.raises(ValueError, match="exponent must be an integer >= 1, got 0"):
        spectral_regularization(model[0], exponent=0)
    with pytest.raises(ValueError, match="module '0' must hold numbers, got one on the meta device"):
        spectral_regularization(nn.Sequential(nn.Linear(2, 2)).to("meta"))
    with pytest.raises(ValueError, match="model must have a linear, convolution or recurrent layer"):
        spectral_regularization(nn.ReLU())


def test_a_weight_that_was_zero_at_first_is_followed_once_it_moves():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.zeros_(model[1].weight)
    penalty = spectral_regularization(model)
    penalty().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        model[1].weight.copy_(5 * torch.eye(8))
    penalty()
    assert penalty.norms()["1.weight"].item() == pytest.approx(5)
