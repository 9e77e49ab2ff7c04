"""Synthetic(alpha, beta) of FedProx: logistic models and inputs that differ between clients.

Client k: u_k ~ N(0, alpha), W_k ~ N(u_k, 1), b_k ~ N(u_k, 1); B_k ~ N(0, beta), v_k ~ N(B_k, 1),
x ~ N(v_k, Sigma) with Sigma diagonal, Sigma_jj = j^-1.2; y = argmax softmax(x W_k + b_k).
alpha and beta are standard deviations, as in the authors' generator. u_k adds the same number to all logits
of an input, so alpha alone changes no label (up to rounding): the models differ because each client draws its
own W. iid: one W and b with mean 0 for all clients, and v_k = 0.
Source: Li et al. 2020, Federated optimization in heterogeneous networks, section 5.1.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt, options
from fedsim.core.streams import Streams
from fedsim.problems.datasets.base import Dataset, Indices

CHUNK = 1024
"""Clients that are drawn together, so that the models of a large population need not exist at once."""

LARGEST = 2**28
"""Numbers that the models drawn together may have, 1 GiB."""


@options
class Synthetic:
    """The generator above; a client's examples are its own, so `owner` is set."""

    alpha: NonNegativeFloat = 1.0
    """How much the clients' models differ, a standard deviation."""
    beta: NonNegativeFloat = 1.0
    """How much the clients' inputs differ, a standard deviation."""
    clients: PositiveInt = 30
    """How many clients there are."""
    iid: bool = False
    """No difference between clients, whatever alpha and beta are."""
    features: PositiveInt = 60
    """Numbers of an input."""
    classes: PositiveInt = 10
    """Classes, two at least."""
    examples_per_client: PositiveInt | None = None
    """Examples of every client, its test included. Not given: 50 + lognormal(4, 2), at most `max_examples`."""
    max_examples: PositiveInt | None = None
    """The most examples of a client, where their number is drawn. Not given: any number."""
    test_share: Fraction = 0.1
    """Share of each client's examples that is for the test, rounded to the nearest number."""
    seed: NonNegativeInt = 0
    """Seed of the data; it does not follow the run's seed."""

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InputError("classes", self.classes, "take two at least")
        if min(self.clients, CHUNK) * self.features * self.classes > LARGEST:
            remedy = f"with {self.features} features and {self.clients} clients these are too many; lower one of them"
            raise InputError("classes", self.classes, remedy)
        if self.examples_per_client is not None and self.max_examples is not None:
            raise InputError("max_examples", self.max_examples, "leave it out beside examples_per_client")

    def load(self, folder: DataFolder) -> Dataset:  # noqa: ARG002
        """Return x float32 [n, features]."""
        sizes = self._sizes()
        tests = np.minimum(np.floor(sizes * self.test_share + 0.5).astype(np.int64), sizes - 1)
        x, x_test = (np.empty((n.sum(), self.features), np.float32) for n in (sizes - tests, tests))
        y, y_test = (np.empty(len(part), np.int64) for part in (x, x_test))
        at = at_test = 0
        for first in range(0, self.clients, CHUNK):
            part, part_tests = sizes[first : first + CHUNK], tests[first : first + CHUNK]
            drawn, label = self._draw(part, first // CHUNK)
            end, end_test = at + int((part - part_tests).sum()), at_test + int(part_tests.sum())
            # A client's first examples are its test.
            testing = np.repeat(np.tile([True, False], len(part)), np.stack((part_tests, part - part_tests), 1).ravel())
            for wanted, xs, ys in (
                (~testing, x[at:end], y[at:end]),
                (testing, x_test[at_test:end_test], y_test[at_test:end_test]),
            ):
                np.compress(wanted, drawn, axis=0, out=xs)
                np.compress(wanted, label, out=ys)
            at, at_test = end, end_test
        ids = np.arange(self.clients)
        owner, owner_test = np.repeat(ids, sizes - tests), np.repeat(ids, tests)
        return Dataset("synthetic", x, y, x_test, y_test, self.classes, owner, owner_test)

    def _sizes(self) -> Indices:
        """Examples of each client, int64 [clients]."""
        if self.examples_per_client is not None:
            return np.full(self.clients, self.examples_per_client, dtype=np.int64)
        drawn = Streams(self.seed).generator("synthetic/sizes").lognormal(4.0, 2.0, self.clients)
        return np.minimum(drawn.astype(np.int64) + 50, self.max_examples or np.iinfo(np.int64).max)

    def _draw(self, sizes: Indices, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the examples of one chunk of clients, one client after the other: x [n, features], y [n]."""
        streams, count = Streams(self.seed), len(sizes)
        generator = streams.generator("synthetic/clients", step=chunk)
        shape = (count, self.features + 1, self.classes)
        if self.iid:
            shared = streams.generator("synthetic/shared").standard_normal(shape[1:], dtype=np.float32)
            model = np.broadcast_to(shared, shape)
            centre = np.zeros((count, self.features), np.float32)
        else:
            scale = np.array([self.alpha, self.beta], dtype=np.float32)
            u, mean = generator.standard_normal((count, 2), dtype=np.float32).T * scale[:, None]
            model = generator.standard_normal(shape, dtype=np.float32) + u[:, None, None]
            centre = generator.standard_normal((count, self.features), dtype=np.float32) + mean[:, None]
        deviation = np.arange(1, self.features + 1, dtype=np.float32) ** np.float32(-0.6)
        x = generator.standard_normal((int(sizes.sum()), self.features), dtype=np.float32)
        x *= deviation
        x += np.repeat(centre, sizes, axis=0)
        y = np.empty(len(x), np.int64)
        ends = np.cumsum(sizes)
        # Neighbours with equally many examples are multiplied in one call, each by itself as ever.
        for first, last in pairwise([0, *(np.flatnonzero(np.diff(sizes)) + 1), count]):
            own = slice(ends[first] - sizes[first], ends[last - 1])
            inputs = x[own].reshape(last - first, sizes[first], self.features)
            # The last row of a model is its bias.
            y[own] = (inputs @ model[first:last, :-1] + model[first:last, -1:]).argmax(axis=2).reshape(-1)
        return x, y
