"""Models of images: the FedAvg paper's CNN, LeNet-5, and a small ResNet with group norm."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from fedsim.core.options import PositiveInt, options
from fedsim.nets.layers import Residual
from fedsim.problems.models.layers import Start, drawn_by, materialise, need_images


@options
class CNN:
    """The MNIST CNN of McMahan et al. 2017, section 3.

    Convolution 5x5 to 32 channels, pool, convolution 5x5 to 64, pool, 512 units, classes; the convolutions
    keep the image's size, which gives the paper's 1,663,370 parameters on 28x28 and ten classes.
    """

    init: Start = "usual"
    """How weights are drawn: usual, or ibp, of all but the last layer for training by interval bounds."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """[B, channels, height, width] of at least 4x4 to [B, outputs]."""
        channels, height, width = need_images("cnn", shape, vocabulary, side=4)
        with torch.device("meta"):
            module = nn.Sequential(
                nn.Conv2d(channels, 32, 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(64 * (height // 4) * (width // 4), 512),
                nn.ReLU(),
                nn.Linear(512, outputs),
            )
        return materialise(drawn_by(self.init, module))


@options
class LeNet:
    """LeNet-5 (LeCun et al. 1998) as it is used today: ReLU and max pooling, no padding.

    Convolution 5x5 to 6 channels, pool, convolution 5x5 to 16, pool, 120 and 84 units, classes: 44,426
    parameters on 1x28x28 and 62,006 on 3x32x32 with ten classes.
    """

    init: Start = "usual"
    """How weights are drawn: usual, or ibp, of all but the last layer for training by interval bounds."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """[B, channels, height, width] of at least 16x16 to [B, outputs]."""
        channels, height, width = need_images("lenet", shape, vocabulary, side=16)
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
        with torch.device("meta"):
            module = nn.Sequential(
                nn.Conv2d(channels, 6, 5),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(6, 16, 5),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(16 * rows * columns, 120),
                nn.ReLU(),
                nn.Linear(120, 84),
                nn.ReLU(),
                nn.Linear(84, outputs),
            )
        return materialise(drawn_by(self.init, module))


@options
class ResNet:
    """A small residual network (He et al. 2016, the CIFAR form).

    Three stages of `width`, 2 `width` and 4 `width` channels, the second and third at half the size of
    the one before; each has `blocks` residual blocks of two 3x3 convolutions.
    """

    width: PositiveInt = 16
    """Channels of the first stage."""
    blocks: PositiveInt = 1
    """Residual blocks of a stage."""
    norm: Literal["group", "batch"] = "group"
    """What follows each convolution: group norm (in up to 8 groups), which has no running statistics, that do not
    average well over clients; or batch norm, as published.
    """

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """[B, channels, height, width] of at least 4x4 to [B, outputs]."""
        channels, _, _ = need_images("resnet", shape, vocabulary, side=4)
        with torch.device("meta"):
            layers: list[nn.Module] = [*self._normed(channels, self.width, 3), nn.ReLU()]
            inputs = self.width
            for stage in range(3):
                channels = self.width * 2**stage
                for block in range(self.blocks):
                    layers.append(self._block(inputs, channels, stride=2 if stage and not block else 1))
                    inputs = channels
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs)]
            module = nn.Sequential(*layers)
        return materialise(module)

    def _normed(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        norm = nn.GroupNorm(math.gcd(8, outputs), outputs) if self.norm == "group" else nn.BatchNorm2d(outputs)
        return convolution, norm

    def _block(self, inputs: int, outputs: int, stride: int) -> Residual:
        body = nn.Sequential(*self._normed(inputs, outputs, 3, stride), nn.ReLU(), *self._normed(outputs, outputs, 3))
        changes = stride != 1 or inputs != outputs
        return Residual(body, nn.Sequential(*self._normed(inputs, outputs, 1, stride)) if changes else nn.Sequential())
