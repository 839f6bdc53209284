"""Character-level text that every Python installation has: the sources of its standard library."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from thalweg._core.checks import check_choice, check_count, check_number

__all__ = ["VOCABULARY", "CharText", "library_text"]

VOCABULARY = "\t\n" + "".join(map(chr, range(32, 127)))
"""Tab, newline and printable ASCII: 97 characters, whose place is their token."""

# Pure Python, and present from Python 3.11 on; in this order, so that the same Python gives the same text.
MODULES = """
    abc argparse ast base64 bdb bisect calendar cmd codecs configparser contextlib copy csv dataclasses
    difflib dis enum fileinput fnmatch fractions functools genericpath getopt gettext graphlib gzip hashlib
    heapq hmac inspect io ipaddress linecache locale mimetypes modulefinder ntpath numbers operator optparse
    os pdb pickle pkgutil platform plistlib posixpath pprint profile pstats queue random reprlib runpy sched
    selectors shelve shlex shutil signal socket socketserver stat statistics string subprocess symtable
    tabnanny tarfile tempfile textwrap threading timeit tokenize trace traceback types typing uuid warnings
    wave weakref zipapp zipimport
""".split()  # noqa: SIM905


@dataclass(frozen=True, eq=False)
class CharText:
    """A text in characters, one part to learn and one to be judged on.

    Attributes:
        train, test: uint8 tokens [n] of the two parts.
        vocabulary: the characters; a character's place is its token.
    """

    train: Tensor
    test: Tensor
    vocabulary: str = VOCABULARY

    def encode(self, text: str) -> Tensor:
        """Int64 tokens [n] of ``text``; ValueError for a character outside the vocabulary."""
        return _encode(text, self.vocabulary).long()

    def decode(self, tokens: Tensor) -> str:
        """The text of integer ``tokens`` [n]."""
        return "".join(self.vocabulary[token] for token in tokens.tolist())

    def to(self, device: torch.device | str) -> CharText:
        """The same text on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def batch(
        self, split: str, batch_size: int, context: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Random windows of ``"train"`` or ``"test"``: int64 inputs and targets [batch_size, context].

        Targets are the inputs one character further. Windows start anywhere, drawn from ``generator`` or else
        from the global random state.

        Raises:
            ValueError: for a bad argument, and if the part holds no window of ``context`` + 1 characters.
        """
        tokens = self.train if check_choice("split", split, ("train", "test")) == "train" else self.test
        check_count("batch_size", batch_size)
        check_count("context", context)
        if context >= len(tokens):
            raise ValueError(
                f"context must be below the {len(tokens)} characters of {split!r}, got {context}"
            )
        starts = torch.randint(0, len(tokens) - context, (batch_size, 1), generator=generator)
        windows = tokens[starts + torch.arange(context + 1)].long()
        return windows[:, :-1], windows[:, 1:]


def library_text(test_fraction: float = 0.1, max_characters: int = 2_000_000) -> CharText:
    """The sources of a fixed list of standard-library modules, one after the other, as :class:`CharText`.

    The text depends on the installed Python and on nothing else; the vocabulary never changes. Characters
    outside it (accents, form feeds) are left out, and so are modules that this Python does not have.

    Args:
        test_fraction: the last part of the text, in (0, 1), is kept for testing.
        max_characters: stop after so many.

    Raises:
        ValueError: for a bad argument.
        FileNotFoundError: if this Python came without the sources of its library.
    """
    check_number("test_fraction", test_fraction, 0, 1, "()")
    check_count("max_characters", max_characters, low=2)
    library = Path(sysconfig.get_paths()["stdlib"])
    sources: list[str] = []
    length = 0
    for path in (library / f"{module}.py" for module in MODULES):
        if length >= max_characters:
            break
        if path.is_file():
            known = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
            sources.append("".join(character for character in known if character in VOCABULARY))
            length += len(sources[-1])
    if not sources:
        raise FileNotFoundError(f"this Python has no library sources in {library}")
    tokens = _encode("".join(sources)[:max_characters], VOCABULARY)
    cut = min(len(tokens) - 1, max(1, round((1 - test_fraction) * len(tokens))))
    return CharText(train=tokens[:cut], test=tokens[cut:])


def _encode(text: str, vocabulary: str) -> Tensor:
    token = {character: place for place, character in enumerate(vocabulary)}
    unknown = sorted(set(text) - token.keys())
    if unknown:
        raise ValueError(f"text must hold only characters of the vocabulary, got {''.join(unknown)!r}")
    return torch.tensor([token[character] for character in text], dtype=torch.uint8)
