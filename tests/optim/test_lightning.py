"""In Lightning's Trainer: clipping, accumulation, schedules, checkpoints, and closures for every pass."""

import csv

import lightning
import pytest
import torch
from hosts import HOSTED, every_hosted, plain_loop, ramp
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from toys import equal, loss_of, net, same_state, state_of, weights
from wrapped import MAKERS, by_hand, run

from thalweg import optim

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
WRAPPERS = ["SAM around AdamW", "forward around SGD", "backward around torch AdamW", "XGrad sgd"]
every_one = pytest.mark.parametrize("name", [*WRAPPERS, "Average of SAM around AdamW"])


class Module(lightning.LightningModule):
    """Batch ``step % 4`` of the toys, with a schedule if there is one."""

    def __init__(self, make, schedule=None):
        super().__init__()
        self.net, self.make, self.schedule = net(), make, schedule

    def training_step(self, step):
        loss = loss_of(self.net, step % 4)
        self.log("loss", loss, batch_size=8)
        return loss

    def configure_optimizers(self):
        optimizer = self.make(self.net.parameters())
        return optimizer if self.schedule is None else ([optimizer], [self.schedule(optimizer)])


def by_step(optimizer):
    return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, ramp), "interval": "step"}


def fit(module, batches=8, epochs=1, start=None, **options):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    saves = any(isinstance(one, ModelCheckpoint) for one in options.get("callbacks", ()))
    host = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        **{**quiet, "enable_checkpointing": saves, **options},
    )
    steps = torch.utils.data.DataLoader(range(batches), batch_size=None)
    host.fit(module, steps, ckpt_path=start, weights_only=True)
    return host


CLIPPED_AND_ACCUMULATED = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.3}


@every_hosted
def test_its_path_is_that_of_a_plain_loop_and_its_loss_falls(name):
    module = Module(HOSTED[name], by_step)
    host = fit(module, batches=16, **CLIPPED_AND_ACCUMULATED)
    model = net()
    optimizer = HOSTED[name](model.parameters())

    def losses(model, step):
        return (loss_of(model, k % 4) / 2 for k in (2 * step, 2 * step + 1))

    plain_loop(model, optimizer, range(8), losses, clip=0.3)
    assert equal(weights(module.net), weights(model))
    assert same_state(state_of(host.optimizers[0]), state_of(optimizer))
    assert host.global_step == 8
    with torch.no_grad():
        assert sum(loss_of(model, k) for k in range(4)) < 0.97 * sum(loss_of(net(), k) for k in range(4))


@every_hosted
def test_a_resumed_run_continues_bit_for_bit(name, tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole, late = Module(HOSTED[name], by_step), Module(HOSTED[name], by_step)
    first = fit(whole, epochs=2, callbacks=[saving], **CLIPPED_AND_ACCUMULATED)
    second = fit(late, epochs=2, start=tmp_path / "epoch=0.ckpt", **CLIPPED_AND_ACCUMULATED)
    assert equal(weights(whole.net), weights(late.net))
    ours, theirs = first.optimizers[0], second.optimizers[0]
    assert same_state(state_of(ours), state_of(theirs))
    assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"] == ours.defaults["lr"] * ramp(8)


def test_the_plateau_of_a_logged_loss_lowers_the_rate():
    def plateau(optimizer):
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
        return {"scheduler": scheduler, "monitor": "loss", "interval": "epoch"}

    module = Module(HOSTED["AdamW"], plateau)
    host = fit(module, batches=1, epochs=4)  # the loss falls, so its maximum does not rise
    assert host.optimizers[0].param_groups[0]["lr"] == 0.01 * 0.5**3


@every_one
def test_its_closures_serve_every_pass_of_a_step(name):
    module, model = Module(MAKERS[name]), net()
    host = fit(module, batches=4)
    optimizer = MAKERS[name](model.parameters())
    run(model, optimizer, range(4))
    assert equal(weights(module.net), weights(model))
    assert same_state(state_of(host.optimizers[0]), state_of(optimizer))
    assert host.global_step == 4


@pytest.mark.parametrize("name", WRAPPERS)
def test_accumulation_around_a_closure_is_refused_and_moves_nothing(name):
    """The older gradients would be those of another place."""
    module = Module(MAKERS[name])
    with pytest.raises(RuntimeError, match=r"^the closure of \w+\.step\(\) must clear the gradients"):
        fit(module, accumulate_grad_batches=2)
    assert equal(weights(module.net), weights(net()))


class ByHand(Module):
    """Accumulates the halves of a step inside of its closure."""

    def __init__(self, make):
        super().__init__(make)
        self.automatic_optimization = False

    def training_step(self, step):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            for k in (0, 1):
                self.manual_backward(loss_of(self.net, 2 * step + k) / 2)

        optimizer.step(closure)


@every_one
def test_by_hand_a_closure_may_accumulate(name):
    module, model = ByHand(MAKERS[name]), net()
    host = fit(module, batches=3)
    optimizer = MAKERS[name](model.parameters())
    for step in range(3):

        def gradient(step=step):
            for k in (0, 1):
                (loss_of(model, 2 * step + k) / 2).backward()

        by_hand(optimizer, gradient)
        optimizer.step()
    assert equal(weights(module.net), weights(model))
    assert host.global_step == 3


STAND_INS = [
    ("SAM around AdamW", lambda optimizer: optimizer.ascend(), r"ascend\(\) must .* not on the LightningSAM"),
    (
        "forward around SGD",
        lambda optimizer: optimizer.displace(),
        r"displace\(\) must .* not on the Lightning",
    ),
    ("XGrad sgd", lambda optimizer: optimizer.predict(), r"predict\(\) must .* not on the LightningXGrad"),
    (
        "Average around SGD",
        lambda optimizer: optimizer.eval(),
        r"eval\(\) must .* not on the LightningAverage",
    ),
]


@pytest.mark.parametrize(("name", "call", "message"), STAND_INS)
def test_what_the_optimizer_would_not_know_is_refused_and_moves_nothing(name, call, message):
    module = Module(MAKERS[name])
    fit(module, batches=4)
    loss_of(module.net, 0).backward()
    before = weights(module.net)
    with pytest.raises(RuntimeError, match=message):
        call(module.optimizers())
    assert equal(weights(module.net), before)
    call(module.optimizers().optimizer)
    assert not equal(weights(module.net), before)


def test_a_spec_is_of_the_optimizer_itself():
    module = Module(HOSTED["Lion"])
    host = fit(module, batches=1)
    assert optim.spec(module.optimizers()) == optim.spec(host.optimizers[0])
    module = Module(HOSTED["Average"])
    host = fit(module, batches=1)
    described = optim.spec(host.optimizers[0])
    assert optim.spec(optim.build(described, net().parameters())) == described
    with pytest.raises(
        ValueError, match=r"^optimizer must be the one for which it stands, got a LightningAver"
    ):
        optim.spec(module.optimizers())


def test_its_monitor_reads_the_rate_and_the_momentum(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    monitor = LearningRateMonitor("step", log_momentum=True)
    fit(Module(HOSTED["AdamW"], by_step), logger=logger, callbacks=[monitor], log_every_n_steps=1)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["lr-AdamW"]]
    assert [float(row["lr-AdamW"]) for row in rows] == pytest.approx([0.01 * ramp(k) for k in range(8)])
    assert {float(row["lr-AdamW-momentum"]) for row in rows} == {0.9}
