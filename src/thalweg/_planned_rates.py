"""The learning rate of every step of a schedule, from how it is written on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg._core.checks import check_choice, check_count, check_number, check_positive, nearest

if TYPE_CHECKING:
    import numpy as np

COMMON = ("steps", "peak", "warmup")
SHAPES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "cosine": ("end",),
    "linear": ("end",),
    "wsd": ("cooldown", "shape", "end"),
}


def planned_rates(text: str, first: np.ndarray) -> np.ndarray:
    """The rate of every step of the schedule ``text``; what it leaves open is as in ``first``."""
    import numpy as np

    from thalweg.optim import cosine, linear_decay
    from thalweg.theory import cooldown_schedule

    name, _, rest = text.partition(":")
    if name not in SHAPES:
        return _from_file(text)
    given: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, value = (word.strip() for word in part.partition("=")[::2])
        check_choice(f"--schedule {name}: setting", key, (*COMMON, *SHAPES[name]))
        if not value or key in given:
            raise ValueError(
                f"--schedule {text}: {key} must have one value, such as {key}={given.get(key, '...')}, got "
                f"{'several' if key in given else 'none'}"
            )
        given[key] = value
    where = f"--schedule {text}: "

    def whole(key: str, default: int, low: int) -> int:
        value = given.get(key, "")
        return check_count(where + key, int(value) if value.isdecimal() else value, low) if value else default

    peak = check_positive(where + "peak", given.get("peak", float(first.max())))
    steps = whole("steps", len(first), 1)
    warmup = whole("warmup", _warmup(first), 0)
    end = check_number(where + "end", given.get("end", 0), 0, 1)
    cooldown = check_number(where + "cooldown", given.get("cooldown", 0.2), 0, 1)
    shape = check_choice(where + "shape", given.get("shape", "linear"), ("linear", "sqrt"))
    if warmup >= steps:
        raise ValueError(f"{where}warmup must be less than steps = {steps}, got {warmup}")
    if name in ("cosine", "linear"):
        factor = (cosine if name == "cosine" else linear_decay)(steps, warmup, end)
        return peak * np.array([factor(step) for step in range(steps)])
    rising = np.minimum(1, np.arange(1, steps + 1) / max(warmup, 1))
    if name == "constant":
        return peak * rising
    falling = end + (1 - end) * cooldown_schedule(steps, cooldown, shape)
    if (falling[:warmup] < 1).any():
        raise ValueError(f"{where}cooldown must begin after the {warmup} steps of warm-up, got {cooldown:g}")
    return peak * rising * falling


def _warmup(rates: np.ndarray) -> int:
    """Steps until the rate first reaches its peak, if they rise all the way."""
    import numpy as np

    top = int(rates.argmax())
    return top + 1 if top and (np.diff(rates[: top + 1]) >= 0).all() else 0


def _from_file(text: str) -> np.ndarray:
    import numpy as np

    path = Path(text)
    if not path.is_file():
        raise ValueError(
            f"--schedule must be one of {', '.join(SHAPES)}, with settings such as wsd:cooldown=0.2, or a "
            f"file with the rate of every step; got {text!r}{nearest(text.partition(':')[0], SHAPES)}"
        )
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(
            f"--schedule {text}: must be a text file with the rate of every step, got one that is not UTF-8"
        ) from None
    rates = []
    for number, line in enumerate(lines, start=1):
        for word in line.replace(",", " ").split():
            try:
                rates.append(check_number("rate", word, 0, float("inf"), "[)"))
            except ValueError as error:
                raise ValueError(f"--schedule {text}, line {number}: {error}") from None
    if not any(rates):
        raise ValueError(f"--schedule {text}: must hold a rate above 0, got {len(rates)} numbers")
    return np.array(rates)
