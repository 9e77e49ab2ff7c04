"""Black boxes: clients that can only ask for values of a function of their own.

minimise F(x) = (1/N) sum_i f_i(x) over a box [lower, upper]^d or R^d. A query is one point for one client; its answer
is f_i(x) + noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.errors import InputError, one_line
from fedsim.core.memory import room
from fedsim.core.streams import Index, Streams
from fedsim.nets.stack import Layout
from fedsim.parallel.cores import one_core_an_operation
from fedsim.problems.base import CLIENTS_EVALUATED, Trial
from fedsim.problems.evaluators import (
    Answer,
    BlackBoxError,
    Failure,
    Functions,
    is_number,
    is_whole,
    misfit,
    real,
)
from fedsim.problems.measures import Measure
from fedsim.problems.spaces import Space

AT_ONCE = 2**24
"""Coordinates at which functions are evaluated at once when F is."""
WIDTHS = (1e-100, 1e100)
"""How wide a box is at least and at most, so that squares of distances in it are numbers."""
OnError = Literal["stop", "nan"]


class BlackBox:
    """N functions over a box or R^d, on a device.

    functions: how they are evaluated. dimension: d. bounds: (lower, upper) of every coordinate; None: R^d. Points
    outside are passed on: to stay inside is up to the algorithms. start: a number for all coordinates or d of them; by
    default the middle of the box, or 0. optimum: min F, if known. noise: standard deviation of the normal noise of an
    answer. on_error: when a function raises, takes too long or ends its process, "stop" the run with a BlackBoxError or
    take "nan" for what that call should have given. What is not real numbers of the right shape is always a
    BlackBoxError. NaN and infinity are answers like others: the algorithms decide what becomes of them. space: the
    variables that coordinates in [0, 1] stand for, if these have names; relax: whether whole numbers and categories
    among them may be searched by slopes.
    """

    data = None
    model = None
    trained = None

    def __init__(
        self,
        functions: Functions,
        *,
        dimension: int,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        start: float | Sequence[float] | np.ndarray | Tensor | None = None,
        optimum: float | None = None,
        noise: float = 0.0,
        on_error: OnError = "stop",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        space: Space | None = None,
        relax: bool = False,
    ) -> None:
        if functions.num_clients < 1:
            raise InputError("clients", functions.num_clients, "take one function at least")
        if not is_whole(dimension, 1):
            raise InputError("dimension", dimension, "take a whole number, one at least")
        if 4 * 8 * dimension > room():
            raise InputError("dimension", dimension, "does not fit in this machine's memory; take fewer coordinates")
        if not is_number(noise) or not 0 <= noise < math.inf:
            raise InputError("noise", noise, "a standard deviation is 0 or more, and finite")
        if optimum is not None and not (is_number(optimum) and math.isfinite(optimum)):
            raise InputError("optimum", optimum, "give a finite number, or leave it out")
        if on_error not in ("stop", "nan"):
            raise InputError("on_error", on_error, "name one of: stop, nan")
        if dtype not in (torch.float32, torch.float64):
            raise InputError("dtype", str(dtype), "take torch.float32 or torch.float64")
        self.functions, self.dimension, self.bounds = functions, dimension, checked_bounds(bounds)
        self.optimum, self.noise, self.on_error = optimum, noise, on_error
        self.space, self.relax = space, relax
        self.device, self.dtype = torch.device(device), dtype
        self.sizes = torch.ones(functions.num_clients, dtype=torch.int64)
        self.sizes_on_device, self.largest = self.sizes.to(self.device), 1
        self._start = _checked_start(start, dimension, self.bounds).to(self.device, dtype)
        self._complaints: dict[int, str] = {}

    @property
    def layout(self) -> Layout:
        """Where parameters lie: all in one leaf."""
        return Layout.flat(self.dimension)

    def classes(self) -> int:
        """InputError: there are none."""
        raise InputError("problem.kind", "a black box", "it has no examples; take another strategy")

    def features(self) -> int:
        """InputError: there are none."""
        raise InputError("problem.kind", "a black box", "it has no model; take another strategy")

    @property
    def cells(self) -> Tensor | None:
        """Of each coordinate how many values a whole number has there, int64 [d], 0 of others; None: of none."""
        return None if self.space is None else torch.from_numpy(self.space.cells)

    @property
    def num_clients(self) -> int:
        """N, how many clients there are."""
        return len(self.sizes)

    @property
    def may_fail(self) -> bool:
        """Whether the run outlives evaluations that give no finite value."""
        return self.on_error == "nan"

    def complaints(self) -> dict[int, str]:
        """Of each client whose evaluations have failed since the last call, what the first of them said."""
        found, self._complaints = self._complaints, {}
        return found

    @property
    def oracle(self) -> BlackBox:
        """What clients ask for values: this."""
        return self

    @property
    def differentiable(self) -> bool:
        """Whether there are `gradients`."""
        return self.functions.differentiable

    def initial(self) -> Tensor:
        """The point to start from, [d]; a copy."""
        return self._start.clone()

    def query(self, clients: Tensor, x: Tensor, streams: Streams, turn: Index, step: Index) -> Tensor:
        """Answers f_c(x) + noise, [C, Q], of clients int64 [C] at x [C, Q, d].

        The noise of a client is named by (turn, step) and the place of the point in the call, whoever else is asked.
        BlackBoxError: see the class.
        """
        values = self._values(clients, x)
        if self.noise and values.numel():
            shape = (x.shape[1],)
            drawn = streams.normal("query-noise", clients, shape, turn=turn, step=step, dtype=self.dtype)
            values = values + self.noise * drawn
        return values

    def gradients(self, clients: Tensor, x: Tensor) -> Tensor | None:
        """Gradients of f_c, without noise, at x [C, Q, d]: [C, Q, d], for diagnostics; None if not `differentiable`.

        That of F is their mean over all clients.
        """
        if not self.differentiable:
            return None
        with torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            total = self._traced(clients, at).sum()
            if not total.requires_grad:
                raise BlackBoxError("the functions are said to be differentiable, but autograd finds no way through")
            (found,) = torch.autograd.grad(total, at)
        return found

    def truth(self, clients: Tensor, x: Tensor) -> Tensor | None:  # noqa: ARG002
        """The gradient of F at points x [k, d], of which each is of a client, int64 [k]: [k, d]; None: not known."""
        everyone = torch.arange(self.num_clients, device=x.device)
        found = self.gradients(everyone, x.expand(self.num_clients, -1, -1))
        return None if found is None else found.mean(dim=0)

    def losses(
        self,
        params: Tensor,
        clients: Tensor,
        sampled: Callable[[int], Tensor] | None,  # noqa: ARG002
        streams: Streams,
        turn: int,
    ) -> Tensor:
        """The answers of clients, int64 [C], at params [d], and their absolute values: float64 [C, 2].

        They have no examples to be sampled. Noise is named by (turn, 0), a step that no query of a client's has.
        """
        answers = self.query(clients, params.expand(len(clients), 1, -1), streams, turn, 0)
        return torch.cat((answers, answers.abs()), dim=1).double()

    def evaluate(
        self,
        params: Tensor,
        *,
        clients: bool,
        on: Collection[str] = ("test",),  # noqa: ARG002
        metrics: Sequence[Measure] = (),
    ) -> dict[str, float]:
        """Measure params [d] without noise: `value`, F; `gap`, F - min F, where that is known; `at_` each variable.

        clients: also the 90 % quantile of the f_i and the largest of them. on: a black box has no sets of examples, and
        nothing to take other metrics of.
        """
        _hold_none(metrics)
        values = self._everywhere(params, torch.arange(self.num_clients, device=self.device))
        found = {"value": float(values.mean())}
        if self.optimum is not None:
            found["gap"] = found["value"] - self.optimum
        if self.space is not None:
            found |= {f"at_{name}": number for name, number in self.space.numbers(params.cpu().numpy()).items()}
        if clients:
            found["client_value_p90"] = float(torch.quantile(values, 0.9))
            found["client_value_worst"] = float(values.max())
        return found

    def client_measures(
        self,
        params: Tensor,
        metrics: Sequence[Measure] = (),
        on: Collection[str] = ("test",),  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """The value of each client's function at params [d], without noise: float64 [N]."""
        _hold_none(metrics)
        return {"value": self._everywhere(params, torch.arange(self.num_clients, device=self.device))}

    def evaluates_clients(self, wanted: bool | str) -> bool:
        """Whether clients are evaluated: as asked, or, for "auto", up to 1,000 of them."""
        return wanted if isinstance(wanted, bool) else self.num_clients <= CLIENTS_EVALUATED

    def measures(
        self,
        clients: bool | str,
        on: Collection[str] = ("test",),  # noqa: ARG002
        metrics: Sequence[Measure] = (),
    ) -> list[str]:
        """The names that `evaluate` gives, with clients as `evaluates_clients` decides."""
        _hold_none(metrics)
        own = ["client_value_p90", "client_value_worst"] if self.evaluates_clients(clients) else []
        at = [] if self.space is None else [f"at_{variable.name}" for variable in self.space.variables]
        return ["value"] + ([] if self.optimum is None else ["gap"]) + at + own

    def attacked(self, params: Tensor, trial: Trial) -> dict[str, float]:  # noqa: ARG002
        """Refuse: there are no examples to attack."""
        raise InputError(*trial.named, "the clients of a black box have no examples to attack; leave it out")

    def attacked_measures(self, trial: Trial) -> list[str]:
        """Refuse, as `attacked` does."""
        return list(self.attacked(self._start, trial))

    names = None

    def provenance(self) -> dict[str, Any]:
        """There are no data."""
        return {}

    def labels(self) -> None:
        """There are no labels."""
        return

    def tensors(self, params: Tensor) -> dict[str, Tensor]:
        """The point by name, as it is saved."""
        return {"x": params}

    def illustrate(self, place: Callable[[str], Path], params: Tensor) -> None:
        """Draw nothing: any function looks different."""

    def close(self) -> None:
        """End the processes that evaluate functions; they also end with the problem, and start again when asked."""
        self.functions.close()

    def _everywhere(self, params: Tensor, clients: Tensor) -> Tensor:
        """f_c(params) of clients [C], float64 [C]."""
        parts = torch.split(clients, max(1, AT_ONCE // self.dimension))
        found = [self._values(part, params.expand(len(part), 1, -1))[:, 0] for part in parts]
        return torch.cat(found).double()

    def _values(self, clients: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._traced(clients, x)

    def _traced(self, clients: Tensor, x: Tensor) -> Tensor:
        """Values without noise, [C, Q], and autograd's way back from them if it is recording."""
        if not (x.shape[0] and x.shape[1]):
            return torch.zeros(x.shape[:2], dtype=self.dtype, device=self.device)
        found, place = list[Tensor](), 0
        with one_core_an_operation():
            for answer in self.functions.ask(clients, x):
                found.append(self._numbers(answer, clients, place // x.shape[1]).reshape(-1))
                place += len(found[-1])
        return torch.cat(found).reshape(x.shape[:2])

    def _numbers(self, answer: Answer, clients: Tensor, row: int) -> Tensor:
        """The values of one answer, of which the client in a row of `clients` is the first; NaN for failures."""
        found, shape = answer.found, answer.shape
        if isinstance(found, Tensor):
            numeric = not (found.is_complex() or found.dtype == torch.bool)
            if numeric and tuple(found.shape) == shape:
                return found.to(self.device, self.dtype)
            found = misfit(f"{found.dtype} of shape {tuple(found.shape)}", shape)
        values = real(found, shape)
        if not isinstance(values, Failure):
            return torch.from_numpy(values).to(self.device, self.dtype)
        if values.wrong or self.on_error == "stop":
            raise BlackBoxError(f"{answer.who}: {values.reason}") from values.cause
        self._complaints.setdefault(int(clients[row]), values.reason)
        return torch.full(shape, torch.nan, dtype=self.dtype, device=self.device)


def _hold_none(metrics: Sequence[Measure]) -> None:
    """Refuse measures of a model's outputs, of which there are none."""
    if metrics:
        labels = ", ".join(measure.label for measure in metrics)
        raise InputError("metrics", labels, "the clients of a black box have values and no outputs; leave it out")


def checked_bounds(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """Lower and upper bounds of a box, the same for every coordinate, or None. InputError: they are none."""
    if bounds is None:
        return None
    try:
        lower, upper = (float(bound) for bound in bounds)
    except (TypeError, ValueError) as error:
        raise InputError("bounds", bounds, "give two numbers, lower and upper, or None") from error
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise InputError("bounds", bounds, "give two finite numbers, the lower one first, or None")
    if not WIDTHS[0] <= upper - lower <= WIDTHS[1]:
        fault = f"a box is {WIDTHS[0]:g} to {WIDTHS[1]:g} wide; scale what the functions are asked"
        raise InputError("bounds", bounds, fault)
    return lower, upper


def _checked_start(start: Any, dimension: int, bounds: tuple[float, float] | None) -> Tensor:
    """The starting point on the CPU, float64 [d]."""
    lower, upper = bounds or (-math.inf, math.inf)
    if start is None:
        start = 0.0 if bounds is None else lower + (upper - lower) / 2
    given = start.detach().double().cpu() if isinstance(start, Tensor) else start  # NumPy has no bfloat16
    values = real(given, ())
    if isinstance(values, Failure):
        values = real(given, (dimension,))
    if isinstance(values, Failure):
        shown = one_line(start, 100)
        raise InputError("start", shown, f"give one number, or {dimension}, one for each coordinate")
    outside = ~(np.isfinite(values) & (lower <= values) & (values <= upper))
    if outside.any():
        where = "finite" if bounds is None else f"within {lower:g} .. {upper:g}"
        raise InputError("start", float(values[outside].flat[0]), f"all coordinates have to be {where}")
    return torch.from_numpy(np.broadcast_to(values, dimension).copy())
