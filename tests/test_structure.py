"""The house rules that a machine can hold: import directions, names, file sizes, packaging."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import thalweg
from thalweg._core.discover import modules

SOURCE = Path(thalweg.__file__).parent
PARTS = {"optim", "nn", "surgery", "probe", "credit", "continual", "distributed", "theory"}
ALLOWED = {
    "_core": set(),
    "papers": {"_core"},
    "tasks": {"_core"},
    **{room: {"_core"} for room in PARTS},
    "watch": {"_core", "probe", "papers"},
    "studies": {"_core", "tasks", "papers", *PARTS},
    "report": {"_core", "watch", "papers"},
    "desk": {"_core", "watch", "studies", "papers"},
}
ROOMS = sorted(info.name for info in pkgutil.iter_modules([str(SOURCE)]) if info.ispkg)


def imported_rooms(file: Path) -> set[str]:
    """Rooms of thalweg that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "thalweg":
                names = [f"thalweg.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("thalweg.")}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_in_the_directions_of_the_design(room):
    assert room in ALLOWED, f"say in ALLOWED what the new room {room} may import"
    for file in (SOURCE / room).rglob("*.py"):
        foreign = imported_rooms(file) - {room} - ALLOWED[room]
        assert not foreign, f"{file.relative_to(SOURCE)} imports {sorted(foreign)}"


@pytest.mark.parametrize("room", [room for room in ROOMS if not room.startswith("_")])
def test_no_file_is_called_like_a_public_name_of_its_room(room):
    names = {info.name for info in pkgutil.iter_modules([str(SOURCE / room)])}
    public = {name for module in modules(f"thalweg.{room}") for name in getattr(module, "__all__", ())}
    assert not names & public


@pytest.mark.parametrize("room", [room for room in ROOMS if not room.startswith("_")])
def test_every_exported_name_exists_and_is_documented(room):
    package = importlib.import_module(f"thalweg.{room}")
    for module in modules(f"thalweg.{room}"):
        assert module.__doc__, module.__name__
        for name in getattr(module, "__all__", ()):
            thing = getattr(package, name)
            if inspect.isfunction(thing) or inspect.isclass(thing):
                assert thing.__doc__, f"{module.__name__}.{name}"


@pytest.mark.parametrize("room", ["nn", "optim", "probe"])
def test_a_star_imports_what_a_room_lists(room):
    names = {}
    exec(f"from thalweg.{room} import *", names)
    listed = {name for module in modules(f"thalweg.{room}") for name in getattr(module, "__all__", ())}
    assert listed and listed == names.keys() - {"__builtins__"}


def test_files_hold_one_idea():
    long = {
        str(file.relative_to(SOURCE)): count
        for file in SOURCE.rglob("*.py")
        if (count := len(file.read_text(encoding="utf8").splitlines())) > 300
    }
    assert not long


def test_the_catalog_and_the_command_line_start_without_torch():
    code = "import sys, thalweg.cli, thalweg.papers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_readme_stays_readable():
    readme = (SOURCE.parents[1] / "README.md").read_text(encoding="utf8").splitlines()
    assert len(readme) <= 150
