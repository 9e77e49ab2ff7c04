"""Federated averaging as a person writes it in JAX: a round is one compiled call.

Two forms. "vmap": the clients are sorted by their steps into at most eight buckets, and those of a bucket train side
by side, padded to the most steps among them. "scan": one client after the other in a loop inside the compiled call,
as many steps as it has, and the mean is summed up on the way, so that no client's parameters are ever kept. More cores
than one are as many devices of XLA, which share the clients.

Examples, labels, and the masks and weights of batches lie in JAX's arrays before a round; the buckets are kept for as
long as the same clients take part. A round draws the orders of the examples, in one sort of NumPy's for all clients:
`Work.orders`, a call for each client and epoch, would take a third of the digits' round.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.benchmarks.peers.work import Work

BUCKETS = 8
Orders = NDArray[np.integer[Any]]


def sorted_keys(work: Work, round_: int, clients: Sequence[int], width: int) -> Orders:
    """An order for each client and epoch, [C, E, width]: the n_i positions of a client first, what follows is padding.

    A random number has its position in its low bits, so that sorting the numbers is enough.
    """
    place, low = np.arange(width, dtype=np.uint64), np.uint64(0xFFFF)
    rng = np.random.default_rng((2, round_))
    keys = rng.integers(0, 2**63, size=(len(clients), work.epochs, width), dtype=np.uint64)
    keys = (keys & ~low) | place
    sizes = np.array([len(work.clients[client]) for client in clients], dtype=np.uint64)
    keys |= ((place >= sizes[:, None]).astype(np.uint64) << np.uint64(63))[:, None]
    keys.sort(axis=-1)
    return keys & low


def shared_orders(work: Work, round_: int, clients: Sequence[int], width: int) -> Orders:
    """The same from `Work.orders`, in which the other engines visit the examples."""
    found = np.tile(np.arange(width), (len(clients), work.epochs, 1))
    for place, client in enumerate(clients):
        for epoch, order in enumerate(work.orders(round_, client)):
            found[place, epoch, : len(order)] = order.numpy()
    return found


class Cohort:
    """Clients who take part, by ascending numbers of examples n_i, and what their batches look like.

    rows: their examples, int32 [C, width], padded to whole batches. weights: of each example in its batch, float32
    [C, E, width / B, B], 0 of padding. passes: batches an epoch [C]. shares: n_i / n, float32 [C].
    """

    def __init__(self, work: Work, chosen: Sequence[int]) -> None:
        sizes = np.array([len(work.clients[client]) for client in chosen])
        order = np.argsort(sizes, kind="stable")
        self.batch_size, self.epochs = work.batch_size, work.epochs
        self.clients, sizes = np.array(chosen)[order].tolist(), sizes[order]
        self.passes = -(-sizes // work.batch_size)
        self.shares = (sizes / sizes.sum()).astype(np.float32)
        width = int(self.passes[-1]) * work.batch_size
        self.rows = np.zeros((len(sizes), width), dtype=np.int32)
        for place, client in enumerate(self.clients):
            self.rows[place, : sizes[place]] = work.clients[client]
        valid = (np.arange(width) < sizes[:, None]).reshape(len(sizes), 1, -1, work.batch_size)
        weights = (valid / np.maximum(valid.sum(axis=-1, keepdims=True), 1)).astype(np.float32)
        self.weights = np.broadcast_to(weights, (len(sizes), work.epochs, *weights.shape[2:]))


class SideBySide:
    """The arguments of `jax_rounds.side_by_side`: buckets of clients, each of as many for every device."""

    def __init__(self, cohort: Cohort, devices: int) -> None:
        self.cohort, self.parts = cohort, []
        for first, end in buckets(cohort.passes):
            places = np.arange(first, end)
            added = -len(places) % devices
            places = np.append(places, np.full(added, first))
            # Who is there only to fill a device up has no share in the mean.
            shares = np.append(cohort.shares[first:end], np.zeros(added, dtype=np.float32))
            weights = cohort.weights[places, :, : cohort.passes[end - 1]]
            self.parts.append((places, weights.reshape(len(places), -1, cohort.batch_size), shares))

    def arguments(self, drawn: Orders) -> tuple[Any, ...]:
        """From the rows [C, E, width] that a round has drawn."""
        parts = []
        for places, weights, shares in self.parts:
            width = weights.shape[1] // self.cohort.epochs * self.cohort.batch_size
            parts.append((drawn[places, :, :width].reshape(weights.shape), weights, shares))
        return (parts,)


class OneByOne:
    """The arguments of `jax_rounds.one_by_one`: all clients' batches in a row, and where those of a client are."""

    def __init__(self, cohort: Cohort, devices: int) -> None:
        self.batch_size = cohort.batch_size
        self.taken = np.flatnonzero(cohort.weights.any(axis=-1))
        self.weights = cohort.weights.reshape(-1, cohort.batch_size)[self.taken]
        steps = (cohort.passes * cohort.epochs).astype(np.int32)
        first = np.cumsum(steps, dtype=np.int32) - steps
        # Dealt in turn, so that every device has long and short clients; what is missing at the end has no steps.
        places = np.append(np.arange(len(steps)), np.full(-len(steps) % devices, -1)).reshape(-1, devices).T.reshape(-1)
        self.clients = tuple(np.append(of, of.dtype.type(0))[places] for of in (first, steps, cohort.shares))

    def arguments(self, drawn: Orders) -> tuple[Any, ...]:
        """From the rows [C, E, width] that a round has drawn."""
        return (drawn.reshape(-1, self.batch_size)[self.taken], self.weights), self.clients


class JaxHand:
    """The peer. form: see above. cores: how many devices. draw: makes the orders of a round."""

    def __init__(
        self, work: Work, form: Literal["vmap", "scan"], cores: int, draw: Callable[..., Orders] = sorted_keys
    ) -> None:
        self.work, self.form, self.cores, self.draw = work, form, cores, draw
        self.rounds = 0
        self.chosen: list[int] = []

    def missing(self) -> str | None:
        """Say whether JAX is absent, or this network is not written in it."""
        if importlib.util.find_spec("jax") is None:
            return "jax is not installed"
        return None if isinstance(self.work.model(), nn.Sequential) else "not written in JAX here"

    def start(self) -> None:
        """Import JAX, move examples and parameters into its arrays, and build what a round calls."""
        flags = "--xla_cpu_multi_thread_eigen=false" if self.cores == 1 else ""
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={self.cores}"
        import jax

        from experiments.benchmarks.peers import jax_rounds

        work = self.work
        self.network = jax_rounds.network(work.model())
        self.theta = self.network.initial
        x = work.x.numpy()
        self.x = jax.numpy.asarray(np.moveaxis(x, 1, -1) if x.ndim == 4 else x)
        self.y = jax.numpy.asarray(np.eye(int(work.y.max()) + 1, dtype=np.float32)[work.y.numpy()])
        make = {"vmap": jax_rounds.side_by_side, "scan": jax_rounds.one_by_one}[self.form]
        self.step = make(self.network.apply, work.lr, self.cores)

    def round(self) -> None:
        """Draw the orders, and train and average the chosen clients in one call."""
        chosen = self.work.chosen(self.rounds)
        if chosen != self.chosen:
            self.chosen, self.cohort = chosen, Cohort(self.work, chosen)
            lay_out = SideBySide if self.form == "vmap" else OneByOne
            self.layout: SideBySide | OneByOne = lay_out(self.cohort, self.cores)
        rows = self.cohort.rows
        orders = self.draw(self.work, self.rounds, self.cohort.clients, rows.shape[1])
        drawn = rows[np.arange(len(rows))[:, None, None], orders]
        self.theta = self.step(self.theta, self.x, self.y, *self.layout.arguments(drawn))
        for value in self.theta:
            value.block_until_ready()
        self.rounds += 1

    def parameters(self) -> dict[str, Tensor]:
        """Copy the global model's state dict."""
        return self.network.state_dict([np.asarray(value) for value in self.theta])

    def accuracy(self) -> float:
        """Measure the test accuracy of the global model."""
        return self.work.accuracy(self.parameters())

    def stop(self) -> None:
        """Forget who took part."""
        self.chosen = []


def buckets(passes: NDArray[np.integer[Any]]) -> list[tuple[int, int]]:
    """Part ascending numbers of passes into at most BUCKETS runs [first, end), with the least in all after padding."""
    count = len(passes)
    least = np.full((BUCKETS + 1, count + 1), np.inf)
    least[:, 0] = 0.0
    begun = np.zeros((BUCKETS + 1, count + 1), dtype=np.int64)
    for used in range(1, BUCKETS + 1):
        for end in range(1, count + 1):
            costs = least[used - 1, :end] + passes[end - 1] * np.arange(end, 0, -1)
            begun[used, end], least[used, end] = costs.argmin(), costs.min()
    found, end = [], count
    used = int(least[:, count].argmin())
    while end:
        first = int(begun[used, end])
        found.append((first, end))
        used, end = used - 1, first
    return found[::-1]
