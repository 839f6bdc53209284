"""Remedies that several findings share: they keep the run's optimizer where they can, and its rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.watch.readings import Remedy

__all__ = [
    "clip",
    "decayed",
    "instead",
    "kept",
    "lower",
    "orthogonal_steps",
    "penalised",
    "rate_for_adam",
    "renewed",
    "seen",
    "warmed",
]

# Optimizers whose weight decay is a setting of the group, and apart from the gradient or as good as.
DECAYS = ("SGD", "SGDP", "AdamW", "Lion", "Muon", "AdamP", "AMSGrad")
# Of Adam's kind, and yet their learning rate is none of a step's: a factor near 1, a sum's, or relative.
OTHER_RATES = ("Adadelta", "Adafactor", "Adagrad", "DAdaptAdam", "Prodigy")
USUAL = 1e-3
GROUPS = (
    "groups = [{'params': group['params'], 'lr': group.get('initial_lr', group['lr'])} "
    "for group in opt.param_groups]\n"
)
FOLLOW = "# in a run that goes on being watched: run.follow(opt)"
WARM = (
    "warmup = {steps}  # steps; in place of any other schedule\n"
    "for group in opt.param_groups:\n"
    "    group.pop('initial_lr', None)\n"
    "schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: min(1.0, (step + 1) / warmup))\n"
    "opt.register_step_post_hook(lambda *_: schedule.step())"
)
RENEW = (
    "from itertools import count\n"
    "from thalweg import probe, surgery\n"
    "steps, sizes, scores = count(), [], {}\n"
    "def renew(opt, *_):\n"
    "    sizes[:] = sizes or [len(batch[0])]  # of the first batch: the same in every process\n"
    "    step, needed = next(steps) % 1000, -(-64 // sizes[0])\n"
    "    if step < needed:  # on 64 examples: on fewer, units that are rarely active look dormant\n"
    "        for name, score in probe.dormant_neurons(model, batch[0]).scores.items():\n"
    "            scores.setdefault(name, []).append(score)\n"
    "    if step == needed - 1:\n"
    "        means = {name: sum(each) / len(each) for name, each in scores.items()}\n"
    "        surgery.reset_dormant(model, means, optimizer=opt, strict=False)\n"
    "        scores.clear()\n"
    "opt.register_step_post_hook(renew)"
)
KEEP = (
    "import copy\n"
    "from itertools import count\n"
    "kept, steps = {{}}, count(1)\n"
    "def keep(*_):\n"
    "    step = next(steps)\n"
    "    if step in {steps}:\n"
    "        kept[step] = copy.deepcopy(model.state_dict())\n"
    "opt.register_step_post_hook(keep)"
)

SEEN = (
    "from itertools import count\n"
    "seen, steps = {{}}, count(1)\n"
    "def keep(*_):\n"
    "    step = next(steps)\n"
    "    if step in {steps}:\n"
    "        seen[step] = batch  # the loop's own\n"
    "opt.register_step_post_hook(keep)"
)


def clip(about: Mapping[str, Any], norm: float, paper: str = "gradient-clipping", why: str = "") -> Remedy:
    """Clipping in front of the run's optimizer; L-BFGS, which judges its own steps, is to search its line."""
    if about.get("optimizer") == "LBFGS":
        code = "for group in opt.param_groups:\n    group['line_search_fn'] = 'strong_wolfe'"
        return Remedy("let L-BFGS search its line, so that no step is taken unseen", code, "loss-curvature")
    code = f"from thalweg.watch import clip_gradients\nclip_gradients(opt, {norm:.3g})"
    return Remedy(f"clip the norm of the whole gradient{why}; the optimizer stays", code, paper)


def lower(times: float, title: str = "a lower learning rate", paper: str = "loss-curvature") -> Remedy:
    """Every group's learning rate divided by ``times``."""
    return Remedy(title, f"for group in opt.param_groups:\n    group['lr'] /= {times:.3g}", paper)


def warmed(step: int) -> str:
    """Code: warm up to the learning rates of now, over a tenth of the first ``step`` steps, at least 100."""
    return WARM.format(steps=max(100, step // 10))


def renewed(paper: str = "dormant-neurons") -> Remedy:
    """Fresh weights for dormant units, once 64 examples have been seen and every thousandth step from there.

    Units that cannot be reset, such as those of a residual stream, are left alone.
    """
    return Remedy("give dormant units fresh weights, now and every thousand steps", RENEW, paper)


def kept(title: str, steps: tuple[int, ...], paper: str) -> Remedy:
    """A copy of the weights behind each of ``steps``, in a run that begins with this."""
    return Remedy(title, KEEP.format(steps=steps), paper)


def seen(title: str, step: int) -> Remedy:
    """The batches of ``step`` and of the one before it, in a run that begins with this."""
    return Remedy(title, SEEN.format(steps=(step - 1, step)), "latent-training-states")


def instead(title: str, call: str, paper: str, lr: float | None = None) -> Remedy:
    """Another optimizer for the same groups, at their learning rates, or all at ``lr``, which the title says.

    Args:
        call: of ``thalweg.optim``, with ``groups`` in the place of parameters.
    """
    groups = GROUPS
    if lr is not None:
        title = f"{title}, at a learning rate of {lr:g}"
        groups = f"groups = [{{'params': group['params'], 'lr': {lr:g}}} for group in opt.param_groups]\n"
    return Remedy(title, f"from thalweg import optim\n{groups}opt = optim.{call}\n{FOLLOW}", paper)


def rate_for_adam(about: Mapping[str, Any], adaptive: bool) -> float | None:
    """For a method of Adam's kind in the optimizer's place: None where rates can stay, else its usual one.

    They can where the optimizer is of that kind too, and its rate is the length of a step.
    """
    return None if adaptive and about.get("optimizer") not in OTHER_RATES else USUAL


def orthogonal_steps(title: str, about: Mapping[str, Any], adaptive: bool, paper: str) -> Remedy:
    """Steps at right angles to the weights, of the kind of the run's optimizer if that is known."""
    if str(about.get("optimizer")).startswith("SGD"):
        return instead(title, "Descent(groups, optim.orthogonal(), optim.momentum(0.9))", paper)
    return instead(title, "PerpGrad(groups)", paper, rate_for_adam(about, adaptive))


def decayed(title: str, about: Mapping[str, Any], adaptive: bool, strength: float, paper: str) -> Remedy:
    """Decoupled weight decay: ``strength`` at Adam's usual rate of 0.001, as much a step at any other."""
    if about.get("optimizer") in DECAYS:
        decay = strength if adaptive else strength * 1e-3 / float(about.get("lr", 1e-3))
        code = f"for group in opt.param_groups:\n    group['weight_decay'] = {decay:.2g}"
        return Remedy(title, code, paper)
    rate = rate_for_adam(about, adaptive)
    return instead(title, f"AdamW(groups, weight_decay={strength:g})", paper, rate)


def penalised(penalty: str) -> str:
    """Code: a loss function of the model and a batch that adds a penalty on the ``logits``."""
    return (
        "from thalweg import nn\n"
        "def loss_fn(model, batch):\n"
        "    inputs, targets = batch\n"
        "    logits = model(inputs)\n"
        "    error = torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())\n"
        f"    return error + {penalty}"
    )
