"""The items of a JSON array of any size, one at a time, past those that are broken."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

__all__ = ["BROKE_OFF", "Broken", "items"]

AT_ONCE = 1 << 20  # characters read at once
LONGEST = 16 << 20  # characters of one item
BROKE_OFF = "the file ends before the array does"
NEXT = re.compile(r",\s*(?=\{)")  # where another item may begin
SPACE = re.compile(r"[\s,]*")


class Broken(NamedTuple):
    """In place of an item that cannot be read: why."""

    why: str


def items(file: TextIO) -> Iterator[Any]:
    """Each item of the array in ``file``, or a :class:`Broken` for what could not be read.

    After a broken item it goes on where the next object seems to begin.

    Raises:
        ValueError: the file holds no array.
    """
    decoder = json.JSONDecoder()
    text, place, ended, opened = "", 0, False, False
    while True:
        place = SPACE.match(text, place).end()  # type: ignore[union-attr]
        if not ended and (len(text) - place < 2 or place > AT_ONCE):
            more = file.read(AT_ONCE)
            text, place, ended = text[place:] + more, 0, not more
            continue
        if not opened:
            if text[place : place + 1] != "[":
                raise ValueError("the file must hold a JSON array, which begins with [")
            opened, place = True, place + 1
            continue
        if place >= len(text):
            yield Broken(BROKE_OFF)
            return
        if text[place] == "]":
            rest = text[place + 1 :].strip()
            if not rest and ended:
                return
            if rest:  # after a broken item, it may have closed a list inside of that
                text, place, ended = _past(file, text, place + 1, ended)
            else:
                more = file.read(AT_ONCE)
                text, place, ended = "]" + more, 0, not more
            continue
        try:
            item, place = decoder.raw_decode(text, place)
            yield item
        except RecursionError:
            yield Broken("nested too deeply")
            text, place, ended = _past(file, text, place + 1, ended)
        except json.JSONDecodeError as error:
            unfinished = error.pos > len(text) - 16 or error.msg.startswith("Unterminated string")
            if unfinished and not ended and len(text) - place < LONGEST:
                more = file.read(AT_ONCE)
                text, place, ended = text[place:] + more, 0, not more
                continue
            yield Broken(error.msg)
            text, place, ended = _past(file, text, max(error.pos, place + 1), ended)


def _past(file: TextIO, text: str, place: int, ended: bool) -> tuple[str, int, bool]:
    """From a broken place on to the next object."""
    while True:
        if found := NEXT.search(text, place):
            return text, found.end(), ended
        if ended:
            return "", 0, True
        more = file.read(AT_ONCE)
        text, place, ended = text[-64:] + more, 0, not more
