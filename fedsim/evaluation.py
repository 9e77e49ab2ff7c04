"""When the global model is judged, on what and under which attacks, and when that ends a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from fedsim.errors import InputError
from fedsim.measures import lower_is_better
from fedsim.options import Count, Seconds, Whole, options
from fedsim.parts import Parts
from fedsim.problems.problem import Trial
from fedsim.streams import Streams

Measured = Annotated[
    tuple[Literal["test", "train"], ...],
    Field(strict=False, min_length=1),
    BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
]


Plugins = Annotated[
    tuple[Any, ...],
    Field(strict=False),
    BeforeValidator(lambda given: (given,) if isinstance(given, str | Mapping) else given),
]


@options
class Evaluation(Parts):
    """When the global model is judged, and on what.

    every: evaluate after so many rounds (1), and after the last; 0 only then. every_seconds: instead, whenever so many
    virtual seconds have passed, and at the end. on: test, the test set; train, all training examples. clients: accuracy
    of each client's own examples, "auto" where it costs little (see `Supervised.evaluates_clients`). attacks: judge it
    also on examples attacked in these ways, as test_<attack>_accuracy and so on (see `Supervised.attacked`).
    attacks_every: only after so many rounds, a multiple of every, and at the end; 0 only then. examples: attack at most
    so many of each set, a sample drawn without replacement that is the same in all runs. attack_clients: attack also
    each client's own examples, all of them.
    """

    parts: ClassVar[Mapping[str, str]] = {"attacks": "attacks"}
    lists: ClassVar[frozenset[str]] = frozenset({"attacks"})

    every: Whole | None = None
    every_seconds: Seconds | None = None
    on: Measured = ("test",)
    clients: bool | Literal["auto"] = "auto"
    attacks: Plugins = ()
    attacks_every: Whole | None = None
    examples: Count | None = None
    attack_clients: bool = False

    def __post_init__(self) -> None:
        if self.every is not None and self.every_seconds is not None:
            raise InputError("every_seconds", self.every_seconds, f"give it or every ({self.every}), not both")
        super().__post_init__()
        labels = [attack.label for attack in self.made["attacks"]]
        for number, label in enumerate(labels):
            if (first := labels.index(label)) < number:
                remedy = f"attacks.{first} has the same name; give one of them another, name = ..."
                raise InputError(f"attacks.{number}", label, remedy)
        for option, default in (("attacks_every", None), ("examples", None), ("attack_clients", False)):
            if not labels and getattr(self, option) != default:
                raise InputError(option, getattr(self, option), "there are no attacks; name some, or leave it out")
        if self.attack_clients and self.clients is False:
            raise InputError("attack_clients", True, "clients = false says to leave clients out; remove one of the two")
        after = self.attacks_every
        if after and (self.rounds == 0 or after % self.rounds):
            judged = f"every {self.rounds} rounds; give a multiple of that, or 0" if self.rounds else "by time; give 0"
            raise InputError("attacks_every", after, f"models are judged {judged}")

    @property
    def rounds(self) -> int:
        """Evaluate after so many rounds; 0: never after a round as such."""
        if self.every_seconds is not None:
            return 0
        return 1 if self.every is None else self.every

    def trial(self, streams: Streams) -> Trial | None:
        """How the model is attacked; None: it is not."""
        attacks = self.made["attacks"]
        return Trial(attacks, self.on, self.examples, self.attack_clients, streams) if attacks else None

    def attacks_after(self, number: int) -> bool:
        """Whether a model that is judged after this round, not at the end, is attacked too."""
        return self.attacks_every is None or (self.attacks_every > 0 and number % self.attacks_every == 0)


@options
class Stopping:
    """Stop early: when `metric` has reached `target`, or has not improved for `patience` evaluations.

    Losses and values of functions improve downwards, everything else upwards. Evaluations without the metric, as where
    attacks are rarer, do not count. queries: or after the round in which clients have asked so many values in all.
    """

    metric: str = "test_accuracy"
    target: float | None = None
    patience: Count | None = None
    queries: Count | None = None

    def __post_init__(self) -> None:
        if self.target is None and self.patience is None and self.queries is None:
            raise InputError("target", "(nothing)", "give target, patience or queries")

    @property
    def watches(self) -> bool:
        """Whether it looks at the metric."""
        return self.target is not None or self.patience is not None

    def reached(self, values: list[float]) -> str | None:
        """Why to stop after these evaluations, or None."""
        sign = -1.0 if lower_is_better(self.metric) else 1.0
        scores = [sign * value for value in values]
        if self.target is not None and scores[-1] >= sign * self.target:
            return f"{self.metric} reached {values[-1]:.4g}"
        if self.patience is not None and len(scores) - 1 - scores.index(max(scores)) >= self.patience:
            return f"{self.metric} has not improved for {self.patience} evaluations"
        return None
