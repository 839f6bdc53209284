"""Whatever ends a run, it is closed as that, and nothing that was recorded before is lost."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import thalweg
from thalweg.watch import RunStore

GENEROUS = 1e9


def read(path):
    with RunStore(path) as store:
        (info,) = store.runs()
        return info, {name: store.readings(1, name) for name in store.names(1)}, store.findings(1)


ENDS = [ZeroDivisionError, KeyboardInterrupt, torch.OutOfMemoryError, GeneratorExit]


@pytest.mark.parametrize("error", ENDS)
def test_the_outcome_is_the_exception_and_everything_before_it_is_stored(small, tmp_path, error):
    with (
        pytest.raises(error),
        thalweg.watch(small.model, small.opt, budget=GENEROUS, store=tmp_path / "s") as run,
    ):
        for step in range(1, 100):
            loss = small.loss_fn(small.model, small.whole)
            loss.backward()
            run.log(loss=float("inf") if step == 30 else loss)
            if step == 31:
                raise error("in the middle")
            small.opt.step()
            small.opt.zero_grad()
    info, readings, findings = read(tmp_path / "s")
    assert (info.outcome, info.steps) == (error.__name__, 30) and info.ended is not None
    assert [one.step for one in readings["loss"]] == list(range(1, 32))
    assert [one.step for one in readings["gradient norm"]] == list(range(2, 31))
    assert [(one.name, one.step) for one in findings] == [("not finite", 30)]
    assert findings == run.findings
    assert not small.opt._optimizer_step_pre_hooks and not small.model._forward_hooks


@pytest.mark.parametrize("where", ["closure", "forward", "callback", "step"])
def test_an_exception_from_anywhere_in_a_step_comes_through_as_it_is(small, tmp_path, where):
    """The user's own code that runs below our hooks."""
    boom = RuntimeError("the user's own")

    def fail(*_):
        raise boom

    def closure():
        small.opt.zero_grad()
        loss = small.loss_fn(small.model, small.whole)
        if where == "closure" and run.step == 5:
            fail()
        loss.backward()
        return loss

    with (
        pytest.raises(RuntimeError) as caught,
        thalweg.watch(small.model, small.opt, budget=GENEROUS, store=tmp_path / "s") as run,
    ):
        for step in range(10):
            if step == 5 and where == "forward":
                small.model[2].register_forward_hook(fail)
            if step == 5 and where == "step":
                small.opt.register_step_pre_hook(fail)
            small.opt.step(closure)
            if step == 5 and where == "callback":
                fail()
    assert caught.value is boom and caught.value.__context__ is None
    info, readings, _ = read(tmp_path / "s")
    seen = {"closure": 5, "forward": 5, "callback": 6, "step": 5}[where]
    assert (info.outcome, info.steps) == ("RuntimeError", seen)
    assert [one.step for one in readings["gradient norm"]] == list(range(2, seen + 1))


def test_a_loop_that_catches_an_error_and_goes_on_is_watched_on(small, tmp_path):
    """Out of memory on one batch, which the loop skips."""
    with thalweg.watch(small.model, small.opt, budget=GENEROUS, store=tmp_path / "s") as run:
        for step in range(20):
            try:
                loss = small.loss_fn(small.model, small.whole)
                if step == 7:
                    raise torch.OutOfMemoryError("too long a sentence")
                loss.backward()
                small.opt.step()
            except torch.OutOfMemoryError:
                pass
            small.opt.zero_grad()
    info, readings, findings = read(tmp_path / "s")
    assert (run.step, info.outcome, findings) == (19, "finished", [])
    assert [one.step for one in readings["gradient norm"]] == list(range(2, 20))


@pytest.mark.parametrize(("code", "outcome"), [(0, "finished"), (None, "finished"), (3, "SystemExit")])
def test_leaving_the_script_early_is_a_failure_only_if_its_code_says_so(tmp_path, code, outcome):
    opt = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(SystemExit), thalweg.watch(None, opt, budget=0, store=tmp_path / "s"):
        opt.step()
        sys.exit(code)
    assert read(tmp_path / "s")[0].outcome == outcome


LEFT = """
import sys, torch, thalweg
p = torch.nn.Parameter(torch.ones(1))
opt = torch.optim.SGD([p], lr=0.1)
run = thalweg.watch(None, opt, budget=0, store=sys.argv[1])
for step in range(1, 51):
    run.log(loss=float(step))
    opt.step()
raise LookupError("gone")
"""


def test_a_run_without_a_with_block_is_closed_when_the_script_ends(tmp_path):
    command = [sys.executable, "-c", LEFT, str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "LookupError: gone" in done.stderr
    info, readings, _ = read(tmp_path / "s")
    assert (info.outcome, info.steps) == ("LookupError", 50) and info.ended is not None
    assert [one.value for one in readings["loss"]] == [float(step) for step in range(1, 51)]


def test_a_run_whose_closing_is_interrupted_has_ended(small, tmp_path, monkeypatch):
    run = thalweg.watch(small.model, small.opt, budget=0, store=tmp_path / "s")
    for step in range(5):
        run.log(loss=float(step))
        small.opt.step()

    def interrupted():
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(run.recorder, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.close()
    run.recorder.join()
    info, readings, _ = read(tmp_path / "s")
    assert info.outcome == "finished" and info.ended is not None
    assert len(readings["loss"]) == 5
