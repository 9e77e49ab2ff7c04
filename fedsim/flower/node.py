"""A node's side: it executes the orders of the clients `c` with `c mod num-partitions = partition-id`.

The problem and its executor are built once a process; what clients remember travels in `Context.state`,
since the process that answers the next message may be another one.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.engine.executor import Executor
from fedsim.engine.job import JobResult
from fedsim.exchange.messages import Order
from fedsim.flower.names import ARRAYS, CONFIG, EXAMPLES, METRICS, PARTITION, PARTITIONS, ROUND
from fedsim.flower.recipe import Recipe, identity
from fedsim.flower.records import (
    CLIENT_METRICS,
    CLIENTS,
    DATA,
    LATE,
    NBYTES,
    ORDER,
    QUERIES,
    SOUND,
    STATE,
    TURN,
    digest_of,
    record,
    tensors,
)
from fedsim.running.build import build_executor, build_problem

RAISED = 2
"""Flower's error code for an exception in the client app."""

Handler = Callable[[Recipe | None, Message, Context], RecordDict]


@dataclass(frozen=True)
class _Node:
    """An executor, and what its store holds before anybody has taken part."""

    executor: Executor
    fresh: dict[str, Tensor]


@lru_cache(maxsize=1)
def _node(recipe: Recipe) -> _Node:
    experiment = recipe.experiment()
    executor = build_executor(experiment, build_problem(experiment))
    return _Node(executor, executor.store.snapshot())


def answer(handler: Handler, recipe: Recipe | None, message: Message, context: Context) -> Message:
    """Handle a message; whatever goes wrong is answered to the server, its traceback with it.

    recipe: the experiment, or None for the one that the run configuration names.
    """
    try:
        return Message(handler(recipe, message, context), reply_to=message)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        return Message(Error(code=RAISED, reason=reason), reply_to=message)


def introduce(recipe: Recipe | None, message: Message, context: Context) -> RecordDict:
    """Say which partition this is, of how many, and what this machine has in common with the server.

    If it is the same fedsim, the node also gets ready, and says which experiment it holds and how it
    executes it.
    """
    for name in (PARTITION, PARTITIONS):
        if name not in context.node_config:
            raise InputError(
                name,
                "(nothing)",
                "start the node with --node-config 'partition-id=0 num-partitions=2', ids differing",
            )
    own = identity()
    said = ConfigRecord({name: int(context.node_config[name]) for name in (PARTITION, PARTITIONS)})
    said.update(own)
    asked = message.content.config_records[CONFIG]
    if all(asked[name] == value for name, value in own.items()):
        found = _recipe(recipe, context)
        executor = _node(found).executor
        said["experiment"] = found.digest
        said[DATA] = digest_of(executor.problem.sizes)
        said["executor"] = executor.name
        said["network"] = type(executor.network).__name__
        said["chunk"] = executor.chunk
        said["device"] = str(executor.problem.device)
    return RecordDict({CONFIG: said})


def execute(recipe: Recipe | None, message: Message, context: Context) -> RecordDict:
    """Execute an order for this node's clients; keep what they remember."""
    node = _node(_recipe(recipe, context))
    orders = read_order(message.content, node.executor.problem.device)
    work = carry_out(node.executor, node.fresh, orders, context, STATE)
    return written(work, orders.clients, node.executor.problem.sizes)


def read_order(content: RecordDict, device: torch.device | str = "cpu") -> Order:
    """The order that a message of our own server carries."""
    order, config = content.config_records[ORDER], dict(content.config_records[CONFIG])
    number = int(str(config.pop(ROUND))) - 1
    return Order(
        action=str(order["action"]),
        clients=torch.tensor(order[CLIENTS], dtype=torch.int64),
        payload=tensors(content.array_records[ARRAYS], device),
        config=config,  # type: ignore[arg-type]  # the server sends scalars only
        round=number,
        late=order[LATE],  # type: ignore[arg-type]  # one of its values, as the server has it
        turn=int(str(order[TURN])),
    )


def carry_out(
    executor: Executor, fresh: Mapping[str, Tensor], orders: Order, context: Context, memory: str
) -> JobResult:
    """Execute an order; its clients remember what lies in the node's state under the name `memory`.

    fresh: what the executor's store holds before anybody has taken part; another node may have used it since.
    """
    store = executor.store
    if store.shapes:
        held = context.state.array_records.get(memory)
        store.restore(fresh if held is None else tensors(held, store.device))
    work = executor.execute(executor.assign(orders))
    if store.shapes:
        context.state[memory] = record(store.snapshot())
    return work


def written(work: JobResult, clients: Tensor, sizes: Tensor) -> RecordDict:
    """What clients, int64 [k], have done, as it is sent. sizes: examples of each client of all, int64 [N]."""
    examples = sizes[clients]
    counted = {CLIENTS: clients, EXAMPLES: examples, NBYTES: work.nbytes, QUERIES: work.queries}
    if not work.payload:
        counted[SOUND] = work.finite
    return RecordDict(
        {
            ARRAYS: record(work.payload),
            CLIENT_METRICS: record({**work.metrics, **counted}),
            METRICS: MetricRecord({EXAMPLES: int(examples.sum())}),
        }
    )


def hand_over(recipe: Recipe | None, message: Message, context: Context) -> RecordDict:  # noqa: ARG001
    """Send what this node's clients remember."""
    fresh = record(_node(_recipe(recipe, context)).fresh)
    return RecordDict({STATE: context.state.array_records.get(STATE, fresh)})


def take_over(recipe: Recipe | None, message: Message, context: Context) -> RecordDict:  # noqa: ARG001
    """Let this node's clients remember what was sent, and nothing else."""
    context.state[STATE] = message.content.array_records[STATE]
    return RecordDict()


def _recipe(recipe: Recipe | None, context: Context) -> Recipe:
    return Recipe.configured(context.run_config, context.node_config) if recipe is None else recipe
