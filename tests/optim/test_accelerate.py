"""Under Accelerate's Accelerator: clipping, accumulation, schedules, checkpoints, and two passes a step."""

import pytest
import torch
from accelerate import Accelerator
from hosts import HOSTED, every_hosted, plain_loop, ramp
from toys import equal, loss_of, net, same_state, state_of, weights
from wrapped import MAKERS, by_hand, run

from thalweg import optim

every_one = pytest.mark.parametrize(
    "name", ["SAM around AdamW", "forward around SGD", "Average of SAM around torch AdamW", "XGrad adamw"]
)


class Run:
    """Two batches a step, clipped, with a schedule, everything prepared."""

    def __init__(self, make):
        self.host = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = net()
        optimizer = make(model.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, ramp)
        batches = torch.utils.data.DataLoader(range(20), batch_size=None)
        self.model, self.optimizer, self.scheduler, self.batches = self.host.prepare(
            model, optimizer, scheduler, batches
        )

    def train(self, steps):
        for k in self.batches:
            if k // 2 not in steps:
                continue
            with self.host.accumulate(self.model):
                self.host.backward(loss_of(self.model, k % 4))
                if self.host.sync_gradients:
                    self.host.clip_grad_norm_(self.model.parameters(), 0.3)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()


@every_hosted
def test_its_path_is_that_of_a_plain_loop_and_its_loss_falls(name):
    hosted = Run(HOSTED[name])
    hosted.train(range(8))
    model = net()
    optimizer = HOSTED[name](model.parameters())

    def losses(model, step):
        return (loss_of(model, k % 4) / 2 for k in (2 * step, 2 * step + 1))

    plain_loop(model, optimizer, range(8), losses, clip=0.3)
    assert equal(weights(hosted.model), weights(model))
    assert same_state(state_of(hosted.optimizer), state_of(optimizer))
    with torch.no_grad():
        assert sum(loss_of(model, k) for k in range(4)) < 0.97 * sum(loss_of(net(), k) for k in range(4))


@every_hosted
def test_a_resumed_run_continues_bit_for_bit(name, tmp_path):
    whole = Run(HOSTED[name])
    whole.train(range(4))
    whole.host.save_state(tmp_path)
    whole.train(range(4, 8))
    late = Run(HOSTED[name])
    late.host.load_state(tmp_path)
    late.train(range(4, 8))
    assert equal(weights(whole.model), weights(late.model))
    assert same_state(state_of(whole.optimizer), state_of(late.optimizer))
    rate = whole.optimizer.defaults["lr"] * ramp(8)
    assert [one.optimizer.param_groups[0]["lr"] for one in (whole, late)] == [rate, rate]


@every_one
@pytest.mark.parametrize("by", ["closure", "calls"])
def test_every_pass_of_a_step_equals_a_plain_loop(name, by):
    host = Accelerator(cpu=True)
    model, reference = net(), net()
    model, optimizer = host.prepare(model, MAKERS[name](model.parameters()))
    for step in range(4):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            host.backward(loss)
            return loss

        if by == "closure":
            optimizer.step(closure)
        else:
            by_hand(optimizer.optimizer, lambda step=step: host.backward(loss_of(model, step)))
            optimizer.step()
    plain = MAKERS[name](reference.parameters())
    run(reference, plain, range(4))
    assert equal(weights(model), weights(reference))
    assert same_state(state_of(optimizer), state_of(plain))


def test_its_modes_show_the_average_and_the_iterates():
    hosted = Run(HOSTED["Average"])
    hosted.train(range(5))
    iterates = weights(hosted.model)
    hosted.optimizer.eval()
    assert equal(weights(hosted.model), list(hosted.optimizer.optimizer.averages.values()))
    assert not equal(weights(hosted.model), iterates)
    hosted.optimizer.train()
    assert equal(weights(hosted.model), iterates)


def test_a_spec_is_of_the_optimizer_itself():
    hosted = Run(HOSTED["Average"])
    assert optim.spec(hosted.optimizer.optimizer)["wrapper"] == "Average"
    with pytest.raises(
        ValueError, match=r"^optimizer must be a thalweg\.optim\.Descent, got AcceleratedOptimizer"
    ):
        optim.spec(hosted.optimizer)
