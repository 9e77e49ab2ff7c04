"""Every compressor's replies cross a grid as real byte strings, whose lengths are those that the ledger counts."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import wire
from flwr.app import Array, ArrayRecord, Context, RecordDict
from local_grid import LocalGrid, partitions, tiny

from fedsim.exchange.transforms import Chain
from fedsim.flower import client_app, server_app
from fedsim.flower.names import ARRAYS
from fedsim.flower.records import CLIENT_METRICS, CLIENTS, NBYTES, ORDER
from fedsim.testing.subject import table_of

pytestmark = pytest.mark.usefixtures("local_flower")

EF14 = {"kind": "ef14"}
TOP = {"kind": "top_k", "ratio": 0.02}
ROWS = {
    **{name: {"transforms": [table_of("transforms", one) for one in listed]} for name, listed in wire.LISTS.items()},
    "ef14, top_k, integer": {"transforms": [EF14, TOP, {"kind": "integer"}]},
    "ef21, top_k, integer": {"transforms": [{"kind": "ef21"}, TOP, {"kind": "integer"}]},
    "ef14, l_greco": {"transforms": [EF14, table_of("transforms", wire.LISTS["l_greco of top_k"][0])]},
    "ef14, sign of orders": {"transforms": [EF14, TOP], "order_transforms": [{"kind": "sign", "per": "layer"}]},
    "scaffold": {
        "strategy": "scaffold",
        "client": "scaffold",
        "transforms": [EF14 | {"vectors": ["delta"]}, TOP | {"vectors": ["delta", "control-delta"]}],
    },
}


class Post(LocalGrid):
    """A grid between whose nodes and server replies are byte strings, one a client and vector.

    written: by client and vector, what was sent last and how it is read. lengths: of all that were sent.
    """

    def __init__(self, app, configs):
        super().__init__(app, configs)
        self.written, self.lengths, self.ordered = {}, [], []

    def note(self, chain, payload, sender, crossed):
        """Write what crosses a chain."""
        lengths = torch.zeros_like(crossed.nbytes)
        for name, rows in payload.items():
            stages = wire.stages(chain, rows, sender, name)
            for row, client in enumerate(sender.clients.tolist()):
                message = wire.message(chain, stages, row, name)
                lengths[row] += len(message)
                one = torch.tensor([row])
                self.written[client, name] = message, chain, crossed.payload[name][row], sender[one]
        assert torch.equal(lengths, crossed.nbytes)
        if chain.option == "order_transforms":
            self.ordered += lengths.tolist()

    def reply(self, message, context):
        """What a node says, with byte strings in the place of vectors."""
        reply = super().reply(message, context)
        if message.metadata.message_type != "train" or ORDER not in message.content:
            return reply
        clients = message.content[ORDER][CLIENTS]
        names = list(reply.content[ARRAYS])
        letters = {
            f"{client}/{name}": np.frombuffer(self.written[client, name][0], dtype=np.uint8)
            for client in clients
            for name in names
        }
        counted = reply.content[CLIENT_METRICS][NBYTES].numpy()
        assert counted.tolist() == [sum(len(letters[f"{client}/{name}"]) for name in names) for client in clients]
        self.lengths += [len(letter) for letter in letters.values()]
        reply.content[ARRAYS] = ArrayRecord({name: Array(letter) for name, letter in letters.items()})
        return pickle.loads(pickle.dumps(reply))

    def pull_messages(self, message_ids):
        """What the server has read from them."""
        found = super().pull_messages(message_ids)
        for reply in found:
            letters = reply.content.get(ARRAYS, {})
            if not any("/" in name for name in letters):
                continue
            rows = {}
            for place, letter in letters.items():
                client, _, name = place.partition("/")
                _, chain, sent, sender = self.written[int(client), name]
                read = wire.arrived(chain, letter.numpy().tobytes(), sent.numel(), sent.dtype, sender, name)
                assert np.array_equal(read.reshape(sent.shape), sent.numpy())
                rows.setdefault(name, []).append(read.reshape(sent.shape))
            reply.content[ARRAYS] = ArrayRecord({name: Array(np.stack(own)) for name, own in rows.items()})
        return found


@pytest.mark.parametrize("name", ROWS)
def test_replies_cross_as_byte_strings(name, monkeypatch):
    remembered = name.startswith(("ef", "scaffold"))
    experiment = tiny(**{"rounds": 1 + remembered, **ROWS[name]})
    grid, results, apply = Post(client_app(experiment), partitions(2)), [], Chain.apply

    def noted(chain, payload, sender):
        crossed = apply(chain, payload, sender)
        if chain.transforms and len(sender.clients):
            grid.note(chain, payload, sender, crossed)
        return crossed

    monkeypatch.setattr(Chain, "apply", noted)
    server_app(experiment, save=False, timeout=5.0, receive=results.append)(grid, Context(1, 1, {}, RecordDict(), {}))
    (theirs,) = results
    assert sum(theirs.history["bytes_up"]) == sum(grid.lengths) > 0
    if experiment.order_transforms:
        assert theirs.history["bytes_down"] == [4 * nbytes for nbytes in grid.ordered]
    assert (theirs.params - theirs.problem.initial()).norm() > 1e-3
