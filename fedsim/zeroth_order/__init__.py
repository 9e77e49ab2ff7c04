"""Search with values alone. What is special to such strategies, clients and estimators is imported from here."""

from fedsim.zeroth_order.ask_tell import AskTell, Points
from fedsim.zeroth_order.chains import FIRST, GENE, Chains, Genome, first_scale
from fedsim.zeroth_order.codec import OneByte
from fedsim.zeroth_order.direct import Fitted, Guide, Poll, attacked, in_ball, in_cube, polled, polls
from fedsim.zeroth_order.directions import DRAWS, Keys, Kind, check, dual, part, second_moment
from fedsim.zeroth_order.estimator import Estimate, Estimator, Memory, Probe
from fedsim.zeroth_order.failures import based, mean_told, ranked_last, saying_nothing, told
from fedsim.zeroth_order.replay import replay_
from fedsim.zeroth_order.replica import Directions, Replica, caught_up, kind_of, replica_state, slopes, slopes_along
from fedsim.zeroth_order.replica_server import ReplicaServer, SharedSeed, mean_loss
from fedsim.zeroth_order.scalar_codes import ScalarCodec, codec_of, described, finite, packed, unpacked
from fedsim.zeroth_order.search import MEASURE, EstimatedSearch, LocalSearch, batches
from fedsim.zeroth_order.server import TRAIN, GuardedStep
from fedsim.zeroth_order.shared_seed import (
    LARGEST_SLOPE,
    MEMBER,
    PUBLIC,
    SEED,
    Population,
    edges_of,
    importance,
    of_codes,
    of_coefficients,
    of_losses,
    of_scalars,
    pool_keys,
    population_keys,
    rebuilt,
    samples_of,
    seeded_keys,
    summed,
)
from fedsim.zeroth_order.surrogates.gaussian_process import GaussianProcess, fit, length_scales
from fedsim.zeroth_order.surrogates.kernels import KERNELS
from fedsim.zeroth_order.surrogates.random_features import RandomFeatures, draw
from fedsim.zeroth_order.surrogates.trajectory import Trajectory

__all__ = [
    "DRAWS",
    "FIRST",
    "GENE",
    "KERNELS",
    "LARGEST_SLOPE",
    "MEASURE",
    "MEMBER",
    "PUBLIC",
    "SEED",
    "TRAIN",
    "AskTell",
    "Chains",
    "Directions",
    "Estimate",
    "EstimatedSearch",
    "Estimator",
    "Fitted",
    "GaussianProcess",
    "Genome",
    "GuardedStep",
    "Guide",
    "Keys",
    "Kind",
    "LocalSearch",
    "Memory",
    "OneByte",
    "Points",
    "Poll",
    "Population",
    "Probe",
    "RandomFeatures",
    "Replica",
    "ReplicaServer",
    "ScalarCodec",
    "SharedSeed",
    "Trajectory",
    "attacked",
    "based",
    "batches",
    "caught_up",
    "check",
    "codec_of",
    "described",
    "draw",
    "dual",
    "edges_of",
    "finite",
    "first_scale",
    "fit",
    "importance",
    "in_ball",
    "in_cube",
    "kind_of",
    "length_scales",
    "mean_loss",
    "mean_told",
    "of_codes",
    "of_coefficients",
    "of_losses",
    "of_scalars",
    "packed",
    "part",
    "polled",
    "polls",
    "pool_keys",
    "population_keys",
    "ranked_last",
    "rebuilt",
    "replay_",
    "replica_state",
    "samples_of",
    "saying_nothing",
    "second_moment",
    "seeded_keys",
    "slopes",
    "slopes_along",
    "summed",
    "told",
    "unpacked",
]
