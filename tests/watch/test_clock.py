"""Between the steps that anything reads a run does next to nothing, and what it does is paid for."""

import pytest
import torch

import thalweg
from thalweg.watch import Budget
from thalweg.watch.clock import HIDDEN, Clock
from thalweg.watch.moment import Raw, Sensor


def test_training_is_what_is_left_of_the_time_and_hooks_are_paid_for_twice():
    budget, clock = Budget(0.03), Clock()
    clock.settle(budget, 10.0, 1, 0.0)
    assert budget.trained == 0.0  # nothing is known of the time before the first look
    clock.own, clock.paid = 0.2, 0.5
    clock.settle(budget, 14.0, 4, 0.1)
    assert budget.trained == pytest.approx(3.3) and budget.step_time == pytest.approx(3.3 / 4)
    assert budget.hooks == pytest.approx(HIDDEN * 0.2 + 0.1)
    clock.settle(budget, 15.0, 1, 0.15)
    assert budget.trained == pytest.approx(4.3) and budget.hooks == pytest.approx(HIDDEN * 0.2 + 0.15)


@pytest.fixture
def seen(monkeypatch):
    """What one sensor that wants every third step was given, by step."""
    found = {}

    def read(at):
        found[at.step] = at.output, at.targets, at.inputs[0][0], at.batch
        return [Raw("seen", 1.0)]

    needs = ("model", "output", "targets", "inputs", "batch")
    monkeypatch.setattr(
        "thalweg.watch.senses.all_sensors", lambda: [Sensor("seen", read, 1.0, 3, 0.01, needs)]
    )
    return found


@pytest.mark.parametrize("parts", [1, 2])
def test_what_a_sensor_is_given_is_of_the_step_before_which_it_reads(small, seen, parts):
    given, heard = {}, 0
    with thalweg.watch(small.model, small.opt, budget=1e9, store=None) as run:
        hear = run._listener.hear

        def counted(*arguments):
            nonlocal heard
            heard += 1
            hear(*arguments)

        run._listener.hear = counted
        for step in range(1, 41):
            for _ in range(parts):  # gradients are accumulated
                index = torch.randint(0, 64, (32,))
                batch = small.x[index], small.y[index]
                output = small.model(batch[0])
                loss = torch.nn.functional.cross_entropy(output, batch[1])
                loss.backward()
                run.log(loss=loss, batch=batch)
                with torch.no_grad():
                    small.model(small.x)  # is no training
            given[step] = output.detach(), batch[1], batch[0], batch
            small.opt.step()
    assert len(seen) >= 12
    for step, (output, targets, inputs, batch) in seen.items():
        assert torch.equal(output, given[step][0]) and targets is given[step][1]
        assert inputs is given[step][2] and batch[0] is given[step][3][0]
    assert heard <= parts * (len(seen) + 4)  # and of the other steps nothing was kept
