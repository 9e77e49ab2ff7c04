"""Our strategies in anybody's Flower app: a `Strategy` of Flower's whose rounds are ours.

    strategy = as_flower_strategy(FedBuff(size=5), selection={"kind": "oort", "count": 20}, aggregator="median")
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=100)

`start` runs the loop of `fedsim.run` over the app's nodes, by the wall clock, or over a `VirtualGrid` in its time. The
methods of a round, `configure_train` and those that follow, are the same loop in pieces, for whoever holds a strategy
and sends its messages himself: Flower's own loop, or a strategy around this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as flower
from torch import nn

from fedsim.configuration.bases import hold_base
from fedsim.configuration.tables import PLUGINS, hold_added
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.core.files import path_of
from fedsim.engine.client import Client
from fedsim.exchange.secure import Secure
from fedsim.exchange.transforms import Chain
from fedsim.flower.names import CANDIDATES
from fedsim.flower.searching import searching_client
from fedsim.flower.serving.dialect import PEERS, SPOKEN, unspoken
from fedsim.flower.serving.options import AppOptions
from fedsim.flower.serving.run import Combine, combined
from fedsim.flower.serving.strategy import FlowerStrategy
from fedsim.flower.serving.student import Student
from fedsim.problems.black_box import checked_bounds
from fedsim.server.selection.base import Selector
from fedsim.server.strategy import Strategy

ELSEWHERE = {
    "fraction_train": 'nodes are chosen by selection={"kind": "uniform", "fraction": 0.5}, or another selector',
    "min_train_nodes": 'nodes are chosen by selection={"kind": "uniform", "count": 10}, or another selector',
}
"""What Flower's strategies have as options, and stands elsewhere here."""


def as_flower_strategy(
    strategy: Strategy | Mapping[str, Any] | str,
    *,
    selection: Selector | Mapping[str, Any] | str | None = None,
    aggregator: Any = "mean",
    transforms: Sequence[Any] = (),
    client: Client | Mapping[str, Any] | str | None = None,
    model: nn.Module | None = None,
    public: Any = None,
    checkpoint: Path | str | None = None,
    train_metrics_aggr_fn: Combine | None = None,
    evaluate_metrics_aggr_fn: Combine | None = None,
    **settings: Any,
) -> FlowerStrategy:
    """A strategy of ours for a Flower ServerApp, whose ClientApp stays as it is.

    strategy, selection, aggregator, transforms: objects, names, or tables as in an experiment. selection: by default
    all nodes. transforms: of the clients' changes, as the server receives them. client: for strategies that search with
    values alone, the client that the app has by `fedsim.flower.local.searcher`, with its options. model, public: for
    strategies that distil, the app's model as a module, whose state dict `initial_arrays` are, and inputs [n, ...] for
    it, of which no label is known. checkpoint: a folder for rows and checkpoints, in which a server that was killed
    goes on when it is started again. train_metrics_aggr_fn, evaluate_metrics_aggr_fn: as of Flower's strategies; by
    default means weighted by `weighted_by_key`. settings: the fields of `AppOptions`.

    InputError: an option cannot be used, or the strategy sends what no client app of others understands.
    """
    for name in ELSEWHERE.keys() & settings.keys():
        raise InputError(name, settings[name], ELSEWHERE[name])
    if isinstance(strategy, flower.Strategy):
        remedy = "it is Flower's own, and goes without; ours are in the package strategies"
        raise InputError("strategy", type(strategy).__name__, remedy)
    parts = {
        "strategy": plugins.make("strategies", strategy, "strategy"),
        "selection": plugins.make("selectors", selection or PLUGINS["selection"][1], "selection"),
        "aggregation": plugins.make("aggregators", aggregator, "aggregator"),
    }
    for part, made in parts.items():
        hold_base(part, PLUGINS[part][0], made)
    chain = tuple(plugins.make("transforms", one, f"transforms.{number}") for number, one in enumerate(transforms))
    for number, one in enumerate(chain):
        hold_base(f"transforms.{number}", "transforms", one)
    if isinstance(parts["aggregation"], Secure):
        remedy = "client apps do not mask what they send; run it with fedsim.run, or take Flower's SecAgg+ workflow"
        raise InputError("aggregator", "secure", remedy)
    own: Strategy = parts["strategy"]
    Chain(chain).check(own.up, own.up)
    hold_added(own, chain)
    unknown = own.down & PEERS.keys()
    if not own.for_all and not unknown:
        remedy = "clients have models of their own, and a Flower server has one for all; run it with fedsim.run"
        raise InputError("strategy", plugins.kind_of("strategies", own), remedy)
    if unknown := unknown or (own.up - SPOKEN if client is None else frozenset()):
        raise unspoken(plugins.kind_of("strategies", own), unknown)
    searching = None if client is None else searching_client(own, client)
    student = Student.of(own, model, public)
    options = AppOptions(**settings)
    if checked_bounds(options.bounds) is not None and own.down != {CANDIDATES}:
        remedy = "it keeps to no box, or its clients do, by the bounds of searcher; leave it out"
        raise InputError("bounds", options.bounds, remedy)
    return FlowerStrategy(
        own,
        parts["selection"],
        parts["aggregation"],
        chain,
        searching,
        student,
        options,
        None if checkpoint is None else path_of(checkpoint, "checkpoint"),
        {"train": train_metrics_aggr_fn or combined, "evaluate": evaluate_metrics_aggr_fn or combined},
    )
