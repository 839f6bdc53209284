"""What a study measured, as one JSON file: written whole or not at all, and checked when it is read.

Numbers are kept to six digits, and effects and verdicts are made from the kept ones, so that a reader can
make them again.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from thalweg.papers.status import evidence_folder
from thalweg.studies.verdicts import FORMULAS, VERDICTS, Rule, effect_of, judge

__all__ = ["check_evidence", "load_evidence", "short", "write_evidence"]

ROLES = ("baseline", "method", "reference")
CURVE_POINTS = 200


def short(value: float) -> float | None:
    """``value`` to six digits; None, JSON's null, where it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def write_evidence(content: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write ``<paper>.json``, checked first; an interrupt or a full disk leaves the old file as it was.

    Raises:
        ValueError: the content is malformed; nothing is written.
    """
    check_evidence(content, f"{content.get('paper')}.json")
    path = _folder(folder) / f"{content['paper']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf8") as file:
            json.dump(content, file, indent=1, allow_nan=False, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def load_evidence(key: str, folder: Path | None = None) -> dict[str, Any]:
    """The evidence for a paper, checked; the fields are listed at :func:`check_evidence`.

    Raises:
        FileNotFoundError: nothing was measured yet.
        ValueError: the file is malformed; the message names the file and the field.
    """
    path = _folder(folder) / f"{key}.json"
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not a JSON file in UTF-8: {error}") from None
    check_evidence(content, path.name)
    if content["paper"] != key:
        raise ValueError(f"{path.name}: field 'paper' must be {key!r}, got {content['paper']!r}")
    return content


def check_evidence(content: Any, name: str) -> None:
    """Refuse content that lacks a field, holds a wrong one, or whose verdict does not follow from its scores.

    Fields: ``paper``, ``claim``, ``headline`` (a name in ``settings``), the headline's ``metric``,
    ``verdict``, ``effect``, ``formula``, ``spread`` and ``rules`` once more, ``seeds``, ``tuning_seeds``,
    ``machine``, ``versions``, ``minutes``, ``date``, ``notes``, and ``settings``. A setting holds
    ``metric``, ``verdict``, ``effect`` (median), ``spread`` (least and largest), ``effects`` (one a seed),
    ``formula``, ``rules`` (verdict to text), ``worst``, ``axes``, ``log_y``, and ``arms``: each with
    ``name``, ``role``, ``config``, ``tried`` (configuration and its scores), ``optimizer``, ``scores`` (one
    a seed), ``capped`` (how many of them count as the worst), ``numbers``, and ``curve``.

    Raises:
        ValueError: naming the file and the field.
    """
    _check(content, _TOP, name, "")
    for setting, body in content["settings"].items():
        where = f"settings.{setting}."
        _check(body, _SETTING, name, where)
        for index, arm in enumerate(body["arms"]):
            _check(arm, _ARM, name, f"{where}arms[{index}].")
            if len(arm["scores"]) != len(content["seeds"]):
                _refuse(
                    name, f"{where}arms[{index}].scores", f"{len(content['seeds'])} numbers", arm["scores"]
                )
            if len(arm["tried"]) != len(body["arms"][0]["tried"]):
                _refuse(name, f"{where}arms[{index}].tried", "as many as the first arm's", len(arm["tried"]))
        if [arm["role"] for arm in body["arms"]][:2] != ["baseline", "method"]:
            _refuse(
                name,
                f"{where}arms",
                "baseline and method, then references",
                [a["role"] for a in body["arms"]],
            )
        for field, value in judged(body).items():
            if body[field] != value:
                _refuse(name, where + field, f"{value!r}, which follows from the scores", body[field])
    if content["headline"] not in content["settings"]:
        _refuse(name, "headline", f"one of {', '.join(content['settings'])}", content["headline"])
    headline = content["settings"][content["headline"]]
    for field in _HEADLINE:
        if content[field] != headline[field]:
            _refuse(name, field, f"the headline's {headline[field]!r}", content[field])


def judged(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Effects, their median and spread, and the verdict, made from a setting's scores and rules."""
    baseline, method = (arm["scores"] for arm in setting["arms"][:2])
    effects = [short(effect_of(setting["formula"], a, b)) for a, b in zip(baseline, method, strict=True)]
    known = [effect for effect in effects if effect is not None]
    effect = short(median(known))
    assert effect is not None
    rules = {verdict: Rule.parse(text) for verdict, text in setting["rules"].items()}
    return {
        "effects": effects,
        "effect": effect,
        "spread": [min(known), max(known)],
        "verdict": judge(rules, effect),
    }


def _folder(folder: Path | None) -> Path:
    return evidence_folder() if folder is None else Path(folder)


def _refuse(name: str, field: str, allowed: str, got: Any) -> None:
    raise ValueError(f"{name}: field {field!r} must be {allowed}, got {got!r}")


def _check(
    content: Any, fields: Mapping[str, tuple[str, Callable[[Any], bool]]], name: str, where: str
) -> None:
    if not isinstance(content, Mapping):
        _refuse(name, where.rstrip(".") or "(whole file)", "an object", content)
    for field, (allowed, accepts) in fields.items():
        if field not in content:
            raise ValueError(f"{name}: field {where + field!r} is missing")
        if not accepts(content[field]):
            _refuse(name, where + field, allowed, content[field])


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(_number(one) for one in value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _seeds(value: Any) -> bool:
    return isinstance(value, list) and all(map(_whole, value)) and 0 < len(set(value)) == len(value)


def _rules(value: Any) -> bool:
    try:
        return bool(value) and all(isinstance(Rule.parse(text), Rule) for text in value.values())
    except (AttributeError, TypeError, ValueError):
        return False


def _tried(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and isinstance(one.get("config"), dict) for one in value)
        and all(_numbers(one.get("scores")) for one in value)
    )


def _curve(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"x", "median", "low", "high"}:
        return False
    columns = list(value.values())
    return all(
        isinstance(column, list)
        and 0 < len(column) == len(columns[0]) <= CURVE_POINTS
        and all(one is None or _number(one) for one in column)
        for column in columns
    )


_EFFECT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "metric": ("a text", _text),
    "verdict": (f"one of {', '.join(VERDICTS)}", lambda value: value in VERDICTS),
    "effect": ("a number", _number),
    "formula": (f"one of {', '.join(FORMULAS)}", lambda value: value in FORMULAS),
    "spread": ("two numbers", lambda value: _numbers(value) and len(value) == 2),
    "rules": ("verdicts to rules such as 'effect >= 2'", _rules),
}
_HEADLINE = tuple(_EFFECT)
_TOP = {
    "paper": ("a text", _text),
    "claim": ("a text", _text),
    "headline": ("a text", _text),
    **_EFFECT,
    "seeds": ("at least 3 different whole numbers", lambda value: _seeds(value) and len(value) >= 3),
    "tuning_seeds": ("different whole numbers", _seeds),
    "machine": (
        "a cpu's name and a number of cores",
        lambda value: isinstance(value, dict) and _text(value.get("cpu")),
    ),
    "versions": (
        "names to versions",
        lambda value: isinstance(value, dict) and all(map(_text, value.values())),
    ),
    "minutes": ("a number", _number),
    "date": ("a text", _text),
    "notes": ("a text", lambda value: isinstance(value, str)),
    "settings": ("an object", lambda value: isinstance(value, dict) and bool(value)),
}
_SETTING = {
    **_EFFECT,
    "effects": ("numbers", lambda value: isinstance(value, list) and bool(value)),
    "worst": ("a number", _number),
    "axes": (
        "two texts",
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_text, value)),
    ),
    "log_y": ("true or false", lambda value: isinstance(value, bool)),
    "arms": ("at least two arms", lambda value: isinstance(value, list) and len(value) >= 2),
}
_ARM = {
    "name": ("a text", _text),
    "role": (f"one of {', '.join(ROLES)}", lambda value: value in ROLES),
    "config": ("an object", lambda value: isinstance(value, dict)),
    "tried": ("configurations with scores", _tried),
    "optimizer": ("a specification", lambda value: isinstance(value, dict) and "chain" in value),
    "scores": ("numbers", _numbers),
    "capped": ("a whole number", _whole),
    "numbers": ("names to lists", lambda value: isinstance(value, dict)),
    "curve": (f"x, median, low and high of at most {CURVE_POINTS} points", _curve),
}
