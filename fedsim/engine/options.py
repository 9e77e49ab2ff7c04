"""How a run is computed: the table `engine` of an experiment."""

from __future__ import annotations

from typing import Literal

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options

Choice = Literal["auto", "stacked", "loop", "fused", "process"]


@options
class EngineOptions:
    """On what device, in which precision, by which executor, and with how much memory."""

    executor: Choice = "auto"
    """How clients are executed: stacked, many at once; loop, one at a time; fused, stacked, but training, and values
    that are asked for, in compiled loops, of some models on a CPU; process, in processes of their own; auto, one of the
    first three by model and work.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors lie; auto: on cuda where there is one."""
    precision: Literal["float32", "float64"] = "float32"
    """The numbers that data and parameters are made of."""
    tf32: bool = False
    """On a GPU, round what is multiplied to the 10 bits of TF32: faster, to some three digits. Of float32 only."""
    cores: PositiveInt | None = None
    """How many cores the run takes at most, of those that PyTorch was given. Not given: all. It changes no number."""
    workers: PositiveInt | None = None
    """How many processes execute clients with executor = process. Not given: one a core."""
    memory_mib: PositiveInt = 256
    """MiB that the stacked tensors of one cohort may take."""
    state_mib: PositiveInt = 4096
    """MiB that what all clients remember may take."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.executor != "process":
            raise InputError("workers", self.workers, f"executor {self.executor} has none; take process, or remove it")
        if self.tf32 and self.precision != "float32":
            raise InputError("tf32", True, f"{self.precision} is not rounded so; take float32, or remove it")
