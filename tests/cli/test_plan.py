"""``thalweg plan``: its numbers, its comparisons and what it says to wrong input."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from thalweg.cli import app

runner = CliRunner()

MODELS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.Linear(64, 10))

def huge():
    return nn.Sequential(nn.Linear(10**6, 10**6), nn.Linear(10**6, 10))

def broken():
    raise RuntimeError("no data here")

def number():
    return 3

size = 3
"""


@pytest.fixture
def my_models(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_models", None)


def planned(*arguments: str) -> dict:
    result = runner.invoke(app, ["plan", *arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    return {**found, "plans": {one["name"]: one for one in found["plans"]}}


def refused(*arguments: str) -> str:
    result = runner.invoke(app, ["plan", *arguments])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output + result.stderr
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_q_galore_at_7b_beside_adamw_8_bit_adamw_and_lora():
    found = planned("--model", "llama-7b", "--optimizer", "QGaLore", "--rank", "1024")
    names = ["QGaLore, rank 1024", "AdamW", "8-bit AdamW", "LoRA, rank 1024, AdamW"]
    assert list(found["plans"]) == names
    low, full, small, lora = found["plans"].values()
    weights = 6_738_415_616
    assert full["weights"] == full["gradients"] == 2 * weights
    assert full["state"] == pytest.approx(4 * weights, rel=1e-6)
    assert small["state"] == pytest.approx(2 * weights * (1 + 4 / 256), rel=1e-4)
    outside = 262_410_240  # embedding, head and norms stay in bfloat16
    assert low["weights"] == pytest.approx((weights - outside) * (1 + 5 / 256) + 2 * outside, rel=1e-6)
    assert low["total"] < lora["total"] < small["total"] < full["total"]
    assert lora["groups"]["frozen weights"]["gradients"] == 0
    assert low["ratio_to_adamw"] == pytest.approx(low["total"] / full["total"])
    assert found["unit"] == "bytes"


def test_the_table_states_its_units_and_the_ratio():
    result = runner.invoke(app, ["plan", "--model", "llama-60m", "--rank", "128"])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "llama-60m: 58,073,600 parameters, bfloat16 weights; GB (10^9 bytes)" in lines[0]
    assert "total (GiB)" in lines[1]
    row = next(line for line in lines if line.startswith("AdamW"))
    assert row.split() == ["AdamW", "0.116", "0.116", "0.232", "0.000", "0.465", "0.433", "1.00"]
    assert any(line.startswith("GaLore, rank 128, by group") for line in lines)
    assert any(line.startswith("everything else") for line in lines)


def test_ones_own_model_from_the_current_folder(my_models):
    found = planned("--model", "my_models:Net", "--optimizer", "GaLore", "--rank", "8", "--dtype", "float32")
    low = found["plans"]["GaLore, rank 8"]
    weights = 2 * 64 * 256 + 640 + 256 + 64 + 10
    assert low["weights"] == 4 * weights
    assert low["projection"] == 4 * 2 * 64 * 8
    assert low["state"] == 2 * 4 * (2 * 256 * 8 + 640 + 330) + 6 * 4


def test_a_model_larger_than_any_memory_is_planned(my_models):
    assert planned("--model", "my_models:huge", "--optimizer", "AdamW")["plans"]["AdamW"]["weights"] > 2e12


def test_a_model_without_hidden_matrices_has_every_plan_but_loras():
    found = planned("--model", "thalweg.tasks:CNN", "--optimizer", "Lion", "--dtype", "float32")["plans"]
    assert list(found) == ["Lion", "AdamW", "8-bit AdamW"]
    assert found["Lion"]["weights"] == found["Lion"]["gradients"] == 4 * 56554
    assert "CNN has no trainable one" in refused("--model", "thalweg.tasks:CNN", "--optimizer", "GaLore")


def test_layerwise_dtypes_and_settings_reach_the_plan():
    usual = planned("--model", "llama-60m", "--optimizer", "FRUGAL")["plans"]["FRUGAL"]
    sparse = planned(
        "--model", "llama-60m", "--optimizer", "FRUGAL", "--set", "density=0.125", "--layerwise"
    )["plans"]["FRUGAL, density 0.125"]
    inside, before = (one["groups"]["hidden matrices"]["state"] for one in (sparse, usual))
    assert inside == pytest.approx(before / 2, rel=1e-3)
    assert sparse["gradients"] == 2 * 32000 * 512
    kahan = planned(
        *(
            "--model",
            "llama-60m",
            "--optimizer",
            "AdamW",
            "--state-dtype",
            "float32",
            "--set",
            "rounding=kahan",
        )
    )["plans"]["AdamW, rounding kahan"]
    assert kahan["state"] == pytest.approx(58_073_600 * (2 * 4 + 2), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "llama-8b"], "got 'llama-8b' (did you mean llama-"),
        (["--model", "nowhere_at_all:Net"], "nowhere_at_all could not be imported: No module named"),
        (["--model", "my_models:Nett"], "my_models has no 'Nett' (did you mean Net"),
        (["--model", "my_models:size"], "must be a class or a function, got int"),
        (["--model", "my_models:number"], "must make a torch.nn.Module, got int"),
        (["--model", "my_models:broken"], "could not be built: RuntimeError: no data here"),
        (
            ["--model", "my_models:Net", "--rank", "65"],
            "layers.0.weight: rank must be a whole number from 1 to 64",
        ),
        (["--model", "my_models:Net", "--rank", "0"], "--rank must be an integer >= 1, got 0"),
        (["--model", "llama-60m", "--optimizer", "QGalore"], "did you mean QGaLore"),
        (
            ["--model", "llama-60m", "--set", "evry=3"],
            "unknown argument 'evry' of GaLore (did you mean every",
        ),
        (["--model", "llama-60m", "--set", "every"], "--set must be KEY=VALUE, got 'every'"),
        (["--model", "llama-60m", "--set", "every=often"], "every must be an integer >= 1, got 'often'"),
        (["--model", "llama-60m", "--dtype", "int8"], "--dtype must be one of bfloat16, float16, float32"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, my_models):
    assert message in refused(*arguments)


def test_neither_the_help_nor_the_command_line_loads_torch():
    code = "import sys, thalweg.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Table 2 of arXiv 2403.03507, in G: full rank, GaLore, LoRA.
PUBLISHED = {
    ("60m", 128): (0.36, 0.24, 0.36),
    ("130m", 256): (0.76, 0.52, 0.80),
    ("350m", 256): (2.06, 1.22, 1.76),
    ("1b", 512): (7.80, 4.38, 6.17),
}


@pytest.mark.parametrize(("size", "rank"), PUBLISHED)
def test_galores_own_accounting_prints_its_published_table_within_3_percent(size, rank):
    arguments = ("--model", f"llama-{size}", "--rank", str(rank), "--accounting", "published")
    result = runner.invoke(app, ["plan", *arguments, "--json"])
    found = json.loads(result.stdout)["plans"]
    printed = (found["AdamW"], found[f"GaLore, rank {rank}"], found[f"LoRA, rank {rank}, AdamW"])
    assert printed == pytest.approx(PUBLISHED[size, rank], rel=0.03)
    text = runner.invoke(app, ["plan", *arguments]).output
    assert all(f"{number:.3f}" in text for number in printed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "llama-7b"), "--model must be one of llama-60m, .* got 'llama-7b'"),
        (("--model", "llama-60m", "--optimizer", "Fira"), "--optimizer must be GaLore .* got 'Fira"),
        (("--model", "llama-60m", "--dtype", "float32"), "--dtype must be bfloat16 .* got float32"),
    ],
)
def test_what_the_published_table_does_not_hold_is_refused(arguments, said):
    result = runner.invoke(app, ["plan", *arguments, "--accounting", "published"])
    assert result.exit_code == 2 and re.search(said, result.output.replace("\n", " "))
