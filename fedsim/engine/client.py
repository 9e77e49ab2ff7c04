"""What an engine asks of a client algorithm."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fedsim.engine.store import Shapes
from fedsim.exchange.messages import Cost, Order


class Client(Protocol):
    """A client algorithm. Its methods are named after the actions it can do: (Cohort) -> Update, `train` for one.

    needs: names in an order's payload and configuration that it must have. sends: names it may put into a reply. It may
    also have `knows`, names that it reads where they are sent; `state(dimension) -> {name: shape}`, what each client
    remembers between rounds; `check(sent)`, which refuses options that do not go with what the server sends;
    `same_every_round`, True where it never asks its cohort for the round, so that clients that started in different
    rounds may be executed together; `black_box`, True where all it asks of f_c is values;
    `numbers(dimension, largest)`, how many numbers its work on one client with so many examples takes at most; `views`,
    how many times it has each example in a batch; and
    `operations(dimension)`, multiply-adds that a step takes it beside the model's.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Names that an order must have."""
        ...

    @property
    def sends(self) -> frozenset[str]:
        """Names it may put into a reply's payload."""
        ...

    def cost(self, orders: Order, examples: Tensor) -> Cost:
        """What clients with so many examples [C] will do; held against what they did."""
        ...


def _own_state(client: Client, dimension: int) -> Shapes:
    state = getattr(client, "state", None)
    shapes: Shapes = {} if state is None else state(dimension)
    return shapes
