"""Names of runs that are long or lead elsewhere."""

import pytest
import torch
from torch import nn

import thalweg


def train(sink, name):
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.0)
    with thalweg.watch(None, opt, sinks=[sink], budget=0, store=None, name=name) as run:
        run.log(loss=1.0)
        opt.step()
    return run


@pytest.mark.parametrize(
    "name", ["../outside", "{}/outside", "..", ".", "x" * 300, "é" * 300, "sweep/lr 0.1"]
)
def test_tensorboard_writes_below_its_folder_whatever_the_run_is_called(tmp_path, monkeypatch, name):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: trackers)")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert train(thalweg.watch.TensorBoardSink("tb"), name.format(tmp_path)).disabled == {}
    files = [one.relative_to(tmp_path) for one in tmp_path.rglob("*tfevents*")]
    # Two runs of one name are two folders.
    assert len({one.parent for one in files}) == 2
    assert all(one.parts[0] == "tb" and len(one.parts) > 2 for one in files)
