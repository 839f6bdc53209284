"""Step time of every recipe against ``torch.optim.AdamW(fused=True)``: 39M float32 parameters in 90 tensors.

Both optimizers live in one process and step in turn, on the same gradients; a row gives the median of the
pairwise ratios and their quartiles. For element-wise recipes, ``bytes`` is what they read and write over what
AdamW does, and ``bar`` the ratio that this allows: 1.15 for AdamW, 1.25 times bytes times that for others.
``peer`` is the step time of the same method in pytorch-optimizer over ours; for eager AdamW, that of torch's
foreach (its bar is 0.67).

``python -m benchmarks optimizer_step --only AdamW Lion --write docs/optimizer-speed.md``
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_optimizer as peers
import torch

from benchmarks._bars import MISSED
from thalweg import optim

ROUNDS, PEER_ROUNDS = 30, 7
BAR, MARGIN = 1.15, 1.25
TINY = 1e-7  # a learning rate at which weights and gradients stay at right angles
SLOW = 0.2  # seconds; a step that takes longer is timed a few times only


def _orthogonal(params: list) -> torch.optim.Optimizer:
    return peers.OrthoGrad(torch.optim.AdamW(params, lr=1e-3, weight_decay=0.0, foreach=True))


def _two_groups(params: list, **low_rank: Any) -> list[dict[str, Any]]:
    matrices = [p for p in params if p.ndim == 2]
    return [{"params": matrices, **low_rank}, {"params": [p for p in params if p.ndim != 2]}]


PEERS: dict[str, Callable[[list], torch.optim.Optimizer]] = {
    **{
        name: getattr(peers, name)
        for name in ("AdamW", "AdamP", "DiffGrad", "Grams", "Lion", "RAdam", "SPAM")
    },
    "AdEMAMix": peers.AdEMAMix,
    "Grokfast": peers.GrokFastAdamW,
    "SGDP": lambda params: peers.SGDP(params, momentum=0.9),
    "AdamP, scale-invariant": lambda params: peers.AdamP(params, lr=TINY),
    "SGDP, scale-invariant": lambda params: peers.SGDP(params, lr=TINY, momentum=0.9),
    "AdamW, eager": lambda params: torch.optim.AdamW(params, foreach=True),
    "PerpGrad": _orthogonal,
    "GaLore": lambda params: peers.GaLore(
        _two_groups(params, rank=128, update_proj_gap=200, scale=0.25, projection_type="std")
    ),
    "Fira": lambda params: peers.Fira(
        _two_groups(params, rank=128, update_proj_gap=200, scale=0.25, projection_type="std")
    ),
}
LIVELY: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "SGDP": {"momentum": 0.9},
    "QGaLore": {"rank": 128},
}


def shapes() -> list[tuple[int, ...]]:
    """A transformer of width 512 with 11 blocks."""
    block: list[tuple[int, ...]] = [
        (1536, 512),
        (1536,),
        (512, 512),
        (512,),
        (2048, 512),
        (2048,),
        (512, 2048),
        (512,),
    ]
    return [(8192, 512), (512, 512), *block * 11]


def parameters() -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(0.02 * torch.randn(shape)) for shape in shapes()]
    for p in made:
        p.grad = torch.randn_like(p)
    return made


def scale_invariant(originals: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """The same weights, each row with a gradient at right angles to it, as behind a normalisation."""
    made = [torch.nn.Parameter(p.detach().clone()) for p in originals]
    for p, q in zip(made, originals, strict=True):
        rows, g = p.detach().view(len(p), -1), q.grad.view(len(q), -1)
        along = (rows * g).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)
        p.grad = (g - along * rows).view_as(p) if p.ndim > 1 else q.grad
    return made


def copies(originals: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(p.detach().clone()) for p in originals]
    for p, q in zip(made, originals, strict=True):
        p.grad = q.grad
    return made


def seconds(optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def paired(
    ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, rounds: int
) -> list[tuple[float, float]]:
    for _ in range(3):
        seconds(ours), seconds(theirs)
    return [(seconds(ours), seconds(theirs)) for _ in range(rounds)]


def bar(name: str, optimizer: optim.Descent) -> tuple[float, float] | None:
    """Bytes touched over AdamW's, and the ratio that they allow; None if bytes are not what decides."""
    if any(t.scope != "element" or t.fresh for t in optimizer.chain):
        return None
    slots = sum(len(one.owned) for one in optimizer.links)
    share = (3 + 2 * slots) / 7  # weights in and out, gradient in, state in and out
    return share, BAR if name == "AdamW" else BAR * MARGIN * share


def peer_ratio(name: str, params: list[torch.nn.Parameter], ours: torch.optim.Optimizer) -> str:
    if name not in PEERS:
        return "-"
    peer = PEERS[name](copies(params))
    pairs = paired(ours, peer, PEER_ROUNDS)
    return f"{statistics.median(theirs / mine for mine, theirs in pairs):.1f}"


def row(
    name: str, make: Callable[..., torch.optim.Optimizer], params: list, fused: Any, **options: Any
) -> list[str]:
    optimizer = make(copies(params), **options)
    first = seconds(optimizer)
    rounds = ROUNDS if seconds(optimizer) < SLOW else PEER_ROUNDS
    pairs = paired(optimizer, fused, rounds)
    low, middle, high = statistics.quantiles((mine / theirs for mine, theirs in pairs), n=4)
    mine, theirs = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    allowed = (
        bar(name, optimizer) if isinstance(optimizer, optim.Descent) and options.get("compile") else None
    )
    bytes_cells = ["-", "-"] if allowed is None else [f"{one:.2f}" for one in allowed]
    peer = peer_ratio(name, params, optimizer) if "compile" in options else "-"
    spread = f"{low:.2f} to {high:.2f}"
    return [f"{mine:.1f}", f"{theirs:.1f}", f"{middle:.2f}", spread, *bytes_cells, peer, f"{first:.1f}"]


HEADS = ["optimizer", "ms", "fused AdamW ms", "ratio", "quartiles", "bytes", "bar", "peer", "first step s"]
TIMES = {"AdEMAMix": 4, "AdamP": 4, "SPAM": 20, "AdamW, eager": 0.67}  # as fast as the peer; others 2


def missed(cells: list[str]) -> str | None:
    """In words, which bar the row of a recipe is above or below."""
    name, ratio, allowed, peer = cells[0], cells[3], cells[6], cells[7]
    words = []
    if allowed != "-" and float(ratio) > float(allowed):
        words.append(f"{ratio} of fused AdamW, {allowed} allowed")
    if peer != "-" and float(peer) < TIMES.get(name, 2):
        words.append(f"{peer} times as fast as the peer, {TIMES.get(name, 2)} wanted")
    return f"{name}: {' and '.join(words)}" if words else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=None)
    parser.add_argument("--write", type=Path)
    chosen = parser.parse_known_args()[0]
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    params = parameters()
    fused = torch.optim.AdamW(params, fused=True)
    size = sum(p.numel() for p in params) / 1e6
    title = f"{size:.1f}M parameters, {len(params)} tensors, {torch.get_num_threads()} threads, float32"
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    print(title, *lines, sep="\n", flush=True)
    misses: list[str | None] = []
    rows = [
        (name, make, {"compile": True, **LIVELY.get(name, {})}) for name, make in optim.list_recipes().items()
    ]
    turned = scale_invariant(params)
    settings: dict[str, dict[str, Any]] = {"AdamP": {}, "SGDP": {"momentum": 0.9}}
    for name, own in settings.items():
        make = optim.list_recipes()[name]
        rows.append((f"{name}, scale-invariant", make, {"compile": True, "lr": TINY, **own}))
    rows.append(("AdamW, eager", optim.AdamW, {"compile": False}))
    rows.append(("torch AdamW, foreach", torch.optim.AdamW, {"foreach": True}))
    for name, make, options in rows:
        if chosen.only is None or name in chosen.only:
            given = turned if "scale-invariant" in name else params
            cells = [name, *row(name, make, given, fused, **options)]
            misses.append(missed(cells))
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    MISSED.extend(one for one in misses if one)
    print("bars missed:", "; ".join(one for one in misses if one) or "none")
    if chosen.write is not None:
        about = f"# Speed of a step\n\n{__doc__}\n{title}; torch {torch.__version__}.\n\n"
        chosen.write.write_text(about + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
