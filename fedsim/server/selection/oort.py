"""Oort: guided selection by how much a client still has to teach and how fast it is."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedsim.core.options import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Share, options
from fedsim.exchange.messages import Free, Replies
from fedsim.server.selection.base import SelectorState, Turn
from fedsim.server.selection.draws import Draws, Ids, free_where, in_proportion, smallest
from fedsim.server.selection.size import FixedSize, noted


@options
class Oort(FixedSize):
    """Explore some clients that have never replied; exploit, of those that have, the ones with the best scores.

    Of k clients wanted, k * e are explored, drawn in proportion to their examples; rounded up or down at random, so
    that the mean holds for k = 1 too. The others are drawn in proportion to their scores. When one kind is short, the
    other fills up.

        e = max(exploration * exploration_decay^round, exploration_floor)
        U_i = examples_i * sqrt(mean loss^2), of the last reply
        score_i = (U_i clipped and scaled to [0, 1]) + sqrt(temporal ln t / t_i), with t the round and t_i that of the
            last order replied to, both from 1; where D_i > T, times (T / D_i)^round_penalty

    T is a percentile of all last durations D_i. After every `pacer_step` rounds the pacer compares the mean utility of
    exploited replies, summed over these rounds, with that of as many rounds before, and moves the percentile.

    Costs 4 bytes up a reply and O(N). Lai, Zhu, Madhyastha and Chowdhury 2021, algorithm 1, with cut_off 0.95 and
    exploration_floor 0.2. The defaults here and what the paper leaves open are those of its code in FedScale, where
    however k * e is rounded down, utilities are divided by their unclipped range, and exploration is confined to the
    clients with most examples, five times as many as explored.
    """

    reports: ClassVar[frozenset[str]] = frozenset({"utility"})
    of_sizes: ClassVar[frozenset[str]] = frozenset({"sizes"})

    exploration: Share = 0.9
    """Share of clients that are explored in the first round."""
    exploration_decay: Share = 0.98
    """Factor of that share in every round."""
    exploration_floor: Share = 0.3
    """The least share."""
    clip: Share = 0.9
    """Quantile at which utilities of clients that can be selected are clipped, before they are scaled; where all are
    equal they are 1.
    """
    temporal: NonNegativeFloat = 0.1
    """Weight of a long absence."""
    cut_off: Share = 0.05
    """Share of the score of rank k', the number exploited, that a client must have to be drawn."""
    augmentation: NonNegativeFloat = 10.0
    """In any case so many times k' clients can be drawn."""
    round_threshold: Annotated[float, Field(gt=0, le=100)] = 30.0
    """The first percentile of the durations that is T."""
    round_penalty: NonNegativeFloat = 2.0
    """Exponent of slowness."""
    pacer_step: PositiveInt = 20
    """Rounds between two moves of the pacer."""
    pacer_delta: NonNegativeFloat = 5.0
    """Percent by which it moves the percentile, which stays between this and 100."""
    pacer_flat: Fraction = 0.1
    """The percentile rises when utilities differ by at most this share of those before."""
    pacer_sharp: PositiveFloat = 5.0
    """The percentile falls when they differ by at least so many times those before."""
    blacklist_rounds: PositiveInt | None = None
    """Who has replied more often is not selected, unless too few would be left. Not given: everybody is."""
    blacklist_share: Share = 0.3
    """The blacklist has at most this share of the population: those with most replies, ties to the smaller id."""

    def start(self, sizes: Tensor) -> SelectorState:
        """Know the sizes, and nothing else of anybody.

        Columns [N]: sizes and replies, int64; of the last reply utility, float64, the order's round, int64, and the
        duration, int64 ticks. The pacer's: round; threshold, percent; earned, [2], sum and number of the utilities
        exploited in this round; windows, [2], what the rounds of the previous and of the current window came to.
        """
        return {
            **super().start(sizes),
            "sizes": sizes.to(device="cpu", dtype=torch.int64, copy=True),
            "replies": torch.zeros(len(sizes), dtype=torch.int64),
            "utility": torch.zeros(len(sizes), dtype=torch.float64),
            "versions": torch.zeros(len(sizes), dtype=torch.int64),
            "durations": torch.zeros(len(sizes), dtype=torch.int64),
            "round": torch.zeros((), dtype=torch.int64),
            "threshold": torch.tensor(self.round_threshold, dtype=torch.float64),
            "earned": torch.zeros(2, dtype=torch.float64),
            "windows": torch.zeros(2, dtype=torch.float64),
        }

    def select(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> tuple[Tensor, SelectorState]:
        """See `Selector`."""
        return super().select(self._paced(state, turn.round), turn, scores)

    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Ids:  # noqa: ARG002
        """See `FixedSize`."""
        draws, replies = Draws.of(state, turn), state["replies"].numpy()
        allowed = turn.free.mask & ~self._blacklist(replies)
        if np.count_nonzero(allowed) < turn.wanted:
            allowed = turn.free.mask
        unknown, known = free_where(allowed & (replies == 0)), free_where(allowed & (replies > 0))
        share = max(self.exploration * self.exploration_decay**turn.round, self.exploration_floor)
        up = draws.uniform("selection/rounding", 1)[0]
        explored = min(math.floor(turn.wanted * share + up), unknown.count)
        exploited = min(turn.wanted - explored, known.count)
        explored = turn.wanted - exploited
        chosen = np.empty(0, dtype=np.int64)
        if exploited:
            values = self.scores(state, known.mask, turn.round)
            best = self._best(values, known.mask, exploited)
            ends = (values * best.mask).cumsum()
            chosen = in_proportion(draws, "selection/exploit", ends, best, exploited)
        if explored:
            ends = (state["sizes"].numpy() * unknown.mask).cumsum()
            chosen = np.concatenate((chosen, in_proportion(draws, "selection/explore", ends, unknown, explored)))
        return np.sort(chosen)

    def observe(self, state: SelectorState, replies: Replies) -> SelectorState:
        """Note what the replies say of their clients."""
        if len(replies) == 0:
            return state
        clients = replies.clients
        utility = replies.examples.double() * replies.payload["utility"][:, 0].to("cpu", torch.float64)
        again = state["replies"][clients] > 0
        return {
            **state,
            "replies": state["replies"] + clients.bincount(minlength=len(state["replies"])),
            "utility": noted(state["utility"], clients, utility),
            "versions": noted(state["versions"], clients, replies.versions),
            "durations": noted(state["durations"], clients, replies.durations),
            "earned": state["earned"] + torch.stack((utility[again].sum(), again.sum().double())),
        }

    def scores(self, state: SelectorState, known: NDArray[np.bool_], round: int) -> NDArray[np.float64]:  # noqa: A002
        """score_i of those known, of whom there are some: [N], zero for others."""
        utility = state["utility"].numpy()[known]
        utility = np.minimum(utility, _quantile(utility, self.clip))
        low, high = utility.min(), utility.max()
        scaled = (utility - low) / (high - low) if high > low else np.ones_like(utility)
        score = scaled + np.sqrt(self.temporal * math.log(round + 1) / (state["versions"].numpy()[known] + 1))
        durations = state["durations"].numpy()
        preferred = _quantile(durations[state["replies"].numpy() > 0], float(state["threshold"]) / 100)
        slow = durations[known] > preferred
        score[slow] *= (preferred / durations[known][slow]) ** self.round_penalty
        scores = np.zeros(len(known))
        scores[known] = score
        return scores

    def _best(self, scores: NDArray[np.float64], known: NDArray[np.bool_], wanted: int) -> Free:
        """Those of the known from whom so many are drawn."""
        clients = np.flatnonzero(known)
        found = scores[clients]
        ranked = found[smallest(-found, wanted)]
        enough = int(np.count_nonzero(found >= self.cut_off * ranked[-1]))
        count = min(max(enough, math.ceil(self.augmentation * wanted)), len(clients))
        mask = np.zeros_like(known)
        mask[clients[smallest(-found, count)]] = True
        return Free(mask, count)

    def _blacklist(self, replies: Ids) -> NDArray[np.bool_]:
        """Who is not to be selected any more: [N]."""
        barred = np.zeros(len(replies), dtype=np.bool_)
        if self.blacklist_rounds is not None:
            tired = np.flatnonzero(replies > self.blacklist_rounds)
            barred[tired[smallest(-replies[tired], int(self.blacklist_share * len(replies)))]] = True
        return barred

    def _paced(self, state: SelectorState, round: int) -> SelectorState:  # noqa: A002
        """The state at a selection of this round: a round that has ended is added up, and the pacer may act."""
        before = int(state["round"])
        if round == before:
            return state
        utility, number = state["earned"].tolist()
        previous, current = state["windows"].tolist()
        current += utility / max(number, 1.0)
        threshold = float(state["threshold"])
        if round // self.pacer_step > before // self.pacer_step:
            if round >= 2 * self.pacer_step:
                threshold = self._moved(threshold, previous, current)
            previous, current = current, 0.0
        return {
            **state,
            "round": torch.tensor(round),
            "earned": torch.zeros(2, dtype=torch.float64),
            "windows": torch.tensor([previous, current], dtype=torch.float64),
            "threshold": torch.tensor(threshold, dtype=torch.float64),
        }

    def _moved(self, threshold: float, previous: float, current: float) -> float:
        """What the threshold becomes."""
        change = abs(current - previous)
        if change <= self.pacer_flat * previous:
            return min(100.0, threshold + self.pacer_delta)
        if change >= self.pacer_sharp * previous:
            return min(threshold, max(self.pacer_delta, threshold - self.pacer_delta))
        return threshold


def _quantile(values: NDArray[np.float64] | Ids, share: float) -> float:
    """The value [n] above which a share of 1 - `share` lies: that of rank n * share, from 0, as the source counts."""
    rank = min(int(len(values) * share), len(values) - 1)
    return float(np.partition(values, rank)[rank])
