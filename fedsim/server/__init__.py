"""What strategies share, and who works next. An author of a strategy imports all that it needs from here."""

from fedsim.core.clock import ticks
from fedsim.core.errors import InputError, StalledError
from fedsim.core.options import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Passes,
    PositiveFloat,
    PositiveInt,
    Rate,
    Seconds,
    Share,
    kind_named,
    options,
)
from fedsim.core.plugins import HasPlugins
from fedsim.core.streams import Streams
from fedsim.exchange.actions import BATCH_SIZE, SPREAD
from fedsim.exchange.bits import from_bits, to_bits
from fedsim.exchange.messages import Late, Order, Replies, Scalar, Weighting
from fedsim.exchange.windows import All, Enough, Every, First, Window
from fedsim.nets.optimizers import Optimizer
from fedsim.server.batches import BatchRule
from fedsim.server.by_losses import ByLosses
from fedsim.server.codes import Code, OfARound, enough, filled, hold_room, scheme_of, tasks
from fedsim.server.distillation import Bench, Ensemble
from fedsim.server.downlink import BothWays, remembering
from fedsim.server.gossip import Gossip, Rows
from fedsim.server.graphs import Graph, Ring, among, arrows, mixed, pushing
from fedsim.server.optimizers import OptimizerState, ServerOptimizer
from fedsim.server.participation import (
    Frequency,
    Weights,
    counting,
    extended,
    hold_needed,
    observed_weights,
    recounted,
    refuse_waiting,
    shares,
)
from fedsim.server.staleness import Discount, Polynomial
from fedsim.server.strategy import (
    Averaging,
    ClientRate,
    Config,
    Metrics,
    ProblemView,
    ServerState,
    ServerStep,
    Strategy,
    observed,
)

__all__ = [
    "BATCH_SIZE",
    "SPREAD",
    "All",
    "Averaging",
    "BatchRule",
    "Bench",
    "BothWays",
    "ByLosses",
    "ClientRate",
    "Code",
    "Config",
    "Discount",
    "Enough",
    "Ensemble",
    "Every",
    "First",
    "Fraction",
    "Frequency",
    "Gossip",
    "Graph",
    "HasPlugins",
    "InputError",
    "Late",
    "Metrics",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OfARound",
    "Optimizer",
    "OptimizerState",
    "Order",
    "Passes",
    "Polynomial",
    "PositiveFloat",
    "PositiveInt",
    "ProblemView",
    "Rate",
    "Replies",
    "Ring",
    "Rows",
    "Scalar",
    "Seconds",
    "ServerOptimizer",
    "ServerState",
    "ServerStep",
    "Share",
    "StalledError",
    "Strategy",
    "Streams",
    "Weighting",
    "Weights",
    "Window",
    "among",
    "arrows",
    "counting",
    "enough",
    "extended",
    "filled",
    "from_bits",
    "hold_needed",
    "hold_room",
    "kind_named",
    "mixed",
    "observed",
    "observed_weights",
    "options",
    "pushing",
    "recounted",
    "refuse_waiting",
    "remembering",
    "scheme_of",
    "shares",
    "tasks",
    "ticks",
    "to_bits",
]
