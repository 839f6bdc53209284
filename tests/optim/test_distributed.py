"""Two processes equal one: DDP, FSDP2 and distributed checkpoints, for every recipe."""

import pytest
import torch
import two_ranks
from torch.nn import functional as F
from toys import batch, net

from gloo_pair import run_both


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What two gloo processes report; all recipes share them, since starting costs more than training."""
    path = run_both(two_ranks.__file__, tmp_path_factory.mktemp("ranks"))
    return torch.load(path, weights_only=False)


def one_process(name):
    """The weights after the same steps, each on the whole batch, here."""
    model = two_ranks.with_a_number(net(torch.float64))
    optimizer = two_ranks.OPTIMIZERS[name](model.parameters())
    for step in two_ranks.STEPS:
        optimizer.zero_grad()
        inputs, classes = batch(step, 8, torch.float64)
        F.cross_entropy(model(inputs), classes).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


every_optimizer = pytest.mark.parametrize("name", two_ranks.OPTIMIZERS)
SHARDED = [name for name in two_ranks.OPTIMIZERS if name not in two_ranks.WHOLE]
every_sharded = pytest.mark.parametrize("name", SHARDED)


@every_optimizer
def test_data_parallel_equals_one_process(findings, name):
    assert_equal(findings[name]["ddp"], one_process(name))


@every_sharded
def test_sharded_equals_one_process(findings, name):
    assert_equal(findings[name]["fsdp"], one_process(name))


@every_sharded
def test_sharded_state_is_sharded_like_its_weights(findings, name):
    assert findings[name]["state"] == {"DTensor"}
    assert findings[name]["placed alike"]


@every_optimizer
@pytest.mark.parametrize("form", range(3), ids=["sharded", "full", "flat"])
def test_a_distributed_checkpoint_resumes(findings, name, form):
    assert_equal(findings[name]["resumed"][form], one_process(name))


def test_the_shards_were_uneven(findings):
    assert findings["rows"] == [[3] * len(SHARDED), [2] * len(SHARDED)]


@pytest.mark.parametrize("name", sorted(two_ranks.WHOLE))
def test_what_needs_whole_matrices_refuses_shards_with_a_remedy_and_moves_nothing(findings, name):
    error, unmoved = findings[name]["refusal"]
    assert " needs whole tensors, got shard (3, 6) of (5, 6): train these parameters under DDP" in error
    assert unmoved


def test_stochastic_rounding_does_not_depend_on_the_sharding(findings):
    whole, sharded = findings["stochastic"]
    assert whole.dtype == torch.bfloat16
    assert torch.equal(whole, sharded)


def test_a_matrix_method_refuses_shards_and_moves_nothing(findings):
    error, unmoved = findings["refusal"]
    assert error.startswith("custom needs whole tensors, got shard (3, 6) of (5, 6): train these parameters")
    assert unmoved
