"""Small models of many shapes, each with an example batch and how many groups of units it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg.nn import LayerNormLSTM
from thalweg.tasks import CNN, GPT, MLP, Llama


class BasicBlock(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = norm(fan_out), norm(fan_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), norm(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        inner = self.norm2(self.conv2(inner))
        inner += self.shortcut(x)
        return functional.relu(inner)


class ResNet(nn.Module):
    """Shaped like ResNet-18: four stages of two blocks, a projection where the size changes."""

    def __init__(self, width: int = 4, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, stages: int = 4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), norm(width), nn.ReLU())
        blocks, fan_in = [], width
        for stage in range(stages):
            fan_out = width * 2**stage
            blocks += [BasicBlock(fan_in, fan_out, 1 if stage == 0 else 2, norm)]
            blocks += [BasicBlock(fan_out, fan_out, 1, norm)]
            fan_in = fan_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(fan_in, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class PaddedShortcut(nn.Module):
    """The shortcut without weights of CIFAR's ResNets: every second pixel, channels padded with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        inner = self.conv2(self.conv1(x).relu())
        x = inner + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(x.relu().mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads all before it, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(4 + 3 * i), nn.ReLU(), nn.Conv2d(4 + 3 * i, 3, 3, padding=1))
            for i in range(3)
        )
        self.head = nn.Linear(13 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))


class GroupedQueries(nn.Module):
    """Two groups of keys and values, two heads of queries each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 12)
        self.query, self.key, self.value = nn.Linear(12, 12), nn.Linear(12, 6), nn.Linear(12, 6)
        self.out = nn.Linear(12, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        query = self.query(x).view(*x.shape[:2], 4, 3).transpose(1, 2)
        key, value = (one(x).view(*x.shape[:2], 2, 3).transpose(1, 2) for one in (self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return self.head(x.mean(1))


class Vision(nn.Module):
    """Patches, a class token, learned positions, two of PyTorch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.layers(x)[:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(3, 6, num_layers=2, batch_first=True)  # type: ignore[call-arg]
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Twice(nn.Module):
    """One square layer that runs twice, with a skip connection around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.square, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(2):
            x = x + self.square(x).tanh()
        return self.last(x)


class Gated(nn.Module):
    """A fused gate and value, and a fused product of queries and keys in unequal parts."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.last = nn.Linear(3, 12), nn.Linear(6, 8)
        self.parts, self.head = nn.Linear(8, 11), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(functional.glu(self.fused(x)))
        left, right, rest = self.parts(x).split([4, 4, 3], -1)
        return self.head(rest * (left * right).sum(-1, keepdim=True).sigmoid())


class Windows(nn.Module):
    """Attention within shifted windows, as in Swin: rolled, cut into windows, put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, 2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.merge, self.head = nn.Linear(24, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        windows = torch.roll(x, (-1, -1), (1, 2)).view(-1, 2, 2, 2, 2, 6).transpose(2, 3).reshape(-1, 4, 6)
        mixed = self.attention(windows, windows, windows)[0].view(-1, 2, 2, 2, 2, 6).transpose(2, 3)
        x = x + torch.roll(mixed.reshape(x.shape), (1, 1), (1, 2))
        corners = [x[:, i::2, j::2] for j in range(2) for i in range(2)]
        return self.head(
            functional.adaptive_avg_pool1d(self.merge(torch.cat(corners, -1)).flatten(1, 2).mT, 1)[..., 0]
        )


def image() -> Tensor:
    return torch.randn(3, 3, 8, 8)


def sequence() -> Tensor:
    return torch.randn(3, 4, 3)


def tokens() -> Tensor:
    return torch.randint(9, (2, 5))


def conv(*layers: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


# Name to model, example batch, and the number of groups of units that can be permuted.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], int]] = {
    "mlp": (lambda: MLP((4, 7, 6, 5)), lambda: torch.randn(3, 4), 2),
    "mlp, batch norm": (lambda: MLP((4, 7, 6, 5), norm="batch"), lambda: torch.randn(3, 4), 2),
    "mlp, layer norm": (lambda: MLP((4, 7, 6, 5), norm="layer"), lambda: torch.randn(3, 4), 2),
    "cnn": (lambda: CNN(5, width=4, channels=3), image, 3),
    "cnn that flattens": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.PReLU(4),
            nn.MaxPool2d(2, 1),
            nn.Conv2d(4, 6, 1),
            nn.Flatten(),
            nn.Linear(24, 5),
        ),
        image,
        2,
    ),
    # A stage's stream is one group, and so is what is inside each block.
    "resnet": (ResNet, image, 4 + 8),
    "resnet, group norm": (lambda: ResNet(norm=lambda n: nn.GroupNorm(2, n)), image, 2 * (4 + 8)),
    "resnet, layer norm": (lambda: ResNet(norm=lambda n: nn.GroupNorm(1, n)), image, 4 + 8),
    "resnet, instance norm": (lambda: ResNet(norm=nn.InstanceNorm2d, stages=2), image, 2 + 4),
    # Channels of the stem, the two that pad them on either side, and those inside the block.
    "padded shortcut": (PaddedShortcut, image, 4),
    "densely connected": (Dense, image, 4),
    # Groups, what is inside them going in and out, and the same with one channel a group.
    "grouped convolution": (
        lambda: conv(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), width=12),
        image,
        3,
    ),
    "depthwise convolution": (
        lambda: conv(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU6(), width=6),
        image,
        1,
    ),
    "autoencoder": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(4, 6, 2, 2),
            nn.BatchNorm2d(6),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(6, 12, 3),
            nn.PixelShuffle(2),
            nn.Conv2d(3, 1, 1),
        ),
        image,
        3,
    ),
    "channel shuffle": (
        lambda: conv(
            nn.Conv2d(3, 6, 1), nn.ChannelShuffle(2), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=3), width=6
        ),
        image,
        # Both ways to group six channels would have to be kept.
        3,
    ),
    # The stream; heads, inside queries and keys, inside values, the feed-forward layer, of each block.
    "gpt": (lambda: GPT(9, 8, layers=2, heads=2, width=12), tokens, 1 + 2 * 4),
    "gpt, tied": (lambda: GPT(9, 8, layers=1, heads=2, width=12, tied=True), tokens, 1 + 4),
    "gpt, one gain for the heads": (
        lambda: GPT(9, 8, layers=1, heads=2, width=12, qk_norm=True),
        tokens,
        1 + 4 + 0,
    ),
    # Rotated queries and keys keep their order.
    "llama": (lambda: Llama(9, 12, 16, 2, 1), tokens, 1 + 3),
    "grouped queries": (GroupedQueries, sequence, 5),
    "vision transformer": (Vision, image, 1 + 2 * 4),
    # The stream, heads, inside queries and keys, inside values, and what the merged patches give.
    "shifted windows": (Windows, image, 5),
    "lstm": (lambda: Recurrent(nn.LSTM), sequence, 2),
    "lstm, normalised": (lambda: Recurrent(LayerNormLSTM), sequence, 2),
    "gru": (lambda: Recurrent(nn.GRU), sequence, 2),
    "rnn": (lambda: Recurrent(nn.RNN), sequence, 2),
    "a layer run twice": (Twice, lambda: torch.randn(3, 3), 1),
    "gates": (Gated, lambda: torch.randn(3, 3), 4),
}


def made(name: str, seed: int) -> nn.Module:
    """The model with weights, and running statistics, that no two units share."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name][0]()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
                for tensor in (module.weight, getattr(module, "running_var", None)):
                    if tensor is not None:
                        tensor.uniform_(0.5, 2)
                for tensor in (getattr(module, "bias", None), getattr(module, "running_mean", None)):
                    if tensor is not None:
                        tensor.normal_()
    return model


def example(name: str) -> Any:
    torch.manual_seed(99)
    return ARCHITECTURES[name][1]()


def shuffled(found: Any, seed: int = 0) -> dict[int, Tensor]:
    """Random orders for all groups of units of a ``Symmetry``."""
    source = torch.Generator().manual_seed(seed)

    def order(n: int) -> Tensor:
        return torch.randperm(n, generator=source)

    return {
        label: order(len(perm)) if perm.dim() == 1 else torch.stack([order(len(row)) for row in perm])
        for label, perm in found.identity().items()
    }
