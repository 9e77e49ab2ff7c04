"""The network of the comparison on images: two strided convolutions and 100 units."""

from __future__ import annotations

import torch
from torch import nn

from fedsim.core.options import options
from fedsim.problems.models.layers import materialise, need_images


@options
class StridedCNN:
    """Convolution 5x5 to 16 channels, another to 32, 100 units, classes; ReLU after each but the last.

    Convolutions halve the image's sides, without pooling: 171,158 parameters on 1x28x28 with ten classes.
    """

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """[B, channels, height, width] of at least 4x4 to [B, outputs]."""
        channels, height, width = need_images("StridedCNN", shape, vocabulary, side=4)
        rows, columns = ((side + 3) // 4 for side in (height, width))
        with torch.device("meta"):
            module = nn.Sequential(
                nn.Conv2d(channels, 16, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(16, 32, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(32 * rows * columns, 100),
                nn.ReLU(),
                nn.Linear(100, outputs),
            )
        return materialise(module)
