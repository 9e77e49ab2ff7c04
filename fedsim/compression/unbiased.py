"""What unbiased compressors share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from fedsim.core.options import options
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Transform


@options
class Unbiased(Transform, ABC):
    """E C(v) = v and E |C(v) - v|^2 <= omega |v|^2."""

    keeps_statistics: ClassVar[bool] = False

    contract: bool = False
    """Divide what arrives by 1 + omega. It is no longer unbiased then, and at most omega / (1 + omega) of a vector's
    square is lost, as feedback needs it.
    """

    @abstractmethod
    def omega(self, before: Size) -> float:
        """How far it scatters: see the class."""

    def factor(self, before: Size) -> float:
        """What numbers that arrive are multiplied by."""
        return 1.0 / (1.0 + self.omega(before)) if self.contract else 1.0

    def error(self, before: Size) -> float:
        """See `Transform`."""
        return self.omega(before) * self.factor(before)
