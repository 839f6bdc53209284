"""A small convolutional network for one-channel images from 8 x 8 up."""

from __future__ import annotations

from torch import nn

from thalweg._core.checks import check_count
from thalweg.tasks._seeds import seeded

__all__ = ["CNN"]


class CNN(nn.Sequential):
    """Three 3 x 3 convolutions (each conv, BatchNorm, ReLU), the mean over space, one linear layer.

    Inputs [n, channels, h, w] with h, w >= 4, outputs [n, classes]. The second and third convolution halve
    the resolution. At the default width there are 56 554 parameters.

    Args:
        classes: number of outputs.
        width: channels of the first convolution; the other two have twice as many.
        channels: channels of the image.
        seed: weights that depend on this number only, with the global random state left alone; None draws
            from the global state.

    Raises:
        ValueError: for a bad argument.
    """

    def __init__(
        self, classes: int = 10, width: int = 32, channels: int = 1, seed: int | None = None
    ) -> None:
        check_count("classes", classes)
        check_count("width", width)
        check_count("channels", channels)
        with seeded(seed):
            layers = [
                *_convolution(channels, width, stride=1),
                *_convolution(width, 2 * width, stride=2),
                *_convolution(2 * width, 2 * width, stride=2),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(2 * width, classes),
            ]
        super().__init__(*layers)


def _convolution(incoming: int, outgoing: int, stride: int) -> list[nn.Module]:
    # No bias: the BatchNorm that follows would take it away again.
    convolution = nn.Conv2d(incoming, outgoing, kernel_size=3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outgoing), nn.ReLU()]
