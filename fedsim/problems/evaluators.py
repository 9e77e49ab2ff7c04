"""Evaluating the functions of a black box: all at once on tensors, one a client, or one point at a time in processes.

Nothing here imports PyTorch, so that a process which only evaluates functions is ready at once and small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from fedsim.core.errors import FedsimError, InputError, named_line
from fedsim.parallel.workers import Failed, WorkerError, Workers

if TYPE_CHECKING:
    from torch import Tensor


class BlackBoxError(FedsimError):
    """A function of a black box raised, ran out of time, or returned what is no value."""


@dataclass(frozen=True)
class Failure:
    """Why an evaluation gave no value. wrong: it returned something that is none; cause: what it raised, if known."""

    reason: str
    wrong: bool = False
    cause: BaseException | None = None


class Answer(NamedTuple):
    """What an evaluation gave. who: who was asked; shape: of the values; found: what came, a Failure if nothing."""

    who: str
    shape: tuple[int, ...]
    found: object


class Functions(Protocol):
    """The functions f_i of N clients."""

    @property
    def num_clients(self) -> int:
        """N, how many functions there are."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether autograd finds the way from the values back to the points."""
        ...

    def ask(self, clients: Tensor, x: Tensor) -> Iterable[Answer]:
        """Evaluate f_c of clients int64 [C] at x [C, Q, d]; the answers joined are the values [C, Q], row by row.

        The functions get copies, which they may change.
        """
        ...

    def join(self, others: Sequence[Functions]) -> Functions:
        """These and others, of N clients each, as one: client s N + c of it is client c of the s-th, this the first."""
        ...

    def close(self) -> None:
        """End what was started for the evaluation; the next one starts it again."""
        ...


@dataclass(frozen=True)
class Joined:
    """Several functions of N clients each as one of all; see `Functions.join`. Each is asked of its own clients."""

    each: tuple[Functions, ...]

    @property
    def num_clients(self) -> int:
        """The clients of all."""
        return sum(functions.num_clients for functions in self.each)

    @property
    def differentiable(self) -> bool:
        """Whether all of them are."""
        return all(functions.differentiable for functions in self.each)

    def ask(self, clients: Tensor, x: Tensor) -> Iterator[Answer]:
        """Evaluate rows that follow each other and have the same functions in one call."""
        size, own = self.each[0].num_clients, [id(functions) for functions in self.each]
        begin = 0
        for first, group in groupby(own.index(own[client // size]) for client in clients.tolist()):
            rows = slice(begin, begin + len(list(group)))
            yield from self.each[first].ask(clients[rows] % size, x[rows])
            begin = rows.stop

    def join(self, others: Sequence[Functions]) -> Functions:
        """These and others, asked one after the other."""
        return Joined((*self.each, *others))

    def close(self) -> None:
        """Close them all."""
        for functions in self.each:
            functions.close()


class _Apart:
    """What is joined with other functions is still asked by itself."""

    def join(self: Functions, others: Sequence[Functions]) -> Functions:
        """These and others, asked one after the other."""
        return Joined((self, *others))


@dataclass(frozen=True)
class Stacked(_Apart):
    """One function for all clients: function(clients int64 [C], x [C, Q, d]) -> values [C, Q].

    num_clients: N. A row may depend on nothing but its client and its points. When the function raises for several
    clients, each is asked by itself, to find those that it raises for.
    """

    function: Callable[[Tensor, Tensor], Any]
    num_clients: int
    differentiable: bool = False

    def ask(self, clients: Tensor, x: Tensor) -> Iterator[Answer]:
        """Evaluate all rows in one call."""
        count, queries = x.shape[:2]
        found = attempt(self.function, clients, x.clone())
        if count > 1 and isinstance(found, Failure):
            for row in range(count):
                yield from self.ask(clients[row : row + 1], x[row : row + 1])
            return
        who = f"client {int(clients[0])}" if count == 1 else f"the function of all clients, asked of {count}"
        yield Answer(who, (count, queries), found)

    def close(self) -> None:
        """Nothing was started."""


@dataclass(frozen=True)
class Vectorised(_Apart):
    """One function a client: f_i(x [Q, d]) -> values [Q]. arrays: the points are NumPy's, on the CPU, not tensors."""

    functions: Sequence[Callable[[Any], Any]]
    arrays: bool = False
    differentiable: bool = False

    @property
    def num_clients(self) -> int:
        """N, how many functions there are."""
        return len(self.functions)

    def ask(self, clients: Tensor, x: Tensor) -> Iterator[Answer]:
        """Evaluate the clients one after the other."""
        points = _copied(x) if self.arrays else x.clone()
        for row, client in enumerate(clients.tolist()):
            found = attempt(self.functions[client], points[row])
            yield Answer(f"client {client}", (x.shape[1],), found)

    def close(self) -> None:
        """Nothing was started."""


@dataclass(frozen=True)
class Scalar(_Apart):
    """One function a client, one point at a time: f_i(x [d], a NumPy array) -> a number."""

    functions: Sequence[Callable[[Any], Any]]
    differentiable = False

    @property
    def num_clients(self) -> int:
        """N, how many functions there are."""
        return len(self.functions)

    def ask(self, clients: Tensor, x: Tensor) -> Iterator[Answer]:
        """Evaluate the points one after the other."""
        for client, points in zip(clients.tolist(), _copied(x), strict=True):
            for point in points:
                yield Answer(f"client {client}", (), attempt(self.functions[client], point))

    def close(self) -> None:
        """Nothing was started."""


class Processes(_Apart):
    """`Scalar`, in processes of its own, which are started when first asked and stay.

    functions: picklable. workers: how many processes. timeout: seconds for one evaluation, none for None; a process
    that takes longer is killed, with what it has started, and another takes its place. One that ends by itself is
    replaced, too, and its evaluation tried once more. hurry: after a failure evaluate nothing more of the same call.
    Values and failures do not depend on `workers`.
    """

    differentiable = False

    def __init__(
        self, functions: Sequence[Callable[[Any], Any]], workers: int, timeout: float | None = None, hurry: bool = True
    ) -> None:
        self.num_clients, self.hurry = len(functions), hurry
        try:
            self._workers = Workers(workers, list, functions, timeout=timeout)
        except WorkerError as error:
            remedy = "cannot be sent to processes; define them at the top of a module, or leave workers out"
            raise InputError("functions", f"{len(functions)} functions", f"{remedy} ({error.reason})") from error

    def ask(self, clients: Tensor, x: Tensor) -> list[Answer]:
        """Evaluate the points on whichever process is free. After a failure in a hurry, the points behind it are None.

        InputError: a process cannot load the functions.
        """
        owners = [client for client in clients.tolist() for _ in range(x.shape[1])]
        points = _copied(x).reshape(len(owners), -1)
        found: list[object] = [None] * len(owners)
        try:
            with closing(self._workers.stream(_value, list(zip(owners, points, strict=True)), self._ends)) as outcomes:
                for task, outcome in outcomes:
                    found[task] = Failure(outcome.reason) if isinstance(outcome, Failed) else outcome
        except WorkerError as error:
            remedy = "define functions at the top of a module, and run a script below `if __name__ == '__main__':`"
            raise InputError("functions", f"a process that loads them {error.reason}", remedy) from error
        return [Answer(f"client {client}", (), value) for client, value in zip(owners, found, strict=True)]

    def close(self) -> None:
        """End the processes."""
        self._workers.close()

    def _ends(self, outcome: object) -> bool:
        """Whether nothing more is to be evaluated after this one."""
        return isinstance(outcome, Failed | Failure) and (self.hurry or getattr(outcome, "wrong", False))


def _value(functions: Sequence[Callable[[Any], Any]], task: tuple[int, np.ndarray]) -> np.ndarray | Failure:
    """What a process does: f_i of a point."""
    client, point = task
    found = real(attempt(functions[client], point), ())
    return Failure(found.reason, found.wrong) if isinstance(found, Failure) else found


def attempt(function: Callable[..., Any], *given: Any) -> Any:
    """What the function returns, or a Failure that says what it raised."""
    try:
        return function(*given)
    except (Exception, SystemExit) as error:
        return Failure(f"raised {named_line(error)}", cause=error)


def real(found: object, shape: tuple[int, ...]) -> np.ndarray | Failure:
    """What a function returned as float64 of that shape; a Failure if it is not, or is one already.

    NaN and infinity are numbers here; True and False are none.
    """
    if isinstance(found, Failure):
        return found
    try:
        if np.ma.is_masked(found):
            return misfit("an array with masked values", shape)
        array = np.asarray(found)
    except Exception:  # of whatever array NumPy cannot make: the Failure says what was returned
        return misfit(type(found).__name__, shape)
    if array.dtype.kind not in "iuf" or array.shape != shape:
        plain = array.dtype.kind == "O" or isinstance(found, str | bytes)
        return misfit(type(found).__name__ if plain else f"{array.dtype} of shape {array.shape}", shape)
    return array.astype(np.float64)


def misfit(described: str, shape: tuple[int, ...]) -> Failure:
    """The Failure of a function that returned something else than real numbers of that shape."""
    return Failure(f"returned {described}, not real numbers of shape {shape}", wrong=True)


def _copied(x: Tensor) -> np.ndarray:
    return np.array(x.detach().cpu().numpy())


def is_whole(value: object, least: int | None = None) -> bool:
    """Whether a value is a whole number, Python's or NumPy's, of so much at least."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        return False
    return least is None or int(value) >= least


def is_number(value: object) -> bool:
    """Whether a value is a real number, Python's or NumPy's."""
    return isinstance(value, Real) and not isinstance(value, bool)
