"""The average of the iterates against an explicit sum, and the swap of the two."""

import copy

import pytest
import torch
from torch import nn
from toys import assert_near, equal, loss_of, net, through_disk, weights
from wrapped import BASES, run

from thalweg import optim


def path(wrap, steps=12, dtype=torch.float64, base="AdamW"):
    """The optimizer after some steps, its model, and the weights before the first and after each step."""
    model = net(dtype)
    optimizer = wrap(BASES[base](model.parameters()))
    seen = [weights(model)]
    run(model, optimizer, range(steps), after=lambda: seen.append(weights(model)))
    return optimizer, model, seen


def averages(optimizer):
    return list(optimizer.averages.values())


@pytest.mark.parametrize("base", BASES)
def test_the_iterates_are_the_base_optimizers_bit_for_bit(base):
    _, model, _ = path(optim.Average, dtype=torch.float32, base=base)
    reference = net()
    plain = BASES[base](reference.parameters())
    for step in range(12):
        plain.zero_grad()
        loss_of(reference, step).backward()
        plain.step()
    assert equal(weights(model), weights(reference))


def test_with_power_one_it_is_the_mean_of_the_iterates_until_the_floor():
    optimizer, _, seen = path(lambda inner: optim.Average(inner, decay=0.99, power=1.0))
    means = [torch.stack(rows).mean(0) for rows in zip(*seen[1:], strict=True)]
    assert_near(averages(optimizer), means, 1e-12)


def test_without_power_it_is_the_geometric_sum_from_a_copy_of_the_weights():
    optimizer, _, seen = path(lambda inner: optim.Average(inner, decay=0.8, power=None))
    for index, average in enumerate(averages(optimizer)):
        expected = 0.8**12 * seen[0][index]
        expected += sum(0.2 * 0.8 ** (12 - n) * seen[n][index] for n in range(1, 13))
        torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-13)


def test_start_and_interval_choose_the_iterates_that_count():
    optimizer, _, seen = path(lambda inner: optim.Average(inner, decay=0.9, power=0.6, start=3, every=2))
    expected = seen[3]
    for update, step in enumerate((5, 7, 9, 11), start=1):
        share = max(update**-0.6, 1 - 0.9)
        expected = [(1 - share) * a + share * w for a, w in zip(expected, seen[step], strict=True)]
    assert_near(averages(optimizer), expected, 1e-12)


def test_before_its_start_the_average_is_the_iterate():
    optimizer, model, seen = path(lambda inner: optim.Average(inner, start=20))
    with optimizer.averaged():
        assert equal(weights(model), seen[-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_average_of_16_bit_weights_is_kept_in_32(dtype):
    w = nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = optim.Average(optim.SGD([w], lr=0.0), decay=0.999, power=None)
    with torch.no_grad():
        w.fill_(1.5)
    optimizer.averages[w] = torch.ones(4)
    for _ in range(100):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    (average,) = averages(optimizer)
    assert average.dtype == torch.float32
    # In 16 bits every one of these updates would have been rounded away.
    torch.testing.assert_close(average, torch.full((4,), 1.5 - 0.5 * 0.999**100), rtol=1e-5, atol=0)
    with optimizer.averaged():
        assert torch.equal(w.detach(), average.to(dtype))
    assert torch.equal(w.detach(), torch.full((4,), 1.5, dtype=dtype))


def test_eval_and_train_are_idempotent_and_bring_the_iterate_back_bit_for_bit():
    optimizer, model, seen = path(lambda inner: optim.Average(inner, decay=0.9), dtype=torch.float32)
    for _ in range(2):
        optimizer.eval()
        assert not optimizer.training
        assert equal(weights(model), averages(optimizer))
    for _ in range(2):
        optimizer.train()
        assert optimizer.training
        assert equal(weights(model), seen[-1])
    with pytest.raises(KeyError), optimizer.averaged():
        raise KeyError
    assert equal(weights(model), seen[-1])
    optimizer.eval()
    with optimizer.averaged():
        pass
    assert not optimizer.training  # the block leaves things as it found them


def test_looking_at_the_average_does_not_change_the_run():
    peeking, model, _ = path(optim.Average, steps=4)
    blind, reference, _ = path(optim.Average, steps=4)
    for step in range(4, 8):
        with peeking.averaged():
            loss_of(model, 0)
        run(model, peeking, [step])
        run(reference, blind, [step])
    assert equal(weights(model), weights(reference))
    assert equal(averages(peeking), averages(blind))


def test_with_the_average_in_place_a_step_a_checkpoint_and_a_copy_are_refused():
    optimizer, model, seen = path(optim.Average)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.eval()
    inside = weights(model)
    for refused in (
        optimizer.step,
        optimizer.state_dict,
        lambda: optimizer.load_state_dict(saved),
        lambda: copy.deepcopy(optimizer),
    ):
        with pytest.raises(
            RuntimeError, match=r"while the parameters hold the average: call train\(\) first"
        ):
            refused()
    assert equal(weights(model), inside)
    optimizer.train()
    assert equal(weights(model), seen[-1])


@pytest.mark.parametrize("steps", [0, 2, 6])
def test_a_checkpoint_holds_the_count_of_steps_and_the_average(steps):
    def wrap(inner):
        return optim.Average(inner, decay=0.9, start=4, every=2)

    optimizer, model, _ = path(wrap, steps=steps)
    again = net(torch.float64)
    fresh = wrap(BASES["AdamW"](again.parameters()))
    fresh.load_state_dict(through_disk(optimizer.state_dict()))
    again.load_state_dict(model.state_dict())
    run(model, optimizer, range(steps, steps + 6))
    run(again, fresh, range(steps, steps + 6))
    assert fresh.steps == optimizer.steps == steps + 6
    assert equal(averages(optimizer), averages(fresh)) and averages(fresh)


def test_a_checkpoint_without_an_average_or_of_other_shapes_is_refused():
    optimizer, model, _ = path(optim.Average)
    plain = BASES["AdamW"](model.parameters())
    plain.load_state_dict(optimizer.inner.state_dict())
    with pytest.raises(ValueError, match="holds no averages"):
        optimizer.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match=r"another optimizer, \w+: it keeps .*'average'"):
        BASES["AdamW"](net().parameters()).load_state_dict(optimizer.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["average"] = torch.zeros(2)
    before = averages(optimizer)
    with pytest.raises(ValueError, match=r"average of shape \(2,\) for a parameter of shape \(5, 6\)"):
        optimizer.load_state_dict(saved)
    assert equal(averages(optimizer), before)


def test_running_statistics_are_measured_for_the_average_and_put_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    optimizer = optim.Average(optim.SGD(model.parameters(), lr=0.5), decay=0.9)
    run(model, optimizer, range(10))
    before = [b.clone() for b in model.buffers()]
    inputs = torch.randn(64, 6)
    with optimizer.averaged(model, [inputs]):
        hidden = model[0](inputs)
        torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
        torch.testing.assert_close(model[1].running_var, hidden.var(0))
    assert equal([b.clone() for b in model.buffers()], before)
    with pytest.raises(ValueError, match="a model and a loader, or neither"), optimizer.averaged(model):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"power": -1.0}, r"power must be in \[0, inf\)"),
        ({"start": -1}, "start must be an integer >= 0, got -1"),
        ({"every": 0}, "every must be an integer >= 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optim.Average(optim.SGD(net().parameters()), **arguments)


def test_a_step_that_was_skipped_is_not_averaged():
    """Neither the warm-up nor the average goes on in a step that ``nonfinite="skip"`` leaves out."""
    model = net()
    optimizer = optim.Average(optim.SGD(model.parameters(), lr=0.5, nonfinite="skip"), decay=0.9)
    run(model, optimizer, range(3))
    before, steps = averages(optimizer), optimizer.steps
    next(model.parameters()).grad.fill_(float("nan"))
    optimizer.step()
    assert optimizer.inner.skipped_steps == 1
    assert optimizer.steps == steps and equal(averages(optimizer), before)
