"""An evaluation that does not judge the model which training makes (arXiv 2310.11428 for averages)."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.rule import Rule

ENOUGH = {
    "modules in training mode": 2,
    "evaluation of the iterate": 3,
    "initial statistics": 1,
    "steps in evaluation mode": 3,
}
INITIAL = 0.2
EARLY = 20


class WrongEvaluation(Rule):
    """Evaluated in training mode twice, thrice without the average that is kept, or on initial statistics.

    In training mode means with dropout or batch normalisation still in it; passes without gradients at every
    step belong to the training, and so do those before the first. Statistics count where, 20 steps into the
    run or later, 0.2 of what batch normalisation uses is still what it started with. And it is the training
    that goes wrong where an evaluation leaves its mode behind: three steps of a model in evaluation mode that
    was in training mode before, with dropout or batch normalisation in it. Each is told once.
    """

    name = "evaluation with the wrong weights"
    reads = tuple(ENOUGH)

    def __init__(self, about):
        super().__init__(about)
        self.wrong: dict[str, list[Reading]] = {}
        self.said: set[str] = set()

    def see(self, reading: Reading) -> Iterable[Finding]:
        what, after = reading.name, reading.extra.get("after", 0.0)
        past = self.wrong.setdefault(what, [])
        if what in self.said or not after:
            return
        if what == "evaluation of the iterate" and not reading.value:
            # Whoever evaluates the average as well knows what they do.
            self.said.add(what)
            return
        if what == "initial statistics" and (after < EARLY or reading.value <= INITIAL):
            return
        if not reading.value:
            past.clear()
            return
        if what == "modules in training mode" and past and after - past[-1].extra["after"] < 2:
            past[:] = [reading]
            return
        past.append(reading)
        if len(past) < ENOUGH[what]:
            return
        self.said.add(what)
        message, papers, remedies = self._words(reading)
        threshold = INITIAL if what == "initial statistics" else float(ENOUGH[what])
        worst = sorted(reading.layers, key=lambda name: -reading.layers[name])
        yield Finding(
            self.name,
            int(past[0].extra["after"]),
            message,
            {what: reading.value, "evaluations": float(len(past)), "threshold": threshold},
            "warning",
            tuple(worst[:5]),
            papers,
            remedies,
        )

    def _words(self, reading: Reading) -> tuple[str, tuple[str, ...], tuple[Remedy, ...]]:
        if reading.name == "modules in training mode":
            switch = (
                "model.eval()\nwith torch.no_grad():\n"
                "    outputs = model(batch[0])  # your evaluation\nmodel.train()"
            )
            return (
                f"the model is evaluated with {reading.value:.0f} modules in training mode, such as "
                f"{next(iter(reading.layers), '')}: what is judged is random, or depends on the batch.",
                ("early-dropout", "ghost-batch-norm"),
                (Remedy("evaluate in evaluation mode", switch, "early-dropout"),),
            )
        if reading.name == "steps in evaluation mode":
            return (
                f"the model is trained in evaluation mode, in which {reading.value:.0f} of its modules, such "
                f"as {next(iter(reading.layers), '')}, do something else: no units are dropped, and no "
                "statistics of batches taken.",
                ("early-dropout", "ghost-batch-norm"),
                (
                    Remedy(
                        "back to training mode, now and behind each evaluation",
                        "model.train()",
                        "early-dropout",
                    ),
                ),
            )
        if reading.name == "initial statistics":
            measure = "from torch.optim.swa_utils import update_bn\nupdate_bn(loader, model)"
            faster = (
                "for module in model.modules():\n"
                "    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):\n"
                "        module.momentum = 0.1"
            )
            return (
                f"{reading.value:.0%} of the statistics that batch normalisation uses to evaluate are those "
                "it started with.",
                ("ghost-batch-norm", "landscaping-lmc"),
                (
                    Remedy("measure them on training data before the evaluation", measure, "landscaping-lmc"),
                    Remedy("let them follow the batches faster", faster, "ghost-batch-norm"),
                ),
            )
        swap = (
            "opt.eval()\nwith torch.no_grad():\n    outputs = model(batch[0])  # your evaluation\nopt.train()"
            if reading.extra.get("kept by the optimizer")
            else "from thalweg import optim\n"
            "opt = optim.Average(opt)\n"
            "for batch in loader:\n"
            "    loss_fn(model, batch).backward()\n"
            "    opt.step()\n"
            "    opt.zero_grad()\n"
            "with opt.averaged(), torch.no_grad():\n"
            "    outputs = model(batch[0])  # your evaluation"
        )
        return (
            "the run keeps an average of its weights, and every evaluation was of the last iterate.",
            ("gradient-variance-ema",),
            (Remedy("evaluate the average", swap, "gradient-variance-ema"),),
        )
