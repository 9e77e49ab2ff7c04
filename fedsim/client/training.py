"""Local training: the steps that a cohort takes on its own data, shared by every client that trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from fedsim.client.bounding import Bounding
from fedsim.client.curriculum import SampleCurriculum
from fedsim.client.defence import Armed, Defending
from fedsim.client.objective import BatchObjective, hold_to_batches, hold_to_gradients
from fedsim.client.rates import LocalSchedule, Same, Scaling, StepRates
from fedsim.core import schedules
from fedsim.core.errors import BrokenPromiseError, DivergedError, InputError
from fedsim.core.options import (
    LARGEST,
    BatchSize,
    Decay,
    NonNegativeFloat,
    Passes,
    PositiveFloat,
    PositiveInt,
    Rate,
    options,
    table_of,
)
from fedsim.core.plugins import HasPlugins, kind_of
from fedsim.core.schedules import Constant, Exponential, Schedule, scheduled
from fedsim.engine.batches import steps_of
from fedsim.engine.client import Client
from fedsim.engine.cohort import PRIVATE, Cohort
from fedsim.exchange.actions import BATCH_SIZE, FORWARD
from fedsim.exchange.messages import Cost, Order, Scalar, Size
from fedsim.exchange.transforms import Shapes
from fedsim.nets.descent import Descent, Loop, Rule, Stepper
from fedsim.nets.dropout import Draw
from fedsim.nets.footprint import Beside
from fedsim.nets.modes import without_fast_paths
from fedsim.nets.network import Batch
from fedsim.nets.optimizers import Beginning, Optimizer, Step, StepDraws, descend_plainly
from fedsim.nets.stack import Stack, extended, put, take

KEPT = "optimizer "
"""Before the name of what an optimizer keeps, under which clients remember it."""
VALUED = frozenset({"loss", "again"})
"""What rules need that read values of what the gradient is of, with those of decay and corrections."""


@dataclass(frozen=True)
class Trained:
    """What local training comes to. params: y, [C, d], or y - start where the change is asked for.

    loss: the mean over the steps, [C], taken before each step. last_loss: the same over the steps of the last epoch,
    where it is asked for. precision: how surely each number is known, if the rule learns that. Nobody else
    holds the parameters: a client may write over them.
    """

    params: Tensor
    loss: Tensor
    last_loss: Tensor | None
    precision: Tensor | None


@options
class LocalTraining(HasPlugins, Client):
    """How a client trains: y <- y - lr * direction, over mini-batches of its own examples.

    Give `epochs` or `steps`.
    """

    parts: ClassVar[Mapping[str, str]] = {"adversarial": "defences", "optimizer": "optimizers"}
    keeps_statistics: ClassVar[bool] = True
    descends: ClassVar[bool] = False
    """Whether `descend` takes all of its mini-batches: what else it does with a cohort goes row by row."""
    divides: ClassVar[bool] = False
    """Whether it trains apart what of the model stays with it, and what is shared: of both there must be some."""
    by_steps: ClassVar[bool] = False
    """Whether its examples reach what it sends and remembers by the steps of `descend` alone, so that noise in each of
    them hides single ones; but for losses that a strategy asks for.
    """
    requires: ClassVar[frozenset[str]] = frozenset({"params"})
    accepts: ClassVar[frozenset[str]] = frozenset({"report-start-loss"})
    up: ClassVar[frozenset[str]] = frozenset({"delta", "start-loss"})

    epochs: Passes | None = None
    """Passes over the examples, each freshly shuffled, the last batch possibly partial. Not given: steps decide."""
    steps: Passes | None = None
    """So many steps, each on an independent batch. Not given: epochs decide."""
    batch_size: BatchSize = 32
    """Examples of a step; full: all that the client has."""
    lr: Rate | None = None
    """The learning rate. Not given: what is usual for the optimizer, mostly 0.1."""
    schedule: Schedule = Constant()
    """Factor of lr over the rounds."""
    epochs_schedule: Schedule = Constant()
    """Factor of epochs over the rounds, rounded, at least 1 epoch; it may not grow (FedDynAT; Shah et al. 2021)."""
    inverse_decay: NonNegativeFloat = 0.0
    """Step s of a round has lr times (1 + inverse_decay s)^(-inverse_power), s from 0; 0: all steps have the same."""
    inverse_power: PositiveFloat = 0.75
    """The exponent of that."""
    local_schedule: LocalSchedule = Same()
    """Factor of lr over the steps that a client takes in a round."""
    lr_scaling: Scaling = "none"
    """What lr is multiplied by of a client whose batches have another size than reference_batch, as where it has fewer
    examples: linear, their ratio, for sgd; sqrt, its root, for adam and its like.
    """
    reference_batch: PositiveInt | None = None
    """The size of the batches that lr is meant for, by lr_scaling. Not given: batch_size."""
    optimizer: Any = "sgd"
    """The rule of a step, by which weight decay may be another thing. What it remembers begins anew in every round, but
    for what rules say that each client keeps.
    """
    weight_decay: Decay = 0.0
    """Factor of the weights, added to the gradient, or, where the optimizer decouples it, as lion does, by which times
    lr they shrink.
    """
    clip_norm: PositiveFloat | None = None
    """Bound of the l2 norm of the gradient of the client's loss, before decay and corrections. Not given: there is no
    bound.
    """
    adversarial: Any = None
    """Training against an attack. Not given: on examples as they are."""
    curriculum: Annotated[SampleCurriculum | None, table_of(SampleCurriculum)] = None
    """An order of the examples, which needs epochs. Not given: a random one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epochs is None) == (self.steps is None):
            raise InputError(
                "epochs", self.epochs, "give exactly one of epochs and steps (--set client.epochs=none takes one away)"
            )
        if self.epochs is None:
            if self.curriculum is not None:
                raise InputError("curriculum", "given", "it orders epochs; give epochs instead of steps")
            if not isinstance(self.epochs_schedule, Constant):
                raise InputError("epochs_schedule", "given", "there are steps; give epochs instead")
        if isinstance(self.epochs_schedule, Exponential | schedules.Step) and self.epochs_schedule.gamma > 1.0:
            raise InputError("epochs_schedule.gamma", self.epochs_schedule.gamma, "epochs may not grow; take at most 1")
        if isinstance(self.epochs_schedule, schedules.Table) and max(self.epochs_schedule.factors) > 1.0:
            most = max(self.epochs_schedule.factors)
            raise InputError("epochs_schedule.factors", most, "epochs may not grow; take factors of at most 1")
        if self.inverse_power != 0.75 and not self.inverse_decay:
            raise InputError("inverse_power", self.inverse_power, "is the exponent of inverse_decay; give that above 0")
        if self.reference_batch is not None and self.lr_scaling == "none":
            raise InputError("reference_batch", self.reference_batch, "only lr_scaling asks for it; give that, too")
        if self.lr_scaling != "none" and self.batch_size == "full" and self.reference_batch is None:
            raise InputError("lr_scaling", self.lr_scaling, "batches are full; say in reference_batch what lr is for")
        hold_to_batches(self.rule, self.clip_norm, adversarial=self.adversarial, curriculum=self.curriculum)
        if self.curriculum is not None and self.curriculum.asks and "params" not in self.requires:
            remedy = "is of a model that the server sends, and here it sends none; take expert"
            raise InputError("curriculum.score", self.curriculum.score, remedy)
        if isinstance(self.defence, Bounding):
            hold_to_gradients(self.rule, "training by bounds")
        if self.of_features:
            hold_to_gradients(self.rule, "training on features")
            if self.views > 1:
                remedy = "shows an example in several views, and losses of features are of one; take standard"
                raise InputError("adversarial", kind_of("defences", self.defence), remedy)

    @property
    def base(self) -> float:
        """The learning rate, as it is given or usual."""
        return self.rule.usual if self.lr is None else self.lr

    @property
    def plain(self) -> bool:
        """Whether a step is a multiple of the gradient, so that it may be fused with it."""
        return self.rule.plain and self.clip_norm is None

    @property
    def rule(self) -> Optimizer:
        """The optimizer."""
        rule: Optimizer = self.made["optimizer"]
        return rule

    @property
    def same_every_round(self) -> bool:
        """Whether rounds differ in nothing but their draws."""
        constant = isinstance(self.schedule, Constant) and isinstance(self.epochs_schedule, Constant)
        return constant and (self.defence is None or self.defence.same_every_round)

    @property
    def defence(self) -> Defending | None:
        """What trains against an attack, if something does."""
        defence: Defending | None = self.made.get("adversarial")
        return defence

    @property
    def in_any_order(self) -> bool:
        """Whether its cohorts need not be sorted by steps where one loop takes all of a client's steps."""
        return self.descends and not self.rests and self.rule.compiled is not None

    @property
    def of_features(self) -> bool:
        """Whether its losses see what the model's head reads of an example."""
        return False

    @property
    def rests(self) -> bool:
        """Whether something is done between its steps, so that no loop takes them all at once."""
        return self.defence is not None or self.of_features or self.divides

    @property
    def views(self) -> int:
        """How many times an example is in a batch."""
        return 1 if self.defence is None else self.defence.views

    def like(self, **changes: Any) -> LocalTraining:
        """Local training with the same options but for some, of a second model that a client has."""
        return LocalTraining(**{field.name: getattr(self, field.name) for field in fields(LocalTraining)} | changes)

    def hold_two_models(self) -> None:
        """Refuse (InputError) options that are about the only training of a client in a round."""
        if self.curriculum is not None:
            remedy = "orders the examples of one training a round, and this client has two; leave it out"
            raise InputError("curriculum", "given", remedy)
        if self.rule.kept(1):
            remedy = "keeps something of one training a round, and this client has two; take another"
            raise InputError("optimizer", kind_of("optimizers", self.rule), remedy)

    def rate(self, cohort: Cohort) -> float:
        """The learning rate in the round of a cohort's order, at its first step."""
        return self.base if isinstance(self.schedule, Constant) else scheduled(self.base, self.schedule, cohort.round)

    def rates(self, cohort: Cohort) -> Tensor:
        """The sum of the rates of the steps that each client has taken, float64 [C]."""
        return self.step_rates.sums(self.rate(cohort), cohort.steps_taken, self._own_rates(cohort))

    @property
    def step_rates(self) -> StepRates:
        """What makes the rate of a step of that of its round."""
        return StepRates(self.inverse_decay, self.inverse_power, self.local_schedule, self.steps, self.lr_scaling)

    def local_steps(
        self,
        examples: Tensor,
        round: int = 0,  # noqa: A002
        config: Mapping[str, Scalar] = MappingProxyType({}),
    ) -> Tensor:
        """How many steps clients with so many examples take in a round: int64 [C]. config: of its order."""
        epochs, width = self._epochs(round), self.width(config)
        if self.curriculum is not None and epochs is not None:
            return self.curriculum.steps(examples, epochs, width)
        return steps_of(examples, epochs, self.steps, width)

    def width(self, config: Mapping[str, Scalar]) -> int | None:
        """Examples of a step under an order: batch_size, or what the server asks for if that is more; None: all."""
        return None if self.batch_size == "full" else max(self.batch_size, int(config.get(BATCH_SIZE, 0)))

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Steps, and what is sent up; where f_i(theta) is asked for, a number and a forward pass more."""
        cost = replace(self.taken(order, examples), reply=self.reply(order))
        if not order.config.get("report-start-loss"):
            return cost
        passed = Cost(torch.zeros_like(examples), {}, effort=FORWARD * self._batches(order, examples).double())
        told = {"start-loss": Size.of(order.payload["params"][:1])}
        return replace(cost.beside(passed), reply={**cost.reply, **told})

    def taken(self, order: Order, examples: Tensor) -> Cost:
        """What a training takes: steps; beside, what attacks, scoring and rules do."""
        steps = self.local_steps(examples, order.round, order.config)
        beside, passes = self.rule.effort - 1.0, self.rule.passes
        if self.defence is not None:
            beside += self.defence.effort(order.round)
        if self.curriculum is not None:
            passes += self.curriculum.judgements() * FORWARD
        given = beside or passes or self.defence
        effort = steps * beside + passes * self._batches(order, examples) if given else None
        return Cost(steps, {}, effort=effort)

    def _batches(self, order: Order, examples: Tensor) -> Tensor:
        """How many mini-batches all of a client's examples are, int64 [C]."""
        width = self.width(order.config)
        return -(-examples // (examples if width is None else width))

    def beforehand(self, cohort: Cohort) -> Mapping[str, Tensor]:
        """f_i(theta) over all of its examples, [C, 1], where the server asks for it."""
        if not cohort.config.get("report-start-loss"):
            return {}
        return {"start-loss": cohort.losses(cohort.received("params")).unsqueeze(1)}

    def reply(self, order: Order) -> dict[str, Size]:
        """What is sent up: one vector the size of the parameters."""
        return {"delta": Size.of(order.payload["params"])}

    def numbers(self, dimension: int, largest: int) -> int:
        """About six vectors of d, two of them an optimizer's, or as many as it has."""
        return super().numbers(dimension, largest) + math.ceil(max(self.rule.vectors - 2.0, 0.0) * dimension)

    def solving(self, shapes: Sequence[tuple[int, ...]], outputs: int) -> Beside:
        """What the rule takes to solve for its steps."""
        return self.rule.solving(shapes, outputs)

    def operations(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """What the rule's products take."""
        return self.rule.operations(shapes)

    def state(self, dimension: int) -> Shapes:
        """What clients keep for their curriculum, and of their optimizer."""
        kept = {KEPT + name: shape for name, shape in self.rule.kept(dimension).items()}
        return kept if self.curriculum is None else {**self.curriculum.state(dimension), **kept}

    def descend(
        self,
        cohort: Cohort,
        start: Tensor,
        *,
        decay: float = 0.0,
        shift: Tensor | None = None,
        report_last: bool = False,
        change: bool = False,
        armed: Armed | None = None,
        moves: Sequence[bool] | None = None,
    ) -> Trained:
        """Train from `start` ([d] or [C, d]) on f_i(y) + decay/2 |y|^2 - <shift, y>.

        decay and shift ([d] or [C, d]) are added to every gradient: grad f_i(y) + decay y - shift. report_last: tell
        the losses of the last epoch, too. change: give y - start for y. armed: what makes of each mini-batch, as a
        defence has left it, the one that a step is taken on; of a client that `rests`.

        Where entries of the model stay with each client, d counts the others alone: it trains its own with them, from
        where they were, to where decay pulls them, and keeps them.

        moves: whether each leaf of the whole model is trained; not given, all are. The others keep their bits, and the
        optimizer, decay and the bound of norms have nothing of them; their gradients are computed all the same. Running
        statistics move along, whatever is said of them.
        """
        rule = self._rule(cohort, decay)
        loop, defended = cohort.network.loop, None if self.defence is None else self.defence.arm(cohort)
        arms = [arm for arm in (defended, armed) if arm is not None]
        private, sent, precision, before = cohort.private, start, None, cohort.steps_taken
        direct = change and self.curriculum is None and private is None  # which look at y itself
        if private is not None:
            own = cohort.state[PRIVATE]
            start = private.join(start, own)
            shift = None if shift is None else private.join(shift, decay * own)
        if loop is not None and not arms and moves is None and loop.takes(rule):
            params, losses, last = self._at_once(cohort, loop, start, shift, rule, direct, report_last)
        else:
            with without_fast_paths if "product" in self.rule.needs else nullcontext():
                params, losses, history, precision = self._step_by_step(cohort, start, shift, rule, arms, moves)
            taken = cohort.steps_taken - before
            last, direct = self._last(cohort, history, taken) if report_last else None, False
        if private is not None:
            params, own = private.split(params)
            cohort.keep(**{PRIVATE: own})
            precision = None if precision is None else private.split(precision)[0]
        if self.curriculum is not None:
            self.curriculum.keep(cohort, params)
        if change and not direct:
            params.sub_(sent)
        return Trained(params, losses / (cohort.steps_taken - before).clamp(min=1), last, precision)

    @staticmethod
    def proximal(cohort: Cohort, theta: Tensor, mu: float = 0.0) -> dict[str, Any]:
        """What has `descend` add mu/2 |y - theta|^2, for the server's mu, or that which is given if it sends none."""
        mu = float(cohort.config.get("proximal-mu", mu))
        return {"decay": mu, "shift": mu * theta if mu else None}

    def _rule(self, cohort: Cohort, decay: float) -> Rule:
        """How a step of the cohort follows from a gradient; its decay is added to our own."""
        coupled = decay + (0.0 if self.rule.decoupled else self.weight_decay)
        decoupled = self.weight_decay if self.rule.decoupled else 0.0
        base = self.rate(cohort)
        if self.lr_scaling != "none" and len(cohort):
            base *= float(self._scales(cohort).max())
        if base * max(1.0, coupled + decoupled) > LARGEST:
            raise DivergedError(f"a step of {base:.3g} times the decay {coupled + decoupled:.3g}; lower client.lr")
        return Rule(self.rule, self.clip_norm, coupled, decoupled, pull=decay)

    def _at_once(
        self,
        cohort: Cohort,
        loop: Loop,
        start: Tensor,
        shift: Tensor | None,
        rule: Rule,
        change: bool,
        report_last: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Parameters [C, d] or their change, the sums of the losses [C], the means of the last epoch: all in one."""
        plan = cohort.plan_clients(**self.passes(cohort))
        base, longest = self.rate(cohort), int(plan.steps.max()) if len(cohort) else 0
        own, step_rates = self._own_rates(cohort), self.step_rates
        found = loop.descend(
            Descent(
                start=start,
                shift=shift,
                x=cohort.data.x,
                y=cohort.data.y,
                index=plan.index,
                count=plan.count,
                first=plan.first,
                steps=plan.steps,
                examples=cohort.examples,
                draw=Draw(cohort.streams, cohort.clients, cohort.turn, 0),
                rates=[base * step_rates.decay(step) for step in range(longest)] if own is None else own.T,
                rule=rule,
                change=change,
            )
        )
        cohort.vouch(found.params, found.finite)
        if not report_last:
            return found.params, found.total, None
        owner, epoch = torch.repeat_interleave(plan.steps), self.last_epoch(cohort, plan.steps)
        late = torch.arange(len(owner)) - plan.first[owner] >= (plan.steps - epoch)[owner]
        total = torch.zeros_like(found.total).index_add_(0, owner, torch.where(late, found.losses, 0.0))
        return found.params, found.total, total / epoch.clamp(min=1)

    def _step_by_step(
        self,
        cohort: Cohort,
        start: Tensor,
        shift: Tensor | None,
        rule: Rule,
        arms: Sequence[Armed],
        moves: Sequence[bool] | None,
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor | None]:
        """Parameters, the sums of the losses, those of each step, which is a call of the network; and the precision."""
        layout = cohort.network.layout
        numbers = [number for number in range(layout.trained) if moves is None or moves[number]]
        if not numbers:
            raise BrokenPromiseError("an algorithm's local training trains no parameter of the model")
        y, fixed = layout.stack(start, len(cohort)), None if shift is None else layout.stack(shift, len(cohort))
        fused = rule.plain and len(numbers) == layout.trained and not cohort.noisy
        stepper = None if rule.plain else rule.stepper(take(y, numbers), self._beginning(cohort))
        history = list[Tensor]()
        corrected = bool(rule.decay) or shift is not None
        valued = corrected and self.rule.needs & VALUED
        began = take(layout.stack(start, len(cohort)), numbers) if valued else None
        losses = torch.zeros(len(cohort), dtype=y.leaves[0].dtype, device=y.leaves[0].device)
        rows, fixed_rows = y, fixed
        padded = self.views > 1  # so that the second view's examples have the places, and the dropout, of a stack's
        for step, (batch, lr) in enumerate(self.rated(cohort, padded=padded)):
            active = len(batch)
            if active != len(rows):
                rows, fixed_rows = y[:active], None if fixed is None else fixed[:active]
            for arm in arms:
                batch = arm(rows, batch)
            if fused:
                loss = cohort.network.descend(rows, batch, lr, rule.decay, fixed_rows)
            else:
                loss = self._take(cohort, stepper, rule, step, lr, rows, numbers, batch, fixed_rows, began)
            losses[:active] += loss
            history.append(loss)
        if stepper is None:
            return y.flat(), losses, history, None
        end = take(y, numbers)
        cohort.keep(**{KEPT + name: value for name, value in stepper.keep(end).items()})
        y = put(y, numbers, stepper.end(end))
        known = stepper.told()
        return y.flat(), losses, history, None if known is None else extended(known, numbers, y).flat()

    def rated(self, cohort: Cohort, *, padded: bool = False) -> Iterator[tuple[Batch, float | Tensor]]:
        """The mini-batches of the cohort's steps, each with its rate: one, or [k]. padded: as of `Cohort.batches`."""
        base, own, step_rates = self.rate(cohort), self._own_rates(cohort), self.step_rates
        lr: float | Tensor = base
        for step, batch in enumerate(cohort.batches(**self.passes(cohort), padded=padded)):
            if own is not None:
                lr = own[step, : len(batch)].to(cohort.dtype) if cohort.network.stacked else float(own[step, 0])
            elif step_rates.differ:
                lr = base * step_rates.decay(step)
            yield batch, lr

    def _beginning(self, cohort: Cohort) -> Beginning:
        """What the optimizer is told of the clients."""
        kept = {name: cohort.state[KEPT + name] for name in self.rule.kept(cohort.dimension)}
        return Beginning(cohort.examples, kept)

    def _take(
        self,
        cohort: Cohort,
        stepper: Stepper | None,
        rule: Rule,
        number: int,
        lr: float | Tensor,
        rows: Stack,
        numbers: Sequence[int],
        batch: Batch,
        fixed: Stack | None,
        began: Stack | None,
    ) -> Tensor:
        """A step of some leaves, in place, of the first clients, that is not fused: their losses [k] before."""
        moved = take(rows, numbers)
        shift, start = (None if fixed is None else take(fixed, numbers)), None if began is None else began[: len(rows)]
        if stepper is None:
            loss, gradient = cohort.gradients(rows, batch)
            descend_plainly(moved, take(gradient, numbers), lr, rule.decay, shift)
            return loss
        noise, at, place = StepDraws(batch.draw), moved, rows
        if "point" in self.rule.needs:
            at = stepper.point(moved, number, noise)
            place = put(rows, numbers, at)
        loss, gradient = cohort.gradients(place, batch)
        gradient, objective = take(gradient, numbers), BatchObjective(cohort, rule, rows, numbers, batch, shift, start)
        if "ahead" in self.rule.needs:
            _, gradient = objective.alone(stepper.ahead(at, gradient))
        value, corrected = rule.value(loss, at, shift, start), rule.corrected(at, gradient, shift)
        stepper.take(moved, Step(number, lr, corrected, value, noise, objective, objective))
        return loss

    def last_epoch(self, cohort: Cohort, steps: Tensor) -> Tensor:
        """How many of so many steps are of the last epoch, int64 [C]; independent steps are of one."""
        if self.epochs is None:
            return steps
        return torch.minimum(steps_of(cohort.examples, 1, None, self.width(cohort.config)), steps)

    def _last(self, cohort: Cohort, history: Iterable[Tensor], steps: Tensor) -> Tensor:
        """The mean loss of each client's last epoch [C], of so many steps; of independent ones the mean of all."""
        epoch = self.last_epoch(cohort, steps)
        total = torch.zeros(len(cohort), dtype=cohort.dtype, device=steps.device)
        for step, loss in enumerate(history):
            total[: len(loss)] += torch.where(step >= (steps - epoch)[: len(loss)], loss, 0.0)
        return total / epoch.clamp(min=1)

    def _epochs(self, round: int) -> int | None:  # noqa: A002
        if self.epochs is None:
            return None
        return max(1, math.floor(self.epochs * self.epochs_schedule.factor(round) + 0.5))

    def _own_rates(self, cohort: Cohort) -> Tensor | None:
        """The rates of each step of each client, float64 [S, C]; None where the options say that clients are alike."""
        if not self.step_rates.apart:
            return None
        number = 0 if isinstance(self.epochs_schedule, Constant) else cohort.round
        steps = self.local_steps(cohort.examples, number, cohort.config)
        return self.step_rates.own(self.rate(cohort), steps, self._scales(cohort))

    def _scales(self, cohort: Cohort) -> Tensor:
        """What the rate of each client is multiplied by for its batches, float64 [C]."""
        width = self.width(cohort.config)
        batches = cohort.examples if width is None else cohort.examples.clamp(max=width)
        meant = self.reference_batch or (1 if self.batch_size == "full" else self.batch_size)
        return self.step_rates.scales(batches, meant)

    def passes(self, cohort: Cohort) -> dict[str, Any]:
        """What mini-batches the cohort takes, as arguments of `Cohort.plan`."""
        epochs = self.epochs if isinstance(self.epochs_schedule, Constant) else self._epochs(cohort.round)
        course, width = None, self.width(cohort.config)
        if self.curriculum is not None and epochs is not None:
            course, epochs = self.curriculum.course(cohort, epochs, width), None
        return {"epochs": epochs, "steps": self.steps, "batch_size": width, "course": course}
