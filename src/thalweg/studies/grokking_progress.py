"""Progress measures (arXiv 2301.05217): does the excluded loss move before the test accuracy does?"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thalweg import optim
from thalweg.probe import fourier_gini, grokking_progress, key_frequencies
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.tasks import MLP, modular_arithmetic

P, STEPS, EVERY = 53, 2000, 25
NEVER = f"(a run that never arrives counts as {STEPS})"


def first(setting: str, method: str, metric: str, weight_decay: float = 2.0) -> dict[str, Any]:
    return {
        "setting": setting,
        "metric": metric,
        "verdict": {
            "reproduced": at_least(1.3),
            "direction only": at_least(1.05),
            "not reproduced": otherwise,
        },
        "worst": STEPS,
        "axes": ("steps", "share of the way to the final value"),
        "baseline": Arm("test accuracy", grid(weight_decay=(weight_decay,))),
        "method": Arm(method, grid(weight_decay=(weight_decay,))),
    }


DOUBLED = (
    "step at which the test accuracy reaches 0.9 / step at which the excluded loss reaches twice the least "
    f"value that it had once the training pairs were fitted {NEVER}"
)

STUDY = Study(
    paper="grokking-progress",
    claim="While a network on modular addition still answers no new pair right, its loss without the key "
    "frequencies already rises and its loss with them alone already falls.",
    **first("excluded loss", "excluded loss", DOUBLED),
    beside=(
        Setting(
            **first(
                "excluded loss, a tenth of the way",
                "excluded loss",
                "step at which the test accuracy has gone a tenth of the way from its least value once the "
                "training pairs were fitted to its final value / the same of the excluded loss " + NEVER,
            )
        ),
        Setting(
            **first(
                "restricted loss, half of the way",
                "restricted loss",
                "step at which the test accuracy has gone half of the way from its least value once the "
                "training pairs were fitted to its final value / the same of the restricted loss, falling "
                + NEVER,
            )
        ),
        Setting(**first("excluded loss, half the weight decay", "excluded loss", DOUBLED, weight_decay=1.0)),
    ),
    minutes=3,
    notes="Addition mod 53, 30% of the pairs trained on, whole batch; embeddings of width 64 drawn from a "
    "standard normal, added, then a ReLU layer of 128; AdamW, learning rate 0.01, betas 0.9 and 0.98. "
    "Measured every 25 steps. The sum makes a pair and its mirror image the same, so the test accuracy is "
    "that on pairs whose mirror image was not trained on either. Key frequencies are those of the trained "
    "network. Sizes were chosen on seeds 500 and 501 for a plateau between fitting and generalising. There, "
    "with less decay for the time that generalising takes (learning rate 0.003, or a quarter of the pairs at "
    "decay 1), the excluded loss moved later than the accuracy; the restricted loss was always early.",
)


class Sum(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        source = torch.Generator().manual_seed(seed + 10_000)
        self.numbers = nn.Parameter(torch.randn(P, 64, generator=source))
        self.head = MLP((64, 128, P), seed=seed)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.numbers[tokens[:, 0]] + self.numbers[tokens[:, 2]])


@cache  # arms and settings share runs
def trained(
    seed: int, weight_decay: float
) -> tuple[dict[str, Any], dict[str, list[float]], dict[str, float]]:
    """Spec, what was measured at every step of the curve, and further numbers."""
    split = modular_arithmetic(P, "+", 0.3, seed=seed, encoding="tokens")
    tokens, count = torch.cat([split.train[0], split.test[0]]), len(split.train[1])
    answers, pairs = torch.cat([split.train[1], split.test[1]]), tokens[:, [0, 2]]
    train = torch.arange(P * P) < count
    code = torch.tensor([P, 1])
    new = ~torch.isin(pairs.flip(1) @ code, (pairs @ code)[:count]) & ~train
    model = Sum(seed)
    optimizer = optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=weight_decay)
    spec = dict(optim.spec(optimizer))
    past: list[dict[str, Tensor]] = []
    found: dict[str, list[float]] = {
        name: [] for name in ("fitted", "test accuracy", "excluded", "restricted")
    }
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                right = model(tokens).argmax(1) == answers
            found["fitted"].append(right[train].double().mean().item())
            found["test accuracy"].append(right[new].double().mean().item())
            past.append({name: value.clone() for name, value in model.state_dict().items()})
        loss = cross_entropy(model(tokens[train]), answers[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.load_state_dict(past[-1])
    keys = key_frequencies(model, tokens, P, "head.1", pairs=pairs).frequencies
    others = [k for k in range(1, P // 2 + 1) if k not in keys][: len(keys)]
    if not keys:
        return spec, found, {}
    for weights in past:
        model.load_state_dict(weights)
        progress = grokking_progress(model, tokens, P, train, frequencies=keys, pairs=pairs)
        found["excluded"].append(progress.excluded_loss)
        found["restricted"].append(progress.restricted_loss)
    control = grokking_progress(model, tokens, P, train, frequencies=others, pairs=pairs)
    return (
        spec,
        found,
        {
            "key frequencies": len(keys),
            "final excluded loss": progress.excluded_loss,
            "final loss with as many other frequencies excluded": control.excluded_loss,
            "Gini coefficient of the embedding, first": fourier_gini(past[0]["numbers"]),
            "Gini coefficient of the embedding, last": fourier_gini(past[-1]["numbers"]),
        },
    )


def run(setting: str, arm: str, seed: int, weight_decay: float) -> Trial:
    spec, found, numbers = trained(seed, weight_decay)
    steps = range(0, STEPS + 1, EVERY)
    fitted = next((i for i, share in enumerate(found["fitted"]) if share >= 0.99), None)
    values = [-v if arm == "restricted loss" else v for v in found[arm.removesuffix(" loss")]]
    if fitted is None or not values:
        return Trial(math.nan, spec, (steps, [math.nan] * len(steps)), numbers)
    start = min(range(fitted, len(values)), key=values.__getitem__)
    way = values[-1] - values[start]
    aim = values[start] + way * (0.1 if "tenth" in setting else 0.5)
    if "way" not in setting:
        aim = 0.9 if arm == "test accuracy" else 2 * values[start]
    step = next((steps[i] for i in range(start, len(values)) if values[i] >= aim), math.nan)
    shares = [(value - values[start]) / way if way else math.nan for value in values]
    return Trial(step, spec, (steps[fitted:], shares[fitted:]), numbers)
