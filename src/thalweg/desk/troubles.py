"""What each finding means in a sentence, the first line of the file of its rule, and how grave it can be.

Read from the source text, like the status of a paper: the desk shows what a rule is about without torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from thalweg.papers.status import PACKAGE

RULES = PACKAGE / "watch" / "rules"
SEVERITIES = ("info", "warning", "critical")
SEVERITY = 4  # its place among what a ``Finding`` is made of


@cache
def troubles(rules: Path = RULES) -> dict[str, str]:
    """Names of findings to what goes on in such a run, without the arXiv ids, which the papers carry."""
    found = {}
    for tree, rule in _rules(rules):
        line = (ast.get_docstring(tree) or "").split("\n")[0]
        for name in _names(rule):
            found[name] = re.sub(r" \([^()]*\d{4}\.\d{4,5}[^()]*\)", "", line)
    return found


@cache
def severities(rules: Path = RULES) -> dict[str, tuple[str, ...]]:
    """Names of findings to how grave they can be, the mildest first."""
    found: dict[str, set[str]] = {}
    for tree, rule in _rules(rules):
        for call in ast.walk(rule):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Finding":
                # A variable there is what the rule says it is, or was taken from the levels above it.
                given = call.args[SEVERITY]
                said = _severe(given) or _severe(*_meant(given, rule))
                said = said or _severe(*(one for one in tree.body if one is not rule))
                found.setdefault(_named(call.args[0], _names(rule)), set()).update(said)
    return {name: tuple(one for one in SEVERITIES if one in said) for name, said in found.items()}


def _rules(folder: Path) -> Iterator[tuple[ast.Module, ast.ClassDef]]:
    """Every class of the rules with its file."""
    for file in sorted(folder.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                yield tree, node


def _named(first: ast.expr, names: list[str]) -> str:
    """Which of a rule's names ``self.name`` or ``self.further[0]`` is."""
    return names[1 + ast.literal_eval(first.slice)] if isinstance(first, ast.Subscript) else names[0]


def _meant(variable: ast.expr, rule: ast.ClassDef) -> list[ast.expr]:
    """What a rule assigns to a variable."""
    name = variable.id if isinstance(variable, ast.Name) else ""
    found = [one for one in ast.walk(rule) if isinstance(one, ast.Assign)]
    return [one.value for one in found for to in one.targets if isinstance(to, ast.Name) and to.id == name]


def _severe(*nodes: ast.AST) -> set[str]:
    """The severities that stand somewhere in a piece of source."""
    leaves = (leaf for node in nodes for leaf in ast.walk(node))
    return {str(leaf.value) for leaf in leaves if isinstance(leaf, ast.Constant)} & {*SEVERITIES}


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
