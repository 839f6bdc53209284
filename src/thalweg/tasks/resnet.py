"""A residual network shaped like ResNet-18, of any width, for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from thalweg._core.checks import check_count
from thalweg.tasks._seeds import seeded

__all__ = ["ResNet"]


class ResNet(nn.Module):
    """A 3 x 3 stem, then stages of residual blocks, the mean over space, one linear layer (arXiv 1512.03385).

    Inputs [n, channels, h, w], outputs [n, classes]. The first stage has ``width`` channels at full
    resolution; every further one has twice the channels at half the resolution, and a projection in its first
    block's shortcut. BatchNorm follows every convolution. ``ResNet(channels=3, width=64)`` is the ResNet-18
    that is used on CIFAR images (11 173 962 parameters).

    Args:
        classes: number of outputs.
        width: channels of the first stage.
        channels: channels of the image.
        stages: how often the resolution halves, plus one.
        blocks: residual blocks in each stage.
        seed: weights that depend on this number only, with the global random state left alone; None draws
            from the global state.

    Raises:
        ValueError: for a bad argument.
    """

    def __init__(
        self,
        classes: int = 10,
        width: int = 16,
        channels: int = 1,
        stages: int = 4,
        blocks: int = 2,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_count("classes", classes)
        check_count("width", width)
        check_count("channels", channels)
        check_count("stages", stages)
        check_count("blocks", blocks)
        with seeded(seed):
            self.stem = nn.Sequential(_convolution(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU())
            layers, fan_in = [], width
            for stage in range(stages):
                fan_out = width * 2**stage
                for block in range(blocks):
                    layers.append(Block(fan_in, fan_out, stride=2 if stage and not block else 1))
                    fan_in = fan_out
            self.blocks = nn.Sequential(*layers)
            self.head = nn.Linear(fan_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        """From images [n, channels, h, w] to logits [n, classes]."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    """Two convolutions, added to the input or to its projection."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.first, self.first_norm = _convolution(fan_in, fan_out, stride), nn.BatchNorm2d(fan_out)
        self.second, self.second_norm = _convolution(fan_out, fan_out, 1), nn.BatchNorm2d(fan_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            projection = nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


def _convolution(fan_in: int, fan_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
