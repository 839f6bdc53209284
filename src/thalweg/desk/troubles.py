"""What each finding means in a sentence: the first line of the file of its rule.

Read from the source text, like the status of a paper: the desk shows what a rule is about without torch.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from thalweg.papers.status import PACKAGE


@cache
def troubles(rules: Path = PACKAGE / "watch" / "rules") -> dict[str, str]:
    """Names of findings to what goes on in such a run, without the arXiv ids, which the papers carry."""
    found = {}
    for file in sorted(rules.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf8"))
        line = (ast.get_docstring(tree) or "").split("\n")[0]
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                for name in _names(node):
                    found[name] = re.sub(r" \([^()]*\d{4}\.\d{4,5}[^()]*\)", "", line)
    return found


def _names(rule: ast.ClassDef) -> list[str]:
    """What a rule calls its findings: its ``name``, and those in ``further``."""
    found: list[str] = []
    for node in rule.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == "name":
                found.append(ast.literal_eval(node.value))
            elif node.targets[0].id == "further":
                found += ast.literal_eval(node.value)
    return found
