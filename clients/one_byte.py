"""Just One Byte's machine: one byte for each projected gradient.

p_g = (f_k(x + mu z_g) - f_k(x - mu z_g)) / (2 mu), c_g = code(p_g), g = 0 .. G-1
Uplink G bytes; 2 G evaluations. A value that is not finite is sent as 0 and moves nothing. With a batch_size, a large
model takes little more memory than its replica and one evaluation. Zelikman et al. 2023.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import Cohort, Cost, Order, PositiveFloat, Size, Streams, Update, options
from fedsim.zeroth_order import (
    Directions,
    Keys,
    OneByte,
    Replica,
    caught_up,
    codec_of,
    kind_of,
    mean_told,
    of_codes,
    packed,
    samples_of,
    slopes_along,
)


@options
class JustOneByte(Replica):
    """Needs the strategy `one_byte`."""

    requires: ClassVar[frozenset[str]] = frozenset(
        {"seed", "rounds", "owners", "codes", "from", "at", "lr", "directions", "samples", "agg", "codec"}
    )
    accepts: ClassVar[frozenset[str]] = frozenset({"params", "codec-delta", "codec-scale", "codec-magnitude"})
    up: ClassVar[frozenset[str]] = frozenset({"codes"})

    mu: PositiveFloat = 1e-3
    """The radius."""
    stochastic: bool = False
    """A byte, no other code, is rounded so at random that its mean is right."""

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """G codes, and two evaluations each."""
        samples, codec = int(order.config["samples"]), codec_of(order.config)
        codes = packed(codec, codec.encode(torch.zeros(1, samples)))
        return Cost(self.steps_of(examples, samples), {"codes": Size.of(codes)}, 2 * samples)

    def train(self, cohort: Cohort) -> Update:
        """Catch up with the log; measure the slopes along the own directions."""
        config, seed, codec = cohort.config, cohort.received("seed"), codec_of(cohort.config)
        log = {name: cohort.received(name) for name in ("rounds", "owners", "codes")}
        x = caught_up(cohort, of_codes(seed, log, codec, str(config["agg"])))
        samples = int(config["samples"])
        found, values = x.new_zeros(2, len(cohort), samples)
        numbers, streams = samples_of(cohort.clients, samples), Streams(int(seed))
        for sample, batch in enumerate(self.batches(cohort, samples)):
            keys = Keys("one-byte", owner=numbers[:, sample], turn=cohort.round)
            z = Directions(streams, keys, kind_of(config))
            found[:, sample], values[:, sample] = slopes_along(cohort, batch, x, z, self.mu)
        uniform = None
        if self.stochastic:
            shape = (samples,)
            uniform = cohort.streams.uniform("code", cohort.clients, shape, turn=cohort.turn, dtype=torch.float64)
        metrics = {"loss": mean_told(values)}
        if isinstance(codec, OneByte):
            metrics["saturated"] = codec.saturated(found).sum(dim=1)
        return Update({"codes": packed(codec, codec.encode(found, uniform))}, metrics)
