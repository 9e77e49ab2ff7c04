"""The Flower app of the benchmark, and the process that runs it.

It is an importable module: Ray pickles the functions of an app in `__main__` by value, with their data, in
every message. The examples and the module are cached in the actor.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from experiments.benchmarks.peers.plain import train
from experiments.benchmarks.peers.work import Work

FOREVER = 2**31
client_app = ClientApp()


@cache
def cached_work(path: str) -> Work:
    """Load the work stored at `path`; its tensors are mapped, so that the actors share their pages."""
    loaded: Work = torch.load(path, mmap=True, weights_only=False)
    return loaded


@cache
def cached_model(path: str) -> nn.Module:
    """Make the actor's module."""
    return cached_work(path).model()


@cache
def cached_examples(path: str, client: int) -> tuple[Tensor, Tensor]:
    """Copy out a client's inputs [n, ...] and labels [n]."""
    return cached_work(path).examples(client)


@client_app.query()
def warm_up(message: Message, context: Context) -> Message:
    """Fill the caches of the actor that gets this message."""
    torch.set_num_threads(1)
    path = str(message.content.config_records["config"]["work"])
    cached_model(path)
    cached_examples(path, int(context.node_config["partition-id"]))
    return Message(content=RecordDict(), reply_to=message)


@client_app.train()
def train_client(message: Message, context: Context) -> Message:
    """Train the client whose number is the node's partition on the model that it was sent."""
    torch.set_num_threads(1)
    config = message.content.config_records["config"]
    path, round_ = str(config["work"]), int(str(config["server-round"])) - 1
    client = int(context.node_config["partition-id"])
    work, model = cached_work(path), cached_model(path)
    x, y = cached_examples(path, client)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    train(model, x, y, work.orders(round_, client), work)
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(y)})})
    return Message(content=content, reply_to=message)


class Strict(FedAvg):
    """FedAvg that ends the run when a client failed, instead of averaging the others."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check that every reply has a content, then average as FedAvg does."""
        replies = list(replies)
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"a client failed in round {server_round}: {reply.error.reason}")
        return super().aggregate_train(server_round, replies)


class StopAsked(Exception):  # noqa: N818
    """The other end of the pipe is closed: no further round is wanted."""


def serve(descriptor: int, path: str, cpus: int, engine: Callable[..., object] | None = None) -> None:
    """Run the simulation under the orders that come through a pipe, then return.

    descriptor: an inherited end of a `multiprocessing.Pipe`. It says "ready" when the actors are warm and
    after each round, and then hears "parameters" (answered by a state dict of NumPy arrays) or "round"; its
    end means to stop. path: the stored work. cpus: one actor for each. engine: takes what `run_simulation` takes,
    and is that if None.
    """
    # Ray's processes must not keep the pipe open.
    os.set_inheritable(descriptor, False)
    pipe = Connection(descriptor)
    work = cached_work(path)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    server_app = ServerApp()

    def gate(_: int, arrays: ArrayRecord) -> None:
        try:
            pipe.send("ready")
            while pipe.recv() == "parameters":
                pipe.send({name: array.numpy() for name, array in arrays.items()})
        except (EOFError, OSError):
            raise StopAsked from None

    @server_app.main()
    def main(grid: Grid, _: Context) -> None:
        config = ConfigRecord({"work": path})
        while len(nodes := list(grid.get_node_ids())) < len(work.clients):
            time.sleep(0.05)
        queries = [
            Message(RecordDict({"config": config}), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes
        ]
        for reply in grid.send_and_receive(queries):
            if reply.has_error():
                raise RuntimeError(f"a client failed in the warm-up: {reply.error.reason}")
        strategy = Strict(
            fraction_train=work.cohort_size / len(work.clients),
            fraction_evaluate=0.0,
            min_train_nodes=work.cohort_size,
            min_available_nodes=len(work.clients),
        )
        try:
            strategy.start(
                grid,
                ArrayRecord(work.model().state_dict()),
                num_rounds=FOREVER,
                train_config=config,
                evaluate_fn=gate,
            )
        except StopAsked:
            return

    if engine is None:
        # Not above: it imports Ray, which another engine and its workers do without.
        from flwr.simulation import run_simulation

        engine = run_simulation
    engine(
        server_app,
        client_app,
        num_supernodes=len(work.clients),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {
                "num_cpus": cpus,
                "num_gpus": 0,
                "include_dashboard": False,
                "log_to_driver": False,
                "logging_level": logging.ERROR,
                "_temp_dir": str(Path(path).parent / "ray"),
            },
        },
    )
