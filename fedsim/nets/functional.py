"""A module under given parameters, from any thread: each thread has a copy of its own."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.func import functional_call


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

    def bind(self, leaves: Iterable[Tensor]) -> tuple[nn.Module, list[nn.Parameter]]:
        """Give the thread's copy, and its trainable parameters, which share memory with `leaves` (in their own order).

        Much cheaper than `functional_call`, which matters where a client's step is a few microseconds of arithmetic.
        """
        model = self._copy()
        parameters: list[nn.Parameter] = self._own.parameters
        for parameter, leaf in zip(parameters, leaves, strict=True):
            parameter.data = leaf
        return model, parameters

    def _copy(self) -> nn.Module:
        if not hasattr(self._own, "model"):
            self._own.model = copy.deepcopy(self._model)
            self._own.parameters = [own for own in self._own.model.parameters() if own.requires_grad]
        model: nn.Module = self._own.model
        return model
