"""GBLM-Pruner (arXiv 2311.04902): do gradients choose the weights that can go better than size alone?"""

from __future__ import annotations

from typing import Any

import torch

from thalweg.studies._compressed import SETUP, WORST, calibration, dense, lost, mean_loss
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.surgery import prune

AXES = ("share of the weights removed", "validation loss (nats)")
ALPHA = 3.0
SCOPES = grid(scope=("row", "layer", "model"))
ROW = grid(scope=("row",))
LOST = "validation loss lost, in nats a character (a diverged run counts as 10, at least 0.0001 each): "
FAR = {"reproduced": at_least(2), "direction only": at_least(1.1), "not reproduced": otherwise}
SLIGHT = {"reproduced": at_least(1.02), "direction only": at_least(1.005), "not reproduced": otherwise}
MAGNITUDE, GBLM, WANDA, GRADIENT, RANDOM = (
    Arm(name, SCOPES) for name in ("magnitude", "GBLM", "Wanda", "gradient only", "random")
)


def by_row(arm: Arm) -> Arm:
    return Arm(arm.name, ROW)


STUDY = Study(
    paper="gblm-pruner",
    claim="At half sparsity, weight size times input and gradient loses far less than weight size, and "
    "slightly less than weight size times input.",
    setting="half of the weights",
    metric=LOST + "magnitude / GBLM",
    verdict=FAR,
    worst=WORST,
    axes=AXES,
    baseline=MAGNITUDE,
    method=GBLM,
    references=(WANDA, GRADIENT, Arm("GBLM, alpha 30", SCOPES), Arm("GBLM, alpha 300", SCOPES), RANDOM),
    beside=(
        Setting(
            setting="half of the weights, against Wanda",
            metric=LOST + "Wanda / GBLM",
            verdict=SLIGHT,
            worst=WORST,
            axes=AXES,
            baseline=WANDA,
            method=GBLM,
        ),
        Setting(
            setting="half of each output's weights",
            metric=LOST + "magnitude / GBLM, both by row",
            verdict=FAR,
            worst=WORST,
            axes=AXES,
            baseline=by_row(MAGNITUDE),
            method=by_row(GBLM),
            references=(by_row(WANDA), by_row(GRADIENT)),
        ),
        Setting(
            setting="seven of ten weights",
            metric=LOST + "magnitude / GBLM",
            verdict=FAR,
            worst=WORST,
            axes=AXES,
            baseline=MAGNITUDE,
            method=GBLM,
            references=(WANDA, GRADIENT, RANDOM),
        ),
        Setting(
            setting="2 of every 4 inputs",
            metric=LOST + "magnitude / GBLM",
            verdict=FAR,
            worst=WORST,
            axes=AXES,
            baseline=by_row(MAGNITUDE),
            method=by_row(GBLM),
            references=(by_row(WANDA), by_row(RANDOM)),
        ),
    ),
    seeds=3,
    tuning_seeds=1,
    minutes=4,
    notes=SETUP + "Every arm chooses among three scopes in which weights compete: an output row, a layer, "
    "the whole model. Alpha is 3: with windows of 64 in place of 2048 tokens about what 100 is in the "
    "paper. Rules are set by its figures for LLaMA-2-7B: perplexity 5.47 before, 16.0, 6.9 and 6.86 after, "
    "a ratio of losses of 4.7 to magnitude and 1.03 to Wanda. In a first run GBLM was by row only, as "
    "published, and chose alpha of 1, 10 and 100, often the last of them, with little difference: 0.35 "
    "against magnitude over the whole model, 1.08 against Wanda. Since then all arms have the three scopes; "
    "no rule was changed.",
)
KINDS = {"GBLM": "gblm", "gradient only": "gradient", "Wanda": "wanda"}


def run(setting: str, arm: str, seed: int, scope: str) -> Trial:
    model = dense(seed)[0]
    sparsity = 0.7 if setting.startswith("seven") else 0.5
    shape: dict[str, Any] = {"pattern": (2, 4)} if setting.startswith("2 of") else {"scope": scope}
    if arm == "random":
        source = torch.Generator().manual_seed(seed)
        scores = {
            name.removesuffix(".weight"): torch.rand(p.shape, generator=source)
            for name, p in model.named_parameters()
            if name.startswith("blocks") and p.dim() == 2
        }
        edited, _ = prune(model, sparsity, score=scores, **shape)
    else:
        kind, _, alpha = arm.partition(", alpha ")
        edited, _ = prune(
            model,
            sparsity,
            score=KINDS.get(kind, "magnitude"),
            sequences=calibration(seed),
            loss_fn=mean_loss,
            alpha=float(alpha or ALPHA),
            **shape,
        )
    return lost(seed, edited, sparsity)
