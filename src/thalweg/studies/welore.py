"""WeLore (arXiv 2407.11239): does each matrix want a rank of its own?"""

from __future__ import annotations

from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.studies._compressed import BATCH, CONTEXT, SETUP, WORST, dense, lost, validation_loss
from thalweg.studies._language import text
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.surgery import allocate_ranks, factorize
from thalweg.tasks import next_character

AXES = ("mean rank reduction", "validation loss (nats)")
ONE = grid(floor=(1,))
RATES = grid(lr=(1e-4, 3e-4, 1e-3, 3e-3))
TUNING = "tuning the factors alone"
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
    claim="At the same mean rank, ranks chosen by one threshold on all spectra lose far less than equal "
    "ranks, and tuning the factors alone does as well as tuning everything.",
    setting="half of the ranks",
    metric=LOST.format("50%"),
    verdict=WIDE,
    worst=WORST,
    axes=AXES,
    baseline=Arm("uniform", ONE),
    method=Arm("WeLore", ONE),
    beside=(
        *(setting(name) for name in REDUCTIONS if name != "half of the ranks"),
        Setting(
            setting=TUNING,
            metric="validation loss in nats a character after 100 steps of tuning at 50% mean rank "
            "reduction, of the matrices that lose more than half of their rank, the others dense (a "
            "diverged run counts as 10): all weights / the factors alone",
            verdict={
                "reproduced": at_least(0.99),
                "direction only": at_least(0.97),
                "not reproduced": otherwise,
            },
            worst=WORST,
            axes=("steps of tuning", "validation loss (nats)"),
            baseline=Arm("all weights", RATES),
            method=Arm("factors alone", RATES),
        ),
    ),
    seeds=3,
    tuning_seeds=1,
    minutes=4,
    notes=SETUP + "Ranks are chosen without data, and without tuning but in the last setting. Every matrix "
    "gets its rank, also where two factors are larger than the matrix. Bytes: of the factors, or of the "
    "matrix where that is smaller; equal mean ranks are not equal bytes. A brief trial on a similar model "
    "before the rules were written had shown a small gain.",
)


def run(setting: str, arm: str, seed: int, floor: int = 1, lr: float = 0.0) -> Trial:
    if setting == TUNING:
        return tuned(arm, seed, lr)
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


def tuned(arm: str, seed: int, lr: float) -> Trial:
    """The dense model's loss comes back as far as 100 steps allow."""
    model, _, before = dense(seed)
    edited, _ = factorize(model, 0.5, min_ratio=0.4999, freeze=arm == "factors alone")
    cut = validation_loss(edited)
    optimizer = optim.AdamW([p for p in edited.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    spec = dict(optim.spec(optimizer))
    curve = next_character(
        edited,
        text(),
        optimizer,
        100,
        batch_size=BATCH,
        context=CONTEXT,
        seed=20_000 + seed,
        evaluate_every=50,
        schedule=LambdaLR(optimizer, optim.linear_decay(100)),
    )
    after = float("nan") if curve.diverged else validation_loss(edited)
    trained = sum(p.numel() for p in edited.parameters() if p.requires_grad)
    numbers = {
        "validation loss before": before,
        "validation loss factored": cut,
        "share of the weights tuned": trained / sum(p.numel() for p in edited.parameters()),
    }
    return Trial(after, spec, ((0.0, 100.0), (cut, after)), numbers)
