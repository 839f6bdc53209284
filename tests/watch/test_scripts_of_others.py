"""``thalweg run`` hears the loss of scripts that say nothing, however they compute it, and ends none."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from thalweg import optim
from thalweg.watch import RunStore, script
from thalweg.watch.script import watching_everything

X, Y = torch.randn(48, 8), torch.randint(0, 4, (48,))
Y[::5] = -100
WAYS = {
    "mean": lambda out, y: F.cross_entropy(out, y),
    "sum": lambda out, y: F.cross_entropy(out, y, reduction="sum") / 100,
    "sum, by the old name": lambda out, y: F.cross_entropy(out, y, size_average=False) / 100,
    "by place": lambda out, y: F.cross_entropy(out, y, None, None, -100, None, "sum") / 100,
    "none": lambda out, y: (F.cross_entropy(out, y, reduction="none") * torch.rand(len(y))).mean(),
    "other ignored": lambda out, y: F.cross_entropy(out, y + 100 * (y < 0), ignore_index=0, reduction="sum"),
}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def losses(folder, run=1):
    with RunStore(folder / "s") as store:
        return [(one.step, one.value) for one in store.readings(run, "loss")]


@pytest.mark.filterwarnings("ignore:size_average")
@pytest.mark.parametrize("way", WAYS)
def test_the_loss_is_the_mean_over_the_examples_that_count(net, tmp_path, way):
    opt, wanted = torch.optim.SGD(net.parameters(), lr=0.1), []
    # With sensors at every step, which run the model and its loss too.
    with watching_everything(name="script", store=tmp_path / "s", budget=1e9) as runs:
        for _ in range(12):
            out = net(X)
            ignored = 0 if way == "other ignored" else -100
            targets = Y + 100 * (Y < 0) if way == "other ignored" else Y
            with torch.no_grad():
                wanted.append(F.cross_entropy(out, targets, ignore_index=ignored).item())
            WAYS[way](out, Y).backward()
            opt.step()
            opt.zero_grad()
    assert not runs[0].disabled
    found = losses(tmp_path)
    assert [step for step, _ in found] == list(range(1, 13))
    assert [value for _, value in found] == pytest.approx(wanted, rel=1e-5)


def test_over_accumulated_batches_it_is_their_mean(net, tmp_path):
    opt, wanted = torch.optim.SGD(net.parameters(), lr=0.1), []
    with watching_everything(name="script", store=tmp_path / "s", budget=1e9):
        for _ in range(6):
            parts = [F.cross_entropy(net(x), y) for x, y in zip(X.split(16), Y.split(16), strict=True)]
            for part in parts:
                (part / 3).backward()
            wanted.append(sum(part.item() for part in parts) / 3)
            opt.step()
            opt.zero_grad()
    assert [value for _, value in losses(tmp_path)] == pytest.approx(wanted, rel=1e-5)


def test_an_evaluation_with_gradients_on_is_no_part_of_it(net, tmp_path):
    opt, wanted = torch.optim.SGD(net.parameters(), lr=0.1), []
    with watching_everything(name="script", store=tmp_path / "s", budget=0):
        for _ in range(6):
            for noise in range(3):
                F.cross_entropy(net(X + noise), Y)
            loss = F.cross_entropy(net(X), Y)
            loss.backward(retain_graph=True)
            loss.backward()
            wanted.append(loss.item())
            opt.step()
            opt.zero_grad()
    assert [value for _, value in losses(tmp_path)] == pytest.approx(wanted)


def sharpness_aware(params):
    return optim.SAM(torch.optim.SGD(params, lr=0.1), radius=0.1)


def lbfgs(params):
    return torch.optim.LBFGS(params, lr=0.1, max_iter=3)


@pytest.mark.parametrize("make", [sharpness_aware, lbfgs])
def test_of_a_closure_it_is_the_latest_before_the_step(net, tmp_path, make):
    opt, said = make(net.parameters()), []

    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(net(X), Y)
        loss.backward()
        said.append(loss.item())
        return loss

    wanted = []
    with watching_everything(name="script", store=tmp_path / "s", budget=0):
        for step in range(1, 7):
            opt.step(closure)
            wanted.append((step + 1, said[-1]))
    assert losses(tmp_path) == [(step, pytest.approx(value)) for step, value in wanted[:-1]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("quiet", [False, True])
def test_what_goes_wrong_in_watching_is_said_and_the_script_goes_on(net, tmp_path, monkeypatch, quiet):
    begin, opts = script.watch, [torch.optim.SGD(net.parameters(), lr=0.1) for _ in range(2)]

    def full(model, optimizer, **options):
        if optimizer is opts[1]:
            raise ValueError("the disk is full")
        return begin(model, optimizer, **options)

    monkeypatch.setattr(script, "watch", full)

    def train():
        for _ in range(4):
            for opt in opts:
                F.cross_entropy(net(X), Y).backward()
                opt.step()
                opt.zero_grad()

    with watching_everything(name="script", store=tmp_path / "s", budget=0) as runs:
        if quiet:
            # Warnings as errors are the script's, about what it does itself.
            train()
        else:
            with pytest.warns(
                UserWarning, match="SGD is not watched: ValueError: the disk is full"
            ) as caught:
                train()
            assert len(caught) == 1
    assert [one.step for one in runs] == [4] and len(losses(tmp_path)) == 4


def test_what_stands_in_for_the_loss_looks_like_it():
    name, words = F.cross_entropy.__name__, F.cross_entropy.__doc__
    with watching_everything(name="script", store=None, budget=0):
        assert (F.cross_entropy.__name__, F.cross_entropy.__doc__) == (name, words)
        assert F.cross_entropy(target=Y[1:3], input=torch.zeros(2, 4)).item() > 1


@pytest.mark.filterwarnings("error")
def test_what_torch_func_runs_is_not_taken_for_a_pass_that_can_be_read(net, tmp_path):
    opt = torch.optim.SGD(net.parameters(), lr=0.1)

    def one(weights, x, y):
        return F.cross_entropy(functional_call(net, weights, (x[None],)), y[None])

    each = vmap(grad(one), (None, 0, 0))
    with watching_everything(name="script", store=tmp_path / "s", budget=1e9) as runs:
        for _ in range(6):
            grads = each({name: p.detach() for name, p in net.named_parameters()}, X, Y.clamp(min=0))
            for name, p in net.named_parameters():
                p.grad = grads[name].mean(0)
            opt.step()
    assert runs[0].step == 6 and not runs[0].disabled
