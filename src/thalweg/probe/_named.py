"""Parameters by name, whether a model, a mapping or pairs were given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from thalweg.probe._wrapped import bare

NamedParams = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


def named(params: NamedParams, argument: str = "named_params") -> dict[str, Tensor]:
    """Name to parameter; of a model behind DDP or ``torch.compile``, the names of the model inside.

    Raises:
        ValueError: there is none, or an entry is not a pair of name and tensor.
    """
    if isinstance(params, nn.Module):
        found: dict[str, Tensor] = dict(bare(params).named_parameters())
    else:
        entries = list(params.items() if isinstance(params, Mapping) else params)
        for entry in entries:
            pair = isinstance(entry, tuple) and len(entry) == 2
            if not (pair and isinstance(entry[0], str) and isinstance(entry[1], Tensor)):
                raise ValueError(
                    f"{argument} must be a model, a mapping of names to tensors or (name, tensor) pairs; "
                    f"got an entry of type {type(entry).__name__}"
                )
        found = dict(entries)
    if not found:
        raise ValueError(f"{argument} must hold at least one parameter, got none")
    return found
