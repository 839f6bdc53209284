"""Hidden units of a model that says nothing of them: every activation that it runs, module or function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe._functions import ALONE, Before, functions_heard
from thalweg.probe._quiet import listening
from thalweg.probe._sequences import as_sequences, with_weights
from thalweg.probe._units import (
    NAME_THEM,
    Hear,
    NoActivationsError,
    activations,
    chosen,
    first_tensor,
    no_units,
    overhear,
    run_quietly,
)
from thalweg.probe._wrapped import of_all_processes, on_every_rank


def overhear_units(
    model: nn.Module,
    batch: Any,
    hear: Hear,
    layers: Iterable[str] | None = None,
    inputs_of: Iterable[str] | None = None,
    *,
    sequences: bool = True,
) -> set[str]:
    """As :func:`overhear`, of the modules named; by default of every activation, module or function call.

    What an activation module calls is heard once, as the module. With ``sequences`` the units are where
    :func:`as_sequences` brings them.

    Returns:
        The runs that turned out to make the model's output: no layer with weights ran after them, and the
        model returned a tensor of their size. None if that is all of them, or layers were named.

    Raises:
        ValueError: as :func:`overhear` and :func:`chosen`; there is no activation.
    """
    with as_sequences(model) as arranged:

        def told(run: str, tensor: Tensor) -> None:
            hear(run, arranged(tensor) if sequences else tensor)

        if layers is not None or inputs_of is not None:
            overhear(model, batch, *chosen(model, layers, inputs_of), told)
            return set()
        return _overhear_activations(model, batch, told)


def overhear_units_of_all(
    model: nn.Module,
    batch: Any,
    hear: Hear,
    layers: Iterable[str] | None,
    inputs_of: Iterable[str] | None,
    group: Any,
    check: Callable[[str, Tensor], object] = lambda run, tensor: None,
) -> None:
    """As :func:`overhear_units`; over processes once the model has run in each, ``hear`` may exchange sums.

    What ran in other processes alone, such as an expert, is heard without rows. ``check`` may refuse what is
    heard before anything is exchanged.
    """
    if group is None:
        overhear_units(model, batch, hear, layers, inputs_of)
        return
    kept: dict[str, Tensor] = {}

    def keep(run: str, tensor: Tensor) -> None:
        check(run, tensor)
        kept[run] = tensor.clone()

    def hear_first() -> None:
        overhear_units(model, batch, keep, layers, inputs_of)

    on_every_rank(hear_first, group, model)
    for run, none in of_all_processes({run: t[:0] for run, t in kept.items()}, group).items():
        hear(run, kept.pop(run, none))


def _overhear_activations(model: nn.Module, batch: Any, hear: Hear) -> set[str]:
    # Runs that no layer with weights has read yet, with their sizes.
    unread: dict[str, int] = {}
    told: set[str] = set()

    def tell(run: str, tensor: Tensor) -> None:
        told.add(run)
        unread[run] = tensor.numel()
        hear(run, tensor)

    def read(module: nn.Module, inputs: Any) -> None:
        unread.clear()

    with ExitStack() as stack:
        flat = stack.enter_context(activations_heard(model, tell))
        for maker in with_weights(model).values():
            stack.callback(maker.register_forward_pre_hook(read).remove)
        result = run_quietly(model, batch)
    for name, shape in flat.items() if not told else ():
        raise no_units(name, shape)
    if not told:
        raise NoActivationsError(NAME_THEM)
    sizes = {tensor.numel() for tensor in tensors_in(result)}
    last = {run for run, size in unread.items() if size in sizes}
    return last if last != told else set()


@contextmanager
def activations_heard(model: nn.Module, hear: Hear) -> Iterator[dict[str, torch.Size]]:
    """While the model runs, ``hear(run, output)`` of every activation, module or function call.

    Yields:
        Modules that were not heard with the shape of what they returned, a number an example: that is what a
        model answers, and no layer of units.
    """
    heard: Counter[str] = Counter()
    flat: dict[str, torch.Size] = {}

    def note(name: str, tensor: Tensor) -> None:
        if tensor.dim() > 1:
            hear(f"{name}[{heard[name]}]" if heard[name] else name, tensor.detach())
        else:
            flat[name] = tensor.shape
        heard[name] += 1

    modules = activations(model)
    with functions_heard(model, after=hear, modules=modules.values()), listening(modules, note):
        yield flat


def tensors_in(result: Any) -> Iterator[Tensor]:
    """Every tensor in what a model returned."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        yield from tensors_in(list(result.values()))
    elif isinstance(result, tuple | list):
        for one in result:
            yield from tensors_in(one)


def overhear_inputs(model: nn.Module, batch: Any, hear: Before, remedy: str) -> None:
    """Run the model once, quietly; ``hear(run, activation, input)`` before each activation.

    Heard are the modules and functions that act on each entry alone, so no gated linear unit.

    Raises:
        ValueError: there is none.
    """
    modules = activations(model)
    heard: Counter[str] = Counter()
    told: set[str] = set()

    def tell(run: str, activation: Any, tensor: Tensor) -> None:
        told.add(run)
        hear(run, activation, tensor.detach())

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, positional: tuple, keywords: dict[str, Any]) -> None:
            tensor = first_tensor(name, positional, keywords)
            if tensor.dim() > 1 and not isinstance(module, nn.GLU):
                tell(f"{name}[{heard[name]}]" if heard[name] else name, module, tensor)
            heard[name] += 1

        return hook

    with ExitStack() as stack:
        # These first, so that what a hook calls is not heard itself.
        inside = modules.values()
        stack.enter_context(functions_heard(model, before=tell, heard=ALONE, modules=inside))
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(before(name), with_kwargs=True)
            stack.callback(handle.remove)
        run_quietly(model, batch)
    if not told:
        raise NoActivationsError(remedy)
