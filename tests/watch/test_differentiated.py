"""Of scripts without a cross entropy ``thalweg run`` hears what ``backward`` is called on, by optimizer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from thalweg.watch import RunStore, script
from thalweg.watch.script import watching_everything

torch.manual_seed(0)
X, Z = torch.randn(48, 8), torch.rand(48, 4)
STEPS = 6


def net(outputs=4):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs))


def losses(folder, run=1):
    with RunStore(folder / "s") as store:
        return [(one.step, one.value) for one in store.readings(run, "loss")]


def heard(folder, train, budget=1e9):
    """The losses of each run; ``train`` gives what they should be."""
    with watching_everything(name="script", store=folder / "s", budget=budget) as runs:
        wanted = train()
    assert not any(one.disabled for one in runs) and len(runs) == len(wanted)
    for number, one in enumerate(wanted, 1):
        found = losses(folder, number)
        assert [step for step, _ in found] == list(range(1, len(one) + 1))
        assert [value for _, value in found] == pytest.approx(one, rel=1e-5)


LOSSES = {
    "mean square": lambda out: F.mse_loss(out, Z),
    "absolute": lambda out: F.l1_loss(out, Z),
    "yes or no": lambda out: F.binary_cross_entropy_with_logits(out, Z),
    "of shares": lambda out: F.cross_entropy(out, Z.softmax(1)),
    "likelihood": lambda out: F.nll_loss(out.log_softmax(1), Z.argmax(1)),
    "divergence": lambda out: F.kl_div(out.log_softmax(1), Z.softmax(1), reduction="batchmean"),
    "a sum of terms": lambda out: F.mse_loss(out, Z, reduction="sum") + 0.1 * out.square().sum(),
    "one element": lambda out: (out - Z).square().mean().reshape(1),
    "float64": lambda out: F.mse_loss(out.double(), Z.double()),
}


@pytest.mark.parametrize("way", LOSSES)
def test_the_loss_is_what_backward_is_called_on(tmp_path, way):
    def train():
        model, wanted = net(), []
        opt = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(STEPS):
            opt.zero_grad()
            loss = LOSSES[way](model(X))
            loss.backward()
            wanted.append(loss.item())
            opt.step()
        return [wanted]

    heard(tmp_path, train)


@pytest.mark.parametrize("none", [True, False])
def test_of_accumulated_batches_it_is_what_was_differentiated_altogether(tmp_path, none):
    def train():
        model, wanted = net(), []
        opt = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(STEPS):
            opt.zero_grad(set_to_none=none)
            wanted.append(0.0)
            for x, z in zip(X.split(20), Z.split(20), strict=True):
                loss = F.mse_loss(model(x), z) * len(x) / len(X)
                loss.backward()
                wanted[-1] += loss.item()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
        return [wanted]

    heard(tmp_path, train)


@pytest.mark.parametrize("none", [True, False])
@pytest.mark.parametrize("detached", [True, False])
def test_of_a_game_each_optimizer_has_its_own_with_what_was_thrown_away_left_out(tmp_path, none, detached):
    def train():
        generator, judge = nn.Linear(4, 8), net(1)
        opts = [torch.optim.Adam(one.parameters(), lr=1e-3) for one in (judge, generator)]
        judged, made = [], []
        yes, no = torch.ones(48, 1), torch.zeros(48, 1)
        for _ in range(STEPS):
            opts[0].zero_grad(set_to_none=none)
            real = F.binary_cross_entropy_with_logits(judge(X), yes)
            real.backward()
            fake = generator(torch.randn(48, 4))
            false = F.binary_cross_entropy_with_logits(judge(fake.detach() if detached else fake), no)
            false.backward(retain_graph=not detached)
            between = X.clone().requires_grad_()
            (slope,) = torch.autograd.grad(judge(between).sum(), between, create_graph=True)
            penalty = ((slope.norm(dim=1) - 1) ** 2).mean()
            penalty.backward()
            opts[0].step()
            judged.append((real + false + penalty).item())
            opts[1].zero_grad(set_to_none=none)
            loss = F.binary_cross_entropy_with_logits(judge(generator(torch.randn(48, 4))), yes)
            loss.backward()
            opts[1].step()
            made.append(loss.item())
        return [judged, made]

    heard(tmp_path, train)


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_it_is_without_the_scale_of_a_grad_scaler(tmp_path, behind, fused):
    def train():
        model, wanted = net(), []
        opt = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", growth_interval=2)
        for _ in range(STEPS):
            opt.zero_grad()
            wanted.append(0.0)
            for x, z in zip(X.split(24), Z.split(24), strict=True):
                loss = F.mse_loss(model(x), z)
                scaled = scaler.scale(loss) / 2 if behind else scaler.scale(loss / 2)
                scaled.backward()
                wanted[-1] += loss.item() / 2
            scaler.step(opt)
            scaler.update()
        return [wanted]

    heard(tmp_path, train, budget=0)


def test_what_backward_is_given_as_gradients_counts_and_what_is_no_scalar_does_not(tmp_path):
    def train():
        model, wanted = net(), []
        opt = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(STEPS):
            opt.zero_grad()
            terms = [model(X).mean(), model(X + 1).mean(), F.mse_loss(model(X), Z)]
            terms[0].backward(torch.tensor(1.0))
            terms[1].backward(torch.tensor([-2.0]).reshape(()))
            torch.autograd.backward([terms[2], model(X).square().mean()])
            model(X).backward(torch.full((48, 4), 1e-3))
            with torch.no_grad():
                wanted.append((terms[0] - 2 * terms[1] + terms[2] + model(X).square().mean()).item())
            opt.step()
        return [wanted]

    heard(tmp_path, train, budget=0)


def test_a_pass_within_a_pass_is_no_loss_and_hides_none(tmp_path):
    def train():
        model, wanted = net(), []
        opt = torch.optim.SGD(model.parameters(), lr=1e-2)
        for _ in range(STEPS):
            opt.zero_grad()
            x = X.clone().requires_grad_()
            # The checkpoint calls backward within the pass, and the graph does not lead to the weights.
            loss = checkpoint(lambda x: (model(x) - Z).square().mean(), x, use_reentrant=True)
            loss.backward()
            wanted.append(loss.item())
            opt.step()
        return [wanted]

    heard(tmp_path, train, budget=0)


def test_parts_of_a_model_that_step_in_turns_have_the_loss_of_both(tmp_path):
    def train():
        parts, wanted = (net(8), net()), []
        opts = [torch.optim.SGD(one.parameters(), lr=1e-2) for one in parts]
        for _ in range(STEPS):
            loss = F.l1_loss(parts[1](parts[0](X)), Z)
            loss.backward()
            for opt in opts:
                opt.step()
                opt.zero_grad()
            wanted.append(loss.item())
        return [wanted, wanted]

    heard(tmp_path, train, budget=0)


def test_an_error_in_a_pass_is_the_scripts_and_the_next_pass_is_heard(tmp_path):
    def train():
        model, wanted = net(), []
        opt = torch.optim.SGD(model.parameters(), lr=1e-2)
        for _ in range(STEPS):
            opt.zero_grad()
            with pytest.raises(RuntimeError, match="does not require grad"):
                torch.ones(()).backward()
            loss = F.mse_loss(model(X), Z)
            loss.backward()
            wanted.append(loss.item())
            opt.step()
        return [wanted]

    heard(tmp_path, train, budget=0)


def test_an_error_of_ours_is_said_and_the_script_goes_on(tmp_path, monkeypatch):
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=1e-2)

    def broken(self, *_):
        raise LookupError("no ear")

    monkeypatch.setattr("thalweg.watch._differentiated.Ear.hear", broken)
    with (
        pytest.warns(UserWarning, match="losses are not heard: LookupError"),
        watching_everything(name="script", store=tmp_path / "s", budget=0) as runs,
    ):
        for _ in range(STEPS):
            F.mse_loss(model(X), Z).backward()
            opt.step()
    assert runs[0].step == STEPS and losses(tmp_path) == []


def test_where_a_cross_entropy_is_heard_nobody_listens_to_backward(tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.watch._differentiated._scalar", None)
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=1e-2)
    with watching_everything(name="script", store=tmp_path / "s", budget=0):
        for _ in range(STEPS):
            opt.zero_grad()
            (F.cross_entropy(model(X), Z.argmax(1)) + 5).backward()
            opt.step()
    assert len(losses(tmp_path)) == STEPS and max(value for _, value in losses(tmp_path)) < 3


def test_a_cross_entropy_that_is_not_differentiated_is_not_the_loss(tmp_path):
    model = net()
    opt, wanted = torch.optim.SGD(model.parameters(), lr=1e-1), []
    with watching_everything(name="script", store=tmp_path / "s", budget=1e9) as runs:
        for step in range(STEPS):
            opt.zero_grad()
            out = model(X)
            if step % 2 == 0:
                F.cross_entropy(out, Z.argmax(1))
            loss = F.mse_loss(out, Z)
            loss.backward()
            wanted.append(loss.item())
            opt.step()
        assert runs[0].moment.loss_fn is None
    # Before the first step nobody knows.
    found = losses(tmp_path)
    assert [step for step, _ in found] == list(range(2, STEPS + 1))
    assert [value for _, value in found] == pytest.approx(wanted[1:])


def test_torch_has_its_own_functions_back():
    before = torch.autograd.backward, torch.amp.GradScaler.scale, torch.Tensor.backward
    with pytest.raises(KeyError), script.watching_everything(name="script", store=None, budget=0):
        assert torch.autograd.backward is not before[0]
        assert torch.autograd.backward.__name__ == "backward"
        raise KeyError
    assert (torch.autograd.backward, torch.amp.GradScaler.scale, torch.Tensor.backward) == before
