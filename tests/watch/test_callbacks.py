"""What ``on_finding`` may do with the run that calls it: read it, and close it; never stand still."""

import threading

import pytest
import torch

import thalweg
from thalweg.watch import RunStore

PATIENCE = 240


def trained(small, tmp_path, told, steps=90):
    """A run whose loss is not finite at step 10, in a thread of its own, so that a test does not hang."""
    runs, failures = [], []

    def loop():
        run = thalweg.watch(
            small.model,
            small.opt,
            store=tmp_path / "store",
            budget=0,
            on_finding=lambda finding: told(run, finding),
        )
        runs.append(run)
        try:
            for step in range(1, steps + 1):
                small.model(small.x).sum().backward()
                run.log(loss=float("nan") if step == 10 else 1.0)
                small.opt.step()
                small.opt.zero_grad()
                if step == 10:
                    run.recorder.flush()
            run.close()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the run hangs"
    assert not failures
    return runs[0]


def test_it_may_read_the_findings_so_far(small, tmp_path):
    seen = []
    run = trained(
        small, tmp_path, lambda run, finding: seen.append((finding.name, run.findings[-1], run.step))
    )
    assert [name for name, *_ in seen] == ["not finite"]
    assert seen[0][1] is run.findings[0] and seen[0][2] >= 10


@pytest.mark.filterwarnings("error")
def test_it_may_close_the_run_which_the_training_thread_then_does(small, tmp_path):
    run = trained(small, tmp_path, lambda run, finding: run.close("stopped"))
    with RunStore(run.store_path) as store:
        (about,) = store.runs()
        assert about.outcome == "stopped" and about.steps == run.step
        assert [one.step for one in store.readings(run.id, "loss")] == list(range(1, 11))
        assert [one.name for one in store.findings(run.id)] == ["not finite"]
    assert run.step == 10 and not small.opt._optimizer_step_pre_hooks and not small.model._forward_hooks


def test_what_it_closes_in_a_with_block_has_its_outcome(small, tmp_path):
    with thalweg.watch(
        small.model,
        small.opt,
        store=tmp_path / "store",
        budget=0,
        on_finding=lambda finding: run.close("stopped"),
    ) as run:
        run.log(loss=float("nan"))
        small.opt.step()
        run.recorder.flush()
    with RunStore(run.store_path) as store:
        assert store.runs()[0].outcome == "stopped"


@pytest.mark.parametrize("error", [SystemExit("enough"), KeyboardInterrupt()])
def test_what_would_end_its_thread_is_said_and_the_run_is_recorded_on(small, tmp_path, error):
    def leave(run, finding):
        raise error

    with pytest.warns(
        UserWarning, match=f"on_finding failed: {type(error).__name__} .* cannot end the training"
    ):
        run = trained(small, tmp_path, leave, steps=40)
    with RunStore(run.store_path) as store:
        assert len(store.readings(run.id, "loss")) == 40


def test_a_number_that_cannot_be_read_costs_itself_and_nothing_else(small, tmp_path):
    class Lost(torch.Tensor):
        """As one whose device has failed meanwhile."""

        def __float__(self):
            raise RuntimeError("device lost")

        is_cpu = False

        def clone(self):
            return self

        def detach(self):
            return self

    with (
        pytest.warns(UserWarning, match="device lost"),
        thalweg.watch(small.model, small.opt, store=tmp_path / "store", budget=0) as run,
    ):
        for step in range(5):
            run.log(loss=torch.ones(1).as_subclass(Lost) if step == 2 else 1.0)
            small.opt.step()
            run.recorder.flush()
        assert run.recorder.is_alive()
    with RunStore(run.store_path) as store:
        assert [one.step for one in store.readings(run.id, "loss")] == [1, 2, 4, 5]
