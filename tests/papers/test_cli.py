"""The terminal's view of the catalog: answers on stdout, mistakes in one line on stderr with exit code 2."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from thalweg.papers import cli, find, load
from thalweg.papers.cli import app
from thalweg.papers.status import Status


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_search_prints_one_row_a_paper_with_the_reason():
    result = run("search", "loss spikes after warmup", "--limit", "4")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) == 5
    assert any(line.startswith("spam ") and "topics: loss, spikes, warmup" in line for line in lines)


def test_search_says_when_nothing_matches():
    result = run("search", "zzyzx")
    assert (result.exit_code, result.stdout) == (0, "no paper matches 'zzyzx'\n")


def test_show_prints_link_status_summary_claim_and_code():
    result = run("show", "grokfast")
    assert result.exit_code == 0
    for text in (
        "Grokfast: Accelerated Grokking by Amplifying Slow Gradients",
        "https://arxiv.org/abs/2405.20233",
        "https://github.com/ironjr/grokfast",
        "status: ",
        "low-pass filtered copy of the gradient",
        "opt = optim.Grokfast(model.parameters(), lr=1e-3, weight_decay=1.0)",
        "addresses: memorised, not generalising",
    ):
        assert text in result.stdout


@pytest.mark.parametrize(
    "name",
    [
        *["2403.03507", "arXiv:2403.03507v2", "https://arxiv.org/pdf/2403.03507v1", "GaLore"],
        *["github.com/jiaweizzhao/GaLore"],
        "galore: memory-efficient LLM training by gradient low-rank projection",
    ],
)
def test_show_takes_what_else_a_paper_is_called(name):
    assert run("show", name).stdout == run("show", "galore").stdout


def test_show_prints_the_authors_under_the_topics(monkeypatch):
    entry = replace(find("spam"), authors=("Ada Lovelace", "Emmy Noether"), organisation="")
    monkeypatch.setattr(cli, "find", lambda key: entry)
    assert run("show", "spam").stdout.splitlines()[2] == "Ada Lovelace, Emmy Noether"
    entry = replace(entry, organisation="University of Göttingen")
    assert (
        run("show", "spam").stdout.splitlines()[2] == "Ada Lovelace, Emmy Noether (University of Göttingen)"
    )


def test_show_keeps_each_paragraph_on_one_line_off_a_terminal():
    summary = next(entry.summary for entry in load() if entry.key == "small-scale-proxies")
    assert summary in run("show", "small-scale-proxies").stdout.splitlines()


def test_show_marks_parts_that_do_not_exist_and_gives_study_and_verdict(monkeypatch):
    found = Status(
        "partial", ("why",), ("thalweg.optim.Grokfast",), ("thalweg.optim.slow_component",), True, True
    )
    monkeypatch.setattr(cli, "status_of", lambda entry: found)
    monkeypatch.setattr(cli, "read_evidence", lambda key: {"verdict": "direction only", "effect": 1.4})
    lines = run("show", "grokfast").stdout.splitlines()
    assert "from thalweg.optim import Grokfast" in lines
    assert "# from thalweg.optim import slow_component  (planned)" in lines
    assert "thalweg study run grokfast" in lines
    assert "verdict: direction only" in lines
    assert "effect: 1.4" in lines


def test_brackets_in_evidence_are_printed_as_they_are(monkeypatch):
    monkeypatch.setattr(cli, "read_evidence", lambda key: {"verdict": "reproduced", "effect": "[bold]2x[/]"})
    assert "effect: [bold]2x[/]" in run("show", "grokfast").stdout


def test_show_works_for_every_paper():
    assert [entry.key for entry in load() if run("show", entry.key).exit_code != 0] == []


def test_list_prints_every_paper_and_ends_with_the_count():
    lines = run("list").stdout.splitlines()
    assert lines[-1] == "311 papers"
    assert [line.split()[0] for line in lines[1:-1]] == [entry.key for entry in load()]


def test_list_filters_and_says_how_many_of_all():
    result = run("list", "--room", "optim", "--tier", "1")
    lines = result.stdout.splitlines()
    assert lines[-1] == "24 of 311 papers"
    assert len(lines) == 26
    assert all(" optim " in line for line in lines[1:-1])


def test_list_by_status_shares_out_all_papers():
    counts = [int(run("list", "--status", state).stdout.splitlines()[-1].split()[0]) for state in cli.STATES]
    assert sum(counts) == 311


def test_list_as_json_holds_every_field_and_the_computed_status():
    rows = json.loads(run("list", "--tier", "1", "--json").stdout)
    row = next(row for row in rows if row["key"] == "spam")
    assert len(rows) == 65
    assert row["status"] in cli.STATES
    assert row["parts"] == ["thalweg.optim.clip_spikes", "thalweg.optim.SPAM"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "grokfsat"], "no paper has the key 'grokfsat' (did you mean grokfast"),
        (["show", ""], "no paper has the key ''"),
        (["list", "--room", "kitchen"], "room must be one of continual, credit"),
        (["list", "--status", "done"], "status must be one of partial, planned, working; got 'done'"),
        (["list", "--tier", "7"], "tier must be one of 1, 2, 3, 4; got 7"),
        (["search", "loss", "--limit", "0"], "limit must be an integer >= 1, got 0"),
        (["search", "  "], "question must be a text with at least one word"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_two(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
