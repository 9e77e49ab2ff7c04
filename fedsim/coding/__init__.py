"""Gradient codes: how workers share data so that a sum of gradients is known before the slowest of them is done."""

from fedsim.coding.cluster import Cluster, Timed, simulate
from fedsim.coding.codes import cyclic, decode, repetition
from fedsim.coding.schemes import GradientCoding, Multiplexed, Scheme, SelectiveRepeat, Uncoded, Work
from fedsim.coding.stragglers import Bursts, Needs, gilbert_elliott

__all__ = [
    "Bursts",
    "Cluster",
    "GradientCoding",
    "Multiplexed",
    "Needs",
    "Scheme",
    "SelectiveRepeat",
    "Timed",
    "Uncoded",
    "Work",
    "cyclic",
    "decode",
    "gilbert_elliott",
    "repetition",
    "simulate",
]
