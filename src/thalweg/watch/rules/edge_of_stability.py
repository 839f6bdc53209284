"""Sharpness at or above what the optimizer can follow (arXiv 2110.04369)."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.rule import Rule

IN_A_ROW = 3
FAR = 2.0


class EdgeOfStability(Rule):
    """Sharpness over the optimizer's own limit: above 1 in three readings in a row, or once above 2.

    The limit is 2/lr for gradient descent, 2(1+b)/lr with momentum b, and 2(1+b1)/((1-b1) lr) for Adam,
    whose sharpness is that of the preconditioned Hessian. Hovering near 1 at a constant learning rate is
    normal, hence ``info``; far above it, or a learning rate that has just risen, is what breaks runs.
    """

    name = "edge of stability"
    reads = ("sharpness",)

    def __init__(self, about):
        super().__init__(about)
        self.above: list[Reading] = []
        self.said = 0

    def see(self, reading: Reading) -> Iterable[Finding]:
        ratio = reading.extra.get("ratio", 0.0)
        if not ratio > 1:
            self.above = []
            return
        self.above.append(reading)
        level = 2 if ratio > FAR else 1 if len(self.above) >= IN_A_ROW else 0
        if level <= self.said:
            return
        self.said = level
        lr = float(self.about.get("lr", 1e-3))
        limit = reading.extra["limit"]
        yield Finding(
            self.name,
            self.above[0].step,
            f"sharpness {reading.value:.3g} is {ratio:.2f} times the stability limit {limit:.3g} of "
            f"{self.about.get('optimizer', 'the optimizer')}: "
            + ("steps along the top eigenvector grow." if level == 2 else "training has reached the edge."),
            {
                "sharpness": reading.value,
                "limit": limit,
                "ratio": ratio,
                "threshold": FAR if level == 2 else 1.0,
            },
            "warning" if level == 2 else "info",
            (),
            ("loss-curvature", "sam-edge-of-stability", "sgd-dynamical-stability"),
            (
                Remedy(
                    "warm up, so that the run flattens its path before the peak learning rate",
                    "from thalweg import optim\n"
                    "warm = optim.linear_decay(steps, warmup=steps // 10)\n"
                    "schedule = torch.optim.lr_scheduler.LambdaLR(opt, warm)",
                    "loss-curvature",
                ),
                Remedy(
                    "a learning rate below the limit at this sharpness",
                    f"for group in opt.param_groups:\n    group['lr'] = {0.8 * lr / ratio:.3g}",
                    "loss-curvature",
                ),
            ),
        )
