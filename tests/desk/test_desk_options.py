"""Options of ``thalweg desk``: on which desk a subcommand works, and what is refused at once."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from thalweg.cli import app as command
from thalweg.desk.database import Database
from thalweg.desk.people import everyone, invite, join, prepare

HERE = ("--public", "https://desk.example")


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    """The user's own data folder, in which none of these commands has any business."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "own").exists()


@pytest.fixture
def other(tmp_path):
    database = Database(tmp_path / "other")
    prepare(database)
    join(database, invite(database, "Ada", "owner"), "Ada", "correct horse battery")
    return database


def desk(*words):
    return CliRunner().invoke(command, ["desk", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("people",), "Ada"),
        (("invite", "Bob", *HERE), "https://desk.example/join/"),
        (("role", "Ada", "member"), "Ada is member now"),
        (("remove", "Ada"), "removed Ada"),
        (("digest", "--dry-run", "mails"), "0 messages"),
        (("mail", "allow", "ada@example.org"), "it had not asked"),
    ],
)
def test_a_subcommand_works_on_the_data_that_are_named_before_it(other, words, said):
    answer = desk("--data", other.folder, *words)
    assert answer.exit_code == 0 and said in answer.stdout


def test_data_that_are_named_after_the_subcommand_come_first(other, tmp_path):
    assert "nobody yet" in desk("--data", other.folder, "people", "--data", tmp_path / "third").stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--store", "x.sqlite"), "--store"),
        (("--port", "8600", "--open"), "--port, --open"),
        (HERE, "--public"),
    ],
)
def test_what_means_nothing_to_a_subcommand_is_refused_before_it_acts(other, options, named):
    answer = desk("--data", other.folder, *options, "remove", "Ada")
    assert answer.exit_code == 2
    assert f"thalweg: {named} before 'remove' is for" in answer.stderr
    assert "after it: thalweg desk remove --help" in answer.stderr
    assert [one.role for one in everyone(other)] == ["owner"]


@pytest.mark.parametrize("proxy", ["foo", "10.0.0.300", "localhost", "10.0.0.1,", "10.0.0.1/8", " "])
def test_a_proxy_that_could_never_be_one_is_refused(other, proxy):
    answer = desk("--data", other.folder, "--proxy", proxy)
    assert answer.exit_code == 2 and "--proxy must be addresses such as 10.0.0.5" in answer.stderr


@pytest.mark.parametrize("proxy", ["10.0.0.5", "10.0.0.0/8, ::1", "*"])
def test_a_proxy_that_could_be_one_is_taken(other, proxy):
    answer = desk("--data", other.folder, "--proxy", proxy, "--host", "192.0.2.1")
    assert "cannot listen on 192.0.2.1" in answer.stderr


@pytest.mark.parametrize(
    "words",
    [
        *[["desk", "people"], ["desk", "invite", "Ada"], ["desk", "mail", "allow", "ada@example.org"]],
        *[["desk", "digest"], ["papers", "repair"], ["papers", "index"], ["papers", "fetch", "--topic", "x"]],
    ],
)
def test_data_that_are_no_folder_are_refused_by_the_name_of_the_option(tmp_path, words):
    file = tmp_path / "file"
    file.touch()
    answer = CliRunner().invoke(command, [*words, "--data", str(file)])
    assert answer.exit_code == 2
    assert f"--data must be a folder that can be written, got {file} (File exists)" in answer.stderr
