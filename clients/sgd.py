"""Local training on the client's own loss.

y <- y - lr * (grad f_i(y) + mu (y - theta)),  Delta_i = y - theta
Uplink d floats, and where the server asks for it one more for nu, for the mean loss of the last epoch, or for that of
all examples before the first step, f_i(theta); or two for V and N of the batch size that it chooses, or d more for how
surely each number is known, which an optimizer such as ivon learns. McMahan et al. 2017; the proximal term mu of Li et
al. 2020; nu of Wang et al. 2020, section 4; V and N of Lau et al. 2024.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import (
    BATCH_SIZE,
    SPREAD,
    Cohort,
    Cost,
    InputError,
    LocalTraining,
    NonNegativeFloat,
    Order,
    Size,
    Update,
    options,
    spreads,
)

REPORTED = {"nu": "report-nu", "last-loss": "report-loss"}
"""Numbers that a reply carries where the server asks for them, and the settings that ask."""


@options
class Sgd(LocalTraining):
    """Goes with strategies that average changes, and tells some of them what else they ask for."""

    proximal_mu: NonNegativeFloat = 0.0
    """mu, the penalty's factor, unless the server sends one; 0: none."""

    accepts: ClassVar[frozenset[str]] = LocalTraining.accepts | {
        *("proximal-mu", "report-precision", BATCH_SIZE),
        *REPORTED.values(),
    }
    up: ClassVar[frozenset[str]] = LocalTraining.up | {*REPORTED, "precision", SPREAD}
    descends: ClassVar[bool] = True
    by_steps: ClassVar[bool] = True

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Steps, d floats, and one more for each number that is asked for; of batch sizes two, and a step beside."""
        cost = super().cost(order, examples)
        number = Size.of(order.payload["params"][:1])
        told = {name: number for name, asked in REPORTED.items() if order.config.get(asked)}
        if BATCH_SIZE in order.config:
            told[SPREAD] = Size.of(order.payload["params"][:1].repeat(2))
            step = torch.ones_like(examples, dtype=torch.float64)
            cost = cost.beside(Cost(torch.zeros_like(examples), {}, effort=step))
        if order.config.get("report-precision"):
            told["precision"] = cost.reply["delta"]
        return replace(cost, reply={**cost.reply, **told}) if told else cost

    def train(self, cohort: Cohort) -> Update:
        """Train from the server's model and send the change."""
        theta, report_last = cohort.received("params"), bool(cohort.config.get("report-loss"))
        pull = self.proximal(cohort, theta, self.proximal_mu)
        asked = BATCH_SIZE in cohort.config
        spread = spreads(cohort, theta, self.passes(cohort)) if asked else None
        trained = self.descend(cohort, theta, **pull, report_last=report_last, change=True)
        payload = {"delta": trained.params}
        if cohort.config.get("report-nu"):
            payload["nu"] = self.normaliser(cohort.steps_taken, self.rate(cohort), pull["decay"]).to(theta.dtype)
        if trained.last_loss is not None:
            payload["last-loss"] = trained.last_loss.unsqueeze(1)
        if cohort.config.get("report-precision") and trained.precision is not None:
            payload["precision"] = trained.precision
        metrics = {"loss": trained.loss}
        if spread is not None:
            payload[SPREAD], width = spread, self.width(cohort.config)
            metrics["batch_size"] = cohort.examples.clamp(max=width).to(theta.dtype)
        return Update(payload, metrics)

    def check(self, sent: frozenset[str]) -> None:
        """Refuse options that do not go with what the server sends."""
        if "proximal-mu" in sent and self.proximal_mu:
            raise InputError("proximal_mu", self.proximal_mu, "the strategy sends its own; leave this one out")
        if BATCH_SIZE in sent:
            self._check_batches()
        if "report-precision" in sent and not self.rule.precise:
            remedy = "the strategy merges by how surely each number is known, and this learns no such thing; take ivon"
            raise InputError("optimizer", self.optimizer, remedy)
        if "report-nu" not in sent:
            return
        if self.rule.weights(torch.ones(1), self.base * self.proximal_mu) is None:
            raise InputError(
                "optimizer",
                self.optimizer,
                "FedNova knows sgd, with momentum or with a proximal term, without Nesterov's form",
            )
        if self.step_rates.differ:
            options = ("inverse_decay", "lr_scaling", "local_schedule")
            name = next(name for name in options if getattr(self, name) != getattr(LocalTraining, name))
            raise InputError(name, getattr(self, name), "FedNova needs the same rate in all steps of a round")
        if self.base * self.proximal_mu >= 1.0:
            raise InputError(
                "proximal_mu", self.proximal_mu, f"FedNova needs lr * proximal_mu < 1; lower it or lr = {self.base}"
            )

    def _check_batches(self) -> None:
        """Refuse what a server cannot choose batch sizes by."""
        if self.batch_size in ("full", 1):
            raise InputError("batch_size", self.batch_size, "the server chooses by its examples; begin with 2 or more")
        if self.defence is not None:
            remedy = "the server chooses batch sizes by gradients without attacks; leave out one of the two"
            raise InputError("adversarial", "given", remedy)

    def normaliser(self, steps: Tensor, lr: float, mu: float) -> Tensor:
        """nu_i after `steps` [C] steps, float64 [C]."""
        weights = self.rule.weights(steps, lr * mu)
        assert weights is not None
        return weights
