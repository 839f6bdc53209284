"""Two processes equal one for wrapped optimizers: DDP, FSDP2 and distributed checkpoints."""

import pytest
import torch
import two_ranks_wrapped
from toys import batch, net
from two_ranks import with_a_number
from wrapped import MAKERS

from gloo_pair import run_both


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What two gloo processes report."""
    path = run_both(two_ranks_wrapped.__file__, tmp_path_factory.mktemp("ranks"))
    return torch.load(path, weights_only=False)


def one_process(name):
    """The weights after the same steps, each on the whole batch, here, and then the average."""
    model = with_a_number(net(torch.float64))
    optimizer = MAKERS[name](model.parameters())
    whole = lambda step: batch(step, 8, torch.float64)  # noqa: E731
    return two_ranks_wrapped.train(model, optimizer, two_ranks_wrapped.STEPS, whole)


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


every_wrapper = pytest.mark.parametrize("name", two_ranks_wrapped.NAMES)


@every_wrapper
@pytest.mark.parametrize("by", ["closure", "calls"])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_equal_one(findings, name, how, by):
    assert_equal(findings[name][f"{how}, {by}"], one_process(name))


@every_wrapper
@pytest.mark.parametrize("form", two_ranks_wrapped.FORMS)
def test_a_distributed_checkpoint_resumes_or_says_that_it_cannot(findings, name, form):
    if form == "flat" and name.startswith("Average"):
        # The flat form keeps only what lies in the optimizer's own state.
        assert "holds no averages" in findings[name][form]
    else:
        assert_equal(findings[name][form], one_process(name))


def test_double_backpropagation_refuses_shards_and_moves_nothing(findings):
    error, unmoved = findings["refusal"]
    assert error == "mode exact needs whole parameters, got a DTensor: use forward or backward"
    assert unmoved
