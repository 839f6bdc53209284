"""Watching changes nothing."""

import copy
import io

import torch

import thalweg

GENEROUS = 1e9


def state(case, steps, watched):
    """Everything a watched run could have touched, after the same training."""
    if watched:
        evaluate = (case.whole, case.whole)
        options = {"loss_fn": case.loss_fn, "evaluate": evaluate, "budget": GENEROUS, "store": None}
        with thalweg.watch(case.model, case.opt, **options) as run:
            case.train(steps, run)
        assert all(one.runs >= 2 - one.idle for one in run.budget.accounts.values())
        assert len(run.budget.accounts) == len(run.sensors) and not run.disabled
    else:
        case.train(steps)
    case.loss_fn(case.model, case.whole).backward()
    return {
        "weights and statistics": list(case.model.state_dict().values()),
        "gradients": [p.grad for p in case.model.parameters()],
        "moments": [v for s in case.opt.state.values() for v in s.values()],
        "random": [torch.get_rng_state()],
        "modes": [torch.tensor([m.training for m in case.model.modules()])],
    }


def test_training_is_bit_identical_with_every_sensor_running(make):
    plain, watched = state(make(), 45, False), state(make(), 45, True)
    for part, tensors in plain.items():
        assert len(tensors) == len(watched[part]) > 0
        assert all(torch.equal(a, b) for a, b in zip(tensors, watched[part], strict=True)), part


def test_a_module_frozen_in_evaluation_mode_stays_frozen(small):
    small.model[1].eval()
    before = small.model[1].running_mean.clone()
    options = {"loss_fn": small.loss_fn, "budget": GENEROUS, "store": None}
    with thalweg.watch(small.model, small.opt, **options) as run:
        small.train(25, run)
    assert [m.training for m in small.model] == [True, False, True, True, True]
    assert torch.equal(before, small.model[1].running_mean)


def test_a_watched_model_can_be_copied_and_saved_and_its_copies_are_not_heard(small):
    with thalweg.watch(small.model, small.opt, store=None) as run:
        twin = copy.deepcopy(small.model)
        torch.save(small.model, buffer := io.BytesIO())
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        twin(small.x), loaded(small.x)
        assert run.moment.inputs is None
        small.model(small.x)
        assert run.moment.inputs[0][0] is small.x


def test_closing_leaves_no_hook_behind(small):
    run = thalweg.watch(small.model, small.opt, store=None)
    assert small.opt._optimizer_step_pre_hooks and small.model._forward_hooks
    run.close()
    run.close()
    assert not small.opt._optimizer_step_pre_hooks and not small.model._forward_hooks
