"""What rules about layers' norms share: which norms those are, and how near polar factors come."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeInt, options
from fedsim.nets import matrix_norms
from fedsim.nets.matrix_norms import MatrixNorm, VectorNorm
from fedsim.nets.optimizers import Optimizer


@options
class Layered(Optimizer):
    """A rule that moves each layer under a norm; weight decay is decoupled, so that it bounds the norms."""

    norm: MatrixNorm = "spectral"
    """Of matrices; a kernel [out, in, ...] is a matrix [out, in ...]."""
    biases: VectorNorm = "max"
    """Of what has one axis; frobenius is its l2 norm."""
    newton_schulz: NonNegativeInt = 5
    """Of norm = "spectral", steps to polar factors, which they come near; 0: they are exact."""

    def __post_init__(self) -> None:
        if self.newton_schulz != 5 and self.norm != "spectral":
            raise InputError("newton_schulz", self.newton_schulz, "is an option of norm = 'spectral' only")

    @property
    def decoupled(self) -> bool:
        """All of it."""
        return True

    def norms(self, shapes: Sequence[Sequence[int]]) -> list[MatrixNorm]:
        """Of leaves of these shapes of a client."""
        return matrix_norms.named([tuple(shape) for shape in shapes], self.norm, self.biases)

    def directions(self, leaves: Sequence[Tensor], norms: Sequence[MatrixNorm]) -> list[Tensor]:
        """The steepest directions of leaves [k, ...], each of length 1 under its norm."""
        return matrix_norms.steepest(leaves, norms, self.newton_schulz)

    def operations(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """The products of one factor of each leaf."""
        return matrix_norms.operations(shapes, self.norms(shapes), self.newton_schulz)
