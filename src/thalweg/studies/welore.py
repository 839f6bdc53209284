"""WeLore (arXiv 2407.11239): does each matrix want a rank of its own?"""

from __future__ import annotations

from thalweg.studies._compressed import SETUP, WORST, dense, lost
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.surgery import allocate_ranks, factorize

AXES = ("mean rank reduction", "validation loss (nats)")
ONE = grid(floor=(1,))
WIDE = {"reproduced": at_least(1.5), "direction only": at_least(1.05), "not reproduced": otherwise}
LOST = (
    "validation loss lost at {} mean rank reduction, in nats a character (a diverged run counts as 10, "
    "at least 0.0001 each): uniform ranks / WeLore's"
)
REDUCTIONS = {"half of the ranks": 0.5, "a fifth": 0.2, "three tenths": 0.3, "seven tenths": 0.7}
KINDS = {
    "query, key and value": "attention.query_key_value",
    "attention output": "attention.project",
    "first of the feed-forward": "feed_forward.expand",
    "second of the feed-forward": "feed_forward.contract",
}


def setting(name: str) -> Setting:
    return Setting(
        setting=name,
        metric=LOST.format(f"{REDUCTIONS[name]:.0%}"),
        verdict=WIDE,
        worst=WORST,
        axes=AXES,
        baseline=Arm("uniform", ONE),
        method=Arm("WeLore", ONE),
    )


STUDY = Study(
    paper="welore",
    claim="At the same mean rank, ranks chosen by one threshold on all spectra lose far less than "
    "equal ranks.",
    setting="half of the ranks",
    metric=LOST.format("50%"),
    verdict=WIDE,
    worst=WORST,
    axes=AXES,
    baseline=Arm("uniform", ONE),
    method=Arm("WeLore", ONE),
    beside=tuple(setting(name) for name in REDUCTIONS if name != "half of the ranks"),
    seeds=3,
    tuning_seeds=1,
    minutes=2,
    notes=SETUP + "No fine-tuning, no data: nothing is tuned in either arm. Every matrix gets its rank, also "
    "where two factors are larger than the matrix. Bytes: of the factors, or of the matrix where that is "
    "smaller; equal mean ranks are not equal bytes. A brief trial on a similar model before the rules were "
    "written had shown a small gain.",
)


def run(setting: str, arm: str, seed: int, floor: int) -> Trial:
    model, reduction = dense(seed)[0], REDUCTIONS[setting]
    ranks = allocate_ranks(model, reduction, method=arm.lower(), floor=floor)
    edited, _ = factorize(model, ranks=ranks, others="merged")
    _, sizes = factorize(model, ranks=ranks)
    numbers = {"bytes": float(sizes.bytes_after), "mean rank reduction": ranks.reduction}
    for kind, name in KINDS.items():
        of_kind = [layer for layer in ranks.ranks if layer.endswith(name)]
        kept = sum(ranks.ranks[layer] for layer in of_kind) / sum(ranks.full[layer] for layer in of_kind)
        numbers[f"rank kept, {kind}"] = kept
    return lost(seed, edited, reduction, **numbers)
