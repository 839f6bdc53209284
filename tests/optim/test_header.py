"""Kernels do not wait for the header that Inductor makes once for a machine."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch._inductor import codecache

from thalweg.optim import _header
from thalweg.optim._header import beside


@pytest.fixture
def makes(monkeypatch):
    """Stands in for Inductor: makes a header once ``ready`` is set."""
    ready = threading.Event()

    def make(header, command, **options):
        ready.wait(240)
        if header == "broken":
            raise RuntimeError("no space left")
        return f"{header} {command} {options}"

    monkeypatch.setattr(codecache, "_precompile_header", make)
    monkeypatch.setattr(_header, "PATIENCE", 240.0)
    monkeypatch.setattr(_header, "_made", {})
    # The thread of this process may be making a header for an earlier test.
    thread = ThreadPoolExecutor(1)
    monkeypatch.setattr(_header, "_thread", lambda: thread)
    yield ready
    ready.set()


def test_nothing_waits_for_a_header_and_it_is_used_once_it_is_there(makes, monkeypatch):
    monkeypatch.setattr(_header, "PATIENCE", 0.1)
    make = codecache._precompile_header
    with beside():
        began = time.monotonic()
        assert [codecache._precompile_header("h", "c", flag=1) for _ in range(3)] == [None] * 3
        assert time.monotonic() - began < 120
        makes.set()
        _header._made["h", "c"].result(240)
        assert codecache._precompile_header("h", "c", flag=1) == "h c {'flag': 1}"
    assert codecache._precompile_header is make


def test_a_header_that_is_there_already_is_used_at_once(makes):
    makes.set()
    with beside():
        assert codecache._precompile_header("h", "c") == "h c {}"


def test_a_header_that_cannot_be_made_is_done_without(makes):
    makes.set()
    with beside():
        assert codecache._precompile_header("broken", "c") is None
