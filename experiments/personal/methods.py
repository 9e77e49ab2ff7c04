"""The methods that are compared, and what is chosen for each on other seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Choice = Mapping[str, str]
"""A value for each placeholder in a method's changes."""


@dataclass(frozen=True)
class Method:
    """A way to come to models, or to one model.

    changes: of a file, with placeholders in braces: `{lr}`, the rate, and those of `knobs`, which have their values by
    name. alone: whether models are the clients' own without fine-tuning; where they are not, the one for all is judged,
    and what clients make of it in the steps of `TUNED`. rates: instead of a setting's.
    """

    label: str
    changes: tuple[str, ...] = ()
    knobs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    alone: bool = True
    rates: tuple[str, ...] = ()

    def choices(self, rates: Sequence[str]) -> Iterator[Choice]:
        """Every combination of rates and values; `tune` is the rate at which the model for all is tuned."""
        grid = {"lr": self.rates or tuple(rates), **self.knobs, **({} if self.alone else {"tune": SHARES})}
        for values in itertools.product(*grid.values()):
            choice = dict(zip(grid, values, strict=True))
            if not self.alone:
                choice["tune"] = f"{float(choice['lr']) * float(choice['tune']):g}"
            yield choice

    def overrides(self, choice: Choice, batch: str) -> list[str]:
        """How a file is changed for a choice. batch: examples of a step of fine-tuning."""
        found = [
            change.format_map(choice) for change in ("client.lr={lr}", *self.changes, *(() if self.alone else TUNED))
        ]
        tunes = any(change.startswith("evaluation.finetune") for change in found)
        return [*found, f"evaluation.finetune.batch_size={batch}"] if tunes else found


TUNED = ("evaluation.finetune.steps=5", "evaluation.finetune.lr={tune}")
SHARES = ("1", "0.1")
"""What share of the rate of training that of tuning may be."""
METHODS: Mapping[str, Method] = {
    "fedavg": Method("FedAvg", alone=False),
    "local": Method("local training", ("strategy=local", "client.kind=local")),
    "ditto": Method("Ditto", ("client.kind=ditto", "client.lam={lam}"), {"lam": ("0.1", "0.3")}),
    "apfl": Method("APFL", ("client.kind=apfl", "client.alpha={alpha}"), {"alpha": ("0.25", "0.5", "0.75")}),
    "pfedme": Method(
        "pFedMe",
        ("client.kind=pfedme", "client.lr=0.9", "client.lam={lam}", "client.inner_lr={lr}"),
        {"lam": ("0.3", "1.0")},
        rates=("0.1", "0.2", "0.5"),
    ),
    "perfedavg": Method(
        "Per-FedAvg",
        (
            "client.kind=perfedavg",
            "client.inner_lr={inner}",
            "evaluation.finetune.steps=5",
            "evaluation.finetune.lr={inner}",  # by which its model is meant to be tuned
        ),
        {"inner": ("0.01", "0.1", "0.5")},
    ),
    "fedper": Method("FedPer", ("problem.shared=body",)),
    "fedrep": Method("FedRep", ("problem.shared=body", "client.kind=fedrep", "client.head_steps=5")),
    "fedbabu": Method(
        "FedBABU",
        (
            "problem.shared=body",
            "client.kind=fedrep",
            "client.head_epochs=0",
            "evaluation.finetune.steps={steps}",  # all that its heads ever learn
            "evaluation.finetune.lr={lr}",
            "evaluation.finetune.trains=head",
        ),
        {"steps": ("5", "50")},
    ),
    "lg_fedavg": Method("LG-FedAvg", ("problem.shared=head",)),
    "fedproto": Method(
        "FedProto", ("strategy=fedproto", "client.kind=fedproto", "client.lam={lam}"), {"lam": ("0.1", "1.0")}
    ),
    "ifca": Method("IFCA", ("strategy.kind=ifca", "strategy.clusters={k}", "client.kind=ifca"), {"k": ("2", "4")}),
    "fedala": Method("FedALA", ("client.kind=fedala",)),
    "moon": Method("MOON", ("client.kind=moon", "client.mu={mu}"), {"mu": ("0.1", "1.0")}, alone=False),
    "fedsam": Method(
        "FedSAM", ("client.optimizer.kind=sam", "client.optimizer.rho={rho}"), {"rho": ("0.02", "0.1")}, alone=False
    ),
    "qfedavg": Method(
        "q-FedAvg",
        ("strategy.kind=qfedavg", "strategy.q={q}", "strategy.client_lr={lr}"),
        {"q": ("0.1", "1.0")},
        alone=False,
    ),
    "term": Method("TERM", ("strategy.kind=term", "strategy.t={t}"), {"t": ("0.3", "1.0")}, alone=False),
    "afl": Method("AFL", ("strategy.kind=afl", "strategy.lambda_lr={rate}"), {"rate": ("0.01", "0.1")}, alone=False),
    "feddf": Method(
        "FedDF",
        ("strategy.kind=feddf", "strategy.steps=100", "problem.public.kind=noise", "problem.public.examples=300"),
        alone=False,
    ),
}
