"""What selectors and strategies return is held to what they are asked for, where it enters the loop.

Each of these takes what a plug-in has returned and gives it back with its type, or raises a BrokenPromiseError: one
line that names the plug-in. It costs a few comparisons a round, whatever the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from fedsim.core.errors import BrokenPromiseError
from fedsim.core.near import meant
from fedsim.core.streams import Streams
from fedsim.engine.ledger import Ledger
from fedsim.exchange.actions import UTILITY
from fedsim.exchange.messages import Free, Order, broken, shown
from fedsim.exchange.windows import All, Enough, Every, First, Window
from fedsim.problems.base import Looped
from fedsim.server.selection.base import Selector, SelectorState, Turn
from fedsim.server.strategy import Metrics, ServerState, Strategy

OURS = frozenset({"round", "time", "wall", *Ledger.__dataclass_fields__})
"""Columns of a row that a strategy's metrics may not be called like."""


def at_once(selector: Selector, population: int) -> int:
    """How many clients work at once; what else a selector declares is looked at, too."""
    wanted: Any = selector.of(population)
    examples: Any = selector.score_examples
    if not selector.reports <= {UTILITY}:
        raise _selector(selector, f"its reports are {', '.join(selector.reports)}, and replies carry {UTILITY} alone")
    if examples is not None and not (isinstance(examples, int) and examples >= 1):
        raise _selector(selector, f"its score_examples are {shown(examples)}, not None or a number of examples")
    if not isinstance(wanted, int) or not 1 <= wanted <= population:
        raise _selector(selector, f"of({population}) is {shown(wanted)}, not a number of clients from 1 to that")
    return wanted


def goes_by_losses(selector: Selector, sizes: Tensor) -> bool:
    """Whether a selector is told clients' losses. sizes: examples of each client, int64 [N]."""
    everybody = np.ones(len(sizes), dtype=np.bool_)
    turn = Turn(Streams(0), 0, Free(everybody, len(everybody)), at_once(selector, len(everybody)))
    return bool(selector.reports) or selector.candidates(selector.start(sizes), turn) is not None


def selector_state(selector: Selector, given: Any, method: str, before: SelectorState | None = None) -> SelectorState:
    """What a selector remembers, as one of its methods has returned it. before: what it remembered; None: nothing."""
    if not isinstance(given, dict) or not all(isinstance(value, Tensor) for value in given.values()):
        raise _selector(selector, f"{method} returns {shown(given)}, not a state: a dict of tensors")
    if not all(isinstance(name, str) for name in given):
        raise _selector(selector, f"{method} returns a state by the names {', '.join(map(repr, given))}; name by texts")
    if before is not None and given is not before and given.keys() != before.keys():
        had, has = (", ".join(sorted(names)) or "nothing" for names in (before, given))
        raise _selector(selector, f"{method} remembers {has} where it had been {had}; names stay what start gives")
    return given


def candidates(selector: Selector, given: Any, free: Free) -> Tensor | None:
    """Whose losses a selector asks for."""
    return None if given is None else _clients(selector, given, free, "asks for the loss of")


def selected(
    selector: Selector, given: Any, free: Free, wanted: int, before: SelectorState
) -> tuple[Tensor, SelectorState]:
    """Whom a selector has chosen, and what it remembers; `before` is what it was handed."""
    if not isinstance(given, tuple) or len(given) != 2:
        raise _selector(selector, f"select returns {shown(given)}, not the chosen clients and a state")
    chosen = _clients(selector, given[0], free, "chooses")
    if not len(chosen) and selector.least(len(free.mask)):
        raise _selector(selector, f"it chooses nobody where {free.count} are free; choose one at least")
    if len(chosen) > wanted:
        raise _selector(selector, f"it chooses {len(chosen)} clients where {wanted} are wanted")
    return chosen, selector_state(selector, given[1], "select", before)


def _clients(selector: Selector, given: Any, free: Free, verb: str) -> Tensor:
    """Ids of different free clients, ascending."""
    if not isinstance(given, Tensor) or given.dtype != torch.int64 or given.dim() != 1:
        raise _selector(selector, f"it {verb} {shown(given)}, not a tensor of ids, int64 [k]")
    ids, population = given.numpy(), len(free.mask)
    if not len(ids):
        return given
    rises = ids[1:] > ids[:-1]
    if not rises.all():
        last, following = ids[np.argmin(rises) :][:2]
        fault = f"client {last} twice" if last == following else f"client {following} after {last}"
        raise _selector(selector, f"it {verb} {fault}; ids are ascending, each once")
    if ids[0] < 0 or ids[-1] >= population:
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        raise _selector(selector, f"it {verb} client {wrong}, and there are clients 0 to {population - 1}")
    ready = free.mask[ids]
    if not ready.all():
        fault = "who is not free: at work, asleep or without examples"
        raise _selector(selector, f"it {verb} client {ids[int(np.argmin(ready))]}, {fault}")
    return given


def begun(strategy: Strategy, given: Any, problem: Looped, method: str) -> ServerState:
    """The state to begin with, as one of a strategy's methods has returned it."""
    state = _state(strategy, given, method)
    if state.params.shape != (problem.dimension,) or state.params.dtype != problem.dtype:
        dtype = str(problem.dtype).removeprefix("torch.")
        fault = f"{method} returns as params {shown(state.params)}, and the model is {dtype} [{problem.dimension}]"
        raise _strategy(strategy, fault)
    return state


def resized(
    strategy: Strategy, given: Any, before: ServerState, method: Literal["resize", "forget"] = "resize"
) -> ServerState:
    """The state for other clients, as a method has returned it. before: what it was handed."""
    state = _state(strategy, given, method)
    kind, had = (state.params.shape, state.params.dtype), (before.params.shape, before.params.dtype)
    if state.params is not before.params and not (kind == had and torch.equal(state.params, before.params)):
        raise _strategy(strategy, f"{method} changes the model, which stays what it is whoever comes")
    if (state.round, state.phase) != (before.round, before.phase):
        fault = f"{method} leaves round {state.round} and phase {state.phase} after {before.round} and {before.phase}"
        raise _strategy(strategy, f"{fault}; they stay")
    return state


def asked(strategy: Strategy, given: Any, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
    """What a strategy wants to be sent to the chosen clients, and when it looks again."""
    if not isinstance(given, tuple) or len(given) != 2:
        raise _strategy(strategy, f"ask returns {shown(given)}, not an Order and a window")
    order, window = given
    if not isinstance(order, Order) or not isinstance(window, All | Every | First | Enough):
        raise _strategy(strategy, f"ask returns {shown(order)} and {shown(window)}, not an Order and a window")
    if order.clients is not chosen and not _are_among(order.clients, chosen):
        raise _strategy(strategy, f"its order is to {shown(order.clients)}, not to chosen clients, ascending")
    unknown = (order.payload.keys() | order.config.keys()) - strategy.down
    if unknown:
        near = meant(min(unknown), strategy.down)
        raise _strategy(strategy, f"its order has {', '.join(sorted(unknown))}, which its `down` does not name{near}")
    twice = order.payload.keys() & order.config.keys()
    if twice:
        raise _strategy(strategy, f"its order has {', '.join(sorted(twice))} as a vector and as a setting")
    for name, vector in order.payload.items():
        if not isinstance(vector, Tensor):
            raise _strategy(strategy, f"it sends {name} as {shown(vector)}, not as a tensor")
        if name == "params" and vector.shape != state.params.shape:
            raise _strategy(strategy, f"it sends as params {shown(vector)} where the model is {shown(state.params)}")
    for name, setting in order.config.items():
        if not isinstance(setting, bool | int | float | str):
            raise _strategy(strategy, f"it sends the setting {name} as {shown(setting)}; give a number or a text")
    if order.round != state.round:
        raise _strategy(strategy, f"its order is of round {order.round}, and the state of {state.round}")
    if isinstance(window, First) and not (isinstance(window.count, int) and window.count >= 1):
        raise _strategy(strategy, f"its window closes with the first {window.count} replies; wait for one at least")
    return order, window


def _are_among(clients: Any, chosen: Tensor) -> bool:
    """Whether these are ids, ascending and each once, of clients that are chosen."""
    if not isinstance(clients, Tensor) or clients.dtype != torch.int64 or clients.dim() != 1:
        return False
    ids = clients.tolist()
    return ids == sorted(set(ids)) and set(chosen.tolist()).issuperset(ids)


def hold_unchanged(strategy: Strategy, method: str, lent: Tensor, version: int) -> None:
    """Refuse a method that has written to the model [d] that it was lent. version: PyTorch's count, before."""
    if lent._version != version:
        raise _strategy(strategy, f"{method} changes the params of the state that it is handed; have it make others")


def told(strategy: Strategy, given: Any, before: ServerState) -> tuple[ServerState, Metrics, bool]:
    """A strategy's new state, what it has observed, and whether a round is complete."""
    if not isinstance(given, tuple) or len(given) != 3:
        raise _strategy(strategy, f"tell returns {shown(given)}, not a state, metrics and whether the round is done")
    state, metrics, done = _state(strategy, given[0], "tell"), given[1], given[2]
    if state.params.shape != before.params.shape or state.params.dtype != before.params.dtype:
        fault = f"tell returns as params {shown(state.params)}, and the model is {shown(before.params)}"
        raise _strategy(strategy, f"{fault}; look at the shape of its step")
    _hold_metrics(strategy, "tell", metrics)
    if not isinstance(done, bool):
        raise _strategy(strategy, f"tell returns {shown(done)} for whether the round is done, not True or False")
    moved = (state.round, state.phase)
    if moved != (before.round + 1, 0) if done else state.round != before.round or state.phase <= before.phase:
        fault = f"tell leaves round {state.round} and phase {state.phase} after {before.round} and {before.phase}"
        remedy = "a round that is done counts one more and ends at phase 0" if done else "a window counts a phase more"
        raise _strategy(strategy, f"{fault}; {remedy}")
    return state, cast("Metrics", metrics), done


def refined(strategy: Strategy, given: Any, before: ServerState) -> tuple[ServerState, Metrics]:
    """A strategy's state after the server has trained the model, and what it has observed."""
    if not isinstance(given, tuple) or len(given) != 2:
        raise _strategy(strategy, f"refine returns {shown(given)}, not a state and metrics")
    state = _state(strategy, given[0], "refine")
    if state.params.shape != before.params.shape or state.params.dtype != before.params.dtype:
        fault = f"refine returns as params {shown(state.params)}, and the model is {shown(before.params)}"
        raise _strategy(strategy, fault)
    if (state.round, state.phase) != (before.round, before.phase):
        raise _strategy(strategy, f"refine leaves round {state.round} after {before.round}; `tell` counts them")
    _hold_metrics(strategy, "refine", given[1])
    return state, cast("Metrics", given[1])


def _hold_metrics(strategy: Strategy, method: str, metrics: Any) -> None:
    """Refuse metrics that a row cannot have."""
    if not isinstance(metrics, Mapping):
        raise _strategy(strategy, f"{method} returns {shown(metrics)} as metrics, not numbers by name")
    for name, value in metrics.items():
        if not isinstance(value, Real) or not isinstance(name, str):
            raise _strategy(strategy, f"its metric {name} is {shown(value)}; give a number, as float(...) does")
        if name in OURS:
            raise _strategy(strategy, f"its metric {name} is called like a column of every run; call it otherwise")


def _state(strategy: Strategy, given: Any, method: str) -> ServerState:
    if not isinstance(given, ServerState) or not isinstance(cast("Any", given.params), Tensor):
        raise _strategy(strategy, f"{method} returns {shown(given)}, not a ServerState whose params are a tensor")
    for kept in (given.optimizer, given.memory):
        for name, value in kept.items():
            if not isinstance(value, Tensor):
                raise _strategy(strategy, f"{method} keeps {name} as {shown(value)}, not as a tensor")
    return given


def _selector(selector: Selector, fault: str) -> BrokenPromiseError:
    return broken("selection", "selectors", selector, fault)


def _strategy(strategy: Strategy, fault: str) -> BrokenPromiseError:
    return broken("strategy", "strategies", strategy, fault)
