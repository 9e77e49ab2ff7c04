"""What noise costs: epsilon at a delta, of clipped sums to which Gaussian noise of z times their bound was added.

Each law of who is in a sum has its own neighbours and its own theorem; one law's account is none for another:

- `Poisson`: each by a coin of its own with probability q; add or remove one. Mironov et al. 2019 (RDP), Koskela et al.
  2020 and Doroshenko et al. 2022 (PLD).
- `Fixed`: m of N without replacement; replace one, which moves the sum by twice the bound. Wang, Balle and
  Kasiviswanathan 2019, theorem 27 (RDP). PLD has no such event, and takes the pair of a Poisson sample of rate 1 that
  is cut at m.
- `Everyone`: whoever takes part, as often as it does; add or remove one. The Gaussian mechanism, composed.

dp-accounting computes, and these conventions are its own: under replace-one its RDP takes noise in units of the whole
sensitivity 2 C, hence z / 2, and its PLD in units of C, hence z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from fedsim.core.errors import InputError
from fedsim.core.extras import library
from fedsim.core.logs import errors_alone
from fedsim.privacy.options import Accounting

Relation = Literal["add or remove one", "replace one"]
SERIES = "absl"
"""The logger that warns of orders for which a series did not converge: they are left out, which bounds nothing less."""
TOLERANCE = 1e-4
"""How far above the least noise multiplier a target's may lie."""
INTERVAL = 3e-4
"""Between losses of which a distribution is made, which is rounded so that it promises no more than it holds. The
library's 1e-4 takes three to four times as long, half a second a row; epsilons of nine published settings are above its
own by at most 0.05 %.
"""
MOST = 1e4
"""The largest noise multiplier that a target is searched with."""


@dataclass(frozen=True)
class Poisson:
    """Each is in a sum with probability `rate`, whoever else is."""

    rate: float
    relation: Relation = "add or remove one"

    def event(self, accounting: Any, kind: Accounting, multiplier: float) -> Any:  # noqa: ARG002
        """One sum, as dp-accounting describes it."""
        return accounting.PoissonSampledDpEvent(self.rate, accounting.GaussianDpEvent(multiplier))


@dataclass(frozen=True)
class Fixed:
    """A sum is over `cohort` of `population`, each set equally likely."""

    population: int
    cohort: int
    relation: Relation = "replace one"

    def event(self, accounting: Any, kind: Accounting, multiplier: float) -> Any:
        """One sum, as dp-accounting describes it."""
        if kind == "rdp":
            half = accounting.GaussianDpEvent(multiplier / 2.0)
            return accounting.SampledWithoutReplacementDpEvent(self.population, self.cohort, half)
        return accounting.TruncatedSubsampledGaussianDpEvent(
            dataset_size=self.population,
            sampling_probability=1.0,
            truncated_batch_size=self.cohort,
            noise_multiplier=multiplier,
        )


@dataclass(frozen=True)
class Everyone:
    """Nothing is won by sampling: a sum counts where one is in it."""

    relation: Relation = "add or remove one"

    def event(self, accounting: Any, kind: Accounting, multiplier: float) -> Any:  # noqa: ARG002
        """One sum, as dp-accounting describes it."""
        return accounting.GaussianDpEvent(multiplier)


Law = Poisson | Fixed | Everyone


@dataclass(frozen=True)
class Account:
    """The account of sums of one kind. multiplier: z, the noise in units of the bound; 0: none."""

    kind: Accounting
    law: Law
    multiplier: float
    delta: float

    def epsilon(self, sums: int) -> float:
        """What so many sums spend; infinity where there is no noise, 0 of none."""
        if not sums:
            return 0.0
        if not self.multiplier:
            return math.inf
        return max(0.0, float(_spent(self.kind, self.law, self.multiplier, sums, self.delta)))


@cache
def least_noise(kind: Accounting, law: Law, sums: int, epsilon: float, delta: float) -> float:
    """The least z, to `TOLERANCE`, with which so many sums spend at most epsilon. InputError: none is large enough."""
    accounting, _ = _libraries(kind)
    neighbours = _relation(accounting, law)

    def made() -> Any:
        return _accountant(kind, neighbours)

    with errors_alone(SERIES):
        try:
            found = accounting.calibrate_dp_mechanism(
                made,
                lambda z: accounting.SelfComposedDpEvent(law.event(accounting, kind, z), sums),
                epsilon,
                delta,
                bracket_interval=accounting.LowerEndpointAndGuess(1e-2, 1.0),
                tol=TOLERANCE,
            )
        except (accounting.mechanism_calibration.NoBracketIntervalFoundError, ValueError) as error:
            remedy = f"no noise that could be found spends so little in {sums} sums; raise it, or have fewer rounds"
            raise InputError("privacy.epsilon", epsilon, remedy) from error
    return float(found)


@cache
def _single(kind: Accounting, law: Law, multiplier: float) -> Any:
    """What one sum costs: orders and Renyi divergences, or the distribution of the loss."""
    accounting, _ = _libraries(kind)
    accountant = _accountant(kind, _relation(accounting, law))
    with errors_alone(SERIES):
        accountant.compose(law.event(accounting, kind, multiplier))
    # Composed again for each row a run of a thousand rounds would take minutes; both add up over like sums.
    return (accountant._orders, accountant._rdp) if kind == "rdp" else accountant._pld


@cache
def _spent(kind: Accounting, law: Law, multiplier: float, sums: int, delta: float) -> float:
    _, module = _libraries(kind)
    one = _single(kind, law, multiplier)
    if kind == "pld":
        return float(one.self_compose(sums).get_epsilon_for_delta(delta))
    orders, divergences = one
    return float(module.compute_epsilon(orders, divergences * sums, delta)[0])


def _libraries(kind: Accounting) -> tuple[Any, Any]:
    accounting = library("dp_accounting", "dp", kind, "privacy.accountant")
    return accounting, library(f"dp_accounting.{kind}", "dp", kind, "privacy.accountant")


def _accountant(kind: Accounting, neighbours: Any) -> Any:
    _, module = _libraries(kind)
    if kind == "rdp":
        return module.RdpAccountant(neighboring_relation=neighbours)
    return module.PLDAccountant(neighbours, INTERVAL)


def _relation(accounting: Any, law: Law) -> Any:
    relations = accounting.NeighboringRelation
    return relations.REPLACE_ONE if law.relation == "replace one" else relations.ADD_OR_REMOVE_ONE
