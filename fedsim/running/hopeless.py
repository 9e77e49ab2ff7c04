"""When a run is given up: nothing comes of waiting or of orders, or nothing that comes is finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core.clock import seconds
from fedsim.core.errors import DivergedError, StalledError
from fedsim.core.graph import storable

RESTS = 20_000
"""How often in a row something is waited for in vain before a run is given up."""
ORDERS = 500
"""So many orders in a row of which nothing came end a run, but no fewer than those of `ROUNDS` rounds.

Where 95 of 100 replies are lost, that happens once in 10^11 such rows.
"""
ROUNDS = 10
"""See `ORDERS`."""
STILL = 500
"""So many rounds from the first that never move the model, though there are replies, end a run."""


@storable("patience")
@dataclass
class Patience:
    """What a run has done in vain, in a row.

    waits: how often it has waited. failed: how many updates in a row were not finite. sent: orders to single clients,
    in all. since: how many of them had ended when a reply was last used. spoiled, skipped: since then, replies that
    could not be used, and rounds that were skipped; wasted: their replies; why: what the last of them lacked. used:
    replies that were used, in all. still: rounds, as long as the model has not moved; -1: it has.
    """

    waits: int = 0
    failed: int = 0
    sent: int = 0
    since: int = 0
    spoiled: int = 0
    skipped: int = 0
    wasted: int = 0
    why: str = ""
    used: int = 0
    still: int = 0

    def waited_in_vain(self, now: int) -> None:
        """Count that time went by, to tick `now`, and nothing came of it. StalledError: too often in a row."""
        self.waits += 1
        if self.waits > RESTS:
            text = f"nothing has come of waiting {RESTS} times in a row (virtual time {seconds(now):g} s)"
            raise StalledError(text)

    def replied(self, number: int, usable: int, failed: int, bearable: int, remedy: str) -> None:
        """Count updates of round `number`: those that can be used, and those that clients have computed in vain.

        DivergedError: so many that failed, one after the other, are no longer bearable; remedy: what to do then.
        """
        self.failed = 0 if usable else self.failed + failed
        if self.failed >= bearable:
            raise DivergedError(f"none of the {self.failed} updates of round {number} is finite; {remedy}")

    def took(self, usable: int, spoiled: int, at_work: int) -> None:
        """Count the replies of a window, those that can be used and others; `at_work` orders go on."""
        self.spoiled += spoiled
        if usable:
            self.used += usable
            self.since, self.spoiled, self.skipped, self.wasted = self.sent - at_work, 0, 0, 0

    def skips(self, before: Patience, replies: int, spoiled: int, why: str) -> None:
        """Say that the round before which all was as in `before` was skipped, with so many replies of either kind."""
        self.since, self.used, self.spoiled = before.since, before.used, before.spoiled + spoiled
        self.skipped, self.wasted, self.why = before.skipped + 1, before.wasted + replies, why

    def hold_fruitful(self, at_work: int, together: int) -> None:
        """StalledError: too many orders in a row have brought nothing. together: how many clients work at once."""
        if self.sent - at_work - self.since >= max(ORDERS, ROUNDS * together):
            raise StalledError(self.fruitless(at_work, " in a row"))

    def fruitless(self, at_work: int, row: str = "") -> str:
        """What has become of the orders since a reply was last used, in words."""
        ended = self.sent - at_work - self.since
        unanswered = ended - self.spoiled - self.wasted
        said = [f"{unanswered} were not answered, or too late"] if unanswered else []
        said += [f"{self.spoiled} replies could not be used"] if self.spoiled else []
        if self.skipped:
            said += [f"{self.wasted} replies came in {self.skipped} rounds that were skipped ({self.why})"]
        return f"{ended} orders{row} brought no reply that was used: {'; '.join(said)}"

    def saw(self, params: Tensor, first: Tensor | None) -> None:
        """Count a round that leaves these parameters [d]; of the first that differ from `first` on it looks no more.

        first: None: they are no model for all, and need not move. StalledError: they never do.
        """
        if self.still < 0 or first is None or not torch.equal(params, first):
            self.still = -1
            return
        self.still += 1
        if self.used and self.still >= STILL:
            raise StalledError(self.unmoved())

    def unmoved(self) -> str:
        """That the model is the first one, in words."""
        vain = f"{self.used} replies in {self.still} rounds have not moved it"
        return f"the model is the one that the run began with: {vain}"


def hold_finite(number: int, params: Tensor, metrics: Mapping[str, float], remedy: str) -> None:
    """End a run that cannot get better, with what to do about it."""
    if not math.isfinite(float(params.sum())):
        raise DivergedError(
            f"the global model is not finite after round {number}; lower client.lr or strategy.server_lr"
        )
    loss = metrics.get("train_loss", 0.0)
    if not math.isfinite(loss):
        raise DivergedError(f"train_loss is {loss} in round {number}; {remedy}")
