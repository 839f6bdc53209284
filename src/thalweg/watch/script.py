"""Watch somebody's own training script without changing it: ``thalweg run train.py``.

A hook on every optimizer's step finds the model that owns the parameters, and one on
``torch.nn.functional.cross_entropy`` sees logits, targets and loss on their way through. Of what has no cross
entropy the loss is what ``backward`` was called on.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from thalweg.watch._cross_entropies import CrossEntropies
from thalweg.watch._differentiated import Differentiated
from thalweg.watch._endings import release, without_optimizer
from thalweg.watch.hooks import Listener
from thalweg.watch.observe import Run, watch
from thalweg.watch.readings import Finding

__all__ = ["run_script", "watching_everything"]

# So many runs at once are more likely many trainings than one with many optimizers.
MANY = 4


def run_script(
    path: str | Path,
    arguments: Sequence[str] = (),
    *,
    module: bool = False,
    runs: list[Run] | None = None,
    **options: Any,
) -> list[Run]:
    """Run a Python file as ``__main__`` with every optimizer in it watched; give one run an optimizer.

    Whatever the script raises, ``SystemExit`` included, comes through after the runs are stored.

    Args:
        arguments: what the script finds in ``sys.argv[1:]``.
        module: ``path`` is the name of a module, which is run as by ``python -m``.
        runs: a list to which the runs are added as they begin, for when the script raises.
        options: ``budget``, ``store`` and ``on_finding`` of :func:`thalweg.watch.watch`.

    Raises:
        ValueError: if there is no such file or module.
    """
    file = script_file(path, module)
    before = sys.argv, sys.path[:]
    sys.argv = [str(file), *arguments]
    sys.path.insert(0, str(Path.cwd() if module else file.resolve().parent))
    try:
        with watching_everything(name=str(path) if module else file.name, runs=runs, **options) as watched:
            if module:
                runpy.run_module(str(path), run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before
    return watched


def script_file(path: str | Path, module: bool = False) -> Path:
    """The file that is run; raises ValueError if there is none."""
    if not module:
        if not Path(path).is_file():
            why = "a folder" if Path(path).is_dir() else "no such file"
            raise ValueError(f"script must be a Python file, got {str(path)!r}: {why}")
        return Path(path)
    name, here = str(path), str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = importlib.util.find_spec(name)
        if found is not None and found.submodule_search_locations is not None:
            found = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError):
        found = None
    finally:
        sys.path.remove(here)
    if found is None or found.origin is None:
        raise ValueError(f"script must be a module that can be run from here, got {name!r}")
    return Path(found.origin)


@contextmanager
def watching_everything(
    *,
    name: str,
    runs: list[Run] | None = None,
    on_finding: Callable[[Finding], None] | None = None,
    **options: Any,
) -> Iterator[list[Run]]:
    """Within this block every optimizer that steps is watched; gives the growing list of runs.

    A script may train many models, one after the other: a run whose optimizer the script has dropped is
    closed when the next one begins, and holds on to no model.
    """
    runs = [] if runs is None else runs
    known: WeakKeyDictionary[torch.optim.Optimizer, tuple[Run, Listener, dict[str, Any]]] = (
        WeakKeyDictionary()
    )
    unwatched: WeakSet[torch.optim.Optimizer] = WeakSet()
    seen = CrossEntropies()
    heard = Differentiated(
        lambda: seen.fresh and not seen.metric, lambda error: _say(f"losses are not heard: {error!r}")
    )

    def begin(optimizer: torch.optim.Optimizer) -> None:
        _close_what_is_over(runs)
        model = _owner(optimizer)
        run = watch(model, optimizer, name=f"{name} {len(runs) + 1}", on_finding=on_finding, **options)
        calls: dict[str, Any] = {}
        listener = Listener(model, _remember(calls))
        if model is not None:
            hooks.append(model.register_forward_hook(listener, with_kwargs=True))
        known[optimizer] = run, listener, calls
        runs.append(run)

    def before_step(optimizer: torch.optim.Optimizer, args: tuple, kwargs: Mapping[str, Any]) -> None:
        if optimizer in unwatched or inside(optimizer):
            return
        try:
            if optimizer not in known:
                begin(optimizer)
            note(optimizer, _has_closure(args, kwargs))
        except Exception as error:
            # The script is somebody else's: it goes on as it would alone.
            unwatched.add(optimizer)
            _say(f"{type(optimizer).__name__} is not watched: {type(error).__name__}: {error}")

    def note(optimizer: torch.optim.Optimizer, closure: bool) -> None:
        run, listener, calls = known[optimizer]
        listener.take()
        run.listened(heard.spent)
        heard.spent = 0.0
        differentiated = heard.taken(optimizer, closure)
        loss = seen.taken(closure)
        run.log(loss=differentiated if loss is None else loss)
        if seen.logits is None or seen.targets is None:
            return
        moment = run.moment
        moment.output, moment.targets = seen.logits, seen.targets
        output = calls.get("output")
        if output is not None and seen.plain and not seen.metric and _same(output, seen.logits):
            moment.loss_fn = _cross_entropy
            moment.batch = (calls["inputs"], seen.targets)
        seen.forget()

    def after_step(optimizer: torch.optim.Optimizer, args: tuple, kwargs: Mapping[str, Any]) -> None:
        # Sensors have run the model meanwhile.
        if not inside(optimizer):
            closure = _has_closure(args, kwargs)
            seen.forget(closure)
            heard.forget(optimizer, closure)

    def inside(optimizer: torch.optim.Optimizer) -> bool:
        """A wrapper such as optim.SAM steps the optimizer inside it."""
        return any(getattr(outer, "inner", None) is optimizer for outer in known)

    @functools.wraps(seen.original)
    def listening_loss(*args: Any, **kwargs: Any) -> Tensor:
        return seen(*args, **kwargs)

    hooks = [register_optimizer_step_pre_hook(before_step), register_optimizer_step_post_hook(after_step)]
    F.cross_entropy = listening_loss
    outcome = "finished"
    try:
        with heard.standing_in():
            yield runs
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        for hook in hooks:
            hook.remove()
        F.cross_entropy = seen.original
        for run in runs:
            run.close(outcome)


def _has_closure(args: tuple, kwargs: Mapping[str, Any]) -> bool:
    return callable(kwargs.get("closure", args[1] if len(args) > 1 else None))


def _say(message: str) -> None:
    try:
        warnings.warn(f"thalweg: {message}", stacklevel=2)
    except Warning:
        # The script turns warnings into errors; this one is not about it.
        return


def _close_what_is_over(runs: Sequence[Run]) -> None:
    going = [run for run in runs if run.watched]
    over = without_optimizer(going, thorough=False) or without_optimizer(going, thorough=len(going) >= MANY)
    for run in over:
        run.close()
        release(run)


def _same(output: Tensor, logits: Tensor) -> bool:
    """Whether the logits are the model's output itself, in another shape perhaps."""
    return output.data_ptr() == logits.data_ptr() and output.numel() == logits.numel()


def _cross_entropy(model: nn.Module, batch: tuple[tuple, Tensor]) -> Tensor:
    inputs, targets = batch
    logits = model(*inputs)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def _remember(calls: dict[str, Any]) -> Callable[..., None]:
    def hear(args: tuple, kwargs: dict, output: Any) -> None:
        if not kwargs and isinstance(output, Tensor):
            calls.update(inputs=args, output=output.detach())

    return hear


def _owner(optimizer: torch.optim.Optimizer) -> nn.Module | None:
    """The smallest living module that holds all of the optimizer's parameters; of equals, the outermost."""
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    best: tuple[int, int, nn.Module] | None = None
    for thing in gc.get_objects():
        # isinstance would run properties of strange objects; their type cannot lie.
        if not issubclass(type(thing), nn.Module):
            continue
        held = {id(p) for p in thing.parameters()}
        if wanted <= held:
            rank = (len(held), -sum(1 for _ in thing.modules()))
            if best is None or rank < best[:2]:
                best = (*rank, thing)
    return None if best is None else best[2]
