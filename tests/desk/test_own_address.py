"""An invitation leads to the desk that runs over the same data, whatever its port and its name."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from typer.testing import CliRunner

from thalweg.cli import app as command
from thalweg.desk.own_address import address_of, kept_address, reached_at


@contextlib.contextmanager
def served(folder, *options):
    """``thalweg desk`` on a free port: its process and the address that it prints."""
    words = [sys.executable, "-u", "-m", "thalweg", "desk", "--port", "0", "--data", str(folder), *options]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        yield running, re.search(r"http://[\d.]+:\d+", running.stdout.readline())[0]
    finally:
        running.kill()
        running.communicate()


def invite(folder, *options):
    return CliRunner().invoke(command, ["desk", "invite", "Ada", "--data", str(folder), *options])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_invitation_leads_to_the_running_desk_and_to_none_that_has_ended(tmp_path, how):
    with served(tmp_path) as (running, address):
        link = invite(tmp_path).stdout.strip()
        assert link.startswith(f"{address}/join/")
        assert "Ada" in httpx.get(link, timeout=None).text
        running.send_signal(how)
        running.wait()
        assert not (tmp_path / "address.json").exists()
    said = invite(tmp_path)
    assert said.exit_code == 2 and "start it with thalweg desk" in said.stderr and not said.stdout


def test_what_a_killed_desk_left_behind_is_not_believed(tmp_path):
    with served(tmp_path) as (running, _):
        running.kill()
        running.wait()
    assert (tmp_path / "address.json").exists() and address_of(tmp_path) is None
    assert invite(tmp_path).exit_code == 2


def test_links_begin_as_the_desk_itself_is_called_unless_the_command_says_otherwise(tmp_path):
    with served(tmp_path, "--public", "https://desk.example/"):
        assert invite(tmp_path).stdout.startswith("https://desk.example/join/")
        for option in ("--public", "--address"):
            assert invite(tmp_path, option, "http://other.example").stdout.startswith("http://other.example/")


def test_a_desk_that_ends_leaves_the_address_of_another_that_began_later(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = listening.getsockname()
        with contextlib.ExitStack() as later:
            with kept_address(tmp_path, place, "http://first"):
                assert address_of(tmp_path) == "http://first"
                later.enter_context(kept_address(tmp_path, place, "http://second"))
            assert address_of(tmp_path) == "http://second"
        assert address_of(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"listening": 3}', '{"listening": ["x", 1e9], "links": ""}']
)
def test_a_damaged_file_is_none(tmp_path, text):
    (tmp_path / "address.json").write_text(text)
    assert address_of(tmp_path) is None


def test_a_folder_that_cannot_be_written_does_not_stop_the_desk(tmp_path):
    file = tmp_path / "a file"
    file.touch()
    with kept_address(file, ("127.0.0.1", 1), "http://127.0.0.1:1"):
        assert address_of(file) is None


def test_everywhere_is_reached_by_the_name_of_this_machine_for_itself():
    assert [reached_at(host, 8) for host in ("127.0.0.1", "0.0.0.0", "::", "fe80::1", "box")] == [
        *("http://127.0.0.1:8", "http://127.0.0.1:8", "http://[::1]:8", "http://[fe80::1]:8", "http://box:8")
    ]
