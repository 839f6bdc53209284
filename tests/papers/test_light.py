"""The catalog starts at once: neither importing it nor asking it anything loads torch."""

import subprocess
import sys


def modules_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_room_loads_neither_torch_nor_numpy():
    assert {"torch", "numpy", "scipy", "sklearn"} & modules_after("import thalweg.papers") == set()


def test_search_status_and_the_command_load_no_torch():
    loaded = modules_after(
        "from thalweg import papers, papers as p\n"
        "import thalweg.papers.cli\n"
        "p.search('loss spikes'); [p.status(entry) for entry in p.load()]"
    )
    assert {"torch", "sklearn"} & loaded == set()
    assert "numpy" in loaded
