"""What the server of an app distils with: the app's model as a module of PyTorch, and public inputs."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedsim.core.errors import InputError, one_line
from fedsim.core.plugins import kind_of
from fedsim.flower.serving.state_dict import StateDict
from fedsim.problems.modules import hold_module
from fedsim.problems.own_data import supervised
from fedsim.running.bench import bench_for
from fedsim.server.distillation import Bench
from fedsim.server.strategy import Strategy


@dataclass(frozen=True)
class Student:
    """A server's own model, and inputs [n, ...] without labels."""

    model: nn.Module
    public: Tensor

    @classmethod
    def of(cls, strategy: Strategy, model: Any, public: Any) -> Student | None:
        """What a strategy distils with; None: it does not.

        InputError: something is lacking, or nobody has a use for it.
        """
        kind = kind_of("strategies", strategy)
        for option, value in (("model", model), ("public", public)):
            if strategy.distils and value is None:
                remedy = f"{kind} distils on the server; give model=, a torch.nn.Module, and public=, inputs for it"
                raise InputError(option, "(nothing)", remedy)
            if not strategy.distils and value is not None:
                raise InputError(option, type(value).__name__, f"{kind} trains nothing on the server; leave it out")
        if not strategy.distils:
            return None
        with _saying("problem.model", "model"):
            hold_module(model)
        try:
            inputs = torch.as_tensor(public).detach().cpu().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            remedy = f"is no array of inputs [n, ...]: {one_line(str(error), 120)}"
            raise InputError("public", type(public).__name__, remedy) from error
        return cls(model, inputs)

    def bench(self, arrays: ArrayRecord, state: StateDict) -> Bench:
        """What the server works with. arrays: those that the run begins with. state: what they are.

        InputError: they are no state dict of the model, or lie in another order, or inputs are none that it takes.
        """
        model, named = copy.deepcopy(self.model), type(self.model).__name__
        try:
            model.load_state_dict({name: torch.from_numpy(array.numpy()) for name, array in arrays.items()})
        except RuntimeError as error:
            remedy = f"initial_arrays are not its state dict: {one_line(str(error), 160)}"
            raise InputError("model", named, remedy) from error
        count = len(self.public)
        with _saying("x", "public"), _saying("problem.model", "model"):
            problem = supervised(
                self.public,
                [0] * count,  # labels, which nobody looks at
                model=model,
                clients=[range(count)],
                public=self.public,
                device="cpu",
                dtype=state.dtype,
            )
        if (problem.layout.names, problem.layout.shapes) != (state.layout.names, state.layout.shapes):
            remedy = "its arrays are not its trained parameters in their order, as where batches are normalised"
            raise InputError("model", named, f"{remedy}; take a model without, or freeze what it does not train")
        return bench_for(problem, "auto")

    def described(self) -> dict[str, int | str]:
        """What tells public inputs apart, as a table."""
        digest = hashlib.blake2b(self.public.numpy().tobytes(), digest_size=16).hexdigest()
        return {"inputs": len(self.public), "digest": digest}


@contextmanager
def _saying(option: str, argument: str) -> Iterator[None]:
    """Within this block what is refused of an option is said of the argument that it is here."""
    try:
        yield
    except InputError as error:
        raise InputError(argument if error.option == option else error.option, error.value, error.remedy) from None
