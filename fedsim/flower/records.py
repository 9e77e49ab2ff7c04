"""Tensors in Flower's records, and the names under which they travel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

ARRAYS = "arrays"
"""An order's payload, [...] by name, or the replies' payload, [C, ...] by name."""
CLIENT_METRICS = "client-metrics"
"""The clients' metrics, [C] by name."""
CLIENTS = "clients"
"""Which clients a record's rows belong to, int64 [C]; in an order, whom it is for."""
CONFIG, ORDER, METRICS, STATE = "config", "order", "metrics", "state"
EXAMPLES, ROUND, PARTITION, PARTITIONS = "num-examples", "server-round", "partition-id", "num-partitions"
NBYTES = "payload-bytes"
"""Of each client of a reply, what its payload takes to cross, int64 [C]."""
QUERIES = "queries"
"""Of each client of a reply, the evaluations that it asked for, as of `JobResult`, int64 [C, 3]."""
TURN, LATE = "turn", "late"
"""In an order: the number under which its clients draw, and what becomes of those that are late; see `Order`."""


def record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Write tensors from any device as a record, their types kept."""
    return ArrayRecord({name: Array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()})


def tensors(held: ArrayRecord, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read a record as tensors on a device."""
    return {name: torch.from_numpy(array.numpy()).to(device) for name, array in held.items()}
