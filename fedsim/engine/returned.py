"""What a client algorithm returns is held to what it is asked for, and to what it has declared itself.

Faults are a BrokenPromiseError: one line that names the algorithm. A reply's numbers are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedsim.core.errors import BrokenPromiseError
from fedsim.core.near import meant
from fedsim.engine.client import Client
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Cost, Order, Size, Update, broken, shaped, shown
from fedsim.exchange.transforms import Shapes


def declared(client: Client, order: Order, examples: Tensor) -> Cost:
    """What clients with so many examples, int64 [C], say that this order takes them."""
    if not callable(getattr(client, order.action, None)):
        near = meant(order.action, [name for name in dir(client) if not name.startswith("_")])
        raise _client(client, f"the order is to {order.action}, and it has no such method{near}")
    try:
        cost: Any = client.cost(order, examples)
    except KeyError as error:
        if error.args[0] not in client.requires:
            raise
        sent = ", ".join([*order.payload, *order.config]) or "nothing"
        raise _client(client, f"it needs {error.args[0]}, and the order to {order.action} sends {sent}") from error
    if not isinstance(cost, Cost):
        raise _client(client, f"cost returns {shown(cost)}, not a Cost")
    steps: Any = cost.steps
    if not isinstance(steps, Tensor) or steps.dtype != torch.int64 or steps.shape != examples.shape:
        raise _client(client, f"its cost has as steps {shown(steps)}, not int64 {list(examples.shape)}")
    for name, size in cost.reply.items():
        if name not in client.up:
            raise _client(client, f"its cost declares {name}, which its `up` does not name{meant(name, client.up)}")
        if not isinstance(size, Size):
            raise _client(client, f"its cost has as the size of {name} {shown(size)}, not a Size")
    return cost


def remembered(client: Client, given: Any) -> Shapes:
    """The shapes of what each client remembers."""
    if not shaped(given):
        raise _client(client, f"state returns {shown(given)}, not shapes by name: tuples of integers")
    shapes: Shapes = given
    return shapes


def done(client: Client, given: Any, told: Mapping[str, Tensor], cost: Cost, cohort: Cohort, shapes: Shapes) -> Update:
    """What clients have come to.

    told: what they have said beforehand. cost: as they had declared it. shapes: of what each of them remembers.
    """
    if not isinstance(given, Update) or not isinstance(given.payload, Mapping):
        raise _client(client, f"it returns {shown(given)}, not an Update whose payload has tensors by name")
    update: Update = replace(given, payload={**given.payload, **told}) if told else given
    count = len(cohort)
    for name, rows in update.payload.items():
        if not isinstance(rows, Tensor) or rows.dim() == 0 or len(rows) != count:
            raise _client(client, f"it sends as {name} {shown(rows)}, not a tensor of one row a client, {count} in all")
        if rows.requires_grad:
            raise _client(client, f"it sends {name} with the graph that has made it; detach it")
    _hold_numbers(client, {**cohort.metrics, **update.metrics}, count)
    for name, kept in cohort.state.items():
        shape = shapes.get(name)
        if shape is None or not isinstance(kept, Tensor) or kept.shape != (count, *shape):
            wanted = "nothing" if shape is None else list(shape)
            raise _client(client, f"it keeps {name} as {shown(kept)}, and its state declares {wanted} a client")
    if not torch.equal(cohort.steps_taken, cost.steps):
        took = cohort.steps_taken.tolist()
        raise _client(client, f"it took {took} local steps where its cost declares {cost.steps.tolist()}")
    least, most = cost.queries, cost.queries + cost.first
    if count and not (least <= int(cohort.queries.min()) and int(cohort.queries.max()) <= most):
        declares = str(least) if least == most else f"{least} to {most}"
        raise _client(client, f"it asked for {cohort.queries.tolist()} values where its cost declares {declares}")
    if count and bool((cohort.extra_queries != cost.extra).any()):
        extra = cohort.extra_queries.tolist()
        raise _client(client, f"it counts {extra} values as extra where its cost declares {cost.extra}")
    reply = {name: Size.of(rows[0]) for name, rows in update.payload.items()} if count else cost.reply
    if reply != cost.reply:
        sent, wanted = (
            ", ".join(f"{name} of {size.numbers} x {size.bits} bits" for name, size in sizes.items())
            for sizes in (reply, cost.reply)
        )
        raise _client(client, f"it sends {sent} where its cost declares {wanted}")
    return update


def owned(client: Client, given: Any, cohort: Cohort) -> tuple[Tensor, dict[str, Tensor]]:
    """The models of clients' own, [C, d], and what is told of them, [C] by name."""
    wide, one = (len(cohort), cohort.dimension), (cohort.dimension,)
    if not isinstance(given, Tensor) or given.shape not in (wide, one) or given.dtype != cohort.dtype:
        raise _client(client, f"personal returns {shown(given)}, not models {list(wide)} of {cohort.dtype}")
    _hold_numbers(client, cohort.metrics, len(cohort))
    return given.detach().expand(wide), dict(cohort.metrics)


def judged(client: Client, given: Any, x: Tensor) -> Tensor:
    """Outputs of clients for inputs x [k, B, ...], by which they are judged: [k, B, *places, K]."""
    if not isinstance(given, Tensor) or not given.is_floating_point() or given.shape[:2] != x.shape[:2]:
        raise _client(client, f"outputs returns {shown(given)} for inputs {list(x.shape)}, not some for each of them")
    return given.detach()


def _hold_numbers(client: Client, metrics: Mapping[str, Any], count: int) -> None:
    for name, values in metrics.items():
        if not isinstance(values, Tensor) or values.shape != (count,):
            raise _client(client, f"its metric {name} is {shown(values)}, not a number for each of {count} clients")


def _client(client: Client, fault: str) -> BrokenPromiseError:
    return broken("client", "clients", client, fault)
