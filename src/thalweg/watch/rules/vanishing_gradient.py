"""The error all but dies out on its way back to the first layers, or to the first steps of a sequence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.rule import Rule
from thalweg.watch.sensors.backward import FEWEST

RATIO = 1 / 300
IN_A_ROW = 3


class VanishingGradient(Rule):
    """The largest error in the first half of the layers is below 1/300 of the usual one in the last third.

    Three readings in a row: the first steps of a sound network may look like that and put it right. It is
    the error of a random output that is sent back, so that a loss near zero does not count, and the largest
    of the early ones, so that branches into which little comes back at first (in front of a layer that begins
    at zero, or attention's queries and keys) do not either. Nor does a drop that is mostly the last layer's.
    """

    name = "vanishing gradient"
    reads = ("backward signal",)

    def __init__(self, about):
        super().__init__(about)
        self.low: list[Reading] = []
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        norms = list(reading.layers.values())
        if self.said or len(norms) < FEWEST:
            return
        part = len(norms) // 2
        early, late = max(norms[:part]), median(norms[-(len(norms) // 3) :])
        # A last layer near zero, as heads often begin, lets little back to all others alike.
        if not early < RATIO * late or norms[-2] < math.sqrt(early * late):
            self.low = []
            return
        self.low.append(reading)
        if len(self.low) < IN_A_ROW:
            return
        self.said = True
        timed = sum(name.endswith("]") for name in reading.layers) > len(norms) / 2
        what, where = ("steps", "steps of the sequence") if timed else ("layers", "layers")
        yield Finding(
            self.name,
            self.low[0].step,
            f"over {len(norms)} {what} the error shrinks to {early / late:.2g} of its size: the first "
            f"{where} learn next to nothing.",
            {"first half": early, "last third": late, "ratio": early / late, "threshold": RATIO},
            "warning",
            layers_of(sorted(list(reading.layers)[:part], key=lambda name: reading.layers[name])),
            ("gradient-clipping", "deep-linear-exact", "layer-norm"),
            (orthogonal(),) if timed else (orthogonal(), normalise()),
        )


def layers_of(places: Iterable[str]) -> tuple[str, ...]:
    """The first three layers among places such as ``recurrent[7]``."""
    return tuple(dict.fromkeys(place.partition("[")[0] for place in places))[:3]


def orthogonal() -> Remedy:
    """First weights that keep the size of what passes through them."""
    return Remedy(
        "begin again with orthogonal weights, which keep the error's size",
        "gain = 1.0  # for tanh; 2 ** 0.5 for ReLU, 4.0 for the logistic sigmoid\n"
        "for layer in model.modules():\n"
        "    if isinstance(layer, torch.nn.Linear):\n"
        "        torch.nn.init.orthogonal_(layer.weight, gain=gain)\n"
        "    for name, weight in layer.named_parameters(recurse=False):\n"
        "        if name.startswith('weight_hh'):\n"
        "            for gate in weight.data.split(weight.shape[1]):\n"
        "                torch.nn.init.orthogonal_(gate, gain=gain)",
        "deep-linear-exact",
    )


def normalise() -> Remedy:
    """A normalisation behind every layer of weights but the last: modules, optimizer and weights stay."""
    return Remedy(
        "normalise what each hidden layer gives",
        "kinds = torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d\n"
        "def normalised(layer, inputs, output):\n"
        "    if isinstance(layer, torch.nn.Linear):\n"
        "        return torch.nn.functional.layer_norm(output, output.shape[-1:])\n"
        "    return torch.nn.functional.group_norm(output, 1)\n"
        "for layer in [one for one in model.modules() if type(one) in kinds][:-1]:\n"
        "    layer.register_forward_hook(normalised)",
        "layer-norm",
    )
