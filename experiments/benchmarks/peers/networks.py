"""The networks of the benchmark, each as a module and as a function of its parameters in the module's order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

SYMBOLS = 65
"""Characters that a text may have."""


def initialised(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a module as PyTorch fills it after the seed 0, and leave the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def chain(*widths: int) -> nn.Module:
    """Make a perceptron with ReLU between its linear layers."""

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return initialised(make)


def chain_forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Apply a perceptron: x [B, d] to logits [B, 10]."""
    for place in range(0, len(parameters) - 2, 2):
        x = F.linear(x, parameters[place], parameters[place + 1]).relu()
    return F.linear(x, parameters[-2], parameters[-1])


def mlp() -> nn.Module:
    """Make the perceptron 64-64-10."""
    return chain(64, 64, 10)


def normalised_mlp() -> nn.Module:
    """Make the perceptron 64-64-10 with batch normalisation before its first layer and after it."""
    return initialised(
        lambda: nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    )


def one_hidden() -> nn.Module:
    """Make the perceptron 784-200-10."""
    return chain(784, 200, 10)


def two_nn() -> nn.Module:
    """Make the 2NN of McMahan et al. 2017: 784-200-200-10."""
    return chain(784, 200, 200, 10)


def cnn() -> nn.Module:
    """Make two 5x5 convolutions of 16 and 32 channels, each with ReLU and 2x2 pooling, and a linear layer."""
    return initialised(lambda: nn.Sequential(*_pooled(16, 32, padding=2), nn.Flatten(), nn.Linear(32 * 7 * 7, 10)))


def cnn_forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Apply a network of two convolutions with padding: x [B, 1, 28, 28] to logits [B, 10]."""
    w1, b1, w2, b2, *rest = parameters
    x = F.max_pool2d(F.conv2d(x, w1, b1, padding=2).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, w2, b2, padding=2).relu(), 2)
    return chain_forward(rest, x.flatten(1))


def fedavg_cnn() -> nn.Module:
    """Make the CNN of McMahan et al. 2017: 5x5 convolutions of 32 and 64 channels with pooling, 512 units, 10."""
    return initialised(
        lambda: nn.Sequential(
            *_pooled(32, 64, padding=2), nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, 10)
        )
    )


def lenet() -> nn.Module:
    """Make LeNet-5: 5x5 convolutions of 6 and 16 channels, each with ReLU and 2x2 pooling, and layers 120, 84, 10."""
    return initialised(
        lambda: nn.Sequential(
            *_pooled(6, 16, padding=0),
            nn.Flatten(),
            nn.Linear(256, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )
    )


def lenet_forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Apply LeNet: x [B, 1, 28, 28] to logits [B, 10]."""
    w1, b1, w2, b2, *rest = parameters
    x = F.max_pool2d(F.conv2d(x, w1, b1).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, w2, b2).relu(), 2)
    return chain_forward(rest, x.flatten(1))


def _pooled(first: int, second: int, padding: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in ((1, first), (first, second)):
        layers += [nn.Conv2d(before, after, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)]
    return layers


class Block(nn.Module):
    """relu(x' + GN(conv(relu(GN(conv(x)))))), where x' is x, or a 1x1 convolution of it where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(8, after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(8, after)
        self.shortcut = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """From [B, c, h, w] to [B, c', h / stride, w / stride]."""
        inner = F.relu(self.first_norm(self.first(x)))
        inner = self.second_norm(self.second(inner))
        return F.relu(inner + (x if self.shortcut is None else self.shortcut(x)))


def resnet() -> nn.Module:
    """Make a ResNet of 8 layers with GroupNorm: a convolution, blocks of 16, 32 and 64 channels, their mean, 10."""
    return initialised(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.GroupNorm(8, 16),
            nn.ReLU(),
            Block(16, 16, 1),
            Block(16, 32, 2),
            Block(32, 64, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
    )


def resnet_forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Apply the ResNet: x [B, 3, 32, 32] to logits [B, 10]."""
    values = iter(parameters)

    def normed(x: Tensor, stride: int = 1) -> Tensor:
        return F.group_norm(F.conv2d(x, next(values), stride=stride, padding=1), 8, next(values), next(values))

    x = normed(x).relu()
    for stride in (1, 2, 2):
        inner = normed(normed(x, stride).relu())
        x = (inner + (x if stride == 1 else F.conv2d(x, next(values), stride=stride))).relu()
    return F.linear(x.mean((2, 3)), next(values), next(values))


class CharacterLstm(nn.Module):
    """Characters [B, T] to the next one's logits [B, SYMBOLS]: 8 numbers a character, an LSTM of two layers, linear."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, 8)
        self.lstm = nn.LSTM(8, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        """Read the text from its start, and say what comes next."""
        seen, _ = self.lstm(self.embedding(x))
        logits: Tensor = self.head(seen[:, -1])
        return logits


def character_lstm() -> nn.Module:
    """Make the LSTM of characters, as in LEAF but of width 128."""
    return initialised(CharacterLstm)


def character_lstm_forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Apply the LSTM of characters: x [B, T] to logits [B, SYMBOLS]."""
    embedding, *cells, weight, bias = parameters
    state = x.new_zeros(2, len(x), cells[1].shape[1], dtype=embedding.dtype)
    seen, _, _ = torch.lstm(F.embedding(x, embedding), (state, state), cells, True, 2, 0.0, True, False, True)
    return F.linear(seen[:, -1], weight, bias)


class Encoder(nn.Module):
    """Characters [B, T] to the next one's logits: embeddings of characters and places, two layers, linear."""

    def __init__(self, length: int, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, width)
        self.places = nn.Parameter(0.1 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        """Let all characters see all, and ask the last."""
        seen = self.encoder(self.embedding(x) + self.places)
        logits: Tensor = self.head(seen[:, -1])
        return logits


LENGTH = 40
"""Characters that a model sees."""


def transformer() -> nn.Module:
    """Make the encoder of two layers of width 64."""
    return initialised(lambda: Encoder(LENGTH))


def transformer_forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Apply the encoder: x [B, T] to logits [B, SYMBOLS]."""
    values = iter(parameters)
    places, embedding = next(values), next(values)
    x = F.embedding(x, embedding) + places
    for _ in range(2):
        x = _encoded(values, x, heads=4)
    return F.linear(x[:, -1], next(values), next(values))


def _encoded(values: Iterator[Tensor], x: Tensor, heads: int) -> Tensor:
    """One layer of the encoder, x [B, T, width]."""
    batch, length, width = x.shape
    mixed = F.linear(x, next(values), next(values)).view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    seen = F.scaled_dot_product_attention(*mixed).transpose(1, 2).reshape(batch, length, width)
    seen = F.linear(seen, next(values), next(values))
    w1, b1, w2, b2, scale1, shift1, scale2, shift2 = (next(values) for _ in range(8))
    x = F.layer_norm(x + seen, (width,), scale1, shift1)
    return F.layer_norm(x + F.linear(F.linear(x, w1, b1).relu(), w2, b2), (width,), scale2, shift2)
