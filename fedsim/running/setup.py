"""What a simulation is made of."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.configuration.evaluation import Evaluation, Stopping
from fedsim.core.streams import Streams
from fedsim.engine.base import Engine
from fedsim.engine.personal import Tuning
from fedsim.exchange.transforms import Chain
from fedsim.problems.base import Looped
from fedsim.running.personal import EVERYBODYS, Whose
from fedsim.running.private import AnyGuard
from fedsim.running.secure import Secured
from fedsim.server.distillation import Bench
from fedsim.server.selection.base import Selector
from fedsim.server.strategy import Strategy


@dataclass(frozen=True)
class Setup:
    """What a simulation is made of. rounds, duration (virtual seconds): where it ends; None: not there.

    steady: whether all clients that are sent orders answer them, as far as their devices go. whose: whose models are
    judged. tuning: how clients train them before. bench: what a server that distils works with. secured: what
    sums the replies of a window, so that the strategy is told no single one. privacy: what clips and noises them, or
    keeps the account of clients who do.
    """

    problem: Looped
    strategy: Strategy
    selector: Selector
    engine: Engine
    streams: Streams
    rounds: int | None
    duration: float | None
    evaluation: Evaluation
    stopping: Stopping | None
    order_transforms: Chain
    steady: bool = True
    whose: Whose = EVERYBODYS
    tuning: Tuning | None = None
    bench: Bench | None = None
    secured: Secured | None = None
    privacy: AnyGuard | None = None
