"""A module under given parameters, from any thread: each thread has a copy of its own.

Images of a network whose layers are all known lie with their channels innermost while a CPU computes on them in single
precision: its convolutions and pooling take 0.66 to 0.87 of the time there. A weight that lies so is enough, for a
convolution's result follows it. Other layers might ask how their input lies in memory, as `view` does.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedsim.nets.dropout import NamedDropout
from fedsim.nets.halves import Both
from fedsim.nets.layers import Residual, has_hooks
from fedsim.nets.lean import hears_all, lean
from fedsim.nets.normalisation import statistics_of

INDIFFERENT = (
    *(nn.Sequential, Residual, nn.Conv2d, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.Upsample, nn.Flatten, nn.Linear, nn.LayerNorm, NamedDropout, nn.Identity),
    *(nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Hardtanh, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus),
)
"""Layers that do the same however their input lies in memory."""


class Thinned(nn.Module):
    """A convolution of 1x1 that takes steps, as one without of the places where it would stop.

    oneDNN 3.12 (PyTorch 2.13) writes past the end of memory in the gradient of those of 3, 4, 8 and 12 channels that
    lie innermost.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.groups = layer.weight, layer.bias, layer.groups  # named as the layer's
        self.stride = layer.stride

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in, H, W] to [B, out, H', W']."""
        places = functional.avg_pool2d(x, 1, self.stride)  # a slice's gradient would not lie as x does
        return functional.conv2d(places, self.weight, self.bias, groups=self.groups)


class Flat(nn.Flatten):
    """Flattening of images that may lie with their channels innermost, whose gradient then lies so, too.

    The gradient of a max pooling before it, which otherwise would be copied to the other order and back, takes a
    fifth of the time.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """As `nn.Flatten`."""
        if input.requires_grad and _innermost(input):
            input.register_hook(_as_innermost)  # type: ignore[no-untyped-call]
        return super().forward(input)


class Functional:
    """Calls a module with given parameters instead of its own."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._own = model, threading.local()

    def __reduce__(self) -> tuple[type[Functional], tuple[nn.Module]]:
        return Functional, (self._model,)  # what threads have stays in their process

    def __call__(self, named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs of inputs x under parameters by name, which may be those of `vmap`."""
        outputs: Tensor = functional_call(self._copy(), dict(named), (x,))
        return outputs

    def with_features(self, named: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """What the module's head reads, [B, ...], beside the outputs. InputError: it cannot be cut."""
        found: tuple[Tensor, Tensor] = functional_call(self.both(), dict(named), (x,))
        return found

    def both(self) -> Both:
        """The thread's copy, as one that gives features beside outputs. InputError: it cannot be cut."""
        model = self._copy()
        if self._own.both is None:
            self._own.both = Both(model)
        found: Both = self._own.both
        return found

    def parts(self) -> Iterator[nn.Module]:
        """All parts of the module."""
        return self._model.modules()

    def bind(self, leaves: Iterable[Tensor]) -> tuple[nn.Module, list[nn.Parameter]]:
        """Give the thread's copy, and its trainable parameters, with the numbers of `leaves` (in their own order).

        Running statistics come after the parameters, in memory of the leaves' own, where training passes write them.
        Parameters may share memory with the leaves. Much cheaper than `functional_call`, which matters where a client's
        step is a few microseconds of arithmetic.
        """
        model = self._copy()
        self._own.at_home = False
        parameters: list[nn.Parameter] = self._own.parameters
        held = (*parameters, *self._own.statistics)
        for tensor, leaf, innermost in zip(held, leaves, self._own.innermost, strict=True):
            fast = innermost and leaf.dtype == torch.float32 and leaf.device.type == "cpu"
            tensor.data = leaf.to(memory_format=torch.channels_last) if fast else leaf
        return model, parameters

    def own(self, leaves: Sequence[Tensor]) -> tuple[nn.Module, list[nn.Parameter], list[Tensor]]:
        """As `bind`, with the numbers in memory that the thread keeps for them, which is given too, leaf by leaf.

        Each leaf has memory of its own, which begins where vectors do.
        """
        model, own = self._copy(), self._own
        if not hasattr(own, "places"):
            own.places = [leaf.clone() for leaf in leaves]
        if not own.at_home:  # others have been bound since, or the copy is a new one
            self.bind(own.places)
            own.places = [held.data for held in (*own.parameters, *own.statistics)]
            own.flat = [place.view(-1) if place.is_contiguous() else None for place in own.places]
            own.at_home = True
        torch._foreach_copy_(own.places, list(leaves))
        return model, own.parameters, own.places

    def write(self, end: Tensor) -> None:
        """Write the numbers that are now in the memory of `own` to a vector [d], in the leaves' order."""
        own = self._own
        rows = zip(own.flat, own.places, strict=True)
        torch.cat([place.reshape(-1) if flat is None else flat for flat, place in rows], out=end)

    def _copy(self) -> nn.Module:
        heard = hears_all()
        if not hasattr(self._own, "model") or self._own.heard != heard:
            model = copy.deepcopy(self._model)
            self._own.parameters = [own for own in model.parameters() if own.requires_grad]
            parts = dict(model.named_modules())
            kernels: set[int] = set()
            if all(_indifferent(part) for part in parts.values()) and type(model) is not nn.Conv2d:
                convolutions = {name: part for name, part in parts.items() if type(part) is nn.Conv2d}
                kernels = {id(part.weight) for part in convolutions.values()}
                for name, part in convolutions.items():
                    if _steps_over(part):
                        model.set_submodule(name, Thinned(part))
                for part in parts.values():
                    if type(part) is nn.Flatten:
                        part.__class__ = Flat
            self._own.statistics = list(statistics_of(model).values())
            self._own.innermost = [id(own) in kernels for own in (*self._own.parameters, *self._own.statistics)]
            lean(model)
            self._own.model, self._own.heard, self._own.at_home, self._own.both = model, heard, False, None
        own: nn.Module = self._own.model
        return own


def _innermost(images: Tensor) -> bool:
    """Whether it is images that lie with their channels innermost."""
    return images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last)


def _as_innermost(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def _indifferent(part: nn.Module) -> bool:
    """Whether a layer does the same however its input lies in memory."""
    padded = type(part) is nn.Conv2d and _steps_over(part) and part.padding not in ((0, 0), "valid")
    return type(part) in INDIFFERENT and not has_hooks(part) and not padded


def _steps_over(layer: nn.Conv2d) -> bool:
    """Whether it reads single places and leaves some out."""
    return layer.kernel_size == (1, 1) and layer.stride != (1, 1)
