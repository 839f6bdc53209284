"""A forked process leaves the runs of its parent alone."""

import atexit
import os

import pytest

import thalweg
from thalweg.watch import RunStore

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")


def in_child(work):
    """Run ``work`` in a forked process that then ends as a script does; gives its exit code."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            atexit._run_exitfuncs()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_neither_writes_to_the_run_nor_ends_it(small, tmp_path):
    def goes_on():
        for _ in range(3):
            run.log(loss=-1.0)
            small.opt.step()
        assert run.findings == []
        run.close("by the child")

    with thalweg.watch(small.model, small.opt, budget=0, store=tmp_path / "s", name="mine") as run:
        for step in range(4):
            run.log(loss=float(step))
            small.opt.step()
            run.recorder.flush()
            if step == 1:
                assert in_child(lambda: None) == 0
                assert in_child(goes_on) == 0
                with RunStore(tmp_path / "s") as store:
                    assert store.run(run.id).ended is None
    with RunStore(tmp_path / "s") as store:
        info = store.run(run.id)
        assert (info.steps, info.outcome) == (4, "finished")
        assert [one.value for one in store.readings(run.id, "loss")] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_may_watch_a_run_of_its_own(small, make_small, tmp_path):
    def trains():
        other = make_small()
        with thalweg.watch(other.model, other.opt, budget=0, store=tmp_path / "s", name="theirs") as own:
            own.log(loss=5.0)
            other.opt.step()

    with thalweg.watch(small.model, small.opt, budget=0, store=tmp_path / "s", name="mine"):
        assert in_child(trains) == 0
    with RunStore(tmp_path / "s") as store:
        assert [(one.name, one.outcome, one.steps) for one in store.runs()] == [
            ("mine", "finished", 0),
            ("theirs", "finished", 1),
        ]
