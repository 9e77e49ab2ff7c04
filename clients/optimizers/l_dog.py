"""L-DoG: DoG with a step size of its own for each of a client's tensors.

rbar and G are those of each weight and each bias: rbar_0 = reps_rel (1 + |y_0|) of a bias of zeros is reps_rel.
y_l <- y_l - lr rbar_l / sqrt(G_l) g_l for each tensor l; the rest is as in `clients.optimizers.dog`
Memory: y_0, and the average if there is one. Ivgi, Hinder and Carmon 2023, of which it is a variant.
"""

from __future__ import annotations

from typing import ClassVar

from fedsim.client import Travelled, options


@options
class LDog(Travelled):
    """Deltas do not change with the scale of a client's loss. All of it begins anew in each round."""

    by_leaf: ClassVar[bool] = True
