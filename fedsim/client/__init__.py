"""What client algorithms share. An author of a client or a defence imports all that it needs from here."""

from fedsim.attacks.attack import Attack, Victim
from fedsim.attacks.gradient import Domain
from fedsim.attacks.losses import Divergence, divergence
from fedsim.client.bounding import Bounding, Expressive, Seen
from fedsim.client.defence import Armed, Defence, apart, check_start, clean_and_attacked, victim
from fedsim.client.distances import Distances, Travelled
from fedsim.client.divided import Divided, matrices
from fedsim.client.layered import Layered
from fedsim.client.normaliser import normaliser
from fedsim.client.plain_steps import PlainStep, PlainSteps
from fedsim.client.rows import own_rows
from fedsim.client.spread import spreads
from fedsim.client.training import LocalTraining, Trained
from fedsim.core.errors import InputError
from fedsim.core.options import (
    BatchSize,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Passes,
    PositiveFloat,
    PositiveInt,
    Rate,
    Share,
    options,
)
from fedsim.core.plugins import HasPlugins
from fedsim.core.streams import Streams
from fedsim.engine.client import Client
from fedsim.engine.cohort import Cohort
from fedsim.exchange.actions import BATCH_SIZE, FORWARD, SPREAD
from fedsim.exchange.bits import from_bits, to_bits
from fedsim.exchange.messages import Cost, Order, Scalar, Size, Update
from fedsim.exchange.transforms import Shapes
from fedsim.nets import polar, products
from fedsim.nets.elementwise import in_whole_registers
from fedsim.nets.footprint import Beside
from fedsim.nets.losses import CrossEntropy, FeatureLoss, Loss
from fedsim.nets.matrix_norms import MatrixNorm
from fedsim.nets.modes import without_fast_paths
from fedsim.nets.network import Batch
from fedsim.nets.optimizers import (
    Beginning,
    CompiledRule,
    Need,
    Objective,
    Optimizer,
    Outputs,
    Remembered,
    Step,
    StepDraws,
)
from fedsim.nets.rows import columns, inner, mix, norms, scale, scaled, squares, squares_by_leaf
from fedsim.nets.stack import Stack

__all__ = [
    "BATCH_SIZE",
    "FORWARD",
    "SPREAD",
    "Armed",
    "Attack",
    "Batch",
    "BatchSize",
    "Beginning",
    "Beside",
    "Bounding",
    "Client",
    "Cohort",
    "CompiledRule",
    "Cost",
    "CrossEntropy",
    "Defence",
    "Distances",
    "Divergence",
    "Divided",
    "Domain",
    "Expressive",
    "FeatureLoss",
    "Fraction",
    "HasPlugins",
    "InputError",
    "Layered",
    "LocalTraining",
    "Loss",
    "MatrixNorm",
    "Need",
    "NonNegativeFloat",
    "NonNegativeInt",
    "Objective",
    "Optimizer",
    "Order",
    "Outputs",
    "Passes",
    "PlainStep",
    "PlainSteps",
    "PositiveFloat",
    "PositiveInt",
    "Rate",
    "Remembered",
    "Scalar",
    "Seen",
    "Shapes",
    "Share",
    "Size",
    "Stack",
    "Step",
    "StepDraws",
    "Streams",
    "Trained",
    "Travelled",
    "Update",
    "Victim",
    "apart",
    "check_start",
    "clean_and_attacked",
    "columns",
    "divergence",
    "from_bits",
    "in_whole_registers",
    "inner",
    "matrices",
    "mix",
    "normaliser",
    "norms",
    "options",
    "own_rows",
    "polar",
    "products",
    "scale",
    "scaled",
    "spreads",
    "squares",
    "squares_by_leaf",
    "to_bits",
    "victim",
    "without_fast_paths",
]
