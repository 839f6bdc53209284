"""``thalweg run``: somebody's own script, watched without a change to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from thalweg.watch import RunStore

SCRIPT = """
import sys
import torch
from torch import nn

torch.manual_seed(0)
inputs, targets = torch.randn(256, 8), torch.randint(0, 3, (256,))
net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
opt = torch.optim.SGD(net.parameters(), lr=0.1)
loss_fn = nn.CrossEntropyLoss()
for step in range(60):
    loss = loss_fn(net(inputs), targets)
    opt.zero_grad()
    loss.backward()
    opt.step()
print("arguments", sys.argv[1:], "loss", loss.item())
"""


def thalweg(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "thalweg", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=800, check=False)


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "train.py"
    file.write_text(SCRIPT)
    return file


def test_the_script_prints_what_it_prints_alone_and_its_losses_are_stored(script, tmp_path):
    alone = subprocess.run(
        [sys.executable, script, "--epochs", "3"], capture_output=True, text=True, check=True
    )
    watched = thalweg(tmp_path, "run", "--budget", "1e9", "train.py", "--epochs", "3")
    assert watched.returncode == 0
    assert watched.stdout == alone.stdout
    assert "60 steps" in watched.stderr
    with RunStore(tmp_path / "runs" / "thalweg.sqlite") as store:
        (run,) = store.runs()
        losses = store.readings(run.id, "loss")
        assert run.outcome == "finished"
        assert run.about["model"] == "Sequential"
        assert {"gradient norm", "sharpness", "dormant units", "softmax collapse"} <= set(store.names(run.id))
        assert list(store.readings(run.id, "gradient norm")[0].layers) == [
            "0.weight",
            "0.bias",
            "2.weight",
            "2.bias",
        ]
    assert [one.step for one in losses] == list(range(1, 61))
    assert f"loss {losses[-1].value}" in alone.stdout


def test_options_behind_the_script_are_the_scripts_whatever_they_are_called(script, tmp_path):
    own = ["--help", "--budget", "5", "--store", "mine", "-v", "--", "--report"]
    script.write_text("import sys\nprint(sys.argv[1:])")
    for arguments in (own, ["--", *own]):
        done = thalweg(tmp_path, "run", "train.py", *arguments)
        assert (done.returncode, done.stdout) == (0, f"{own}\n")


def test_an_error_of_the_script_is_shown_as_its_own_and_the_run_is_kept(script, tmp_path):
    script.write_text(SCRIPT + "\nraise RuntimeError('my own mistake')\n")
    failed = thalweg(tmp_path, "run", "train.py")
    assert failed.returncode == 1
    assert "RuntimeError: my own mistake" in failed.stderr
    assert "runpy" not in failed.stderr
    with RunStore(tmp_path / "runs" / "thalweg.sqlite") as store:
        (run,) = store.runs()
        assert (run.outcome, run.steps) == ("RuntimeError", 60)


def test_the_exit_code_of_the_script_comes_through(script, tmp_path):
    script.write_text(SCRIPT + "\nsys.exit(7)\n")
    assert thalweg(tmp_path, "run", "train.py").returncode == 7


def test_a_script_without_a_step_is_said_to_have_nothing_to_watch(script, tmp_path):
    script.write_text("print('hello')")
    done = thalweg(tmp_path, "run", "train.py")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "no optimizer took a step" in done.stderr


def test_two_optimizers_are_two_runs(script, tmp_path):
    twice = SCRIPT.replace("for step", "opt2 = torch.optim.Adam([net[0].bias])\nfor step")
    script.write_text(twice.replace("    opt.step()", "    opt.step()\n    opt2.step()"))
    assert thalweg(tmp_path, "run", "train.py").returncode == 0
    with RunStore(tmp_path / "runs" / "thalweg.sqlite") as store:
        assert [(run.about["optimizer"], run.steps) for run in store.runs()] == [("SGD", 60), ("Adam", 60)]


def test_a_module_is_run_as_python_would_run_it(script, tmp_path):
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sizes.py").write_text("WIDTH = 16\n")
    told = SCRIPT.replace("import sys\n", "import sys\nfrom .sizes import WIDTH\nprint(sys.argv[0])\n", 1)
    (package / "train.py").write_text(told)
    alone = subprocess.run(
        [sys.executable, "-m", "mine.train", "-m", "3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    watched = thalweg(tmp_path, "run", "-m", "mine.train", "-m", "3")
    assert (watched.returncode, watched.stdout) == (0, alone.stdout)
    with RunStore(tmp_path / "runs" / "thalweg.sqlite") as store:
        assert [(one.name, one.steps) for one in store.runs()] == [("mine.train 1", 60)]


def test_a_script_may_go_to_another_folder(script, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    script.write_text("import os\nos.chdir('elsewhere')\n" + SCRIPT)
    done = thalweg(tmp_path, "run", "--report", "page.html", "train.py")
    assert done.returncode == 0
    assert (tmp_path / "page.html").is_file() and not list((tmp_path / "elsewhere").iterdir())
    with RunStore(tmp_path / "runs" / "thalweg.sqlite") as store:
        assert [one.steps for one in store.runs()] == [60]


def test_a_script_that_cannot_be_read_is_shown_as_python_would(script, tmp_path):
    script.write_text("x = (1,\n")
    done = thalweg(tmp_path, "run", "train.py")
    assert done.returncode == 1 and "SyntaxError: '(' was never closed" in done.stderr
    assert "runpy" not in done.stderr and "cli.py" not in done.stderr
