"""Dropout by named draws, the same in every network.

`torch.nn.Dropout` would read the global generator. `prepare` puts a `NamedDropout` in its place: in
local step s of round r, the mask of client c in the n-th call of the layer called `name` is a draw named
(`dropout/name/n`, r, s, c).
Outside a `drawing` block a model is evaluated, and dropout does nothing.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from fedsim.core.errors import InputError, named_line
from fedsim.core.memory import no_room
from fedsim.core.streams import Index, Streams


@dataclass(frozen=True)
class Draw:
    """Whose draws are to be made: of `clients` [k], in local step `step` of a turn, one or int64 [k]."""

    streams: Streams
    clients: Tensor
    turn: Index
    step: int


@dataclass(frozen=True)
class _Current:
    draw: Draw
    stacked: bool
    calls: Counter[str]  # how often each layer has drawn in this forward pass


_current: ContextVar[_Current | None] = ContextVar("fedsim_dropout", default=None)


@contextmanager
def drawing(draw: Draw, *, stacked: bool) -> Iterator[None]:
    """Within this block dropout is active; `stacked` says whether inputs have a leading client axis."""
    token = _current.set(_Current(draw, stacked, Counter()))
    try:
        yield
    finally:
        _current.reset(token)


class NamedDropout(nn.Module):
    """Zero each input with probability p and scale the others by 1 / (1 - p)."""

    def __init__(self, p: float, name: str, inplace: bool = False) -> None:
        super().__init__()
        self.p, self.name, self.inplace = p, name, inplace

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [k, B, ...] in a stack, [B, ...] for one client."""
        current = _current.get()
        if current is None or self.p == 0.0:
            return x
        draw, rows = current.draw, x if current.stacked else x.unsqueeze(0)
        call = current.calls[self.name]
        current.calls[self.name] += 1
        words = draw.streams.bits(
            f"dropout/{self.name}/{call}", draw.clients, rows.shape[1:].numel(), turn=draw.turn, step=draw.step
        )
        share = 1.0 - self.p or 1.0  # of those that are kept; where none is, all are zero
        # The first 24 bits of a word are a uniform number in single precision, as p is then.
        kept = (words >= math.ceil(float(np.float32(self.p)) * 2**24) * 2**8).to(x.dtype).view(x.shape)
        return x.mul_(kept).div_(share) if self.inplace else x * kept / share


def prepare(model: nn.Module) -> nn.Module:
    """A copy of `model` that draws by name; what cannot be simulated exactly is refused with a remedy."""
    try:
        model = copy.deepcopy(model)
    except Exception as error:  # of whatever kind is in the copying of what somebody has put into a module
        if no_room(error):
            raise
        raise InputError("problem.model", type(model).__name__, f"cannot be copied: {named_line(error)}") from error
    named: dict[int, NamedDropout] = {}  # one for each layer, however often it stands in the model
    for name, part in list(model.named_modules(remove_duplicate=False)):
        if isinstance(part, nn.modules.batchnorm._BatchNorm) or getattr(part, "track_running_stats", False):
            raise InputError(
                "problem.model",
                f"{type(part).__name__} ({name})",
                "it normalises over a batch or keeps running statistics, which are not parameters; "
                "use GroupNorm or LayerNorm (the built-in resnet does)",
            )
        if isinstance(part, nn.Dropout):
            if name == "":
                return NamedDropout(part.p, name, part.inplace)
            model.set_submodule(name, named.setdefault(id(part), NamedDropout(part.p, name, part.inplace)))
        elif isinstance(part, nn.modules.dropout._DropoutNd) or _drops_inside(part):
            raise InputError(
                "problem.model",
                f"{type(part).__name__} ({name})",
                "this dropout reads the global generator; use torch.nn.Dropout between the layers instead",
            )
    return model


def _drops_inside(part: nn.Module) -> bool:
    """Whether a recurrent layer, say, drops out on its own."""
    share = getattr(part, "dropout", 0.0)
    return isinstance(share, int | float) and share > 0
