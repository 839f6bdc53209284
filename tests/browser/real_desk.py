"""The processes that the browser tests look at: ``thalweg desk``, and a training run."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import uvicorn


class Desk:
    """A running ``thalweg desk``."""

    def __init__(self, address, data, store):
        self.address, self.data, self.store = address, data, store

    def command(self, *words, **more):
        """``thalweg desk WORDS`` on this desk's data; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "thalweg", "desk", *words, "--data", str(self.data)],
            capture_output=True,
            text=True,
            check=False,
            **more,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def served(folder, *options, store=None, environment=None):
    """``thalweg desk`` on a free port, until the end of the block; its address is what it prints."""
    store = store or folder / "runs.sqlite"
    words = ["desk", "--port", "0", "--data", str(folder / "data"), "--store", str(store), *options]
    with (folder / "desk.log").open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "-u", "-m", "thalweg", *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        )
        try:
            for line in running.stdout:
                if found := re.search(r"http://[\d.]+:\d+", line):
                    yield Desk(found[0], folder / "data", store)
                    break
            else:
                pytest.fail(f"the desk did not start: {(folder / 'desk.log').read_text()}")
        finally:
            running.terminate()
            running.wait()


@contextlib.contextmanager
def hosted(app):
    """An application on a free port, in this process, where a test can reach into it."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    running = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    running.start()
    try:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield Desk(address, app.state.database.folder, app.state.store)
    finally:
        server.should_exit = True
        server.force_exit = True
        running.join()
        listening.close()


@contextlib.contextmanager
def training(store, steps=0, bad=0):
    """A process that trains, ``steps`` or until told (see ``training.py``); ended at the end of the block."""
    program = Path(__file__).with_name("training.py")
    words = [sys.executable, program, store, steps, bad]
    running = subprocess.Popen([str(word) for word in words], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield running
    finally:
        running.terminate()
        running.wait()
