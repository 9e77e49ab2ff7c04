"""Models of images by torchvision and timm: `torchvision:resnet18`, `timm:resnet18`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.extras import library
from fedsim.core.near import meant
from fedsim.core.options import options
from fedsim.core.signatures import arguments, named_by
from fedsim.nets.heads import Taken
from fedsim.problems.models.layers import need_images, starts_as_made
from fedsim.problems.models.libraries import (
    Arguments,
    Coloured,
    OfLibrary,
    construct,
    only_models,
    options_of,
)
from fedsim.problems.models.weights import load_weights

NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "batch_norm": nn.BatchNorm2d,
    "group_norm": lambda channels: nn.GroupNorm(math.gcd(8, channels), channels),
    "none": nn.Identity,
}
"""What `norm_layer` may say to torchvision, which wants a function of the number of channels."""
OURS = frozenset(
    {
        "num_classes",
        "in_chans",
        "weights",
        "weights_backbone",
        "progress",
        "pretrained",
        "init_weights",
        "device",
        "dtype",
    }
)
"""Arguments that follow the data or the run, or are about downloads."""


class _Vision(OfLibrary):
    """Options of a model for images."""

    weights: str | None

    def _filled(self, module: nn.Module, outputs: int) -> nn.Module:
        """The module, with the weights of the file where one is named."""
        if self.weights is not None:
            load_weights(module, Path(self.weights), outputs)
        return starts_as_made(module)

    def _sized(self, name: str, given: dict[str, Any], shape: tuple[int, ...]) -> None:
        """Say how large images are where the constructor asks, and nobody has said it."""
        if name in self.passed and name not in given:
            given[name] = shape[1]


@options
class TorchVision(_Vision):
    """A model of torchvision, as its constructor makes it, with as many outputs as the data have.

    The arguments of its constructor are options; `image_size` follows the data. Grey images are given to all three
    channels. The initial weights are torchvision's, or those of a file; nothing is downloaded. Models of segmentation
    give classes of every pixel.
    """

    weights: str | None = None
    """A file with weights to start from (.pth, .safetensors). Not given: torchvision draws them. A last layer for other
    classes is left out of it.
    """

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """[B, 3, height, width], or [B, 1, height, width], to [B, outputs]; of segmentation [B, outputs, *sides]."""
        channels, *_ = need_images(self.kind, shape, vocabulary, side=1)
        if channels not in (1, 3):
            raise InputError("model", self.kind, f"reads images of 3 channels, or grey ones, and these have {channels}")
        models = library("torchvision", "vision", self.kind, "model").models
        make, given = models.get_model_builder(self.called), self.given
        self._sized("image_size", given, shape)
        own, _ = named_by(make)
        given |= {name: None for name in own if name.startswith("weights")}
        if "norm_layer" in given:
            if given["norm_layer"] not in NORMS:
                raise InputError("model", given["norm_layer"], f"name as norm_layer one of: {', '.join(NORMS)}")
            given["norm_layer"] = NORMS[given["norm_layer"]]
        module = construct(make, self.kind, given | {"num_classes": outputs})
        if self.called in models.list_models(module=models.segmentation):
            module.register_forward_hook(Taken(("out",)))
        if channels == 1:
            module.register_forward_pre_hook(Coloured())
        return self._filled(module, outputs)


@options
class Timm(_Vision):
    """A model of timm, as `timm.create_model` makes it, with as many outputs as the data have.

    The arguments of its constructor are options; `in_chans`, and `img_size` where there is one, follow the data. The
    initial weights are timm's, or those of a file; nothing is downloaded.
    """

    weights: str | None = None
    """A file with weights to start from (.safetensors, .pth). Not given: timm draws them. A last layer for other
    classes is left out of it.
    """

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """[B, channels, height, width] to [B, outputs]."""
        channels, *_ = need_images(self.kind, shape, vocabulary, side=1)
        timm, given = library("timm", "timm", self.kind, "model"), self.given
        self._sized("img_size", given, shape)
        make = functools.partial(timm.create_model, self.called, pretrained=False)
        return self._filled(construct(make, self.kind, given | {"in_chans": channels, "num_classes": outputs}), outputs)


def torchvision_model(group: str, kind: str, option: str) -> type[Any]:
    """The resolver of the prefix `torchvision`: the class of options of a model of torchvision, by its name there.

    InputError: torchvision is not installed, or has no such model.
    """
    name = only_models(group, kind, option)
    models = library("torchvision", "vision", kind, option).models
    known = models.list_models(module=models) + models.list_models(module=models.segmentation)
    _hold_known(name, known, kind, option)
    return _options_of(TorchVision, name, kind, models.get_model_builder(name))


def timm_model(group: str, kind: str, option: str) -> type[Any]:
    """The resolver of the prefix `timm`: the class of options of a model of timm, by its name there.

    InputError: timm is not installed, or has no such model; one of a hub is none.
    """
    name = only_models(group, kind, option)
    timm: ModuleType = library("timm", "timm", kind, option)
    _hold_known(name, timm.list_models(), kind, option)
    return _options_of(Timm, name, kind, timm.model_entrypoint(name))


def _hold_known(name: str, known: list[str], kind: str, option: str) -> None:
    if name not in known:
        raise InputError(option, kind, f"there is no such model of {kind.partition(':')[0]}{meant(name, known)}")


@functools.cache
def _options_of(base: type[Any], name: str, kind: str, make: Callable[..., Any]) -> type[Any]:
    """Options of a function that passes on what it does not name to the class that it says it returns."""
    named, passes = named_by(make)
    returned = get_type_hints(make).get("return")
    taken: Arguments = named | (arguments(returned) if passes and isinstance(returned, type) else {})
    return options_of(base, name, kind, taken, OURS)
