from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.probe import preconditioned_sharpness, sharpness


def test_sharpness_equals_the_explicit_spectrum(problem):
    expected = torch.linalg.eigvalsh(problem.hessian()).flip(0)[:3].tolist()
    found = sharpness(problem.loss_fn, problem.params, top=3, iterations=40, tol=1e-8)
    assert found.eigenvalues == pytest.approx(expected, rel=1e-6)
    assert found.top == found.eigenvalues[0]


def test_default_tolerance_holds(problem):
    expected = torch.linalg.eigvalsh(problem.hessian())[-1].item()
    found = sharpness(problem.loss_fn, problem.params)
    assert found.top == pytest.approx(expected, rel=1e-2)
    assert found.hvps <= 20


def test_vectors_are_eigenvectors_and_the_residual_is_theirs(mlp):
    explicit = mlp.hessian()
    found = sharpness(mlp.loss_fn, mlp.params, iterations=8, tol=0)
    true = torch.linalg.vector_norm(explicit @ found.vectors[0] - found.top * found.vectors[0]).item()
    assert found.residual == pytest.approx(true, rel=1e-6)
    assert found.hvps == 8


def test_a_larger_negative_eigenvalue_does_not_hide_the_top():
    curvatures = torch.tensor([-100.0, -30.0, 2.0, 1.0, 0.5])
    w = torch.randn(5, requires_grad=True)
    found = sharpness(lambda: 0.5 * (curvatures * w.square()).sum(), [w], top=2)
    assert found.eigenvalues == pytest.approx([2, 1], rel=1e-2)


def rotated(angle: float, curvatures: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """A symmetric matrix whose top eigenvector turns by ``angle`` towards the third."""
    turn = torch.eye(len(curvatures), dtype=torch.float64)
    c, s = torch.tensor(angle).cos(), torch.tensor(angle).sin()
    turn[0, 0], turn[2, 2], turn[0, 2], turn[2, 0] = c, c, -s, s
    frame = basis @ turn
    return frame @ torch.diag(curvatures) @ frame.T


def test_warm_start_tracks_a_drifting_quadratic_with_four_products():
    torch.manual_seed(0)
    n = 200
    basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
    w = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    last, products = None, []
    for step in range(12):
        curvatures = torch.cat([torch.tensor([10 + step / 3, 9.0]), torch.linspace(8, -3, n - 2)]).double()
        matrix = rotated(0.1 * step, curvatures, basis)
        warm = last.vectors if last else None
        last = sharpness(lambda m=matrix: 0.5 * w @ m @ w, [w], warm_start=warm, iterations=4 if warm else 20)
        assert last.top == pytest.approx(10 + step / 3, rel=0.02)
        products.append(last.hvps)
    assert max(products[1:]) <= 4
    # The start is what does it: from a random one four products fall short.
    cold = sharpness(lambda: 0.5 * w @ matrix @ w, [w], iterations=4, tol=0)
    assert cold.top < 0.97 * (10 + 11 / 3)


def test_warm_start_tracks_a_network_in_training_with_four_products(mlp):
    optimizer = torch.optim.SGD(mlp.params, lr=0.5, momentum=0.9)
    last = sharpness(mlp.loss_fn, mlp.params)
    for _ in range(6):
        for _ in range(3):
            optimizer.zero_grad()
            mlp.loss_fn().backward()
            optimizer.step()
        last = sharpness(mlp.loss_fn, mlp.params, warm_start=last.vectors, iterations=4)
        assert last.hvps <= 4
        assert last.top == pytest.approx(torch.linalg.eigvalsh(mlp.hessian())[-1].item(), rel=0.02)


def test_warm_start_on_an_exact_eigenvector_still_sees_another_overtake_it():
    curvatures = torch.tensor([5.0, 9.0, 1.0, 0.5, 0.1])
    w = torch.zeros(5, requires_grad=True)
    old = torch.tensor([1.0, 0, 0, 0, 0])
    found = sharpness(lambda: 0.5 * (curvatures * w.square()).sum(), [w], warm_start=[old], iterations=5)
    assert found.top == pytest.approx(9, rel=1e-2)


def test_readings_repeat_and_leave_the_global_random_state(mlp):
    before = torch.get_rng_state()
    first, second = (sharpness(mlp.loss_fn, mlp.params, iterations=5, tol=0) for _ in range(2))
    assert first.eigenvalues == second.eigenvalues
    assert torch.equal(torch.get_rng_state(), before)
    other = sharpness(
        mlp.loss_fn, mlp.params, iterations=3, tol=0, generator=torch.Generator().manual_seed(9)
    )
    assert other.residual != sharpness(mlp.loss_fn, mlp.params, iterations=3, tol=0).residual


def explicit_preconditioned(problem, diagonals: list[torch.Tensor]) -> list[float]:
    root = torch.cat([d.reshape(-1) for d in diagonals]).sqrt()
    matrix = root[:, None] * problem.hessian() * root
    return torch.linalg.eigvalsh(matrix).flip(0)[:2].tolist()


def test_preconditioned_spectrum_equals_the_explicit_one(problem):
    diagonals = [torch.rand_like(p) * 3 + 0.1 for p in problem.params]
    found = sharpness(
        problem.loss_fn, problem.params, top=2, iterations=60, tol=1e-9, preconditioner=diagonals
    )
    assert found.eigenvalues == pytest.approx(explicit_preconditioned(problem, diagonals), rel=1e-6)


def train(problem, optimizer, steps: int = 6) -> list[list[torch.Tensor]]:
    """Step the optimizer; the gradients of every step."""
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        problem.loss_fn().backward()
        seen.append([p.grad.clone() for p in problem.params])
        optimizer.step()
    return seen


def test_adam_preconditioner_is_the_gradient_history(mlp):
    optimizer = torch.optim.Adam(mlp.params, lr=1e-2, betas=(0.9, 0.95), eps=1e-4)
    history = train(mlp, optimizer)
    diagonals = []
    for index in range(len(mlp.params)):
        square = sum(0.05 * 0.95 ** (5 - t) * history[t][index] ** 2 for t in range(6))
        diagonals.append(1 / ((square / (1 - 0.95**6)).sqrt() + 1e-4))
    expected = explicit_preconditioned(mlp, diagonals)
    found = preconditioned_sharpness(mlp.loss_fn, mlp.params, optimizer, top=2, iterations=45, tol=1e-9)
    assert found.eigenvalues == pytest.approx(expected, rel=1e-6)


def test_rmsprop_preconditioner_is_the_gradient_history(mlp):
    optimizer = torch.optim.RMSprop(mlp.params, lr=1e-2, alpha=0.9, eps=1e-4, centered=True)
    history = train(mlp, optimizer)
    diagonals = []
    for index in range(len(mlp.params)):
        weights = [0.1 * 0.9 ** (5 - t) for t in range(6)]
        square = sum(w * g[index] ** 2 for w, g in zip(weights, history, strict=True))
        mean = sum(w * g[index] for w, g in zip(weights, history, strict=True))
        diagonals.append(1 / ((square - mean**2).sqrt() + 1e-4))
    expected = explicit_preconditioned(mlp, diagonals)
    found = preconditioned_sharpness(mlp.loss_fn, mlp.params, optimizer, top=2, iterations=45, tol=1e-9)
    assert found.eigenvalues == pytest.approx(expected, rel=1e-6)


def test_amsgrad_preconditioner_is_the_largest_second_moment(mlp):
    optimizer = torch.optim.AdamW(mlp.params, lr=0.3, betas=(0.9, 0.5), eps=1e-4, amsgrad=True)
    history = train(mlp, optimizer)
    diagonals = []
    for index in range(len(mlp.params)):
        square = torch.zeros_like(mlp.params[index])
        largest = square
        for gradients in history:
            square = 0.5 * square + 0.5 * gradients[index] ** 2
            largest = torch.maximum(largest, square)
        diagonals.append(1 / ((largest / (1 - 0.5**6)).sqrt() + 1e-4))
    expected = explicit_preconditioned(mlp, diagonals)
    found = preconditioned_sharpness(mlp.loss_fn, mlp.params, optimizer, top=2, iterations=45, tol=1e-9)
    assert found.eigenvalues == pytest.approx(expected, rel=1e-6)


def test_preconditioner_is_ones_before_the_first_step_and_for_sgd(mlp):
    plain = sharpness(mlp.loss_fn, mlp.params).top
    for optimizer in (torch.optim.Adam(mlp.params), torch.optim.SGD(mlp.params, lr=0.1)):
        assert preconditioned_sharpness(mlp.loss_fn, mlp.params, optimizer).top == pytest.approx(plain)


class Asked(torch.optim.Optimizer):
    """An optimizer of no known type that says what it multiplies by."""

    def __init__(self, params, answer):
        super().__init__(params, {"lr": 0.1})
        self.answer = answer

    def preconditioner(self, p):
        return self.answer(p)


def test_an_optimizer_with_the_method_is_asked(mlp):
    plain = sharpness(mlp.loss_fn, mlp.params, tol=1e-6).top
    fourfold = Asked(mlp.params, lambda p: torch.full_like(p, 4))
    none = Asked(mlp.params, lambda p: None)
    assert preconditioned_sharpness(mlp.loss_fn, mlp.params, fourfold, tol=1e-6).top == pytest.approx(
        4 * plain
    )
    assert preconditioned_sharpness(mlp.loss_fn, mlp.params, none, tol=1e-6).top == pytest.approx(plain)


def test_preconditioned_sharpness_refuses(mlp):
    with pytest.raises(ValueError, match=r"one of torch\.optim\.SGD, Adam, AdamW and RMSprop.*Adagrad"):
        preconditioned_sharpness(mlp.loss_fn, mlp.params, torch.optim.Adagrad(mlp.params))
    with pytest.raises(ValueError, match=r"params\[1\] must belong to the optimizer"):
        preconditioned_sharpness(mlp.loss_fn, mlp.params, torch.optim.SGD(mlp.params[:1], lr=1.0))
    with pytest.raises(ValueError, match=r"params\[0\]\) must have shape \(6, 4\), got \(6,\)"):
        preconditioned_sharpness(mlp.loss_fn, mlp.params, Asked(mlp.params, lambda p: torch.ones(len(p))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top": 0}, "top must be an integer >= 1, got 0"),
        ({"top": 4, "iterations": 3}, "iterations must be an integer >= 4, got 3"),
        ({"top": 100, "iterations": 100}, r"at most the number of parameters \(51\), got 100"),
        ({"warm_start": [torch.ones(3)]}, r"warm_start\[0\] must have shape \(51,\), got \(3,\)"),
        ({"preconditioner": [None]}, "preconditioner must hold 4 tensors, got 1"),
        ({"preconditioner": [torch.ones(2)] * 4}, r"preconditioner\[0\] must have shape"),
        ({"preconditioner": [torch.full((6, 4), -1.0), None, None, None]}, "finite and not negative"),
    ],
)
def test_sharpness_refuses(mlp, arguments, message):
    with pytest.raises(ValueError, match=message):
        sharpness(mlp.loss_fn, mlp.params, **arguments)


def test_flash_attention_alone_has_no_second_derivative_so_the_kernel_choice_matters():
    q = torch.randn(1, 2, 4, 8, requires_grad=True)

    def loss_fn():
        return functional.scaled_dot_product_attention(q, q, q).square().sum()

    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.FLASH_ATTENTION):
        (gradient,) = torch.autograd.grad(loss_fn(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="derivative"):
            torch.autograd.grad(gradient.sum(), q)
    explicit = torch.autograd.functional.hessian(
        lambda x: torch.softmax(x @ x.mT / 8**0.5, -1).matmul(x).square().sum(), q
    )
    expected = torch.linalg.eigvalsh(explicit.view(64, 64))[-1].item()
    assert sharpness(loss_fn, [q], tol=1e-5, iterations=40).top == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("copies", [2, 10])
def test_repeated_eigenvalues_are_read_as_often_as_they_are_there(copies, dtype):
    """A linear layer's mean squared error has each of its own as often as it has outputs."""
    torch.manual_seed(0)
    model = nn.Linear(20, copies).to(dtype)
    inputs, targets = torch.randn(100, 20, dtype=dtype), torch.randn(100, copies, dtype=dtype)
    rows = torch.cat([inputs, torch.ones(100, 1)], 1).double()
    exact = torch.linalg.eigvalsh(2 / copies / 100 * rows.T @ rows).flip(0).repeat_interleave(copies)
    params = list(model.parameters())
    found = sharpness(lambda: functional.mse_loss(model(inputs), targets), params, top=5)
    assert found.eigenvalues == pytest.approx(exact[:5].tolist(), rel=1e-3)
    vectors = torch.stack(found.vectors)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(5, dtype=dtype), rtol=0, atol=1e-5)
    # That none is missing is seen in a few products, where none is.
    network = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
    assert sharpness(lambda: network(inputs).square().mean(), network.parameters(), top=5).hvps <= 30


def test_eigenvalues_of_zero_are_not_taken_for_copies():
    w = torch.ones(60, requires_grad=True)
    curvatures = torch.cat([torch.tensor([5.0, 5.0, 3.0]), torch.zeros(57)])
    found = sharpness(lambda: (0.5 * curvatures * w * w).sum(), [w], top=5)
    assert found.eigenvalues == pytest.approx([5, 5, 3, 0, 0], abs=1e-5) and found.hvps <= 20
    flat = sharpness(lambda: w.sum(), [w], top=5)
    assert flat.eigenvalues == (0, 0, 0, 0, 0) and flat.hvps <= 10


@pytest.mark.parametrize("seed", range(3))
def test_copies_are_found_also_where_the_last_eigenvalues_asked_for_do_not_converge(seed):
    """Five eigenvalues, each four times, over a bulk in which the sixth to eighth different ones lie."""
    source = torch.Generator().manual_seed(seed)
    curvatures = 5 * torch.rand(200, generator=source) ** 4
    curvatures[:20] = (5 + 20 * torch.rand(5, generator=source)).repeat_interleave(4)
    exact = curvatures.sort(descending=True).values[:8].tolist()
    w = torch.ones(200, requires_grad=True)
    found = sharpness(lambda: (0.5 * curvatures * w * w).sum(), [w], top=8)
    assert found.eigenvalues[:4] == pytest.approx(exact[:4], rel=0.02) and found.hvps <= 80
