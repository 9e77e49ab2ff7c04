"""A curriculum of examples within local training: which of a client's examples its steps are about, and from when on.

Whenever it takes part, before its first step, a client scores its examples, orders them, and then makes passes over the
first n(t) of them, t the steps taken so far, each pass freshly shuffled. So easy examples come again more often; the
number of steps is that of training without a curriculum. Vahidian et al. 2023, "When Do Curricula Work in Federated
Learning?", data curriculum; scores are about examples as they are, not as an adversary would change them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, PositiveInt, Rate, options, table_of
from fedsim.core.pacing import Linear, Schedule, passes
from fedsim.engine.batches import Course
from fedsim.engine.cohort import Cohort
from fedsim.exchange.transforms import Shapes

MODEL, TRAINED = "curriculum_model", "curriculum_trained"
"""What clients remember where their own last model scores: it, and 1 once there is one."""


@options
class Expert:
    """How the expert is trained: by SGD on all that clients train on, as if one client had it."""

    epochs: PositiveInt = 10
    """Passes over all examples."""
    batch_size: PositiveInt = 64
    """Examples of a step."""
    lr: Rate = 0.01
    """The learning rate."""
    momentum: Fraction = 0.9
    """The momentum; 0: none."""
    label_smoothing: Fraction = 0.1
    """The share of a label that is spread evenly over all classes; 0 where labels are no classes."""
    seed: NonNegativeInt = 0
    """Seed of its batches; it does not follow the run's seed."""


@options
class SampleCurriculum:
    """Which of a client's examples its steps are about, and from when on: the first n(t), in the order of their scores.

    Each pass over them is freshly shuffled, and t counts the steps. Examples that score alike are in random order, and
    scores that are not finite are the highest. Vahidian et al. 2023, "When Do Curricula Work in Federated Learning?".
    """

    score: Literal["global", "local", "both", "expert"] = "global"
    """How hard an example is: under the model that the server sent (global, s_G); under the client's own model at the
    end of its last participation, the server's where there is none (local, s_L); both, their sum, s_LG; or under an
    expert that was trained on all data (s_E).
    """
    measure: Literal["loss", "error"] = "loss"
    """The score is the loss, or 1 where the prediction is wrong (error)."""
    order: Literal["curriculum", "anti", "random"] = "curriculum"
    """Ascending scores (curriculum), descending (anti), or a random order each time."""
    pacing: Schedule = Linear()
    """n(t), how many examples are in after t steps."""
    floor: PositiveInt = 32
    """n(t) is at least that."""
    budget: Literal["epochs", "published"] = "epochs"
    """Steps of a round: epochs, E ceil(N / B) as without a curriculum, after which the last pass is cut off; published,
    E (floor(N / B) + 1), and the last pass is completed, as in the authors' code.
    """
    expert: Annotated[Expert, table_of(Expert)] = Expert()
    """How the expert is trained; of score = expert only."""

    def __post_init__(self) -> None:
        if self.score == "expert" and self.measure == "error":
            raise InputError("measure", self.measure, "an expert is asked for losses; take loss")

    @property
    def remembers(self) -> bool:
        """Whether clients keep the model that they ended with."""
        return self.score in ("local", "both") and self.order != "random"

    @property
    def asks(self) -> bool:
        """Whether a model that the server sends has a say in the scores."""
        return self.score != "expert" and self.order != "random"

    def state(self, dimension: int) -> Shapes:
        """What each client keeps."""
        return {MODEL: (dimension,), TRAINED: ()} if self.remembers else {}

    def steps(self, examples: Tensor, epochs: int, batch_size: int | None) -> Tensor:
        """Local steps of clients with so many examples: int64 [C]."""
        found = [self._passes(count, epochs, batch_size)[1] for count in examples.tolist()]
        return torch.tensor(found, dtype=torch.int64, device=examples.device)

    def judgements(self) -> int:
        """How many forward passes an example takes to be scored."""
        if not self.asks:
            return 0
        return 2 if self.remembers and self.score == "both" else 1

    def course(self, cohort: Cohort, epochs: int, batch_size: int | None) -> Course:
        """The passes of the clients of a cohort, whose examples are scored now."""
        examples = cohort.examples
        rank = self._rank(cohort)
        inside = torch.arange(rank.shape[1], device=rank.device) < examples.unsqueeze(1)
        made = [self._passes(count, epochs, batch_size) for count in examples.tolist()]
        return Course(
            rank=rank[inside],
            passes=_whole([len(taken) for taken, _ in made], rank.device),
            taken=_whole([number for taken, _ in made for number in taken], rank.device),
            steps=_whole([steps for _, steps in made], rank.device),
        )

    def keep(self, cohort: Cohort, params: Tensor) -> None:
        """Have clients remember the models [C, d] that they ended with, where these will score."""
        if self.remembers:
            cohort.keep(**{MODEL: params.clone(), TRAINED: torch.ones_like(params[:, 0])})

    def _passes(self, count: int, epochs: int, batch_size: int | None) -> tuple[tuple[int, ...], int]:
        return passes(self.pacing, self.floor, self.budget == "published", count, epochs, batch_size)

    def _rank(self, cohort: Cohort) -> Tensor:
        """Where each example stands in its client's order, int64 [C, largest]; beyond the last what comes after it."""
        scores = self.scores(cohort)
        inside = torch.arange(scores.shape[1], device=scores.device) < cohort.examples.unsqueeze(1)
        if self.order != "random":
            total = torch.where(inside, scores, 0.0).double().sum(dim=1)
            cohort.metrics["difficulty"] = (total / cohort.examples).to(cohort.dtype)
        scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
        keys = cohort.streams.bits("curriculum", cohort.clients, scores.shape[1], turn=cohort.turn)
        order = torch.argsort(keys, dim=1)
        for key in (-scores if self.order == "anti" else scores, (~inside).to(torch.int8)):
            order = order.gather(1, torch.argsort(key.gather(1, order), dim=1, stable=True))
        return torch.argsort(order, dim=1)

    def scores(self, cohort: Cohort) -> Tensor:
        """The scores of each client's examples, [C, largest]; NaN beyond the last."""
        if self.order == "random":
            return torch.zeros(len(cohort), cohort.largest, dtype=cohort.dtype, device=cohort.examples.device)
        if self.score == "expert":
            return cohort.scored(self.expert)
        theta = cohort.received("params")
        found = self._judged(cohort, theta) if self.score != "local" else None
        if self.remembers:
            trained = cohort.state[TRAINED].bool().unsqueeze(1)
            own = self._judged(cohort, torch.where(trained, cohort.state[MODEL], theta))
            found = own if found is None else found + own
        assert found is not None
        return found

    def _judged(self, cohort: Cohort, params: Tensor) -> Tensor:
        loss = cohort.network.loss

        def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
            correct = loss.correct(outputs, targets)
            assert correct is not None
            return 1.0 - correct

        return cohort.judge(params, loss.examples if self.measure == "loss" else wrong)


def _whole(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=device)  # of no numbers it would be another type
