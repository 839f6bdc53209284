"""In Lightning's Trainer: its steps, its losses, its validation, and nothing about its path."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

lightning = pytest.importorskip("lightning", reason="lightning is not installed")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from thalweg.watch import LightningCallback, RunStore  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class Data(torch.utils.data.Dataset):
    """Batches of their own, so that two epochs see the same ones."""

    def __init__(self, count):
        source = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 64, 8, generator=source)
        self.y = (self.x.sum(-1) > 0).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def loader(count):
    return torch.utils.data.DataLoader(Data(count), batch_size=None)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
        self.net = nn.Sequential(*layers)
        self.losses = []

    def training_step(self, batch):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        self.log("train_loss", loss, batch_size=64)
        return loss

    def validation_step(self, batch):
        logits = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]), batch_size=64)
        self.log("val_acc", (logits.argmax(-1) == batch[1]).float().mean(), batch_size=64)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fit(module, callback=None, batches=12, validation=2, start=None, more=(), **options):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    host = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[*([callback] if callback else ()), *more],
        **{**quiet, "enable_checkpointing": bool(more), "max_epochs": 1, **options},
    )
    torch.manual_seed(1)
    host.fit(
        module,
        loader(batches),
        loader(validation) if validation else None,
        ckpt_path=start,
        weights_only=True,
    )
    return host


def read(path, run=1):
    with RunStore(path) as store:
        info = store.runs()[run - 1]
        return info, {
            name: {one.step: one.value for one in store.readings(run, name)} for name in store.names(run)
        }


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def test_steps_losses_and_validation_are_those_of_the_trainer_and_its_path_is_unchanged(tmp_path):
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.3, "batches": 48, "max_epochs": 2}
    plain, module = Module(), Module()
    fit(plain, **options)
    callback = LightningCallback(store=tmp_path / "s", name="mine", budget=1e9, loss_fn=loss_fn)
    host = fit(module, callback, **options)

    for one, other in zip(plain.state_dict().values(), module.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert not callback.run.disabled and not module.net._forward_hooks
    info, readings = read(tmp_path / "s")
    assert (info.name, info.steps, info.outcome) == ("mine", 48, "finished")
    assert (info.about["model"], info.about["optimizer"]) == ("Sequential", "AdamW")
    pairs = zip(module.losses[::2], module.losses[1::2], strict=True)
    assert readings["loss"] == pytest.approx({s: (a + b) / 2 for s, (a, b) in enumerate(pairs, 1)}, rel=1e-5)
    assert list(readings["test loss"]) == list(readings["test accuracy"]) == [24, 48]
    assert readings["test loss"][48] == pytest.approx(host.callback_metrics["val_loss"].item())
    assert readings["test accuracy"][48] == pytest.approx(host.callback_metrics["val_acc"].item())
    assert max(readings["gradient norm"].values()) == pytest.approx(0.3, rel=1e-4)  # behind the clipping
    assert {"dormant units", "weight norm", "softmax collapse", "sharpness"} <= readings.keys()


def test_a_fit_that_goes_on_from_a_checkpoint_goes_on_in_the_store(tmp_path):
    options = {"store": tmp_path / "s", "name": "mine"}
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(Module(), LightningCallback(**options), more=[saving], max_epochs=2)
    module = Module()
    fit(module, LightningCallback(**options), start=tmp_path / "epoch=0.ckpt", max_epochs=3)
    with RunStore(tmp_path / "s") as store:
        (info,) = store.runs()
    _, readings = read(tmp_path / "s")
    assert (info.steps, info.about["resumed"]) == (36, [12])
    assert list(readings["loss"]) == list(range(1, 37))
    assert [readings["loss"][step] for step in range(13, 37)] == pytest.approx(module.losses, rel=1e-5)


class Failing(Module):
    def training_step(self, batch):
        if len(self.losses) == 5:
            raise ZeroDivisionError
        return super().training_step(batch)


def test_an_exception_is_the_outcome(tmp_path):
    module = Failing()
    with pytest.raises(ZeroDivisionError):
        fit(module, LightningCallback(store=tmp_path / "s", budget=1e9), validation=0)
    info, readings = read(tmp_path / "s")
    assert (info.outcome, info.steps, list(readings["loss"])) == ("ZeroDivisionError", 5, [1, 2, 3, 4, 5])
    assert not module.net._forward_hooks


class Adversaries(lightning.LightningModule):
    """Two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.discriminator = nn.Linear(4, 4), nn.Linear(4, 1)
        self.automatic_optimization = False
        self.seen = {"discriminator": [], "generator": []}

    def training_step(self, batch):
        second, first = self.optimizers()
        real = batch[0][:, :4]
        fake = self.generator(torch.randn_like(real))
        scores = F.softplus(self.discriminator(fake.detach())) - F.softplus(self.discriminator(real))
        self._step(first, "discriminator", scores.mean())
        self._step(second, "generator", -F.softplus(self.discriminator(fake)).mean())

    def _step(self, opt, name, loss):
        opt.zero_grad()
        self.manual_backward(loss)
        params = getattr(self, name).parameters()
        norm = math.hypot(*(p.grad.double().norm().item() for p in params))
        self.seen[name].append((loss.item(), norm))
        opt.step()

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.01),
        ]


def test_several_optimizers_have_each_their_losses_and_gradients(tmp_path):
    module = Adversaries()
    callback = LightningCallback(store=tmp_path / "s", budget=1e9)
    host = fit(module, callback, validation=0)
    info, readings = read(tmp_path / "s")
    assert host.global_step == 24 and (info.steps, callback.run.step) == (12, 12)
    assert not callback.run.disabled
    for name, label in (("generator", ""), ("discriminator", " of SGD")):
        losses, norms = zip(*module.seen[name], strict=True)
        assert list(readings[f"loss{label}"].values()) == pytest.approx(list(losses), rel=1e-5)
        found = readings[f"gradient norm{label}"]
        assert len(found) >= 10
        assert found == pytest.approx({step: norms[step - 1] for step in found}, rel=1e-5)


def test_the_part_to_watch_can_be_named(tmp_path):
    callback = LightningCallback(model=lambda module: module.generator, store=None)

    class One(Adversaries):
        def configure_optimizers(self):
            return torch.optim.SGD([*self.generator.parameters(), *self.discriminator.parameters()], lr=0.01)

        def training_step(self, batch):
            self._step(
                self.optimizers(), "generator", self.discriminator(self.generator(batch[0][:, :4])).mean()
            )

    fit(One(), callback, validation=0, batches=3)
    assert {"weight", "bias"} <= set(callback.run.moment.named) and callback.run.step == 3


def test_another_rank_than_the_first_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning.Trainer, "global_rank", 1)
    callback = LightningCallback(store=tmp_path / "s")
    fit(Module(), callback, validation=0, batches=3)
    assert callback.run.step == 3 and not (tmp_path / "s").exists()


def test_under_a_grad_scaler_loss_and_gradients_are_those_of_the_true_scale(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    module = Module()
    callback = LightningCallback(store=tmp_path / "s", budget=1e9)
    fit(module, callback, validation=0, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    info, readings = read(tmp_path / "s")
    assert scaler.get_scale() == 2.0**10 and info.steps == 12
    assert readings["loss"] == pytest.approx(dict(enumerate(module.losses, 1)), rel=1e-3)
    assert 0.01 < min(readings["gradient norm"].values()) < max(readings["gradient norm"].values()) < 10


def test_steps_that_a_grad_scaler_skips_are_counted_as_the_trainer_counts_them(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    callback = LightningCallback(store=tmp_path / "s", budget=1e9)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
    host = fit(Module(), callback, validation=0, plugins=plugins)
    skipped = 24 - int(math.log2(scaler.get_scale()))
    info, readings = read(tmp_path / "s")
    assert 1 < skipped < 9 and host.global_step == 12
    assert callback.run.step == info.steps == 12 and callback.run.findings == []
    assert list(readings["loss"]) == list(range(1, 13))
    assert list(readings["gradient norm"])[-1] == 12
    assert len(readings["gradient norm"]) <= 12 - skipped


class Untrained(Module):
    def configure_optimizers(self):
        return None


class Manual(Untrained):
    """Steps an optimizer that Lightning knows nothing of."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize("kind", [Untrained, Manual])
def test_a_module_without_an_optimizer_is_fitted_as_it_would_be_alone(tmp_path, kind):
    module, callback = kind(), LightningCallback(store=tmp_path / "s")
    with pytest.warns(UserWarning, match="the LightningModule has no optimizer, and is not watched"):
        fit(module, callback)
    assert len(module.losses) == 12 and callback.run is None and not (tmp_path / "s").exists()
