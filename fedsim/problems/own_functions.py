"""Black boxes from a user's own functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.problems.base import choose_device
from fedsim.problems.black_box import BlackBox, OnError
from fedsim.problems.evaluators import Functions, Processes, Scalar, Stacked, Vectorised, is_number, is_whole
from fedsim.problems.spaces import Typed, space_of

Kind = Literal["stacked", "vectorised", "numpy", "scalar"]


def black_box(
    functions: Callable[[Tensor, Tensor], Any] | Sequence[Callable[[Any], Any]],
    *,
    dimension: int | None = None,
    space: Mapping[str, Any] | None = None,
    relax: bool = False,
    kind: Kind | None = None,
    clients: int | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    start: float | Sequence[float] | np.ndarray | Tensor | Mapping[str, Any] | None = None,
    optimum: float | None = None,
    noise: float = 0.0,
    differentiable: bool = False,
    workers: int = 0,
    timeout: float | None = None,
    on_error: OnError = "stop",
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float64,
) -> BlackBox:
    """A problem from functions of your own: minimise F(x) = (1/N) sum_i f_i(x), where only values can be asked for.

    functions: by `kind`, which is "stacked", or "scalar" where there is a space,
    "stacked": one callable f(clients int64 [C], x [C, Q, d]) -> [C, Q] on tensors, the fastest; `clients` says how many
    clients there are, N, and a row may depend on nothing but its own client and points;
    "vectorised": a list of N callables f_i(x [Q, d]) -> [Q] on tensors;
    "numpy": the same on NumPy arrays;
    "scalar": a list of N callables f_i(x [d]) -> number, NumPy arrays, one point at a time.
    space: in place of dimension and bounds, variables by name: a number between bounds of its own, (low, high), or on a
    logarithmic scale, ("log", low, high); a whole number, ("int", low, high); a category, ("cat", [choices]). Functions
    are then scalar, and asked with a dict of these values, f_i({"lr": 0.01, "layers": 3}), never outside the bounds.
    Algorithms search [0, 1]^d; `problem.space.typed(result.params)` says what was found, and rows have it, too, as
    `at_lr`. Whole numbers and categories have no slopes: clients that search along differences are refused, unless
    relax = True. start: a dict of some of the variables.
    Functions should give the same value for the same point each time, as a tensor, an array or numbers.
    bounds: the box, lower and upper, the same for every coordinate; None: R^d. Algorithms stay inside where they
    can, but points a small step outside may be asked for. start: a number for all coordinates, or d of them; by
    default the middle of the box, or 0. optimum: min F, if known: `gap` is then measured. noise: standard deviation of
    normal noise on every answer. differentiable: autograd may be used on the functions (stacked or vectorised), for
    diagnostics only.
    workers: for "scalar", evaluate in so many processes; functions must be picklable: defined at the top of a module,
    in a script whose own work stands below `if __name__ == "__main__":`. timeout: seconds that an evaluation may take
    in such a process before it is killed. on_error: what happens when a function raises, takes too long or ends its
    process, twice for the same point: "stop" the run with a BlackBoxError that names the client, or "nan": the value is
    NaN, and searches go on with the others.
    """
    variables = None if space is None else space_of(space)
    if variables is not None:
        for name, given in (("dimension", dimension), ("bounds", None if bounds == (0.0, 1.0) else bounds)):
            if given is not None:
                raise InputError(name, given, "the space says it; leave it out")
        if kind not in (None, "scalar"):
            raise InputError(
                "kind", kind, "functions of a space are asked one point at a time: scalar, or leave it out"
            )
        if start is not None and not isinstance(start, Mapping):
            raise InputError("start", type(start).__name__, "of a space is a dict of its variables, or leave it out")
        dimension, start = variables.dimension, None if start is None else variables.point(start)
    elif relax:
        raise InputError("relax", True, "is of whole numbers and categories of a space; leave it out")
    if isinstance(start, Mapping):
        raise InputError("start", "a dict", "is of variables of a space; give numbers, or a space")
    if dimension is None:
        raise InputError("dimension", None, "say how many coordinates there are, or give a space")
    kind = kind or ("stacked" if variables is None else "scalar")
    remedy = "give one of stacked, vectorised, numpy, scalar"
    if kind not in ("stacked", "vectorised", "numpy", "scalar"):
        raise InputError("kind", kind, remedy)
    if not is_whole(workers, 0) or (workers and kind != "scalar"):
        raise InputError("workers", workers, 'only kind = "scalar" has processes, 1 or more; set it, or leave this out')
    if timeout is not None and not workers:
        raise InputError("timeout", timeout, "nothing can be stopped in this process; set workers, or leave it out")
    if timeout is not None and not (is_number(timeout) and 0 < timeout < math.inf):
        raise InputError("timeout", timeout, "give seconds above 0, or leave it out")
    if differentiable and kind not in ("stacked", "vectorised"):
        raise InputError("differentiable", differentiable, "only functions on tensors are: stacked, vectorised")
    evaluated: Functions
    if kind == "stacked":
        if not callable(functions):
            remedy = "write one function for all clients; kind vectorised, numpy or scalar takes a list of one each"
            raise InputError("functions", type(functions).__name__, remedy)
        if clients is None or not is_whole(clients, 1):
            raise InputError("clients", clients, "say how many clients the stacked function has, one at least")
        evaluated = Stacked(functions, clients, differentiable)
    else:
        listed = _listed(functions, kind, clients)
        if variables is not None:
            listed = [Typed(function, variables) for function in listed]
        if workers:
            evaluated = Processes(listed, workers, timeout, hurry=on_error == "stop")
        elif kind == "scalar":
            evaluated = Scalar(listed)
        else:
            evaluated = Vectorised(listed, arrays=kind == "numpy", differentiable=differentiable)
    return BlackBox(
        evaluated,
        dimension=dimension,
        bounds=bounds,
        start=start,
        optimum=optimum,
        noise=noise,
        on_error=on_error,
        device=choose_device(device, "device"),
        dtype=dtype,
        space=variables,
        relax=relax,
    )


def _listed(functions: object, kind: str, clients: int | None) -> Sequence[Callable[[Any], Any]]:
    """The functions of N clients, one each."""
    if clients is not None:
        raise InputError("clients", clients, f"leave it out: of kind {kind} there is one function a client")
    if callable(functions) or not isinstance(functions, Sequence) or not all(map(callable, functions)):
        raise InputError("functions", type(functions).__name__, f"of kind {kind} is a list of callables, one a client")
    if not functions:
        raise InputError("functions", "[]", "give one function a client, one at least")
    return tuple(functions)
