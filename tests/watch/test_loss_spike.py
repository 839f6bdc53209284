"""A loss spike is named with what came before it; the noise of batches and a descent are none."""

import math

import pytest
import torch
from benchmarks.findings.loop import minibatches, watched
from benchmarks.findings.planted import loss_spike as planted
from torch import nn
from torch.nn import functional as F

from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.watch import Reading, all_sensors, senses
from thalweg.watch.rules.loss_spike import LossSpike

CAUSES = {
    "labels_out_of_line": ("a bad batch", "gradient over its median"),
    "inputs_too_large": ("a bad batch", "gradient over its median"),
    "rate_jump_convolutions": ("the learning rate rose", "learning rate times"),
    "rate_jump_transformer": ("the learning rate rose", "learning rate times"),
    "second_moment_lags": ("second moment lagged behind", "g^2/v"),
}
SPIKE = 150

SENSORS = {"gradient norm", "sharpness", "attention logit", "learning rate", "second moment lag"}


@pytest.fixture
def read(monkeypatch):
    """Only the sensors whose readings the rule sees, which is faster."""
    kept = [one for one in all_sensors() if one.name in SENSORS]
    monkeypatch.setattr(senses, "all_sensors", lambda: kept)


def told(rows, optimizer="AdamW"):
    rule = LossSpike({"optimizer": optimizer, "lr": 1e-3})
    return [one for row in rows for one in rule.see(Reading(*row))]


def series(count, seed, spread=0.1):
    """A loss that falls from 2 towards 0.5 and is as noisy as batches are."""
    source = torch.Generator().manual_seed(seed)
    noise = torch.exp(spread * torch.randn(count, generator=source)).tolist()
    return [(0.5 + 1.5 * math.exp(-step / 50)) * one for step, one in enumerate(noise)]


def run(losses, **others):
    """Rows in the order of a run: the loss of a step, then what is read before its update."""
    rows = []
    for step, loss in enumerate(losses, 1):
        rows.append((step, "loss", loss))
        for name, values in others.items():
            if step in values:
                value, *rest = values[step] if isinstance(values[step], tuple) else (values[step],)
                rows.append((step, name.replace("_", " "), value, {}, *rest))
    return rows


def spiked(seed, height=5.0, lasting=4):
    return [
        loss + height * (SPIKE <= step < SPIKE + lasting) for step, loss in enumerate(series(200, seed), 1)
    ]


def steady(value, changes=(), steps=200):
    return dict.fromkeys(range(1, steps + 1), value) | dict(changes)


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_that_was_planted_is_named_with_its_numbers(name, read):
    scenario = getattr(planted, name)
    (found, *_) = [one for one in scenario.outcome(0).findings if one.name == "loss spike"]
    words, number = CAUSES[name]
    assert scenario.onset <= found.step <= scenario.onset + 5
    assert words in found.message and found.evidence[number] > 1
    assert found.evidence["loss"] > found.evidence["threshold"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.05, 0.3, 0.7])
def test_noise_and_a_descent_are_no_spike(seed, spread):
    assert told(run(series(1000, seed, spread))) == []


def test_a_spike_is_told_three_steps_later_and_once():
    rule = LossSpike({"optimizer": "SGD", "lr": 0.1})
    when = [(row[0], one.step) for row in run(spiked(0, lasting=20)) for one in rule.see(Reading(*row))]
    assert when == [(SPIKE + 3, SPIKE)]


@pytest.mark.parametrize("thin", [1, 7])
def test_the_threshold_is_reckoned_once_in_eight_losses_however_few_are_judged(thin, monkeypatch):
    reckoned, threshold = [], LossSpike._threshold
    monkeypatch.setattr(LossSpike, "_threshold", lambda self: reckoned.append(1) or threshold(self))
    told([(thin * step, "loss", 1.0) for step in range(801)])
    assert 100 <= len(reckoned) <= 102


def test_one_hard_batch_is_none_unless_it_stands_far_out():
    losses = series(200, 0)
    (found,) = told(run(spiked(0, height=5.0, lasting=1)))
    just = 1.2 * (found.evidence["threshold"] - losses[SPIKE - 1])
    assert told(run(spiked(0, height=just, lasting=1))) == []
    assert len(told(run(spiked(0, height=just, lasting=4)))) == 1


def test_a_spike_into_what_is_no_number_is_told_at_once():
    losses = [*spiked(0)[:SPIKE], math.nan]
    (found,) = told(run(losses))
    assert found.step == SPIKE


def lag(*late):
    return steady(1.0, {SPIKE - len(late) + i: value for i, value in enumerate(late)})


def gradients(*late):
    """From the step of the spike on."""
    return {SPIKE + i: value for i, value in enumerate(late)}


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("nothing that is being watched", {}),
        ("nothing that is being watched", {"gradient_norm": steady(1.0)}),
        ("a bad batch", {"gradient_norm": steady(1.0, {SPIKE: 50.0})}),
        ("a bad batch", {"gradient_norm": steady(1.0, {SPIKE - 1: 50.0, SPIKE: 9.0})}),
        ("a bad batch", {"gradient_norm": steady(1.0, {SPIKE: 50.0}), "second_moment_lag": lag(900.0, 0.1)}),
        ("the learning rate rose 8 times", {"learning_rate": {1: 0.1, SPIKE - 3: 0.8}}),
        ("nothing that is being watched", {"learning_rate": {1: 0.1, SPIKE - 40: 0.8}}),
        ("second moment lagged", {"second_moment_lag": lag(30.0, 50.0, 40.0)}),
        ("nothing that is being watched", {"second_moment_lag": steady(30.0)}),
        ("attention logits had grown", {"attention_logit": {10: 5.0, 100: 40.0, 140: 900.0}}),
        ("nothing that is being watched", {"attention_logit": {10: 5.0, 100: 6.0, 140: 25.0}}),
        ("nothing that is being watched", {"attention_logit": {10: 5.0, 100: 800.0, 140: 900.0}}),
        ("sharpness was 1.50 times", {"sharpness": {140: (30.0, {"ratio": 1.5, "limit": 20.0, "lr": 0.1})}}),
        ("sharpness was 1.50 times", {"sharpness": {SPIKE: (30.0, {"ratio": 1.5, "limit": 20.0})}}),
        ("nothing that is being watched", {"sharpness": {SPIKE + 1: (30.0, {"ratio": 1.5, "lr": 0.1})}}),
        ("nothing that is being watched", {"sharpness": {140: (30.0, {"ratio": 0.5, "lr": 0.1})}}),
        ("no step led to it", {"gradient_norm": steady(1.0, gradients(9.0, 8.0, 7.0))}),
        ("nothing that is being watched", {"gradient_norm": steady(1.0, gradients(1.5, 1.5, 1.5))}),
        ("a bad batch", {"gradient_norm": steady(1.0, gradients(9.0, 4.0, 3.0))}),
        # That gradients are new to the second moment is told by the gradient, until steps have made it worse.
        (
            "no step led to it",
            {
                "gradient_norm": steady(1.0, gradients(9.0, 8.0, 7.0)),
                "second_moment_lag": steady(1.0, gradients(60.0, 20.0, 8.0)),
            },
        ),
    ],
)
def test_causes_are_told_apart(words, others):
    (found,) = told(run(spiked(0), **others))
    assert words in found.message


def test_every_remedy_runs_as_pasted_and_every_paper_is_in_the_catalog():
    cases = [
        {},
        {"gradient_norm": steady(1.0, {SPIKE: 50.0})},
        {"learning_rate": {1: 0.1, SPIKE - 3: 0.8}},
        {"second_moment_lag": lag(30.0, 50.0)},
        {"attention_logit": {100: 5.0, 140: 900.0}},
        {"gradient_norm": steady(1.0, gradients(9.0, 8.0, 7.0))},
    ]
    for others in cases:
        (found,) = told(run(spiked(0), **others))
        for key in {*found.papers, *(remedy.paper for remedy in found.remedies)}:
            assert papers.find(key).key == key
        for remedy in found.remedies:
            model = tasks.MLP((8, 16, 4), seed=0)
            opt = torch.optim.SGD(model.parameters(), lr=0.1)
            _, steps = paste(remedy.code, model, opt, [next(iter(batches(1)))] * 20)
            losses = [loss.item() for _, _, loss in steps]
            assert losses[-1] < losses[0], remedy.code
            rates = [rates[0] for _, rates, _ in steps]
            if remedy.title == "a longer warm-up":
                warm = max(100, found.step // 10)
                assert rates == pytest.approx([0.1 * step / warm for step in range(1, 21)])
                warmed = True
    assert warmed


@pytest.mark.parametrize(
    "optimizer", [lambda p: torch.optim.SGD(p, 0.05), lambda p: torch.optim.AdamW(p, 1e-3)]
)
def test_labels_that_shift_for_good_are_no_single_batch_and_no_lag(optimizer, read):
    split = tasks.handwritten_digits(seed=9000)

    def shifted():
        for step, (inputs, targets) in enumerate(minibatches(split.train, 64, 9000), 1):
            yield inputs, targets if step < SPIKE else (targets + 1) % 10

    model = tasks.MLP((64, 128, 10), seed=9000)
    outcome = watched(model, optimizer(model.parameters()), shifted(), SPIKE + 10)
    (found,) = [one for one in outcome.findings if one.name == "loss spike"]
    assert found.step == SPIKE and f"between steps {SPIKE - 1} and {SPIKE}" in found.message
    assert found.layers and found.evidence["gradient over its median"] > found.evidence["change from"]


def test_a_lag_that_makes_a_loss_rise_on_is_the_cause():
    losses = series(200, 0)
    losses[SPIKE - 1 : SPIKE + 4] = [2.5, 3.5, 5.0, 6.0, 6.0]
    (found,) = told(run(losses, second_moment_lag=steady(1.0, gradients(60.0, 50.0, 40.0))))
    assert "second moment lagged" in found.message


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_wanders_or_climbs_as_in_a_game_of_two_is_no_spike(seed):
    source = torch.Generator().manual_seed(seed)
    noise = (0.02 * torch.randn(1500, generator=source)).tolist()
    wave = [0.8 + 0.2 * math.sin(step / 16) + one for step, one in enumerate(noise)]
    assert told(run(wave)) == []
    climb = [0.7 + 0.003 * max(0, step - 100) + one for step, one in enumerate(noise[:400])]
    assert told(run(climb)) == []
    climb[300] += 1.0
    assert [one.step for one in told(run(climb))] == [301]


def game(seed, steps=600):
    """Losses of a discriminator and of the generator against it, on a ring of eight clusters."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    judge = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    opts = [torch.optim.Adam(one.parameters(), 1e-3, betas=(0.5, 0.999)) for one in (judge, made)]
    losses = [], []
    for _ in range(steps):
        angle = torch.randint(0, 8, (64,)) * math.pi / 4
        real = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(64, 2)
        fake = made(torch.randn(64, 8))
        judged = F.softplus(-judge(real)).mean() + F.softplus(judge(fake.detach())).mean()
        for one, loss, into in zip(opts, (judged, None), losses, strict=True):
            loss = F.softplus(-judge(fake)).mean() if loss is None else loss
            one.zero_grad()
            loss.backward()
            one.step()
            into.append(loss.item())
    return losses


def test_the_losses_of_a_generator_and_its_discriminator_swing_and_are_seldom_spikes():
    found = [told(run(losses)) for seed in range(9100, 9106) for losses in game(seed)]
    # Of the first hundred steps too little is known to tell that a loss wanders.
    assert sum(one.step > 100 for some in found for one in some) <= 1


def wandering(seed, noise=0.06):
    source = torch.Generator().manual_seed(seed)
    shocks = torch.randn(400, generator=source).tolist()
    level, losses = 0.0, []
    for shock in shocks:
        level = 0.9 * level + noise * shock
        losses.append(1.0 + level)
    return losses


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_what_a_wandering_loss_has_been_on_its_way_to_is_none_and_a_jump_out_of_it_is(seed):
    on_its_way, sudden = wandering(seed), wandering(seed)
    for step in range(250, 270):
        on_its_way[step] += 0.7 * min((step - 249) / 12, 1.0)
        sudden[step] += 2.0
    assert told(run(on_its_way)) == []
    assert [one.step for one in told(run(sudden))] == [251]


@pytest.mark.parametrize("steps", [1, 5, 10, 20])
def test_noise_that_does_not_wander_hides_no_rise_that_takes_its_time(steps):
    for seed in range(10):
        losses = [
            loss * (1 + 2 * min(max(step - SPIKE + 1, 0) / steps, 1))
            for step, loss in enumerate(series(220, seed), 1)
        ]
        assert len(told(run(losses))) == 1
