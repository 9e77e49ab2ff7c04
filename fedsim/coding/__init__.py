"""Gradient codes: how workers share data so that a sum of gradients is known before the slowest of them is done."""

from fedsim.coding.cluster import Cluster, Timed, simulate
from fedsim.coding.codes import cyclic, decode, repetition
from fedsim.coding.schemes import GradientCoding, Multiplexed, Scheme, SelectiveRepeat, Task, Uncoded
from fedsim.coding.stragglers import bursty, gilbert_elliott

__all__ = [
    "Cluster",
    "GradientCoding",
    "Multiplexed",
    "Scheme",
    "SelectiveRepeat",
    "Task",
    "Timed",
    "Uncoded",
    "bursty",
    "cyclic",
    "decode",
    "gilbert_elliott",
    "repetition",
    "simulate",
]
