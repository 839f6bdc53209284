"""``thalweg plan``: what training a model takes in memory, next to AdamW, 8-bit AdamW and LoRA.

The model is built on the meta device, so that planning for 7 billion parameters takes no memory itself.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from thalweg._core.checks import check_choice, check_count, nearest
from thalweg._core.terminal import console, print_whole, user_errors
from thalweg._published_memory import as_published, published_table

if TYPE_CHECKING:
    from torch import nn

    from thalweg.optim import MemoryPlan

RANK = 128  # of the adapters, if neither the user nor the optimizer says
DTYPES = ("bfloat16", "float16", "float32")
# What a group sets to go through a low-memory method's inner rule in full.
IN_FULL = {"rank": 0, "density": 1.0, "weight_bits": 0}
ACCOUNTINGS = ("kept", "published")
PARTS = ("weights", "gradients", "state", "projection", "total")


def plan(
    model: Annotated[
        str, typer.Option(help="llama-60m, -130m, -350m, -1b, -7b, or MODULE:NAME, a class or function.")
    ],
    optimizer: Annotated[str, typer.Option(help="A recipe of thalweg.optim.")] = "GaLore",
    rank: Annotated[int | None, typer.Option(help="Rank of the projection, and of LoRA's adapters.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An argument of the recipe.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of weights and gradients.")] = "bfloat16",
    state_dtype: Annotated[
        str | None, typer.Option(help="Of the optimizer's state.", show_default="as --dtype")
    ] = None,
    layerwise: Annotated[
        bool, typer.Option("--layerwise", help="Step in the backward pass: only the largest gradient counts.")
    ] = False,
    accounting: Annotated[
        str,
        typer.Option(help="kept: what is really kept; published: as GaLore's own table (bfloat16) counts."),
    ] = "kept",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in bytes.")] = False,
) -> None:
    """Work out bytes for weights, gradients, optimizer state and projection before training."""
    with user_errors():
        check_choice("--dtype", dtype, DTYPES)
        check_choice("--state-dtype", state_dtype or dtype, DTYPES)
        check_choice("--accounting", accounting, ACCOUNTINGS)
        if accounting == "published" and (dtype, state_dtype or dtype) != ("bfloat16", "bfloat16"):
            raise ValueError(f"--dtype must be bfloat16 with --accounting published, got {dtype}")
        if rank is not None:
            check_count("--rank", rank)
        arguments = dict(map(_setting, settings or []))
        plans = compare(load(model), optimizer, rank, arguments, dtype, state_dtype or dtype, layerwise)
        charged = as_published(model, plans) if accounting == "published" else {}
    if charged:
        if as_json:
            typer.echo(json.dumps({"model": model, "unit": "1.024e9 bytes", "plans": charged}, indent=1))
        else:
            print_whole(console(), published_table(model, plans))
    elif as_json:
        about = {"model": model, "dtype": dtype, "state_dtype": state_dtype or dtype, "layerwise": layerwise}
        typer.echo(json.dumps({**about, "unit": "bytes", "plans": _plain(plans)}, indent=1))
    else:
        _show(model, plans, f"{dtype} weights" + (", layer by layer" if layerwise else ""))


def load(name: str) -> nn.Module:
    """The model that ``name`` stands for, on the meta device."""
    import torch
    from torch import nn

    from thalweg.tasks import LLAMA_SIZES, Llama

    sizes = {f"llama-{size}": partial(Llama, **own) for size, own in LLAMA_SIZES.items()}
    make = sizes[name.lower()] if name.lower() in sizes else _imported(name, sizes)
    if not isinstance(make, nn.Module):
        try:
            with torch.device("meta"):
                make = make()
        except Exception as error:  # whatever a model's own code does
            raise ValueError(f"--model {name} could not be built: {type(error).__name__}: {error}") from error
    if not isinstance(make, nn.Module):
        raise ValueError(f"--model {name} must make a torch.nn.Module, got {type(make).__name__}")
    return make


def compare(
    model: nn.Module,
    optimizer: str,
    rank: int | None,
    arguments: Mapping[str, Any],
    dtype: str,
    state_dtype: str,
    layerwise: bool,
) -> dict[str, MemoryPlan]:
    """Plans by name: the optimizer's own, AdamW's, 8-bit AdamW's and that of LoRA with the same rank.

    A model without hidden matrices has nothing to adapt, and no plan for LoRA.
    """
    import torch

    from thalweg import optim

    made = optim.list_recipes()[check_choice("--optimizer", optimizer, optim.list_recipes())]
    taken = inspect.signature(made).parameters
    own = dict(arguments)
    if rank is not None and "rank" in taken:
        own["rank"] = rank
    used = own.get("rank", taken["rank"].default if "rank" in taken else None)
    outside = {key: value for key, value in IN_FULL.items() if key in taken}
    shared: dict[str, Any] = {"dtype": getattr(torch, dtype), "layerwise": layerwise}
    kept: dict[str, Any] = {"state_dtype": getattr(torch, state_dtype), "compile": False}

    def in_8_bits(groups: list[dict[str, Any]]) -> optim.Descent:
        return optim.Descent(groups, optim.quantized(optim.adam(), 8), optim.decay(0.01), **kept)

    adamw = partial(optim.AdamW, **kept)
    said = {**({"rank": used} if "rank" in taken else {}), **arguments}
    title = ", ".join([optimizer, *(f"{key} {value}" for key, value in said.items())])
    try:
        first = optim.plan(model, partial(made, **{**kept, **own}), outside=outside, **shared)
    except TypeError as error:  # a value of another kind than the argument's
        raise ValueError(f"--set: {error}") from error
    plans = {
        title: first,
        "AdamW": optim.plan(model, adamw, **shared),
        "8-bit AdamW": optim.plan(model, in_8_bits, **shared),
    }
    if "hidden matrices" in first.groups:
        adapters = check_count("rank", used if used is not None else rank or RANK)
        plans[f"LoRA, rank {adapters}, AdamW"] = optim.plan_adapters(model, adapters, adamw, **shared)
    return plans


def _imported(name: str, sizes: Mapping[str, Any]) -> Callable[[], Any]:
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise ValueError(
            f"--model must be {', '.join(sizes)}, or MODULE:NAME; got {name!r}{nearest(name, sizes)}"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever a module does when it is imported
        raise ValueError(f"--model {name}: {module} could not be imported: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"--model {name}: {module} has no {attribute!r}{nearest(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"--model {name} must be a class or a function, got {type(found).__name__}")
    return found


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError(f"--set must be KEY=VALUE, got {text!r}")
    try:
        read = json.loads(value)
    except json.JSONDecodeError:
        read = {"None": None, "True": True, "False": False}.get(value, value)
    return key, tuple(read) if isinstance(read, list) else read


def _plain(plans: Mapping[str, MemoryPlan]) -> list[dict[str, Any]]:
    most = plans["AdamW"].total
    return [
        {
            "name": name,
            **dataclasses.asdict(one),
            "total": one.total,
            "ratio_to_adamw": one.total / most,
            "groups": {group: {**dataclasses.asdict(m), "total": m.total} for group, m in one.groups.items()},
        }
        for name, one in plans.items()
    ]


def _show(model: str, plans: Mapping[str, MemoryPlan], about: str) -> None:
    most, screen = plans["AdamW"].total, console()
    unit, size, binary, size2 = ("GB", 1e9, "GiB", 2**30) if most >= 1e8 else ("MB", 1e6, "MiB", 2**20)
    name, first = next(iter(plans.items()))
    named = ["weights", "gradients", "optimizer state", "projection", "total"]

    def row(title: str, one: Any, *more: str) -> tuple[Text, ...]:
        return tuple(map(Text, (title, *(f"{getattr(one, part) / size:.3f}" for part in PARTS), *more)))

    power = f"10^{9 if unit == 'GB' else 6}"
    table = _table(f"{model}: {first.parameters:,} parameters, {about}; {unit} ({power} bytes)")
    for column in (*named, f"total ({binary})", "of AdamW"):
        table.add_column(column, justify="right")
    for title, one in plans.items():
        table.add_row(*row(title, one, f"{one.total / size2:.3f}", f"{one.total / most:.2f}"))
    print_whole(screen, table)
    parts = _table(f"{name}, by group")
    for column in (*named, "parameters"):
        parts.add_column(column, justify="right")
    for title, held in first.groups.items():
        parts.add_row(*row(title, held, f"{held.parameters:,}"))
    print_whole(screen, parts)
    screen.print("Activations and buffers not counted. LoRA trains all but the hidden matrices in full.")
    if name.startswith("QGaLore"):
        screen.print("Weights as int8, as published; thalweg itself trains them as floats on that grid.")


def _table(title: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    return table
