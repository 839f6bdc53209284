"""Agreement of singular vectors against the double sum over pairs, and what matching does to it."""

import pytest
import torch

from thalweg.probe import input_energy, singular_agreement
from thalweg.tasks import CNN, MLP


def weights(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8])
def test_agreement_is_the_sum_over_pairs_of_vectors(threshold):
    ours = {"a": weights(0, 7, 5), "b": weights(1, 4, 3, 2, 2)}
    theirs = {"a": weights(2, 7, 5), "b": weights(3, 4, 3, 2, 2) + 0.5 * ours["b"]}
    found = singular_agreement(theirs, ours, threshold=threshold)
    total = count = 0
    for name, one in found.layers.items():
        a, b = ours[name].flatten(1), theirs[name].flatten(1)
        (u, s, v), (w, t, z) = torch.linalg.svd(a), torch.linalg.svd(b)
        left = [i for i in range(len(s)) if s[i] >= threshold * s[0]]
        right = [j for j in range(len(t)) if t[j] >= threshold * t[0]]
        pairs = sum(float((u[:, i] @ w[:, j]) * (v[i] @ z[j])) for i in left for j in right)
        n = min(len(left), len(right))
        assert one.agreement == pytest.approx(pairs / n, rel=1e-9) and one.vectors == n
        # The identity behind it, with all vectors.
        inner = sum(
            float(s[i] * t[j] * (u[:, i] @ w[:, j]) * (v[i] @ z[j]))
            for i in range(len(s))
            for j in range(len(t))
        )
        assert one.share_of_bound == pytest.approx(inner / float(s @ t), rel=1e-9)
        assert inner == pytest.approx(float((a * b).sum()), rel=1e-9) and inner <= float(s @ t)
        assert one.distance == pytest.approx(float((a - b).norm()))
        total, count = total + pairs, count + n
    assert found.agreement == pytest.approx(total / count, rel=1e-9) and found.threshold == threshold


def test_equal_networks_agree_and_rotated_ones_reach_the_bound_no_more():
    model = CNN(width=4, seed=0)
    found = singular_agreement(model, model, threshold=0.0)
    assert found.agreement == pytest.approx(1) and len(found.layers) == 4
    assert all(one.share_of_bound == pytest.approx(1) and one.distance == 0 for one in found.layers.values())
    ours = {"a": weights(0, 6, 6)}
    turned = {"a": torch.linalg.qr(weights(1, 6, 6)).Q @ ours["a"]}
    assert abs(singular_agreement(turned, ours).layers["a"].share_of_bound) < 0.9


def test_unrelated_networks_do_not_agree():
    found = singular_agreement(MLP((20, 200, 200, 5), seed=0), MLP((20, 200, 200, 5), seed=1), threshold=0.0)
    assert abs(found.agreement) < 0.05


def test_vectors_of_equal_values_may_be_any():
    ours = {"a": torch.eye(5, dtype=torch.float64)}
    turn = torch.linalg.qr(weights(4, 5, 5)).Q
    same = {"a": turn @ torch.eye(5, dtype=torch.float64) @ turn.T}
    assert singular_agreement(same, ours).agreement == pytest.approx(1)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ({"a": torch.ones(2, 3)}, {"threshold": 1.5}, r"threshold must be in \[0, 1\], got 1.5"),
        ({"b": torch.ones(2, 3)}, {}, "model must have a weight 'a', got none"),
        ({"a": torch.ones(3, 3)}, {}, r"model\['a'\] must have shape \(2, 3\) as in reference, got \(3, 3\)"),
        ({"a": torch.zeros(2, 3)}, {}, r"model\['a'\] must be finite and not all zero"),
        ({"a": torch.full((2, 3), float("nan"))}, {}, r"model\['a'\] must be finite"),
        ({"a": torch.ones(2, 3)}, {"layers": []}, "layers must name at least one weight"),
        ({"a": torch.ones(2, 3)}, {"layers": ["c"]}, "reference must have a weight 'c'"),
    ],
)
def test_what_cannot_be_compared_is_refused(model, options, said):
    with pytest.raises(ValueError, match=said):
        singular_agreement(model, {"a": torch.ones(2, 3), "bias": torch.ones(3)}, **options)


def test_energy_of_inputs_is_what_the_kept_directions_carry():
    model, x = MLP((6, 9, 5, 3), seed=0).double(), weights(0, 40, 6)
    inputs = {"0": x, "2": model[1](model[0](x))}
    inputs["4"] = model[3](model[2](inputs["2"]))
    for threshold in (0.0, 0.5, 1.0):
        found = input_energy(model, x, threshold=threshold)
        assert list(found) == ["0", "2", "4"]
        for name, share in found.items():
            values, v = torch.linalg.svd(model.get_submodule(name).weight.detach())[1:]
            kept = [i for i in range(len(values)) if values[i] >= threshold * values[0]]
            z = inputs[name].detach()
            expected = sum(float((z @ v[i]).square().sum()) for i in kept) / float(z.square().sum())
            assert share == pytest.approx(expected, rel=1e-9)
    assert input_energy(model, x, threshold=0.0)["0"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": ["1"]}, "layers must name Linear layers, got '1', a ReLU"),
        ({"layers": ["9"]}, "layers must name modules of the model, got '9'"),
        ({"threshold": -1}, r"threshold must be in \[0, 1\], got -1"),
        ({"batch": torch.zeros(4, 6)}, "layer '0' must have inputs that are not all zero"),
    ],
)
def test_energy_that_cannot_be_measured_is_refused(options, said):
    batch = options.pop("batch", torch.randn(4, 6))
    with pytest.raises(ValueError, match=said):
        input_energy(MLP((6, 9, 3)), batch, **options)


def test_a_state_dict_may_hold_tied_names_and_buffers():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.out = torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6, bias=False)
            self.out.weight = self.into.weight
            self.register_buffer("mask", torch.ones(2, 2))

    model, other = Tied(), Tied()
    found = singular_agreement(model, other.state_dict())
    assert found == singular_agreement(model, other) and list(found.layers) == ["into.weight"]
    with pytest.raises(ValueError, match="model must have a weight 'head'"):
        singular_agreement(model, other.state_dict() | {"head": torch.ones(2, 2)})


def test_by_default_linear_layers_that_do_not_run_are_left_out():
    block = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(4, 3, 8)
    assert list(input_energy(block, x)) == ["linear1", "linear2"]
    with pytest.raises(ValueError, match=r"run when the model is called, got self_attn\.out_proj"):
        input_energy(block, x, layers=["self_attn.out_proj"])
    with pytest.raises(ValueError, match="model must have a Linear layer, got none"):
        input_energy(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)), torch.randn(2, 1, 5, 5))
