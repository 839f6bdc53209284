"""Wrappers are data too: through JSON and back, with the same steps; what makes no sense is refused."""

import json
from collections.abc import Mapping

import pytest
import torch
from toys import equal, net, same_state, state_of, weights
from wrapped import AROUND, BASES, MAKERS, run

from thalweg import optim
from thalweg.optim._wrapper import Wrapper

OURS = {name: make for name, make in MAKERS.items() if "torch" not in name} | {
    "SAM of an average": lambda params: optim.SAM(optim.Average(BASES["AdamW"](params), power=None)),
    "two averages": lambda params: optim.Average(optim.Average(BASES["SGD"](params), every=2), start=1),
    "every argument of SAM": lambda params: optim.SAM(
        BASES["AdamW"](params), 0.3, adaptive=True, normalized=False, floor=0.1, same_masks=True
    ),
    "SAM in bfloat16": lambda params: optim.SAM(
        optim.Lion(params, lr=0.01, rounding="kahan", nonfinite="skip", state_dtype=torch.bfloat16)
    ),
    "XGrad with arguments": lambda params: optim.XGrad(params, betas=(0.8, 0.9), state_dtype=torch.bfloat16),
}
every_one_of_ours = pytest.mark.parametrize("name", OURS)


def through_json(optimizer):
    return json.loads(json.dumps(optim.spec(optimizer)))


@every_one_of_ours
def test_a_spec_through_json_builds_the_same_optimizer(name):
    model, twin = net(), net()
    optimizer = OURS[name](model.parameters())
    built = optim.build(json.dumps(optim.spec(optimizer)), twin.parameters())
    assert type(built) is type(optimizer)
    assert optim.spec(built) == optim.spec(optimizer) == through_json(optimizer)
    run(model, optimizer, range(10))
    run(twin, built, range(10))
    assert not equal(weights(model), weights(net()))
    assert equal(weights(model), weights(twin))
    assert same_state(state_of(optimizer), state_of(built))


@pytest.mark.parametrize("name", ["SAM around SGD", "Average of SAM around SGD", "XGrad sgd"])
def test_what_groups_override_and_what_was_changed_later_is_described(name):
    model, twin = net(), net()
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), "lr": 0.01}]
    optimizer = OURS[name](groups)
    setting = optimizer.settings[0]
    setattr(optimizer, setting, 0.5)
    optimizer.param_groups[0]["weight_decay"] = 0.2
    built = optim.build(through_json(optimizer), [{"params": list(twin[i].parameters())} for i in (0, 2)])
    assert getattr(built, setting) == 0.5
    assert [g["lr"] for g in built.param_groups] == [0.05, 0.01]
    assert [g["weight_decay"] for g in built.param_groups] == [0.2, 0.1]
    run(model, optimizer, range(4))
    run(twin, built, range(4))
    assert equal(weights(model), weights(twin))


def test_the_spec_reads_like_the_call():
    inner = optim.SGD(net().parameters(), lr=0.5)
    assert optim.spec(optim.Average(optim.GradientRegularization(inner, 0.1, 0.2), decay=0.9)) == {
        "wrapper": "Average",
        "decay": 0.9,
        "power": 1.0,
        "start": 0,
        "every": 1,
        "inner": {
            "wrapper": "GradientRegularization",
            "weight": 0.1,
            "step": 0.2,
            "mode": "forward",
            "model": False,
            "inner": optim.spec(inner),
        },
    }
    assert optim.spec(optim.XGrad(net().parameters(), base="adam", ahead=2, lr=0.1)) == {
        "wrapper": "XGrad",
        "base": "adam",
        "ahead": 2,
        "inner": optim.spec(optim.AdamW(net().parameters(), lr=0.1, weight_decay=0)),
    }


def test_what_a_spec_leaves_out_is_as_the_constructor_has_it():
    bare = {"wrapper": "SAM", "inner": {"lr": 0.1, "chain": []}}
    built = optim.build(bare, net().parameters())
    assert (built.radius, built.adaptive, built.normalized, built.model) == (0.05, False, True, None)


def test_a_wrapper_of_ones_own_is_found_by_itself():
    class Slower(Wrapper):
        """Steps every other time."""

        kept_as: Mapping[str, str] = {"times": "period"}

        def __init__(self, inner, times):
            super().__init__(inner)
            self.period, self.calls = times, 0

        def step(self, closure=None):
            loss = closure()
            self.calls += 1
            return loss if self.calls % self.period else self._step_inner()

    model, twin = net(), net()
    optimizer = Slower(BASES["AdamW"](model.parameters()), times=3)
    assert {**optim.spec(optimizer), "inner": None} == {"wrapper": "Slower", "times": 3, "inner": None}
    built = optim.build(through_json(optimizer), twin.parameters())
    run(model, optimizer, range(7))
    run(twin, built, range(7))
    assert equal(weights(model), weights(twin))
    with pytest.raises(ValueError, match=r"^a spec of Slower must hold 'times', got \['inner', 'wrapper'\]"):
        optim.build({"wrapper": "Slower", "inner": {"lr": 0.1, "chain": []}}, twin.parameters())


def test_of_a_model_the_spec_says_only_that_there_is_one():
    model, twin = net(), net()
    optimizer = optim.Average(optim.SAM(BASES["AdamW"](model.parameters()), model=model))
    described = through_json(optimizer)
    assert described["inner"]["model"] is True
    built = optim.build(described, twin.parameters(), model=twin)
    assert built.inner.model is twin
    assert optim.spec(built) == described
    with pytest.raises(ValueError, match=r"^model must be given, as the spec of SAM says, got None"):
        optim.build(described, twin.parameters())


def test_what_keeps_no_record_of_an_argument_has_no_spec():
    class Forgetful(Wrapper):
        """Keeps nothing."""

        def __init__(self, inner, rate=1.0):
            super().__init__(inner)

    with pytest.raises(ValueError, match=r"^Forgetful must keep its argument 'rate' as an attribute"):
        optim.spec(Forgetful(BASES["AdamW"](net().parameters())))


def test_a_wrapper_around_an_optimizer_of_torch_is_refused():
    for wrap in AROUND.values():
        around = wrap(BASES["torch AdamW"](net().parameters()))
        with pytest.raises(
            ValueError,
            match=r"^inner of \w+ must be a thalweg\.optim\.Descent or a wrapper around one to have a spec, "
            r"got torch\.optim\.adamw\.AdamW$",
        ):
            optim.spec(around)


PLAIN = {"lr": 0.1, "chain": [{"part": "lion"}]}
REFUSED = [
    (
        {"wrapper": "SAMM", "inner": PLAIN},
        r"^wrapper must be one of Average, .*, SAM, .*XGrad; got 'SAMM' \(did you mean SAM",
    ),
    ({"wrapper": "Displaced", "inner": PLAIN}, "^wrapper must be one of .*; got 'Displaced'"),
    ({"wrapper": None, "inner": PLAIN}, "^wrapper must be one of .*; got None"),
    ({"wrapper": ["SAM"], "inner": PLAIN}, r"^wrapper must be one of .*; got \['SAM'\]"),
    (
        {"wrapper": "SAM", "radus": 0.1, "inner": PLAIN},
        r"^unknown argument 'radus' of SAM, got 0\.1: it takes inner, radius, .* \(did you mean radius",
    ),
    ({"wrapper": "SAM", "lr": 0.1, "inner": PLAIN}, "^unknown argument 'lr' of SAM, got 0.1: it takes inner"),
    ({"wrapper": "SAM", "radius": 0.1}, r"^a spec of SAM must hold 'inner', got \['radius', 'wrapper'\]"),
    ({"wrapper": "SAM", "inner": "lion"}, "^inner of SAM must be the spec of an optimizer, got 'lion'"),
    ({"wrapper": "SAM", "radius": -1, "inner": PLAIN}, r"^radius must be in \[0, inf\), got -1"),
    ({"wrapper": "SAM", "inner": {"lr": 0.1}}, "^a spec must hold 'chain'"),
    (
        {"wrapper": "XGrad", "inner": PLAIN},
        r"^inner must be a Descent of adam and decay with base 'adamw', got Descent\(lion",
    ),
    (
        {
            "wrapper": "XGrad",
            "base": "adam",
            "inner": {"lr": 0.1, "chain": [{"part": "adam"}, {"part": "decay"}]},
        },
        "^weight_decay must be 0 with base 'adam', got 0.01",
    ),
    (
        {
            "wrapper": "XGrad",
            "base": "sgd",
            "inner": {"lr": 0.1, "chain": [{"part": "decay"}, {"part": "momentum", "momentum": 0.0}]},
        },
        r"^momentum must be in \(0, 1\), got 0\.0",
    ),
]


@pytest.mark.parametrize(("described", "message"), REFUSED)
def test_bad_specs_are_refused(described, message):
    for entry in (described, {"wrapper": "Average", "inner": described}):
        with pytest.raises(ValueError, match=message):
            optim.build(json.dumps(entry), net().parameters())


def test_a_wrapper_defined_anew_takes_the_place_of_the_first_and_a_namesake_elsewhere_is_refused():
    described = {"wrapper": "Twin", "inner": PLAIN}
    cells = [type("Twin", (Wrapper,), {"__module__": "notebook"}) for _ in range(2)]
    assert type(optim.build(described, net().parameters())) is cells[1]
    namesake = type("Twin", (Wrapper,), {"__module__": "elsewhere"})
    with pytest.raises(
        ValueError, match=r"^wrapper must name one class, got 'Twin', which is in elsewhere, notebook$"
    ):
        optim.build(described, net().parameters())
    assert namesake.__name__ == "Twin"
