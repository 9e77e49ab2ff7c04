"""Direct search by a server that knows F as its clients tell it, one point a round, with attacks where it has a guide.

A trial x + d is taken where F(x + d) < F(x) - c r^2. Of an iteration the first that is taken ends it, but for a small
gain of the attack:
attack    d = -r_a sign(g), g what a guide takes for grad F(x): a gain of 1e-3 |F(x)| takes it and r_a grows by 1.3, and
          any less by 1.1 and the iteration goes on; otherwise r_a falls by 1.3
covering  d uniform in the ball of radius r_0, so that what is near is covered with time
search    d drawn, of the largest number r_0 sqrt(k + 1), k counts searches; with a guide r doubles where it is taken
poll      d = r h / |h|_inf for h of a positive spanning set of drawn directions, in turn; r doubles, or is halved where
          none is taken
Downlink d floats a client, uplink a float and an evaluation. The global model is x. Audet and Hare 2017 (direct
search); covering by Audet, Bouchet and Bourdin 2022; the hybrid with attacks by Bouchet and Vidal 2025.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedsim.server import (
    All,
    HasPlugins,
    InputError,
    Metrics,
    NonNegativeFloat,
    NonNegativeInt,
    Order,
    PositiveFloat,
    ProblemView,
    Replies,
    ServerState,
    Strategy,
    Streams,
    Weighting,
    Window,
    observed,
    options,
)
from fedsim.zeroth_order import Poll, attacked, in_ball, in_cube, polled, polls

START, AGAIN, ATTACK, COVERING, SEARCH, POLL = range(6)
OWNER = torch.zeros(1, dtype=torch.int64)
Found = dict[str, Any]
"""What the search knows, by name."""


@options
class DirectSearch(HasPlugins, Strategy):
    """Needs the client `values`. Trials are kept within the problem's box."""

    parts: ClassVar[Mapping[str, str]] = {"guide": "guides"}
    down: ClassVar[frozenset[str]] = frozenset({"candidates"})
    up: ClassVar[frozenset[str]] = frozenset({"values"})

    weighting: Weighting = "uniform"
    """Weights w_i of F = sum_i w_i f_i: by the clients' examples, or uniform, 1/k each."""
    radius: PositiveFloat = 1.0
    """r_0, with which r and r_a begin."""
    least: PositiveFloat = 1e-5
    """The least that r and r_a become. With a guide there is no search and no poll while r is that."""
    most: PositiveFloat = 1.0
    """The most that r_a becomes."""
    poll: Poll = "2n"
    """Directions of a poll: an orthonormal basis and its negatives, or with the negative of its sum alone (n+1)."""
    covering: bool = True
    """Whether to try a point of the ball around x in each iteration."""
    sufficient: NonNegativeFloat = 0.0
    """c, of how much a trial must be lower by r^2; above 0 where values are noisy, such as 1e-3."""
    again: NonNegativeInt = 0
    """Iterations after which F(x) is asked for once more, and is the mean of its values from then on; 0: never."""
    guide: Any = None
    """What the server takes for the slope of F: fitted, or ./file.py:Class of one's own. Not given: no attacks."""
    attack: Literal["fgsm", "pgd"] = "fgsm"
    """One step along the sign of the slope, or ten within the same cube."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.radius:
            raise InputError("least", self.least, f"must be at most radius, which is {self.radius}")
        if self.guide is None and self.attack != "fgsm":
            raise InputError("attack", self.attack, "without a guide there are no attacks; leave it out, or name one")

    def init(self, problem: ProblemView) -> ServerState:
        """The point to start from, of which nothing is known."""
        params, bounds = problem.initial(), problem.bounds
        box = torch.tensor([-math.inf, math.inf] if bounds is None else list(bounds), dtype=torch.float64)
        numbers = {"radius": self.radius, "attack": min(self.radius, self.most), "value": math.inf}
        counts = {"searches": 0, "iteration": 0, "stage": START, "place": 0, "told": 0}
        memory = {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}
        memory |= {name: torch.tensor(number) for name, number in counts.items()}
        memory |= {"box": box, "trial": params.double(), "points": params.double()[None][:0], "values": box[:0]}
        return ServerState(params, memory=memory)

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with a seed for the directions."""
        seed = torch.tensor(streams.seed_of("direct-search"))
        return replace(state, memory={**state.memory, "seed": seed})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the trial."""
        candidates = state.memory["trial"].to(state.params.dtype).unsqueeze(0)
        return Order("evaluate", chosen, {"candidates": candidates}, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Take the trial or not, and make the next; one of which no value came is as bad as can be."""
        later = replace(state, round=state.round + 1)
        if not len(replies) and not len(replies.failed):
            return later, {}, True
        value = math.inf
        if len(replies):
            value = float(replies.combine(replies.weights(self.weighting), name="values")[0])
        found: Found = {name: one.item() if one.dim() == 0 else one for name, one in state.memory.items()}
        x, stage = state.params.double(), found["stage"]
        if self.made and math.isfinite(value):
            self._note(found, value)
        taken, following = self._judged(found, value)
        if stage == AGAIN and math.isfinite(value):
            found["told"] += 1
            found["value"] += (value - found["value"]) / found["told"]
        if taken:
            x, found["value"], found["told"] = found["trial"], value, 1
        self._tried(found, x, following)
        kept = {name: torch.tensor(one) for name, one in found.items() if isinstance(one, int)}
        kept |= {name: torch.tensor(one, dtype=torch.float64) for name, one in found.items() if isinstance(one, float)}
        memory = {**found, **kept}
        metrics = {"lowest_value": float(found["value"]), "radius": found["radius"], "taken": float(taken)}
        if self.made:
            metrics["attack_radius"] = found["attack"]
        metrics = {name: number for name, number in metrics.items() if math.isfinite(number)}
        return replace(later, params=x.to(state.params.dtype), memory=memory), {**observed(replies), **metrics}, True

    def _note(self, found: Found, value: float) -> None:
        """Remember what the guide wants to know."""
        latest, wanted = found["trial"].new_tensor([value]), self.made["guide"].history
        if wanted:
            found["points"] = torch.cat((found["points"], found["trial"].unsqueeze(0)))[-wanted:]
            found["values"] = torch.cat((found["values"], latest))[-wanted:]

    def _first(self) -> int:
        """The stage with which an iteration begins."""
        return ATTACK if self.made else self._after_attack()

    def _after_attack(self) -> int:
        return COVERING if self.covering else SEARCH

    def _judged(self, found: Found, value: float) -> tuple[bool, int | None]:
        """Whether the trial is taken, and the stage that follows; None: an iteration is over. Radii move along."""
        stage, guided = found["stage"], bool(self.made)
        tried = {ATTACK: found["attack"], POLL: found["radius"]}.get(stage, self.radius)
        taken = value < found["value"] - self.sufficient * tried**2
        if stage == AGAIN:
            return False, self._first()
        if stage == START:
            return taken, None
        if stage == ATTACK:
            large = taken and found["value"] - value >= 1e-3 * (abs(found["value"]) + 1e-10)
            factor = (1.3 if large else 1.1) if taken else 1.0 / 1.3
            found["attack"] = min(max(found["attack"] * factor, self.least), self.most)
            if large and found["radius"] <= self.least:
                found["radius"] *= 2.0
            return taken, None if large else self._after_attack()
        if stage == COVERING:
            return taken, None if taken else SEARCH
        if stage == SEARCH:
            found["searches"] += 1
            found["radius"] *= 2.0 if taken and guided else 1.0
            found["place"] = 0
            return taken, None if taken else POLL
        found["place"] += 1
        if taken:
            found["radius"] *= 2.0
        elif found["place"] == polls(len(found["trial"]), self.poll):
            found["radius"] = max(found["radius"] / 2.0, self.least)
        else:
            return False, POLL
        return taken, None

    def _tried(self, found: Found, x: Tensor, stage: int | None) -> None:
        """Lay down the next trial: of this stage or, where it has none, of one that follows."""
        without = 0  # iterations in which there was nothing to try, after which r is not too small to poll
        while True:
            if stage is None:
                found["iteration"] += 1
                without += 1
                repeats = bool(self.again) and found["iteration"] % self.again == 0
                stage = AGAIN if repeats else self._first()
            resting = bool(self.made) and found["radius"] <= self.least and without < 2 and stage in (SEARCH, POLL)
            found["stage"] = stage
            trial = (x + self._step(found, x, stage)).clamp(*found["box"].tolist())
            if not resting and (stage == AGAIN or not torch.equal(trial, x)):
                found["trial"] = trial
                return
            if resting:
                stage = None
                continue
            # A trial that is x itself would be an evaluation for nothing: it fails.
            stage = self._judged(found, math.inf)[1]

    def _step(self, found: Found, x: Tensor, stage: int) -> Tensor:
        """The displacement of a stage, float64 [d]."""
        if stage == AGAIN:
            return torch.zeros_like(x)
        if stage == ATTACK:
            told = (found["points"], found["values"])
            return attacked(self.made["guide"], x, found["attack"], self.attack, told)
        drawn = (
            Streams(found["seed"])
            .normal("directions", OWNER, (len(x),), turn=found["iteration"], step=stage, dtype=torch.float64)[0]
            .to(x.device)
        )
        if stage == COVERING:
            uniform = Streams(found["seed"]).uniform(
                "covering", OWNER, (1,), turn=found["iteration"], dtype=torch.float64
            )
            return in_ball(drawn, float(uniform[0, 0]), self.radius)
        if stage == SEARCH:
            return in_cube(drawn, self.radius * math.sqrt(found["searches"] + 1))
        return in_cube(polled(drawn, found["place"], self.poll), found["radius"])
