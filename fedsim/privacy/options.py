"""The table [privacy] of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveFloat, PositiveInt, Rate, options, table_of

Accounting = Literal["rdp", "pld"]
Clipping = Literal["flat", "layers", "sizes"]
SMALLEST, LARGEST = 1e-3, 1e6
"""Of noise multipliers."""
TINY, HUGE = 1e-12, 1e12
"""Of bounds by which noise goes."""
Probability = Annotated[float, Field(gt=0, lt=1)]


@options
class Adaptive:
    """A bound that follows a quantile of the clients' norms (Andrew et al. 2021).

    b = (sum_i 1[norm_i <= C] + N(0, count_noise^2)) / cohort,  C <- C exp(-rate (b - quantile))
    """

    quantile: Probability = 0.5
    """The share of clients that the bound is to leave as they are."""
    rate: Rate = 0.2
    """How far the bound goes in a round."""
    count_noise: PositiveFloat | None = None
    """Standard deviation of the noise on the count of unclipped clients; above half the noise multiplier. Not given: a
    twentieth of the expected cohort.
    """


@options
class Privacy:
    """Changes, or single examples' gradients, are clipped and noised, and an account is kept. Needs `dp-accounting`."""

    level: Literal["client", "example"] = "client"
    """What is hidden: a client with all that it has, by clipping its change (DP-FedAvg); or a single example, also from
    the server, by clipping its gradient in each local step (DP-SGD).
    """
    clip: PositiveFloat | None = None
    """C, the largest norm of a client's change, or of an example's gradient. Not given: there is no bound, and no
    guarantee.
    """
    clipping: Clipping = "flat"
    """flat: the whole vector has the bound C; layers: each of L tensors C / sqrt(L); sizes: a tensor of d_l of d
    numbers C sqrt(d_l / d).
    """
    noise_multiplier: Annotated[float, Field(ge=0)] | None = None
    """z: the noise on the sum has the standard deviation z C; 0: there is none, and no guarantee. Not given: epsilon
    decides.
    """
    epsilon: PositiveFloat | None = None
    """What all rounds may spend, from which the least z follows. Not given: noise_multiplier decides."""
    delta: Probability
    """How likely it may be that epsilon does not hold; below one over the number of clients, or of a client's examples.
    """
    accountant: Accounting = "rdp"
    """rdp: Renyi divergences, quick; pld: privacy loss distributions, tighter, up to a tenth of a second a row."""
    budget: PositiveFloat | None = None
    """End the run before a round that would spend more epsilon than this. Not given: rounds or time end it."""
    where: Literal["server", "clients"] = "server"
    """Who adds the noise: the server to the sum, or each client its share to what it sends, N(0, z^2 C^2 / least)."""
    least: PositiveInt | None = None
    """Replies that make the noise whole where clients add it; a round with fewer moves nothing."""
    mechanism: Literal["independent", "banded"] = "independent"
    """independent: fresh noise in each round; banded: noise of a round that takes back some of that of the rounds
    before, row t of C^-1 Z for a banded C (DP-FTRL by matrix factorisation).
    """
    bands: PositiveInt | None = None
    """b, the diagonals of C, within which no client takes part twice. Needs mechanism = banded."""
    factor: Literal["toeplitz", "optimal"] = "toeplitz"
    """C: the binomial coefficients of a square root, with unit columns; or the b diagonals of least error, which are
    searched for before the run (up to some hundred rounds).
    """
    adaptive: Annotated[Adaptive | None, table_of(Adaptive)] = None
    """Have C follow a quantile of the norms, from `clip` on. Not given: it stays."""

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise InputError("noise_multiplier", self.noise_multiplier, "give exactly one of it and epsilon")
        if self.noise_multiplier and not SMALLEST <= self.noise_multiplier <= LARGEST:
            remedy = f"take 0 for none, or between {SMALLEST:g} and {LARGEST:g}; no account reaches further"
            raise InputError("noise_multiplier", self.noise_multiplier, remedy)
        if self.clip is not None and not TINY <= self.clip <= HUGE and self.noise_multiplier != 0.0:
            remedy = f"noise goes by it, and single precision has no such numbers; take {TINY:g} to {HUGE:g}"
            raise InputError("clip", self.clip, remedy)
        if self.clip is None and self.noise_multiplier != 0.0:
            raise InputError("clip", "(nothing)", "noise goes by it; give the largest norm, or noise_multiplier = 0")
        if self.budget is not None and self.noise_multiplier == 0.0:
            raise InputError("budget", self.budget, "without noise nothing is private; leave it out, or add noise")
        if self.level == "example":
            self._check_example()
        self._check_mechanism()
        self._check_adaptive()
        if (self.where == "clients") != (self.least is not None):
            remedy = "say how many replies make the noise whole" if self.least is None else "is for where = clients"
            raise InputError("least", "(nothing)" if self.least is None else self.least, remedy)

    def _check_example(self) -> None:
        """Refuse what is about the sum of clients' changes."""
        for option in ("where", "least", "mechanism", "bands", "factor", "adaptive"):
            given = getattr(self, option)
            if given != getattr(Privacy, option):
                value = "given" if option == "adaptive" else given
                raise InputError(
                    option, value, "is of the sum of clients' changes; take level = client, or leave it out"
                )

    def _check_mechanism(self) -> None:
        """Refuse bands without a banded mechanism, and that with other noise than the server's."""
        banded = self.mechanism == "banded"
        if banded != (self.bands is not None):
            remedy = "give the number of bands" if self.bands is None else "is for mechanism = banded; leave it out"
            raise InputError("bands", "(nothing)" if self.bands is None else self.bands, remedy)
        if not banded and self.factor != "toeplitz":
            raise InputError("factor", self.factor, "is for mechanism = banded; leave it out")
        if banded and self.where == "clients":
            raise InputError("where", "clients", "noise that is correlated over rounds is the server's; take server")

    def _check_adaptive(self) -> None:
        """Refuse a bound that moves where the noise or the norms would not follow."""
        if self.adaptive is None:
            return
        if self.clip is None:
            raise InputError("adaptive", "given", "it moves clip, which is not given; say where it begins")
        for option, allowed in (("clipping", "flat"), ("where", "server"), ("mechanism", "independent")):
            if getattr(self, option) != allowed:
                remedy = f"a bound that moves goes with {option} = {allowed}; take that, or leave adaptive out"
                raise InputError(option, getattr(self, option), remedy)
