"""Per-example gradient norms and coherence of 256 examples, against ``torch.func.vmap(grad)`` and BackPACK.

Every contestant gives the norm of each example's gradient and the norm of their mean, from which coherence
and noise scale follow; ``norms`` is ours without the mean. They take turns; ratios are medians over rounds.
vmap runs on the whole batch and in chunks of 32, and the faster of the two counts. Memory is the most that
was allocated at one time, beyond the model; ``pass`` is one forward and backward pass with its gradients.
``bare`` is one without any parameter's gradient, which every method needs: vmap over it is what no method can
be above, and where that is below the bar the line says so.

BackPACK is timed if it can be imported; it knows no GPT. It needs torchvision for its examples alone:
``pip install --no-deps backpack-for-pytorch einops unfoldNd``.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from thalweg.probe import example_gradient_norms, gradient_coherence
from thalweg.tasks import CNN, GPT, MLP

B, ROUNDS, CHUNK = 256, 5, 32
SPEED, MEMORY = 3, 2  # at least so many times faster, at most so many times the memory of a pass


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def predict(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]).mT, batch[1], reduction="none").mean(1)


def workloads() -> dict[str, tuple[nn.Module, tuple[Tensor, Tensor], Callable[..., Tensor]]]:
    labels = torch.randint(10, (B,))
    found: dict[str, Any] = {
        "MLP 64-256-256-10": (MLP((64, 256, 256, 10), seed=0), (torch.randn(B, 64), labels), classify),
        "CNN, 8 x 8 pixels": (CNN(seed=0), (torch.randn(B, 1, 8, 8), labels), classify),
    }
    for length in (8, 16, 64):
        tokens = torch.randint(97, (B, length))
        found[f"GPT, {length} tokens"] = (GPT(97, length, seed=0), (tokens, tokens), predict)
    return found


def explicit(model: nn.Module, batch: Any, loss_fn: Callable[..., Tensor], chunk: int | None) -> Any:
    """Norms and the mean's norm from per-example gradients that are written out."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    class Losses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return loss_fn(self.model, (x[None], y[None]))[0]

    host = Losses()
    named = {f"model.{name}": p for name, p in params.items()}
    each = grad(lambda p, x, y: functional_call(host, p, (x, y)))
    gradients = vmap(each, in_dims=(None, 0, 0), chunk_size=chunk)(named, *batch)
    norms = sum(g.flatten(1).square().sum(1) for g in gradients.values())
    return norms, sum(g.mean(0).square().sum() for g in gradients.values())


def backpack(model: nn.Module, batch: Any) -> Callable[[], Any] | None:
    try:
        from backpack import backpack as extended
        from backpack import extend
        from backpack.extensions import BatchL2Grad
    except ImportError:
        return None
    if isinstance(model, GPT):
        return None
    made, loss = extend(type(model)(**sizes(model))), extend(nn.CrossEntropyLoss())
    made.load_state_dict(model.state_dict())
    made.eval()

    def run() -> Any:
        made.zero_grad()
        with extended(BatchL2Grad()):
            loss(made(batch[0]), batch[1]).backward()
        norms = sum(p.batch_l2 for p in made.parameters())  # type: ignore[misc]
        return norms, sum(p.grad.square().sum() for p in made.parameters())  # type: ignore[union-attr]

    return run


def sizes(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, CNN):
        return {}
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return {"sizes": [layers[0].in_features, *(layer.out_features for layer in layers)]}


def one_pass(model: nn.Module, batch: Any, loss_fn: Callable[..., Tensor]) -> Any:
    return torch.autograd.grad(loss_fn(model, batch).mean(), list(model.parameters()))


def bare_pass(model: nn.Module, batch: Any, loss_fn: Callable[..., Tensor]) -> None:
    """Back to the output of the first layer, and no parameter's gradient."""
    first = next(layer for layer in model.modules() if list(layer.parameters(recurse=False)))
    hook = first.register_forward_hook(lambda layer, given, output: output.requires_grad_())
    params = list(model.parameters())
    for p in params:
        p.requires_grad_(False)
    try:
        loss_fn(model, batch).mean().backward()
    finally:
        hook.remove()
        for p in params:
            p.requires_grad_(True)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak(run: Callable[[], Any]) -> float:
    """MiB allocated at one time, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    now = most = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most / 2**20


def measured(model: nn.Module, batch: Any, loss_fn: Callable[..., Tensor]) -> dict[str, Any]:
    model.eval()
    runs: dict[str, Callable[[], Any]] = {
        "norms": lambda: example_gradient_norms(model, batch, loss_fn),
        "coherence": lambda: gradient_coherence(model, batch, loss_fn),
        "vmap": lambda: explicit(model, batch, loss_fn, None),
        "chunks": lambda: explicit(model, batch, loss_fn, CHUNK),
        "pass": lambda: one_pass(model, batch, loss_fn),
        "bare": lambda: bare_pass(model, batch, loss_fn),
    }
    peer = backpack(model, batch)
    if peer is not None:
        runs["backpack"] = peer
    for run in runs.values():
        run()
    rounds = [{name: seconds(run) for name, run in runs.items()} for _ in range(ROUNDS)]

    def ratio(above: Callable[[dict[str, float]], float], below: str) -> float:
        return statistics.median(above(one) / one[below] for one in rounds)

    def quickest(one: dict[str, float]) -> float:
        return min(one["vmap"], one["chunks"])

    memory = {name: peak(runs[name]) for name in ("coherence", "pass", "vmap")}
    return {
        "ms": {name: 1e3 * statistics.median(one[name] for one in rounds) for name in runs},
        "norms": ratio(quickest, "norms"),
        "coherence": ratio(quickest, "coherence"),
        "most": ratio(quickest, "bare"),
        "peer": ratio(lambda one: one["backpack"], "coherence") if peer else None,
        "memory": memory,
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    print(f"batch {B}, {torch.get_num_threads()} threads, float32, medians of {ROUNDS} rounds, in ms and MiB")
    print(
        f"{'':20}{'bare':>8}{'pass':>8}{'norms':>8}{'coher.':>8}{'vmap':>9}{'chunks':>9}{'BackPACK':>9}"
        f"{'norms x':>9}{'coher. x':>9}{'at most':>9}{'BackP. x':>9}{'peak':>8}"
        f"{'pass':>8}{'vmap':>8}{'of pass':>8}"
    )
    for name, workload in workloads().items():
        found = measured(*workload)
        ms, memory = found["ms"], found["memory"]
        share = memory["coherence"] / memory["pass"]
        peer = f"{ms['backpack']:9.1f}" if found["peer"] else f"{'-':>9}"
        against = f"{found['peer']:9.1f}" if found["peer"] else f"{'-':>9}"
        met = found["norms"] >= SPEED and found["coherence"] >= SPEED and share <= MEMORY
        verdict = "bar met" if met else "bar missed"
        if found["most"] < SPEED:
            verdict += ", and out of reach"
        print(
            f"{name:20}{ms['bare']:8.1f}{ms['pass']:8.1f}{ms['norms']:8.1f}{ms['coherence']:8.1f}{ms['vmap']:9.1f}"
            f"{ms['chunks']:9.1f}{peer}{found['norms']:9.1f}{found['coherence']:9.1f}{found['most']:9.1f}{against}"
            f"{memory['coherence']:8.1f}{memory['pass']:8.1f}{memory['vmap']:8.1f}{share:8.2f}"
            f"  {verdict}",
            flush=True,
        )
    print(f"bar: norms and coherence at least {SPEED} times faster than vmap, memory at most {MEMORY} passes")
