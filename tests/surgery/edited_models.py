"""Small models for the tests of edits, and what an edit must leave alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand, self.contract = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.contract(functional.gelu(self.expand(x)))


class Language(nn.Module):
    """Tokens [b, t] to logits [b, t, vocabulary] through two residual blocks."""

    def __init__(self, vocabulary: int = 7, width: int = 8, inner: int = 12, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(2))
        self.head = nn.Linear(width, vocabulary)
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(self.dropout(x))
        return self.head(x)


LINEARS = [f"blocks.{i}.{name}" for i in range(2) for name in ("expand", "contract")]


def tokens(count: int = 5, length: int = 6) -> Tensor:
    return torch.randint(7, (count, length), generator=torch.Generator().manual_seed(1))


def next_token_loss(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the model, its gradients and its training flags, to compare later."""
    found = {name: value.clone() for name, value in model.state_dict().items()}
    for name, p in model.named_parameters():
        found[f"{name} gradient"] = torch.zeros(()) if p.grad is None else p.grad.clone()
        found[f"{name} wants a gradient"] = torch.tensor(p.requires_grad)
    for name, module in model.named_modules():
        found[f"{name} training"] = torch.tensor(module.training)
        found[f"{name} hooks"] = torch.tensor(len(module._forward_pre_hooks) + len(module._forward_hooks))
    return found


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = snapshot(model)
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b, self.head = self.a, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)))


class Aliased(Tied):
    """Two parameters that lie in one storage."""

    def __init__(self) -> None:
        super().__init__()
        self.b.weight = nn.Parameter(self.a.weight.data)


class Derived(nn.Linear):
    """A Linear that may use its weight in ways of its own."""


def not_a_number() -> nn.Module:
    model = mlp()
    with torch.no_grad():
        model[2].weight[1, 1] = torch.nan
    return model


def spectral() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 4))


# name -> (model, names of layers, what the error says), for every edit of linear layers
REFUSED = {
    "tied": (
        Tied(),
        ["b"],
        r"layer 'b' \(Linear\) must be with a weight of its own, got one tied to \['a.weight'\]",
    ),
    "tied in one storage": (Aliased(), ["a"], r"layer 'a' .* of its own, got one tied to \['b.weight'\]"),
    "shared": (Shared(), ["a"], r"layer 'a' \(Linear\) must be in one place of the model, not shared"),
    "parametrized": (spectral(), ["0"], r"layer '0' \(ParametrizedLinear\) must be without parametrizations"),
    "derived": (
        nn.Sequential(Derived(4, 4), nn.Linear(4, 4)),
        ["0"],
        r"layer '0' \(Derived\) must be a Linear",
    ),
    "another class": (mlp(), ["1"], r"layer '1' \(ReLU\) must be a Linear"),
    "attention": (
        nn.TransformerEncoderLayer(4, 2, 8),
        ["self_attn.out_proj"],
        r"'self_attn.out_proj' \(NonDynamicallyQuantizableLinear\) must be a Linear",
    ),
    "unknown": (mlp(), ["02"], r"layers must name modules of the model, got '02' \(did you mean 2, 0"),
    "twice": (mlp(), ["0", "0"], r"layers must be different, got \['0'\] twice"),
    "none": (
        nn.Sequential(nn.ReLU()),
        None,
        "layers must name at least one Linear.*got none; Sequential has none",
    ),
    "text": (mlp(), "02", "layers must be several names of modules, got the string '02'"),
    "not finite": (not_a_number(), ["2"], r"layer '2' \(Linear\) must be with finite weights"),
    "meta": (
        nn.Sequential(nn.Linear(4, 4, device="meta")),
        ["0"],
        "must hold its weights, got '0.weight' on the meta",
    ),
    "lazy": (
        nn.Sequential(nn.LazyLinear(4)),
        ["0"],
        "must have its weights made, got the lazy tensor '0.weight'",
    ),
}
