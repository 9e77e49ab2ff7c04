"""A module as a function of its parameters, from any thread."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call


class Functional:
    """Calls a module with given parameters instead of its own.

    `functional_call` swaps the module's tensors while it runs, so each thread calls a copy of its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._own = model, threading.local()

    def __call__(self, named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs of inputs x under parameters by name."""
        if not hasattr(self._own, "model"):
            self._own.model = copy.deepcopy(self._model)
        outputs: Tensor = functional_call(self._own.model, dict(named), (x,))
        return outputs
