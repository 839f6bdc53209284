"""What holds for every optimizer; a recipe joins by existing."""

import copy
import inspect
import io
import json
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import RECIPES, batch, equal, loss_of, make, net, same_state, state_of, train, weights

from thalweg import optim

every_recipe = pytest.mark.parametrize("name", RECIPES)
either_path = pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])


def through_disk(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_near(ours, theirs, relative=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=relative, atol=relative * b.abs().max().item())


# Learning


@every_recipe
def test_separates_two_classes(name):
    """Logistic loss on two classes 6 apart, from ln 2 to under 0.05 in 300 steps of 30 default rates."""
    points = torch.randn(64, 4) + 3 * torch.tensor([[1.0], [-1.0]]).repeat(32, 4)
    labels = torch.tensor([0, 1]).repeat(32)
    model = nn.Linear(4, 2)
    nn.init.normal_(model.weight, std=0.01)
    nn.init.zeros_(model.bias)
    default = inspect.signature(RECIPES[name]).parameters["lr"].default
    optimizer = RECIPES[name](model.parameters(), lr=30 * default)
    assert F.cross_entropy(model(points), labels).item() == pytest.approx(0.693, abs=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(points), labels).backward()
        optimizer.step()
    assert F.cross_entropy(model(points), labels).item() < 0.05


@every_recipe
def test_accumulated_gradients_equal_the_big_batch(name):
    whole, parts = net(torch.float64), net(torch.float64)
    one, other = make(name, whole.parameters()), make(name, parts.parameters())
    for step in range(9):
        one.zero_grad()
        other.zero_grad()
        inputs, classes = batch(step, 8, torch.float64)
        F.cross_entropy(whole(inputs), classes).backward()
        for start in range(0, 8, 2):
            share = F.cross_entropy(parts(inputs[start : start + 2]), classes[start : start + 2]) / 4
            share.backward()
        one.step()
        other.step()
    assert_near(weights(parts), weights(whole), 1e-10)


# State


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
    for index, key, shape, held in before:
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
        with pytest.raises(ValueError, match="state_dict is of another optimizer"):
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
    with pytest.raises(ValueError, match=r"of shape \(4, 6\) for a parameter of shape \(6, 4\)"):
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


# Parameter groups and settings


@every_recipe
def test_group_overrides_equal_an_optimizer_of_their_own(name):
    options = inspect.signature(RECIPES[name]).parameters
    own = {"lr": 0.03}
    for key, value in {"eps": 1e-2, "weight_decay": 0.4, "gain": 4.0, "threshold": 3.0}.items():
        if key in options:
            own[key] = value
    if "betas" in options:
        own["betas"] = (0.8, *options["betas"].default[1:])
    together, apart = net(torch.float64), net(torch.float64)
    one = make(name, [{"params": together[0].parameters()}, {"params": together[2].parameters(), **own}])
    first, second = make(name, apart[0].parameters()), make(name, apart[2].parameters(), **own)
    for step in range(9):
        one.zero_grad()
        apart.zero_grad()
        loss_of(together, step).backward()
        loss_of(apart, step).backward()
        one.step()
        first.step()
        second.step()
    assert equal(weights(together), weights(apart))


@every_recipe
def test_a_group_added_during_the_run_starts_then(name):
    together, apart = net(torch.float64), net(torch.float64)
    one = make(name, together[0].parameters())
    first, second = make(name, apart[0].parameters()), make(name, apart[2].parameters(), lr=0.02)
    for step in range(9):
        if step == 4:
            one.add_param_group({"params": list(together[2].parameters()), "lr": 0.02})
        together.zero_grad()
        apart.zero_grad()
        loss_of(together, step).backward()
        loss_of(apart, step).backward()
        one.step()
        first.step()
        if step >= 4:
            second.step()
    assert equal(weights(together), weights(apart))
    assert [one.state[p]["step"].item() for p in together.parameters()] == [9, 9, 5, 5]


@every_recipe
def test_a_bad_group_is_refused_and_not_added(name):
    optimizer = make(name, net().parameters())
    extra = nn.Parameter(torch.ones(2))
    for group, message in [
        ({"params": [extra], "lrr": 0.1}, r"unknown key 'lrr' in a parameter group \(did you mean lr"),
        ({"params": [extra], "lr": -1.0}, r"^lr must be in \[0, inf\), got -1.0"),
        ({"params": [torch.ones(2, dtype=torch.long)]}, "params must be of floating point"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    if "betas" in optimizer.defaults:
        with pytest.raises(ValueError, match=r"^betas\[1\] must be in \[0, 1\), got 1.0"):
            optimizer.add_param_group(
                {"params": [extra], "betas": (0.5, 1.0, 0.5)[: len(optimizer.defaults["betas"])]}
            )
    assert len(optimizer.param_groups) == 1


def bad_values():
    for name, recipe in RECIPES.items():
        for key, parameter in inspect.signature(recipe).parameters.items():
            default, annotation = parameter.default, str(parameter.annotation)
            values = []
            if isinstance(default, tuple):
                values = [
                    0.9,
                    "0.9",
                    default[1:],
                    (*default[:-1], 1.0),
                    (-0.1, *default[1:]),
                    ("a", *default[1:]),
                ]
            elif isinstance(default, bool) or key in ("params", "compile"):
                continue
            elif "int" in annotation:
                values = [-1, 0.5, "many"]
            elif isinstance(default, float):
                values = [-1.0, float("nan"), float("inf"), "much"]
            elif key == "rounding":
                values = ["up", 8]
            elif key == "state_dtype":
                values = [torch.int32, "bf16"]
            for value in values:
                yield pytest.param(name, key, value, id=f"{name}-{key}-{value}")


@pytest.mark.parametrize(("name", "key", "value"), list(bad_values()))
def test_a_bad_value_is_refused_by_name(name, key, value):
    with pytest.raises(ValueError, match=rf"^{key}\b.* must "):
        RECIPES[name](net().parameters(), **{key: value})


@every_recipe
def test_every_argument_but_switches_is_checked(name):
    checked = {case.values[1] for case in bad_values() if case.values[0] == name}
    arguments = inspect.signature(RECIPES[name]).parameters
    switches = {key for key, one in arguments.items() if isinstance(one.default, bool)}
    assert checked | switches | {"params", "compile"} == set(arguments)


@every_recipe
def test_an_unknown_argument_is_refused_with_the_nearest(name):
    known = next(key for key in inspect.signature(RECIPES[name]).parameters if key not in ("params", "lr"))
    with pytest.raises(ValueError, match=rf"unknown argument '{known}x' of {name} \(did you mean .*{known}"):
        RECIPES[name](net().parameters(), **{known + "x": 1})


@every_recipe
def test_a_spec_through_json_builds_the_same_optimizer(name):
    model, twin = net(), net()
    own = {"lr": 0.03}
    if "betas" in inspect.signature(RECIPES[name]).parameters:
        own["betas"] = (0.7, *inspect.signature(RECIPES[name]).parameters["betas"].default[1:])
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), **own}]
    optimizer = make(name, groups, rounding="kahan", state_dtype=torch.bfloat16)
    text = json.dumps(optim.spec(optimizer))
    built = optim.build(text, [{"params": list(twin[i].parameters())} for i in (0, 2)])
    assert json.dumps(optim.spec(built)) == text
    train(model, optimizer, range(9))
    train(twin, built, range(9))
    assert equal(weights(model), weights(twin))
    assert same_state(state_of(optimizer), state_of(built))


# The contract of torch.optim


@every_recipe
def test_a_closure_is_called_once_with_gradients_and_its_loss_returned(name):
    model, reference = net(), net()
    optimizer, plain = make(name, model.parameters()), make(name, reference.parameters())
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = loss_of(model, len(calls))
        loss.backward()
        calls.append(loss)
        return loss

    for step in range(4):
        assert optimizer.step(closure) is calls[step]
    assert len(calls) == 4
    assert equal(weights(model), weights(train(reference, plain, range(4))))


@every_recipe
def test_step_hooks_fire_around_the_step(name):
    model = net()
    optimizer = make(name, model.parameters())
    start, seen = weights(model), []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(("pre", o, equal(weights(model), start))))
    optimizer.register_step_post_hook(lambda o, *_: seen.append(("post", o, equal(weights(model), start))))
    train(model, optimizer, range(1))
    assert seen == [("pre", optimizer, True), ("post", optimizer, False)]


@every_recipe
@either_path
def test_gradients_are_left_as_they_were(name, compile):
    model = net()
    optimizer = make(name, model.parameters(), compile=compile)
    for step in range(8):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        held = [(p.grad, p.grad.clone()) for p in model.parameters()]
        optimizer.step()
        for p, (grad, before) in zip(model.parameters(), held, strict=True):
            assert p.grad is grad
            assert torch.equal(grad, before)


@every_recipe
def test_a_graph_from_before_the_step_cannot_be_used_after_it(name):
    """As with torch.optim: the step moves weights in place, and autograd must notice."""
    model = net()
    optimizer = make(name, model.parameters())
    loss = loss_of(model, 0)
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_recipe
def test_the_gradient_scaler_skips_infinite_gradients_and_nothing_else(name):
    model, reference = net(), net()
    optimizer, plain = make(name, model.parameters()), make(name, reference.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert equal(weights(model), weights(train(reference, plain, range(6))))

    optimizer.zero_grad()
    scaler.scale(loss_of(model, 6)).backward()
    model[0].weight.grad[0, 0] = float("inf")
    before, state = weights(model), state_of(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert equal(weights(model), before)
    assert same_state(state_of(optimizer), state)
    assert scaler.get_scale() == 2.0**9


def plateau(optimizer):
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    return lambda step: scheduler.step(1.0 + step)


def restarts(optimizer):
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3)
    return lambda step: scheduler.step()


def by_function(optimizer):
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, optim.cosine(steps=10, warmup=2))
    return lambda step: scheduler.step()


def one_cycle(optimizer):
    cycles = "betas" in optimizer.defaults or "momentum" in optimizer.defaults
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.02, total_steps=10, cycle_momentum=cycles
    )
    return lambda step: scheduler.step()


@every_recipe
@pytest.mark.parametrize("schedule", [plateau, restarts, by_function, one_cycle])
@pytest.mark.usefixtures("compiler")
def test_a_compiled_step_equals_the_eager_one_and_no_schedule_recompiles_it(name, schedule):
    ready = net()
    train(ready, make(name, ready.parameters(), compile=True), range(2))
    compiled_so_far = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled_so_far > 0

    paths, rates = [], []
    for compile, rate in ((True, 0.01), (True, torch.tensor(0.01)), (False, 0.01)):
        model, seen = net(), []
        optimizer = make(name, model.parameters(), lr=rate, compile=compile)
        after = schedule(optimizer)
        for step in range(8):
            train(model, optimizer, [step], after)
            seen.append(float(optimizer.param_groups[0]["lr"]))
        paths.append(weights(model))
        rates.append(seen)
    assert len(set(rates[0])) > 2
    assert rates[0] == rates[2] == pytest.approx(rates[1], rel=1e-6)
    assert_near(paths[0], paths[2])
    assert_near(paths[1], paths[2])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled_so_far


@every_recipe
@pytest.mark.usefixtures("compiler")
def test_other_shapes_do_not_recompile(name):
    ready = net()
    train(ready, make(name, ready.parameters(), compile=True), range(1))
    compiled_so_far = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    w = nn.Parameter(torch.randn(3, 7, 2, 2))
    w.grad = torch.randn(3, 7, 2, 2)
    reference = nn.Parameter(w.detach().clone())
    reference.grad = w.grad.clone()
    make(name, [w], compile=True).step()
    make(name, [reference]).step()
    assert_near([w.detach()], [reference.detach()])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled_so_far


# Layouts


def steps_of(name, params, gradients, **arguments):
    """Run the recipe on ``params`` with rows of given gradients; None leaves a parameter without one."""
    optimizer = make(name, params, **arguments)
    for row in gradients:
        for p, g in zip(params, row, strict=True):
            p.grad = g
        optimizer.step()
    return optimizer


@every_recipe
@either_path
def test_channels_last_weights_take_the_same_steps_and_keep_their_strides(name, compile):
    w = torch.randn(4, 3, 2, 2)
    gradients = [[torch.randn(4, 3, 2, 2)] for _ in range(9)]
    plain = nn.Parameter(w.clone())
    last = nn.Parameter(w.clone().to(memory_format=torch.channels_last))
    strides = last.stride()
    steps_of(name, [plain], gradients)
    mixed = [[g.to(memory_format=torch.channels_last) if i % 2 else g] for i, (g,) in enumerate(gradients)]
    optimizer = steps_of(name, [last], mixed, compile=compile)
    assert_near([last.detach()], [plain.detach()])
    slots = [value for key, value in optimizer.state[last].items() if key != "step"]
    assert last.stride() == strides
    assert all(slot.stride() == strides for slot in slots)


@every_recipe
@either_path
def test_weights_with_gaps_in_memory_take_the_same_steps_and_spare_the_gaps(name, compile):
    memory = torch.randn(4, 10)
    gradients = [[torch.randn(5, 4)] for _ in range(9)]
    before = memory.clone()
    strided = nn.Parameter(memory[:, ::2].t())
    plain = nn.Parameter(strided.detach().clone(memory_format=torch.contiguous_format))
    assert strided.data_ptr() == memory.data_ptr()
    steps_of(name, [plain], gradients)
    steps_of(name, [strided], gradients, compile=compile)
    assert_near([strided.detach()], [plain.detach()])
    assert torch.equal(memory[:, ::2].t(), strided)
    assert torch.equal(memory[:, 1::2], before[:, 1::2])


@every_recipe
@either_path
@pytest.mark.parametrize("gaps", [False, True], ids=["dense", "gaps"])
def test_complex_weights_step_as_pairs_of_real_numbers(name, compile, gaps):
    memory = torch.randn(3, 4, dtype=torch.complex64)
    weight = nn.Parameter(memory[:, ::2] if gaps else memory.clone())
    pairs = nn.Parameter(torch.view_as_real(weight.detach().clone(memory_format=torch.contiguous_format)))
    gradients = [[torch.randn_like(weight)] for _ in range(9)]
    optimizer = steps_of(name, [weight], gradients, compile=compile)
    steps_of(name, [pairs], [[torch.view_as_real(g.contiguous())] for (g,) in gradients])
    assert_near([torch.view_as_real(weight.detach())], [pairs.detach()])
    slots = [value for key, value in optimizer.state[weight].items() if key != "step"]
    assert all(slot.dtype == torch.complex64 and slot.shape == weight.shape for slot in slots)


@every_recipe
@either_path
def test_empty_frozen_and_unused_weights_do_not_disturb_the_others(name, compile):
    alone, together = (nn.Parameter(torch.ones(4, 2)) for _ in range(2))
    empty, unused = nn.Parameter(torch.ones(0, 3)), nn.Parameter(torch.ones(2))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    gradients = [torch.randn(4, 2) for _ in range(9)]
    steps_of(name, [alone], [[g] for g in gradients], compile=compile)
    optimizer = steps_of(
        name,
        [empty, together, unused, frozen],
        [[torch.ones(0, 3), g, None, None] for g in gradients],
        compile=compile,
    )
    assert torch.equal(together, alone)
    assert unused.eq(1).all()
    assert frozen.eq(1).all()
    assert set(optimizer.state) == {empty, together}


@every_recipe
def test_a_step_without_any_gradient_does_nothing(name):
    model = net()
    optimizer = make(name, model.parameters())
    before = weights(model)
    optimizer.step()
    assert equal(weights(model), before)
    assert optimizer.state_dict()["state"] == {}


@every_recipe
def test_weights_that_move_in_memory_are_followed(name):
    moved, plain = (nn.Parameter(torch.arange(1.0, 10.0).view(3, 3)) for _ in range(2))
    optimizers = make(name, [moved]), make(name, [plain])
    for step in range(9):
        g = torch.randn(3, 3)
        moved.grad, plain.grad = g, g
        for optimizer in optimizers:
            optimizer.step()
        if step == 3:
            moved.data = moved.data.clone()
        if step == 6:
            moved.data = moved.data.t().contiguous().t()
        if step == 7:
            moved.data, plain.data = moved.data.t(), plain.data.t().contiguous()
    assert_near([moved.detach()], [plain.detach()])
    kept = [[value for *_, value in state_of(optimizer)] for optimizer in optimizers]
    assert_near(*kept)


@every_recipe
def test_state_that_is_replaced_from_outside_is_followed(name):
    replaced, plain = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    optimizers = [make(name, [w]) for w in (replaced, plain)]
    for step in range(6):
        g = torch.randn(5)
        for w, optimizer in zip((replaced, plain), optimizers, strict=True):
            w.grad = g
            optimizer.step()
            for key, slot in optimizer.state[w].items():
                if key == "step" or step != 3:
                    continue
                if w is replaced:
                    optimizer.state[w][key] = torch.zeros_like(slot)
                else:
                    slot.zero_()
    assert torch.equal(replaced, plain)


@every_recipe
@either_path
def test_a_sparse_gradient_is_refused_with_a_remedy_before_anything_moves(name, compile):
    table, dense = nn.Embedding(5, 3, sparse=True), nn.Parameter(torch.ones(3))
    optimizer = make(name, [dense, table.weight], compile=compile)
    table(torch.tensor([1, 2])).sum().backward()
    dense.grad = torch.ones(3)
    before = table.weight.detach().clone()
    with pytest.raises(ValueError, match=r"sparse gradients are not supported.*sparse=False"):
        optimizer.step()
    assert torch.equal(table.weight, before)
    assert dense.eq(1).all()
    assert optimizer.state_dict()["state"] == {}


# Sixteen bits


@every_recipe
def test_a_gradient_may_have_another_dtype_than_its_weight(name):
    """A bfloat16 weight with float32 gradients: the state sees every bit of them, the weight is as before."""
    gradients = [[torch.randn(6)]]
    weight = nn.Parameter(torch.ones(6, dtype=torch.bfloat16))
    weight.grad_dtype = None
    wide = nn.Parameter(torch.ones(6))
    arguments = {"weight_decay": 0.0} if "weight_decay" in inspect.signature(RECIPES[name]).parameters else {}
    one = steps_of(name, [weight], gradients, lr=2.0**-6, **arguments)
    other = steps_of(name, [wide], gradients, lr=2.0**-6, **arguments)
    assert same_state(state_of(one), state_of(other))
    assert torch.equal(weight.detach(), wide.detach().to(torch.bfloat16))


@every_recipe
def test_small_steps_are_lost_to_nearest_rounding_and_kept_by_the_other_two(name):
    """200 steps of about 1e-4 from 1, where bfloat16 is 2^-8 apart below and 2^-7 above.

    Stochastic rounding is judged by its mean over 2048 weights a side, which noise moves by 3e-4.
    """
    signs = torch.tensor([1.0, -1.0]).repeat(2048)
    recipe = RECIPES[name]

    def moved(dtype, **arguments):
        w = nn.Parameter(torch.ones(4096, dtype=dtype))
        optimizer = recipe([w], lr=1e-4, **arguments)
        for _ in range(200):
            w.grad = signs.to(dtype)
            optimizer.step()
        return w.detach().float(), optimizer.state[w]

    exact, _ = moved(torch.float32)
    assert (exact - 1).abs().min() > 0.015
    nearest, _ = moved(torch.bfloat16)
    assert nearest.eq(1).all()
    stored, state = moved(torch.bfloat16, rounding="kahan")
    assert (stored + state["kahan"].float() - exact).abs().max() < 1e-3
    rounded, _ = moved(torch.bfloat16, rounding="stochastic")
    assert rounded.unique().numel() > 4
    for sign in (1.0, -1.0):
        assert rounded[signs == sign].mean().item() == pytest.approx(
            exact[signs == sign].mean().item(), abs=2e-3
        )
