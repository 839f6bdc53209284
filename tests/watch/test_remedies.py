"""Remedies executed where they are pasted: beside the loop of the README, with its optimizer."""

import math

import pytest
import torch
from torch import nn

import thalweg
from readme_loop import batches, paste
from thalweg.watch import Reading, all_rules, clip_gradients
from thalweg.watch.optimizer_kind import preconditions
from thalweg.watch.remedies import kept, renewed, warmed
from thalweg.watch.rules.vanishing_gradient import normalise

OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "Lion": thalweg.optim.Lion,
    "Muon": torch.optim.Muon,
    "AdamW": torch.optim.AdamW,
}
RATES = {"SGD": 0.05, "Lion": 1e-4, "Muon": 0.02, "AdamW": 1e-3}


# Findings whose every remedy leaves an optimizer that is none of Adam's kind as it is.
KEPT = {"gradient spike", "exploding gradient", "loss spike", "divergence ahead", "not finite"}
KEPT |= {"edge of stability", "vanishing gradient"}


def rows():
    """Readings that make many rules speak."""
    depth = {f"layer {index}": 10.0 ** (3 - index) for index in range(6)}
    for step in range(1, 60):
        yield Reading(step, "gradient norm", 1.0, {"0.weight": 1.0})
        yield Reading(step, "loss", 1.0)
    yield Reading(60, "gradient norm", 90.0, {"0.weight": 90.0})
    for step in range(60, 64):
        yield Reading(step, "loss", 9.0)
    for step in range(64, 74):
        yield Reading(step, "backward signal", 1.0, depth)
    for step in range(74, 84):
        yield Reading(step, "backward signal", 1.0, dict(zip(depth, reversed(depth.values()), strict=True)))
    extra = {"ratio": 4.0, "limit": 20.0, "lr": 0.1}
    for step in range(100, 200, 20):
        yield Reading(step, "sharpness", 80.0, {}, extra)
    for step in range(200, 206):
        shares = {"miss": 0.5 if step == 200 else 0.04, "scatter": 0.1, "others": 3.0}
        yield Reading(step, "strongest features", 0.97, {}, {**shares, "features": 2.0, "share": 0.9})
        yield Reading(
            step, "log Z", 2.3 if step < 203 else 40.0, {}, {"mean logit": 0.0 if step < 203 else 30.0}
        )
    yield Reading(206, "softmax collapse", 0.9)
    for step in range(210, 250):
        yield Reading(step, "weight norm", 1.3 ** (step - 209))
    yield Reading(250, "loss", math.nan)


def findings(about):
    rules = all_rules(about)
    found = [one for row in rows() for rule in rules if row.name in rule.reads for one in rule.see(row)]
    assert {one.name for one in found} >= KEPT | {
        "softmax collapse",
        "output-logit drift",
        "gradient starvation",
    }
    return found


def classifier(kind):
    """A small classifier, and its optimizer with two groups of parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    lr = RATES[kind]
    groups = [{"params": [model[0].weight], "lr": lr}, {"params": [model[2].weight], "lr": lr / 2}]
    return model, OPTIMIZERS[kind](groups)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_remedy_lowers_the_loss_in_the_loop_of_the_readme(kind):
    _, opt = classifier(kind)
    about = {"optimizer": kind, "adaptive": preconditions(opt), "lr": RATES[kind]}
    for finding in findings(about):
        for remedy in finding.remedies:
            model, opt = classifier(kind)
            names, steps = paste(remedy.code, model, opt, [next(iter(batches(1, 64)))] * 40)
            assert len(steps) == 40 and steps[-1][2] < steps[0][2], (finding.name, remedy.title)
            now = names["opt"]
            if kind != "AdamW" and finding.name in KEPT:
                assert now is opt, (finding.name, remedy.title)
            if now is not opt:
                assert "run.follow(opt)" in remedy.code
                assert len(now.param_groups) == 2 and preconditions(now) is (
                    now.__class__.__name__ != "Descent"
                )
            if preconditions(now) is about["adaptive"] and "schedule" not in names:
                one, other = (group["lr"] for group in now.param_groups)
                assert one == pytest.approx(2 * other) and one <= RATES[kind]


def test_lbfgs_is_told_to_search_its_line_and_keeps_its_rate():
    found = findings({"optimizer": "LBFGS", "adaptive": False, "lr": 1.0})
    for finding in found:
        if finding.name not in {"gradient spike", "exploding gradient"}:
            continue
        p = nn.Parameter(torch.tensor([3.0]))
        opt = torch.optim.LBFGS([p], lr=1.0)
        exec(finding.remedies[0].code, {"opt": opt, "torch": torch})
        (group,) = opt.param_groups
        assert group["line_search_fn"] == "strong_wolfe" and group["lr"] == 1.0


def test_the_edges_lower_rate_keeps_the_ratio_of_groups():
    found = [one for one in findings({"optimizer": "SGD", "lr": 0.05}) if one.name == "edge of stability"]
    _, opt = classifier("SGD")
    exec(found[-1].remedies[1].code, {"opt": opt})
    rates = [group["lr"] for group in opt.param_groups]
    assert rates == pytest.approx([0.05 * 0.8 / 4, 0.025 * 0.8 / 4])


@pytest.mark.parametrize(
    ("name", "title", "over"),
    [
        ("edge of stability", "warm up", 1),
        ("not finite", "from the last checkpoint", 10),
        ("divergence ahead", "go back to the last", 1),
    ],
)
def test_a_warm_up_moves_the_rate_of_every_group_step_by_step_and_ends_where_it_was(name, title, over):
    found = [one for one in findings({"optimizer": "SGD", "lr": 0.05}) if one.name == name]
    remedy = next(one for finding in found for one in finding.remedies if one.title.startswith(title))
    model, opt = classifier("SGD")
    torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0)  # a schedule that has been given up
    _, steps = paste(remedy.code, model, opt, batches(130))
    rates = torch.tensor([rates for _, rates, _ in steps], dtype=torch.float64)
    factor = (torch.arange(1.0, 131).double() / 100).clamp(max=1)
    assert torch.allclose(rates, factor[:, None] * torch.tensor([0.05, 0.025]).double() / over)


def test_a_warm_up_takes_a_tenth_of_the_steps_so_far():
    assert [warmed(step).partition("  #")[0] for step in (7, 5000)] == ["warmup = 100", "warmup = 500"]


def test_dormant_units_are_renewed_at_once_and_every_thousand_steps():
    model, _ = classifier("SGD")
    opt, dead, unit = torch.optim.SGD(model.parameters(), lr=0.01), [], model[0].weight.detach()[3]
    unit.zero_()

    def see(*_):
        dead.append(not unit.any())
        if len(dead) == 2:
            unit.zero_()

    opt.register_step_pre_hook(see)
    paste(renewed().code, model, opt, batches(1002, 64))
    assert dead == [True, False, *[True] * 999, False]


def test_a_unit_that_few_examples_wake_is_not_renewed_for_a_small_batch():
    """Of the first 16 examples none wakes unit 5, and of 64 one: its score is 0.5, of the dead one 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight[[3, 5]] = 0
        model[0].bias[3] = -1
        model[0].weight[5, 0], model[0].bias[5] = 10, -20
    kept, loader = model[0].weight.detach().clone(), list(batches(6))
    for x, _ in loader:
        x[:, 0].clamp_(max=2)
    loader[2][0][7, 0] = 4
    paste(renewed().code, model, torch.optim.SGD(model.parameters(), lr=0.0), loader)
    changed = (model[0].weight != kept).any(1)
    assert changed.nonzero().flatten().tolist() == [3]


def residual():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.act, self.down = nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)

        def forward(self, x):
            return torch.relu(x + self.down(self.act(self.up(x))))

    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), Block(), nn.Linear(16, 4))


def with_answer():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Sigmoid())


def gated():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.down(nn.functional.silu(self.gate(x)) * self.up(x))

    return Gated()


@pytest.mark.parametrize(("make", "renewed_layer"), [(residual, "2.up"), (with_answer, "0"), (gated, None)])
def test_what_cannot_be_renewed_is_left_alone_and_training_goes_on(make, renewed_layer, recwarn):
    torch.manual_seed(0)
    model = make()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features > 4}
    with torch.no_grad():
        for layer in layers.values():
            layer.weight[2], layer.bias[2] = 0, -1
    paste(renewed().code, model, torch.optim.SGD(model.parameters(), lr=0.0), batches(3, 64))
    changed = [name for name, layer in layers.items() if layer.weight[2].any()]
    assert changed == ([renewed_layer] if renewed_layer else [])
    said = [str(one.message) for one in recwarn if "no unit could be reset" in str(one.message)]
    assert len(said) == (0 if renewed_layer else 1)


def test_weights_are_kept_behind_the_steps_that_are_named_and_no_others():
    model, opt = classifier("SGD")
    seen = {}
    opt.register_step_post_hook(lambda *_: seen.update({len(seen) + 1: model[2].weight.detach().clone()}))
    names, _ = paste(kept("", (2, 5), "").code, model, opt, batches(8))
    assert list(names["kept"]) == [2, 5]
    assert all(torch.equal(weights["2.weight"], seen[step]) for step, weights in names["kept"].items())
    assert not torch.equal(seen[2], seen[5])


def test_hidden_layers_of_torchs_transformer_are_normalised_also_in_evaluation():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    heard = []
    x = torch.randn(4, 3, 8)
    exec(normalise().code, {"model": model, "torch": torch})
    model.layers[0].linear1.register_forward_hook(lambda layer, inputs, output: heard.append(output))
    model.eval()
    with torch.no_grad():
        model(x)
    assert torch.allclose(heard[0].var(-1, unbiased=False), torch.ones(4, 3), atol=1e-3)


def test_hidden_convolutions_are_normalised_and_the_last_layer_is_not():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    exec(normalise().code, {"model": model, "torch": torch})
    x = 9 * torch.randn(5, 1, 4, 4)
    hidden = model[0](x)
    assert torch.allclose(hidden.flatten(1).var(1, unbiased=False), torch.ones(5), atol=1e-3)
    assert torch.equal(model(x), model[3](hidden.relu().flatten(1))) and len(model[3]._forward_hooks) == 0


def stepped(make, closure=False, scale=None, norm=0.5):
    """What one step at rate 1 took away from a weight whose gradient is (3, 4)."""
    p = nn.Parameter(torch.zeros(2))
    opt = make([p])
    clip_gradients(opt, norm)
    with thalweg.watch(None, opt, store=None) as run:

        def loss():
            opt.zero_grad()
            value = (p * torch.tensor([3.0, 4.0])).sum()
            value.backward()
            return value

        if closure:
            opt.step(loss)
        else:
            loss()
            opt.step()
    assert run.step == 1
    return (-p.detach()).tolist()


def test_clipping_in_front_scales_the_whole_gradient_with_and_without_a_closure():
    for make in (lambda ps: torch.optim.SGD(ps, lr=1.0), lambda ps: thalweg.optim.SGD(ps, lr=1.0)):
        for closure in (False, True):
            assert stepped(make, closure) == pytest.approx([0.3, 0.4])
    sam = stepped(lambda ps: thalweg.optim.SAM(torch.optim.SGD(ps, lr=1.0)), closure=True)
    assert sam == pytest.approx([0.3, 0.4])


def test_clipping_leaves_small_gradients_alone_ends_with_its_handle_and_is_what_a_run_reads(tmp_path):
    p = nn.Parameter(torch.zeros(2))
    opt = torch.optim.SGD([p], lr=1.0)
    with thalweg.watch(None, opt, store=tmp_path / "s", budget=1e9) as run:
        for step, norm in enumerate((10.0, 0.5, None), 1):
            handle = clip_gradients(opt, norm) if norm else None
            p.grad = torch.tensor([3.0, 4.0])
            opt.step()
            if handle is not None:
                handle.remove()
            with torch.no_grad():
                moved, _ = p.norm().item(), p.zero_()
            assert moved == pytest.approx({1: 5.0, 2: 0.5, 3: 5.0}[step])
    with thalweg.watch.RunStore(tmp_path / "s") as store:
        read = [one.value for one in store.readings(run.id, "gradient norm")]
    assert read[-2:] == pytest.approx([0.5, 5.0])


def test_a_norm_that_is_no_norm_is_refused():
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    with pytest.raises(ValueError, match="norm must be"):
        clip_gradients(opt, 0.0)
    assert not opt._optimizer_step_pre_hooks


@pytest.mark.parametrize("kind", ["Adadelta", "Adagrad", "Adafactor", "AdamW"])
def test_a_method_in_another_ones_place_keeps_rates_only_where_they_mean_the_same(kind):
    about = {"optimizer": kind, "lr": 1.0, "adaptive": True}
    seen = set()
    for finding in findings(about):
        for remedy in finding.remedies:
            if "opt = optim." not in remedy.code:
                continue
            weight = nn.Parameter(torch.ones(2, 2))
            names = {"opt": getattr(torch.optim, kind)([weight], lr=1.0)}
            exec(remedy.code.split("# in a run")[0], names)
            rate = names["opt"].param_groups[0]["lr"]
            seen.add(finding.name)
            assert rate == (1.0 if kind == "AdamW" else 1e-3), remedy.code
            assert ("at a learning rate of 0.001" in remedy.title) == (kind != "AdamW")
    assert {"gradient spike", "softmax collapse"} <= seen
