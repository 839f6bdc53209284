"""The permutations that tracing finds: all of them, and none that changes the function."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import ARCHITECTURES, example, made, shuffled

from thalweg.surgery._axis_run import movable, run, trace
from thalweg.surgery._symmetry import symmetry


def double(batch):
    return batch.double() if batch.is_floating_point() else batch


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_group_that_is_found_can_be_permuted_and_none_is_missed(name):
    model, batch = made(name, 0).double().eval(), double(example(name))
    found = symmetry(trace(model, batch)[0])
    assert len(found.units) == ARCHITECTURES[name][2], found.units
    perms, expected = shuffled(found), run(model, batch)
    for label in (None, *perms):
        moved = copy.deepcopy(model)
        chosen = perms if label is None else found.identity() | {label: perms[label]}
        with torch.no_grad():
            found.apply(movable(moved), chosen)
        torch.testing.assert_close(run(moved, batch), expected, rtol=1e-9, atol=1e-11)
        changed = any(
            not torch.equal(p, q) for p, q in zip(model.parameters(), moved.parameters(), strict=True)
        )
        assert changed == any(bool((p != found.identity()[k]).any()) for k, p in chosen.items())
