"""Under Accelerate's Accelerator: what it prepared is found, what it logs arrives, its path is unchanged."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

import thalweg  # noqa: E402
from thalweg.watch import RunStore, watch_accelerator  # noqa: E402

STEPS = 12


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


class Loop:
    """The loop of Accelerate's documentation, of two batches a step."""

    def __init__(self):
        torch.manual_seed(0)
        self.host = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
        )
        x = torch.randn(2 * STEPS * 64, 8)
        data = torch.utils.data.TensorDataset(x, (x.sum(-1) > 0).long())
        self.model, self.opt, self.batches = self.host.prepare(
            net,
            torch.optim.AdamW(net.parameters(), lr=0.01),
            torch.utils.data.DataLoader(data, batch_size=64),
        )
        self.norms, self.losses = [], []

    def train(self, run=None):
        torch.manual_seed(1)
        total = 0.0
        for batch in self.batches:
            with self.host.accumulate(self.model):
                loss = loss_fn(self.model, batch)
                self.host.backward(loss)
                total += loss.item() / 2
                if run is not None:
                    run.log(batch=batch)
                if self.host.sync_gradients:
                    self.norms.append(self.host.clip_grad_norm_(self.model.parameters(), 0.3).item())
                self.opt.step()
                self.opt.zero_grad()
                if self.host.sync_gradients:
                    self.losses.append(total)
                    self.host.log({"train_loss": total, "eval_acc": 0.5, "note": "words"}, step=99)
                    total = 0.0


def read(path):
    with RunStore(path) as store:
        (info,) = store.runs()
        return info, {
            name: {one.step: one.value for one in store.readings(1, name)} for name in store.names(1)
        }


def test_what_was_prepared_is_watched_and_what_is_logged_arrives_at_the_step_just_taken(tmp_path):
    plain, loop = Loop(), Loop()
    plain.train()
    options = {"store": tmp_path / "s", "name": "mine", "budget": 1e9}
    with watch_accelerator(loop.host, loss_fn=loss_fn, **options) as run:
        loop.train(run)
    for one, other in zip(plain.model.parameters(), loop.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert run.step == STEPS and not run.disabled
    info, readings = read(tmp_path / "s")
    assert (info.name, info.steps, info.outcome) == ("mine", STEPS, "finished")
    assert readings["loss"] == pytest.approx(dict(enumerate(loop.losses, 1)))
    assert readings["test accuracy"] == dict.fromkeys(range(1, STEPS + 1), 0.5)
    clipped = {step: min(norm, 0.3) for step, norm in enumerate(loop.norms, 1) if step > 1}
    assert readings["gradient norm"] == pytest.approx(clipped, rel=1e-4)
    assert {"weight norm", "dormant units", "softmax collapse"} <= readings.keys()


@pytest.mark.parametrize("when", ["before the step", "behind it"])
def test_losses_logged_for_each_batch_are_one_reading_a_step(tmp_path, when):
    loop, parts = Loop(), []
    with watch_accelerator(loop.host, store=tmp_path / "s", budget=0) as run:
        for batch in loop.batches:
            with loop.host.accumulate(loop.model):
                loss = loss_fn(loop.model, batch)
                loop.host.backward(loss)
                parts.append(loss.item())
                if when == "before the step":
                    loop.host.log({"train_loss": loss})
                loop.opt.step()
                if when == "behind it":
                    loop.host.log({"train_loss": loss})
                loop.opt.zero_grad()
    assert run.step == STEPS
    with RunStore(tmp_path / "s") as store:
        found = [(one.step, one.value) for one in store.readings(1, "loss")]
    means = [(one + other) / 2 for one, other in zip(parts[::2], parts[1::2], strict=True)]
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    assert [value for _, value in found] == pytest.approx(means)


def test_the_end_of_training_closes_the_run(tmp_path):
    loop = Loop()
    watch_accelerator(loop.host, store=tmp_path / "s")
    loop.train()
    loop.host.end_training()
    info, readings = read(tmp_path / "s")
    assert (info.outcome, info.steps) == ("finished", STEPS) and len(readings["loss"]) == STEPS


def test_trackers_that_begin_later_do_not_take_its_place(tmp_path):
    loop = Loop()
    watch_accelerator(loop.host, store=tmp_path / "s")
    loop.host.init_trackers("project", config={"lr": 0.01})
    loop.train()
    loop.host.end_training()
    assert len(read(tmp_path / "s")[1]["loss"]) == STEPS


def test_a_plain_watch_finds_the_optimizer_behind_the_prepared_one(tmp_path):
    loop = Loop()
    with thalweg.watch(loop.model, loop.opt, store=tmp_path / "s", budget=1e9) as run:
        loop.train()
    assert run.step == STEPS and run.moment.optimizer is loop.opt.optimizer
    assert len(read(tmp_path / "s")[1]["gradient norm"]) == STEPS - 1


def test_several_prepared_optimizers_are_one_run():
    host = accelerate.Accelerator(cpu=True)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    opts = torch.optim.SGD(net[0].parameters(), lr=0.1), torch.optim.AdamW(net[1].parameters())
    host.prepare(net, *opts)
    with watch_accelerator(host, store=None) as run:
        assert [one.title for one in run.watched] == ["SGD", "AdamW"]


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda host, net: None, "must have prepared an optimizer, got none"),
        (
            lambda host, net: host.prepare(net, nn.Linear(2, 2), torch.optim.SGD(net.parameters(), lr=0.1)),
            "model must be given, since the accelerator has prepared 2 models",
        ),
    ],
)
def test_what_cannot_be_found_is_asked_for(prepare, words):
    host = accelerate.Accelerator(cpu=True)
    prepare(host, nn.Linear(2, 2))
    with pytest.raises(ValueError, match=words):
        watch_accelerator(host, store=None)


def test_another_process_than_the_main_one_writes_nothing(tmp_path, monkeypatch):
    loop = Loop()
    monkeypatch.setattr(accelerate.Accelerator, "process_index", 1)
    run = watch_accelerator(loop.host, store=tmp_path / "s")
    loop.train(run)
    run.close()
    assert run.step == STEPS and not (tmp_path / "s").exists()
