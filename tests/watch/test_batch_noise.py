"""Noise-dominated and oversized batches, low coherence: readings against explicit gradients, and rules."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from readme_loop import batches, paste
from thalweg import optim, papers, tasks
from thalweg.watch import Reading, all_rules
from thalweg.watch.different_examples import different
from thalweg.watch.moment import Moment
from thalweg.watch.sensors.gradient_noise import gradient_noise

ABOUT = {"optimizer": "SGD", "lr": 0.1}


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def moment(size=64, opt=None, double=True, memory=None):
    torch.manual_seed(0)
    model = tasks.MLP((6, 8, 3), seed=0)
    batch = torch.randn(size, 6), torch.randint(0, 3, (size,))
    if double:
        model, batch = model.double(), (batch[0].double(), batch[1])
    opt = (opt or (lambda p: torch.optim.SGD(p, lr=0.1)))(model.parameters())
    loss_fn(model, batch).backward()
    named = dict(model.named_parameters())
    return Moment(1, named, opt, model, loss_fn, batch, memory={} if memory is None else memory)


def example_gradients(at):
    inputs, targets = at.batch
    rows = []
    for i in range(len(inputs)):
        loss = loss_fn(at.model, (inputs[i : i + 1], targets[i : i + 1]))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(at.named.values()))]))
    return torch.stack(rows)


def flat_gradient(at):
    return torch.cat([p.grad.flatten() for p in at.named.values()])


def explicit(rows, parts=8):
    """Signal and noise from part means, pair by pair."""
    size = len(rows) // parts
    means = torch.stack([rows[j::size][:size].mean(0) for j in range(parts)])
    pairs = [means[j] @ means[k] for j in range(parts) for k in range(parts) if j != k]
    signal = torch.stack(pairs).mean()
    return signal.item(), size * (means.square().sum(1).mean() - signal).item()


def test_signal_and_noise_are_those_of_pairs_of_parts():
    at = moment()
    scale, coherence = gradient_noise.read(at)
    signal, noise = explicit(example_gradients(at))
    assert scale.extra["signal"] == pytest.approx(signal, rel=1e-5)
    assert scale.extra["noise"] == pytest.approx(noise, rel=1e-5)
    assert coherence.value == pytest.approx(signal / (signal + noise), rel=1e-5)
    expected = noise / signal if signal > 0 else math.inf
    assert scale.value == pytest.approx(expected, rel=1e-5)


def test_both_are_unbiased():
    """Over many batches from a pool, the means are the pool's squared mean gradient and trace."""
    at = moment(512)
    rows = example_gradients(at)
    true = rows.mean(0).square().sum().item()
    trace = (rows - rows.mean(0)).square().sum(1).mean().item()
    source, signals, noises = torch.Generator().manual_seed(1), [], []
    whole = at.batch
    for _ in range(300):
        chosen = torch.randint(0, 512, (64,), generator=source)
        at.batch = whole[0][chosen], whole[1][chosen]
        extra = gradient_noise.read(at)[0].extra
        signals.append(extra["signal"])
        noises.append(extra["noise"])
    for found, expected in ((signals, true), (noises, trace)):
        found = torch.tensor(found)
        assert abs(found.mean() - expected) < 4 * found.std() / 300**0.5
    assert torch.tensor(noises).mean() == pytest.approx(trace, rel=0.05)


def test_a_batch_of_one_is_judged_with_those_of_the_last_readings():
    at = moment(8)
    rows, whole = example_gradients(at), at.batch
    for i in range(8):
        at.batch = whole[0][i : i + 1], whole[1][i : i + 1]
        found = gradient_noise.read(at)
        assert bool(found) == (i == 7)
    signal, noise = explicit(rows)
    assert found[0].extra["signal"] == pytest.approx(signal, rel=1e-5)
    assert found[0].extra["noise"] == pytest.approx(noise, rel=1e-5)
    assert found[0].extra["batch"] == 1


def test_what_a_step_of_heavy_ball_takes_away_counts_all_steps_that_a_gradient_enters():
    at = moment(opt=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    extra = gradient_noise.read(at)[0].extra
    assert extra["step"] == pytest.approx(1.0 * flat_gradient(at).square().sum().item(), rel=1e-5)
    assert extra["gain"] == pytest.approx(1.0 * extra["signal"], rel=1e-5)


def test_under_adam_every_entry_counts_over_its_own_second_moment():
    at = moment(opt=lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0))
    at.optimizer.step()
    gradient = flat_gradient(at)
    # After one step the second moment, corrected, is the squared gradient: each entry gives lr |g|.
    extra = gradient_noise.read(at)[0].extra
    assert extra["step"] == pytest.approx(0.01 * gradient.abs().sum().item(), rel=1e-4)


def test_an_entry_that_adam_has_never_seen_moves_no_further_than_adam_moves_it():
    at = moment(opt=lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0, eps=1e-12))
    at.optimizer.step()
    for state in at.optimizer.state.values():
        state["exp_avg_sq"].zero_()
    extra = gradient_noise.read(at)[0].extra
    assert extra["step"] <= 0.01 * 1001**0.5 * flat_gradient(at).abs().sum().item()


def test_of_a_sign_step_no_step_is_told():
    at = moment(opt=lambda p: optim.Lion(p, lr=0.01), double=False)
    assert "step" not in gradient_noise.read(at)[0].extra


def test_gradients_that_hold_few_rows_of_a_table_are_left_alone():
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randint(0, 9, (32, 2)), torch.randint(0, 3, (32,))
    loss_fn(model, batch).backward()
    at = Moment(1, dict(model.named_parameters()), opt, model, loss_fn, batch)
    assert gradient_noise.read(at) == []


def test_a_scaled_gradient_is_read_without_its_scale():
    at, scaled = moment(), moment()
    for p in scaled.named.values():
        p.grad.mul_(1024)
    scaled.scale = 1024.0
    one, other = (gradient_noise.read(m)[0].extra["step"] for m in (at, scaled))
    assert other == pytest.approx(one, rel=1e-6)


def test_gradients_modes_and_random_state_stay_as_they_are():
    at = moment()
    at.model.train()
    before, state = flat_gradient(at), torch.get_rng_state()
    gradient_noise.read(at)
    assert torch.equal(before, flat_gradient(at)) and at.model.training
    assert torch.equal(state, torch.get_rng_state())


def feed(rows, about=ABOUT):
    rules = all_rules(about)
    names = {"noise-dominated batch", "batch larger than it needs to be", "low coherence"}
    mine = [rule for rule in rules if rule.name in names]
    return [one for row in rows for rule in mine if row.name in rule.reads for one in rule.see(row)]


def rows(steps, loss, signal, noise, batch, step=None, every=5):
    """A run in which loss, signal and noise are functions of the step."""
    for now in range(1, steps + 1):
        yield Reading(now, "loss", loss(now))
        if now % every == 0:
            extra = {"signal": signal(now), "noise": noise(now), "batch": batch}
            if step is not None:
                extra |= {"step": step(now), "gain": 0.0}
            total = extra["signal"] + extra["noise"]
            yield Reading(now, "gradient noise scale", 1.0, {}, extra)
            yield Reading(now, "gradient coherence", extra["signal"] / total, {}, extra)


def jitter(size, seed=0):
    source = torch.Generator().manual_seed(seed)
    values = (size * torch.randn(2000, generator=source)).tolist()
    return lambda step: values[step]


def noisy_run(loss=lambda s: 1.0, step=2.0, noise=1.0, batch=1.0):
    return list(rows(400, loss, lambda s: 0.01, lambda s: noise, batch, lambda s: step))


def test_noise_that_holds_the_loss_up_is_named_once_with_its_numbers():
    (found,) = feed(noisy_run())
    assert found.name == "noise-dominated batch" and found.severity == "warning"
    assert found.evidence["noise in the loss"] == pytest.approx(0.5)
    assert found.evidence["noise scale"] == pytest.approx(100)
    assert found.evidence["noise in the loss"] > found.evidence["threshold"]
    assert "keeps it up by about 0.5" in found.message


def test_noise_keeps_up_no_more_than_all_of_the_loss_and_does_not_multiply_it():
    (found,) = feed(noisy_run(step=80.0))
    assert found.evidence["noise in the loss"] == pytest.approx(20) and "up by about 1." in found.message
    assert found.remedies[0].title == "a step for every 10 batches"
    assert feed(noisy_run(loss=lambda step: 1.02**step, step=1e5)) == []


@pytest.mark.parametrize(
    "quiet",
    [
        noisy_run(step=0.5),  # noise is an eighth of the loss
        noisy_run(batch=64.0),  # no noisier than the batch
        noisy_run(loss=lambda s: math.exp(-s / 500)),  # still falling
        noisy_run(loss=lambda s: 10.0 if s < 100 else 0.5),  # arrived
    ],
)
def test_noise_alone_is_no_finding(quiet):
    assert "noise-dominated batch" not in {one.name for one in feed(quiet)}


def test_a_scale_surely_below_a_tenth_of_the_batch_is_information():
    wobble = jitter(0.2)
    run = rows(300, lambda s: 1.0, lambda s: 1 + wobble(s), lambda s: 20.0, 1024.0)
    (found,) = feed(run)
    assert found.name == "batch larger than it needs to be" and found.severity == "info"
    assert found.evidence["noise scale"] == pytest.approx(20, rel=0.2) and found.step > 50


def test_a_scale_that_is_small_only_perhaps_is_not_said():
    wobble = jitter(3.0)
    assert feed(rows(300, lambda s: 1.0, lambda s: 0.5 + wobble(s), lambda s: 20.0, 1024.0)) == []


def incoherent(loss, signal=0.0, spread=0.005):
    wobble = jitter(spread)
    return list(rows(300, loss, lambda s: signal + wobble(s), lambda s: 1.0, 64.0))


def test_a_loss_that_falls_with_orthogonal_gradients_is_memorising():
    (found,) = feed(incoherent(lambda s: 2.3 - 0.001 * s))
    assert found.name == "low coherence"
    assert found.evidence["at most"] < found.evidence["threshold"]


@pytest.mark.parametrize(
    "quiet",
    [
        incoherent(lambda s: 2.3),  # nothing is learnt
        incoherent(lambda s: 2.3 * math.exp(-s / 20)),  # fitted before it could be judged
        incoherent(lambda s: 2.3 - 0.001 * s, signal=0.01),  # examples help each other
        incoherent(lambda s: 2.3 - 0.001 * s, spread=0.1),  # too uncertain
    ],
)
def test_coherence_is_judged_early_where_it_is_sure_and_only_while_the_loss_falls(quiet):
    assert feed(quiet) == []


def of_a_head(weights, different):
    """The loss falls from 2.3 to 2.1 where it is judged; so many weights learn from so many examples."""
    run = incoherent(lambda s: 2.3 - 0.001 * s)
    for one in run:
        one.extra.update({"weights": weights, "different": different} if one.extra else {})
    return run


def test_more_than_the_weights_can_hold_is_not_learnt_by_heart():
    """Of 2000 examples 170 weights hold at most 0.04 nats each, 26000 weights more than there are."""
    assert feed(of_a_head(170.0, 2000.0)) == []
    assert len(feed(of_a_head(26000.0, 2000.0))) == 1


def test_examples_that_come_again_are_counted_once():
    at = moment(64)
    assert [gradient_noise.read(at)[0].extra["different"] for _ in range(2)] == [64, 64]
    at.batch = torch.cat([at.batch[0][:32], at.batch[0][:32] + 1]), at.batch[1]
    extra = gradient_noise.read(at)[0].extra
    assert extra["different"] == 96 and extra["weights"] == 83


def test_large_examples_are_told_apart_by_some_of_their_entries():
    images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    at = Moment(1, {}, None, batch={"pixels": images, "kind": torch.arange(16)})
    assert different(at) == 16
    at.batch = {"pixels": images.flip(0), "kind": torch.arange(16).flip(0)}
    assert different(at) == 16
    at.batch = {"pixels": images.flip(3), "kind": torch.arange(16)}
    assert different(at) == 32


@pytest.mark.parametrize("about", [ABOUT, {"optimizer": "AdamW", "lr": 1e-3}])
def test_remedies_run_as_pasted_and_papers_are_in_the_catalog(about):
    large = rows(300, lambda s: 1.0, lambda s: 1.0, lambda s: 20.0, 1024.0)
    found = [*feed(noisy_run(), about), *feed(large, about)]
    found += feed(incoherent(lambda s: 2.3 - 0.001 * s), about)
    assert len(found) == 3
    for finding in found:
        for key in {*finding.papers, *(remedy.paper for remedy in finding.remedies)}:
            assert papers.find(key).key == key
        for remedy in finding.remedies:
            model = tasks.MLP((8, 16, 4), seed=0)
            opt = torch.optim.SGD(model.parameters(), lr=about["lr"])
            names, _ = paste(remedy.code, model, opt, batches(32, 32))
            assert all(group["lr"] <= about["lr"] for group in opt.param_groups)
            if "suspects" in names:
                assert len(names["suspects"]) == 20


def test_examples_that_are_sequences_are_looked_at_whole():
    (found,) = feed(incoherent(lambda s: 2.3 - 0.001 * s))
    torch.manual_seed(0)
    tokens = torch.randint(0, 10, (24, 6))
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10))
    names = {"torch": torch, "model": model, "loader": [(tokens, tokens.roll(-1, 1))]}
    exec(found.remedies[0].code, names)
    losses = names["each"](model, names["batch"])
    wanted = [loss_fn(lambda x: model(x)[0], (x[None], y)) for x, y in zip(*names["batch"], strict=True)]
    assert torch.allclose(losses, torch.stack(wanted)) and len(names["suspects"]) == 20


def test_the_batch_of_four_times_the_scale_is_what_the_loop_then_takes():
    (found,) = feed(rows(300, lambda s: 1.0, lambda s: 1.0, lambda s: 20.0, 1024.0))
    model = tasks.MLP((8, 16, 4), seed=0)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    names, steps = paste(found.remedies[0].code, model, opt, batches(4, 1024))
    size = names["loader"].batch_size
    assert 60 <= size <= 100 and len(steps) == math.ceil(4096 / size) and len(names["batch"][0]) <= size


def test_the_gradient_of_a_step_for_several_batches_is_that_of_all_of_them():
    (found,) = feed(noisy_run())
    model = tasks.MLP((8, 16, 4), seed=0)
    fresh, opt = tasks.MLP((8, 16, 4), seed=0), torch.optim.SGD(model.parameters(), lr=0.1)
    loader = list(batches(40))
    names, steps = paste(found.remedies[0].code, model, opt, loader)
    every = names["every"]
    assert every > 1 and len(steps) == 40 // every
    for step in range(40 // every):
        part = loader[step * every : (step + 1) * every]
        loss_fn(fresh, [torch.cat(one) for one in zip(*part, strict=True)]).backward()
        with torch.no_grad():
            for p in fresh.parameters():
                p -= 0.1 * p.grad
                p.grad = None
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)
