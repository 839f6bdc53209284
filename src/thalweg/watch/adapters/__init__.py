"""Watching inside the trainers of others: one a file, found by being here.

A file imports its host at its top, so it is imported only when one of its names is asked for; which names it
has is read from its text.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

from thalweg._core.checks import nearest


def _names(file: Path) -> list[str]:
    for node in ast.parse(file.read_text(encoding="utf8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return []


_FILES = {
    name: file.stem
    for file in sorted(Path(__file__).parent.glob("*.py"))
    if not file.stem.startswith("_")
    for name in _names(file)
}
__all__ = sorted(_FILES)


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{nearest(name, _FILES)}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
