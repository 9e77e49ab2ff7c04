"""When the global model is judged, on what and under which attacks, and when that ends a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from fedsim.attacks.certificate import Certificate
from fedsim.configuration.bases import hold_base
from fedsim.core.errors import InputError
from fedsim.core.measures import ALWAYS, NOTHING, UNDEFINED, Asked, lower_is_better
from fedsim.core.options import BatchSize, NonNegativeInt, Passes, PositiveInt, Rate, Seconds, options, table_of
from fedsim.core.plugins import HasPlugins, kind_of
from fedsim.core.streams import Streams
from fedsim.nets.selection import Selection
from fedsim.problems.base import Trial
from fedsim.problems.measures import Measure, tables
from fedsim.problems.measures.base import LABEL

Measurable = Literal["test", "train", "validation"]
Measured = Annotated[
    tuple[Measurable, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(
        lambda given: (given,) if isinstance(given, str) else given,
        json_schema_input_type=Measurable | Annotated[tuple[Measurable, ...], Field(min_length=1)],
    ),
]


Plugins = Annotated[
    tuple[Any, ...],
    Field(strict=False),
    BeforeValidator(lambda given: (given,) if isinstance(given, str | Mapping) else given),
]


Metrics = Annotated[tuple[Any, ...], Field(strict=False), BeforeValidator(tables)]
RESERVED = re.compile(rf".*(_mean|_p10|_p90|_worst|_std|{UNDEFINED})")
"""How no measure may be called: as what is said of clients."""


@options
class Finetune:
    """Local steps of plain SGD from the model that a client would use, whose result is judged and not kept.

    Give `epochs` or `steps`. Wang et al. 2019, "Federated Evaluation of On-device Personalization"; with it FedAvg is
    what every personal method has to be better than.
    """

    epochs: Passes | None = None
    """Passes over the client's training examples. Not given: steps decide."""
    steps: Passes | None = None
    """So many steps, each on an independent batch. Not given: epochs decide."""
    lr: Rate = 0.1
    """The learning rate."""
    batch_size: BatchSize = 32
    """Examples of a step; full: all that the client has."""
    trains: Selection = "all"
    """Which parameters are trained, in the words and names of problem.shared: all, head, body, and so on."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise InputError("epochs", self.epochs, "give exactly one of epochs and steps")


@options
class Evaluation(HasPlugins):
    """When the global model is judged, and on what."""

    parts: ClassVar[Mapping[str, str]] = {"attacks": "attacks", "metrics": "measures"}
    lists: ClassVar[frozenset[str]] = frozenset({"attacks", "metrics"})

    every: NonNegativeInt | None = None
    """Rounds between two evaluations, the last round having one in any case; 0: only that. Not given: so many
    (1, 2, 5, 10, 20, ...) that they take a fifth of the work of training at most; 1 where that is cheap, and where
    stopping or keep_best look at measures. Asynchronous strategies have rows only then.
    """
    every_seconds: Seconds | None = None
    """Instead, virtual seconds between two evaluations; the end has one in any case. Not given: rounds count."""
    on: Measured = ("test",)
    """Sets that the model is judged on: test, the test set; train, all training examples; validation, what the
    partition sets aside. Where clients have models of their own, each is judged on its own part of these, or its
    hold-out.
    """
    clients: bool | Literal["auto"] = "auto"
    """Judge the model also on each client's own examples (for validation, without the test set), by accuracy, or by
    loss where targets are numbers; auto: by accuracy, with up to 1,000 clients, and up to 20,000 examples where these
    are what clients train on.
    """
    metrics: Metrics = ()
    """Measures beside loss and accuracy, as in ["f1_macro", "auroc"] or ["mae", "r2"], of each set and, where they are
    judged, of clients: test_<measure>, client_<measure>_mean and so on.
    """
    finetune: Annotated[Finetune | None, table_of(Finetune)] = None
    """Judge also what each client makes of the model on its own training examples, and keep none of it. Not given:
    models are judged as they are.
    """
    attacks: Plugins = ()
    """Judge it also on examples attacked in these ways, measured as test_<attack>_loss and so on."""
    attacks_every: NonNegativeInt | None = None
    """Rounds between two evaluations under attack, a multiple of `every`, and one at the end; 0: only that. Not given:
    so many times `every` that attacks take a tenth of the work of training at most, and the rest another.
    """
    examples: PositiveInt | None = None
    """Attack at most so many of each set, a sample drawn without replacement that is the same in all runs. Not given:
    all.
    """
    attack_clients: bool = False
    """Attack also each client's own examples, all of them."""
    certify: Annotated[Certificate | None, table_of(Certificate)] = None
    """Say also what no attack can do, with attacks and as often, as test_certified_ibp_accuracy and so on. Not given:
    nothing is bounded.
    """

    keep_best: str | None = None
    """A measure, such as test_accuracy, by which the best model so far is kept, in best.safetensors. Not given: only
    the last model is.
    """

    def __post_init__(self) -> None:
        if self.every is not None and self.every_seconds is not None:
            raise InputError("every_seconds", self.every_seconds, f"give it or every ({self.every}), not both")
        super().__post_init__()
        labels = [attack.label for attack in self.made["attacks"]]
        for number, label in enumerate(labels):
            if (first := labels.index(label)) < number:
                remedy = f"attacks.{first} has the same name; give one of them another, name = ..."
                raise InputError(f"attacks.{number}", label, remedy)
        if self.certify is not None and (taken := set(labels) & set(self.certify.labels.values())):
            raise InputError("attacks", taken.pop(), "certificates are called so; give the attack another name = ...")
        self._check_metrics()
        for option, default in (("attacks_every", None), ("examples", None), ("attack_clients", False)):
            if not self.tries and getattr(self, option) != default:
                raise InputError(option, getattr(self, option), "there are no attacks; name some, or leave it out")
        if self.attack_clients and self.clients is False:
            raise InputError("attack_clients", True, "clients = false says to leave clients out; remove one of the two")
        after = self.attacks_every
        if after and (self.rounds == 0 or after % self.rounds):
            judged = f"every {self.rounds} rounds; give a multiple of that, or 0" if self.rounds else "by time; give 0"
            raise InputError("attacks_every", after, f"models are judged {judged}")

    def _check_metrics(self) -> None:
        """Refuse measures that are none, or whose columns others have."""
        labels: list[str] = []
        for number, measure in enumerate(self.made["metrics"]):
            option = f"metrics.{number}"
            hold_base(option, "measures", measure)
            label = measure.label
            if not isinstance(measure.higher_is_better, bool):
                raise InputError(option, label, "its higher_is_better is neither True nor False; say which")
            if label in labels:
                first = labels.index(label)
                raise InputError(
                    option, label, f"metrics.{first} has the same name; give one of them another, name = ..."
                )
            if not LABEL.fullmatch(label):
                raise InputError(option, label, "its columns would be called so; give it a name = ... of small letters")
            taken = label in ALWAYS and kind_of("measures", measure) != label
            if taken or RESERVED.fullmatch(label):
                raise InputError(option, label, "columns of other measures are called so; give it another name = ...")
            labels.append(label)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What is measured beside the loss and the accuracy."""
        found: tuple[Measure, ...] = self.made["metrics"]
        return found

    @property
    def asked(self) -> dict[str, bool]:
        """Whether higher is better, by the label of each of these measures."""
        return {measure.label: measure.higher_is_better for measure in self.measures}

    @property
    def rounds(self) -> int:
        """Evaluate after so many rounds; 0: never after a round as such."""
        if self.every_seconds is not None:
            return 0
        return 1 if self.every is None else self.every

    @property
    def tries(self) -> bool:
        """Whether the model is attacked, or bounded."""
        return bool(self.made["attacks"]) or self.certify is not None

    def trial(self, streams: Streams) -> Trial | None:
        """How the model is attacked and bounded; None: it is not."""
        if not self.tries:
            return None
        attacks, clients = self.made["attacks"], self.attack_clients
        return Trial(attacks, self.on, self.examples, clients, streams, self.measures, self.certify)

    def attacks_after(self, number: int) -> bool:
        """Whether a model that is judged after this round, not at the end, is attacked too."""
        return self.attacks_every is None or (self.attacks_every > 0 and number % self.attacks_every == 0)


@options
class Stopping:
    """Stop early; give one at least of `target`, `patience` and `queries`.

    Losses and values of functions improve downwards, measures of `evaluation.metrics` as they say themselves,
    everything else upwards. Evaluations without the metric, as where attacks are rarer, do not count.
    """

    metric: str = "test_accuracy"
    """What `target` and `patience` are about, as metrics.jsonl calls it."""
    target: float | None = None
    """Stop when the metric has reached this. Not given: no level ends the run."""
    patience: PositiveInt | None = None
    """Stop when the metric has not improved for so many evaluations. Not given: the run is never given up."""
    queries: PositiveInt | None = None
    """Stop after the round in which clients have asked so many values in all. Not given: any number."""

    def __post_init__(self) -> None:
        if self.target is None and self.patience is None and self.queries is None:
            raise InputError("target", "(nothing)", "give target, patience or queries")
        if not self.watches and self.metric != "test_accuracy":
            raise InputError("metric", self.metric, "only target and patience look at it; give one, or leave it out")

    @property
    def watches(self) -> bool:
        """Whether it looks at the metric."""
        return self.target is not None or self.patience is not None

    def reached(self, values: list[float], asked: Asked = NOTHING) -> str | None:
        """Why to stop after these evaluations, or None. asked: which way measures improve that were asked for."""
        sign = -1.0 if lower_is_better(self.metric, asked) else 1.0
        scores = [sign * value for value in values]
        if self.target is not None and scores[-1] >= sign * self.target:
            return f"{self.metric} reached {values[-1]:.4g}"
        if self.patience is not None and len(scores) - 1 - scores.index(max(scores)) >= self.patience:
            return f"{self.metric} has not improved for {self.patience} evaluation{'s' * (self.patience > 1)}"
        return None
