"""Flower's grid with nodes of this process, and a small experiment to run on it."""

import math
import pickle
from itertools import count

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

import fedsim
from fedsim.core.clock import ticks
from fedsim.flower import GridEngine, Recipe, client_app
from fedsim.running.build import build_executor, build_problem


class LocalGrid(Grid):
    """Nodes of this process. A message and a context cross it as bytes, as they cross Ray."""

    def __init__(self, app, partitions, run_config=None, late=()):
        self.app, self.late, self.ids = app, set(late), count(1)
        self.contexts = {
            1000 + 7 * row: Context(1, 1000 + 7 * row, config, RecordDict(), run_config or {})
            for row, config in enumerate(partitions)
        }
        self.replies = {}
        self.seen = []

    run = None

    def set_run(self, run): ...

    def create_message(self, *args, **kwargs):
        raise AssertionError("the engine makes, pushes and pulls its messages itself")

    def get_node_ids(self):
        return [node for node in self.contexts if node not in self.late]

    def push_messages(self, messages):
        return [self.deliver(message) for message in messages]

    def deliver(self, message):
        message.metadata.__dict__["_message_id"] = name = str(next(self.ids))
        where = message.metadata.dst_node_id
        message, context = pickle.loads(pickle.dumps((message, self.contexts[where])))
        self.seen.append(message)
        self.replies[name] = self.reply(message, context)
        self.contexts[where] = pickle.loads(pickle.dumps(context))
        return name

    def reply(self, message, context):
        return self.app(message, context)

    def pull_messages(self, message_ids):
        # One at a time, the last first: replies come in no particular order.
        ready = [name for name in reversed(list(message_ids)) if name in self.replies]
        return [self.replies.pop(ready[0])] if ready else []

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("the engine makes, pushes and pulls its messages itself")


def partitions(nodes):
    # Partition ids in another order than node ids, as in a real federation.
    return [{"partition-id": (row + 1) % nodes, "num-partitions": nodes} for row in range(nodes)]


def tiny(strategy="fedavg", client="sgd", lr=0.1, **tables):
    return fedsim.experiment(
        **{
            "name": "tiny",
            "rounds": 4,
            "problem": {"dataset": "digits", "model": {"kind": "mlp", "hidden": [8]}},
            "partition": {"kind": "dirichlet", "clients": 7, "alpha": 0.3, "min_size": 1},
            "selection": {"kind": "uniform", "count": 4},
            "strategy": strategy,
            "client": {"kind": client, "epochs": 1, "batch_size": 32, "lr": lr} if isinstance(client, str) else client,
        }
        | tables
    )


def grid_of(experiment, nodes=2, **kwargs):
    return LocalGrid(client_app(experiment), partitions(nodes), **kwargs)


def engine_of(experiment, grid, problem=None, **kwargs):
    problem = build_problem(experiment) if problem is None else problem
    executor = build_executor(experiment, problem)
    return GridEngine(grid, executor, experiment.aggregation, experiment=Recipe.of(experiment).digest, **kwargs)


class Clock:
    """What `windows` and `nodes` know of the module `time`: it goes on while somebody sleeps, and only then."""

    def __init__(self):
        self.now = 0

    def monotonic_ns(self):
        return self.now

    def sleep(self, length):
        self.now += ticks(length)


class TimedGrid(LocalGrid):
    """A grid whose client i takes seconds[i] for an order, None for ever; a message is answered with its slowest."""

    def __init__(self, app, partitions, clock, seconds):
        super().__init__(app, partitions)
        self.clock, self.seconds, self.due = clock, seconds, {}

    def deliver(self, message):
        name = super().deliver(message)
        taken = [0.0]
        if message.metadata.message_type == "train":
            taken = [self.seconds[client] for client in message.content["order"]["clients"]]
        self.due[name] = math.inf if None in taken else self.clock.now + ticks(max(taken))
        return name

    def pull_messages(self, message_ids):
        ready = [name for name in reversed(list(message_ids)) if self.due[name] <= self.clock.now]
        return [self.replies.pop(name) for name in ready]
