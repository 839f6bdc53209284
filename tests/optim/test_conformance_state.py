"""Every recipe: state keeps its shapes and dtypes, and a checkpoint continues bit for bit."""

import copy
import pickle

import pytest
import torch
from torch import nn
from toys import (
    RECIPES,
    equal,
    every_recipe,
    make,
    net,
    same_state,
    slots_like,
    state_of,
    through_disk,
    train,
    weights,
)


@every_recipe
@pytest.mark.parametrize(
    ("dtype", "state_dtype", "kept"),
    [
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.bfloat16, None, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
def test_state_keeps_its_names_shapes_and_dtypes(name, dtype, state_dtype, kept):
    model = net(dtype)
    optimizer = make(name, model.parameters(), state_dtype=state_dtype)
    train(model, optimizer, range(1))
    before = [(i, key, tuple(value.shape), value.dtype) for i, key, value in state_of(optimizer)]
    train(model, optimizer, range(1, 20))
    assert [(i, key, tuple(v.shape), v.dtype) for i, key, v in state_of(optimizer)] == before
    like = [set(slots_like(optimizer, p)) | {"step"} for p in model.parameters()]
    for index, key, shape, held in before:
        if key not in like[index]:
            continue  # what shape it must have, the tests of that method say
        expected = ((), torch.float32) if key == "step" else (tuple(weights(model)[index].shape), kept)
        assert (shape, held) == expected
    assert all(optimizer.state[p]["step"].item() == 20 for p in model.parameters())
    assert all(p.dtype == dtype for p in model.parameters())


SAVED = [
    {},
    {"dtype": torch.bfloat16},
    {"dtype": torch.bfloat16, "rounding": "stochastic"},
    {"dtype": torch.bfloat16, "rounding": "kahan"},
    {"state_dtype": torch.bfloat16},
]


@every_recipe
@pytest.mark.parametrize("settings", SAVED, ids=lambda s: "-".join(map(str, s.values())) or "float32")
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(name, settings):
    settings = dict(settings)
    dtype = settings.pop("dtype", torch.float32)
    straight = net(dtype)
    expected = make(name, straight.parameters(), **settings)
    train(straight, expected, range(18))

    model = net(dtype)
    optimizer = make(name, model.parameters(), **settings)
    train(model, optimizer, range(9))
    saved = through_disk({"model": model.state_dict(), "optimizer": optimizer.state_dict()})

    resumed = net(dtype, seed=99)
    fresh = make(name, resumed.parameters(), **settings, lr=0.5)
    resumed.load_state_dict(saved["model"])
    fresh.load_state_dict(saved["optimizer"])
    train(resumed, fresh, range(9, 18))
    assert equal(weights(resumed), weights(straight))
    assert same_state(state_of(fresh), state_of(expected))


@every_recipe
def test_state_loads_before_any_step_and_over_steps_already_taken(name):
    straight, never, used = net(), net(), net()
    optimizers = [make(name, model.parameters()) for model in (straight, never, used)]
    blank = through_disk(optimizers[0].state_dict())
    train(used, optimizers[2], range(5))
    used.load_state_dict(never.state_dict())
    for model, optimizer in zip((never, used), optimizers[1:], strict=True):
        optimizer.load_state_dict(blank)
        assert optimizer.state_dict()["state"] == {}
        train(model, optimizer, range(6))
    train(straight, optimizers[0], range(6))
    assert equal(weights(never), weights(straight))
    assert equal(weights(used), weights(straight))


@every_recipe
def test_loading_copies(name):
    model = net()
    optimizer = make(name, model.parameters())
    train(model, optimizer, range(2))
    saved = optimizer.state_dict()
    twin = copy.deepcopy(model)
    loaded = make(name, twin.parameters())
    loaded.load_state_dict(saved)
    before = state_of(optimizer)
    train(twin, loaded, range(2, 5))
    assert same_state(state_of(optimizer), before)


@every_recipe
def test_refuses_the_state_of_every_other_recipe_and_changes_nothing(name):
    model = net()
    optimizer = make(name, model.parameters())
    train(model, optimizer, range(2))
    state, groups = state_of(optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    for other in RECIPES:
        if other == name:
            continue
        foreign_model = net()
        foreign = make(other, foreign_model.parameters())
        train(foreign_model, foreign, range(1))
        with pytest.raises(ValueError, match=f"state_dict is of another optimizer, {other}[ :]"):
            optimizer.load_state_dict(foreign.state_dict())
    assert same_state(state_of(optimizer), state)
    assert optimizer.state_dict()["param_groups"] == groups


@every_recipe
def test_refuses_state_of_other_shapes_and_things_that_are_no_state(name):
    wide = nn.Linear(6, 4)
    other = make(name, wide.parameters())
    wide(torch.ones(1, 6)).sum().backward()
    other.step()
    tall = nn.Linear(4, 6)
    optimizer = make(name, tall.parameters())
    own = optimizer.line_of(tall.weight, optimizer.param_groups[0]).other
    saved = r".+" if own else "4, 6"  # and the weight itself may fit: then the bias does not
    with pytest.raises(ValueError, match=rf"of shape \({saved}\), not \(.+ for a parameter of shape \(6\b"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="must hold 'state' and 'param_groups'"):
        optimizer.load_state_dict({"model": {}})
    assert optimizer.state_dict()["state"] == {}


@every_recipe
def test_kahan_starts_and_ends_with_the_optimizer_that_loads(name):
    plain_model = net(torch.bfloat16)
    plain = make(name, plain_model.parameters())
    train(plain_model, plain, range(3))
    kahan = make(name, plain_model.parameters(), rounding="kahan")
    kahan.load_state_dict(plain.state_dict())
    assert all(kahan.state[p]["kahan"].eq(0).all() for p in plain_model.parameters())
    train(plain_model, kahan, range(3, 6))
    assert any(kahan.state[p]["kahan"].ne(0).any() for p in plain_model.parameters())
    back = make(name, plain_model.parameters())
    back.load_state_dict(kahan.state_dict())
    assert all("kahan" not in back.state[p] for p in plain_model.parameters())


@every_recipe
def test_a_pickle_and_a_copy_go_on_like_the_original(name):
    model = net()
    optimizer = make(name, model.parameters())
    train(model, optimizer, range(4))
    pairs = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    before = weights(model)
    for twin, twins in pairs:
        assert type(twins) is type(optimizer)
        assert all(a is b for a, b in zip(twin.parameters(), twins.param_groups[0]["params"], strict=True))
        train(twin, twins, range(4, 12))
    assert equal(weights(model), before)
    train(model, optimizer, range(4, 12))
    for twin, twins in pairs:
        assert equal(weights(twin), weights(model))
        assert same_state(state_of(twins), state_of(optimizer))


@every_recipe
def test_a_copy_of_the_optimizer_alone_owns_copies_of_its_parameters_as_in_torch(name):
    for build in (lambda params: make(name, params), torch.optim.AdamW):
        model = net()
        optimizer = build(model.parameters())
        train(model, optimizer, range(2))
        twin = copy.deepcopy(optimizer)
        own = twin.param_groups[0]["params"]
        assert all(a is not b and torch.equal(a, b) for a, b in zip(own, model.parameters(), strict=True))
        assert set(twin.state) == set(own)
        before = weights(model)
        for p in own:
            p.grad = torch.ones_like(p)
        twin.step()
        assert equal(weights(model), before)
        assert not any(map(torch.equal, own, before))
