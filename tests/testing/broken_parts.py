"""Plug-ins of all kinds but strategies and clients, each of which breaks one promise, as authors do."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import PositiveFloat, options
from fedsim.exchange.aggregation import Krum, WeightedMean
from fedsim.exchange.messages import Replies, Size
from fedsim.exchange.transforms import Clip, Noise, Transform, Vector
from fedsim.nets.losses import CrossEntropy, Huber, Pinball
from fedsim.nets.losses.base import by_autograd
from fedsim.problems.datasets.base import Dataset
from fedsim.problems.measures import Measure
from fedsim.problems.measures.means import MAE, Accuracy
from fedsim.server.selection.base import SelectorState, Turn
from fedsim.server.selection.draws import Draws, evenly
from fedsim.server.selection.fastest import Fastest
from fedsim.server.selection.power_of_choice import PowerOfChoice
from fedsim.server.selection.uniform import Uniform
from fedsim.server.selection.weighted import Weighted

# --- Selectors


@options
class TakesTheBusy(Uniform):
    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Any:
        return np.sort(Draws.of(state, turn).permutation("selection", len(turn.free.mask))[: turn.wanted])


@options
class LastFirst(Uniform):
    """Not in ascending order."""

    def select(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Any:
        chosen, after = super().select(state, turn, scores)
        return chosen.flip(0), after


@options
class TakesOneMore(Uniform):
    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Any:
        return evenly(Draws.of(state, turn), "selection", turn.free, min(turn.wanted + 1, turn.free.count - 1))


@options
class LeavesSomeOut(Uniform):
    """One less where too few are free."""

    def select(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Any:
        chosen, after = super().select(state, turn, scores)
        return (chosen[1:] if turn.free.count < turn.wanted and len(chosen) > 1 else chosen), after


@options
class TakesAnyPopulation(Uniform):
    def check(self, population: int) -> None:
        """Nothing is refused."""


@options
class CountsInPlace(Uniform):
    def select(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Any:
        chosen, _ = super().select(state, turn, scores)
        state["selections"] += 1
        return chosen, state


@options
class EditsDurations(Fastest):
    def observe(self, state: SelectorState, replies: Replies) -> SelectorState:
        replies.durations.clamp_(max=25)
        return super().observe(state, replies)


@options
class DrawsFromPython(Uniform):
    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Any:
        return np.sort(random.sample(np.flatnonzero(turn.free.mask).tolist(), turn.wanted))


@options
class DrawsWithItsOwnSeed(Uniform):
    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Any:
        drawn = np.random.default_rng(int(state["selections"]))
        return np.sort(drawn.choice(np.flatnonzero(turn.free.mask), turn.wanted, replace=False))


@options
class DrawsByTheRound(Uniform):
    """Whoever is missing in the round is drawn again."""

    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Any:
        return evenly(Draws(turn.streams, turn.round, 0), "selection", turn.free, turn.wanted)


@options
class RemembersNumbers(Uniform):
    def start(self, sizes: Tensor) -> SelectorState:
        return {**super().start(sizes), "rounds": 0}  # type: ignore[dict-item]


@options
class RemembersLater(Uniform):
    """Only once somebody has answered."""

    def observe(self, state: SelectorState, replies: Replies) -> SelectorState:
        return {**state, "last": replies.clients} if len(replies) else state


@options
class LearnsFromTheLast(Uniform):
    """From whichever reply came last."""

    def start(self, sizes: Tensor) -> SelectorState:
        return {**super().start(sizes), "last": torch.zeros((), dtype=torch.int64)}

    def observe(self, state: SelectorState, replies: Replies) -> SelectorState:
        return {**state, "last": replies.clients[-1]} if len(replies) else state


@options
class CountsWindows(Uniform):
    """Those without replies, too."""

    def observe(self, state: SelectorState, replies: Replies) -> SelectorState:
        return {**state, "selections": state["selections"] + 1}


@options
class AsksTheBusy(PowerOfChoice):
    """One of them, and takes no notice of what it answers."""

    def candidates(self, state: SelectorState, turn: Turn) -> Tensor | None:
        asked = super().candidates(state, turn)
        busy = torch.from_numpy(np.flatnonzero(~turn.free.mask)[:1])
        return None if asked is None else torch.cat((asked, busy)).sort().values

    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Any:
        asked = self.candidates(state, turn)
        if asked is not None and scores is not None:
            scores = scores[torch.from_numpy(turn.free.mask[asked])]
        return super().choose(state, turn, scores)


@options
class NeedsEveryLoss(PowerOfChoice):
    """Nobody is chosen whose loss has not come."""

    def select(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Any:
        chosen, after = super().select(state, turn, scores)
        return (chosen if scores is None else chosen[: int((~scores.isnan()).sum())]), after


@options
class WantsWhatNobodySends(Uniform):
    reports: ClassVar[frozenset[str]] = frozenset({"gradient"})


@options
class HasMemoryOnItself(Uniform):
    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Any:
        vars(self)["chosen"] = vars(self).get("chosen", 0) + 1
        return super().choose({**state, "selections": torch.tensor(vars(self)["chosen"])}, turn, scores)


@options
class IgnoresAnOption(Uniform):
    temperature: PositiveFloat = 1.0


@options
class LosesAnOption(Uniform):
    """None is what it is by default when it is read again."""

    scale: PositiveFloat | None = 1.0


@options
class KeepsItsPopulation(Fastest):
    """Has a duration for those alone that were there at the beginning."""

    def resize(self, state: SelectorState, sizes: Tensor) -> SelectorState:
        return state


@options
class ForgetsWhatItHasLearnt(Fastest):
    def resize(self, state: SelectorState, sizes: Tensor) -> SelectorState:
        return self.start(sizes)


@options
class KnowsTheFirstSizes(Weighted):
    """Adds the sizes up once."""

    of_sizes: ClassVar[frozenset[str]] = frozenset()


# --- Aggregators


@options
class HasTwoDimensions(WeightedMean):
    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        return super().__call__(rows, weights).unsqueeze(0)


@options
class IsAlwaysDouble(WeightedMean):
    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        return super().__call__(rows.double(), weights)


@options
class CentresInPlace(WeightedMean):
    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        mean = super().__call__(rows, weights).clone()
        rows -= mean
        return mean


@options
class FavoursTheFirstRow(WeightedMean):
    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        favoured = weights.clone()
        favoured[0] *= 2.0
        return super().__call__(rows, favoured)


@options
class Shrinks(WeightedMean):
    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        return 0.99 * super().__call__(rows, weights)


@options
class IsASum(WeightedMean):
    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        return (rows * weights.unsqueeze(1)).sum(dim=0)


@options
class SaysNothingOfTooFew(Krum):
    """An index error in round 40."""

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        return super().__call__(rows, weights) if len(rows) > 4 else rows[4]


@options
class WantsAnEvenNumber(WeightedMean):
    def check(self, cohort: int) -> None:
        if cohort % 2:
            raise InputError("aggregation.kind", cohort, "take an even number")


@options
class SquaresInSingle(WeightedMean):
    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        mean = super().__call__(rows, weights)
        norm = rows.square().sum(dim=1).sqrt().mean()
        return mean * (norm / norm)


@options
class SumsInThreads(WeightedMean):
    """The bits of PyTorch's sum of a long row are those of the threads."""

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        length = torch.stack([row.contiguous().abs().sum() for row in rows]).max()
        return super().__call__(rows / length, weights) * length


@options
class DrawsALength(WeightedMean):
    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        return random.uniform(0.5, 1.5) * super().__call__(rows, weights)


@options
class NeverMoves(WeightedMean):
    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        return torch.zeros_like(rows[0])


# --- Transforms


@options
class LosesNumbers(Transform):
    """On the way back."""

    def encode(self, vector: Vector) -> Vector:
        return vector.coded(vector.rows, decode=lambda rows: rows[:, 1:])


@options
class DividesByTheLargest(Transform):
    """Zeros have none."""

    def encode(self, vector: Vector) -> Vector:
        largest = vector.rows.abs().amax(dim=1, keepdim=True)
        return vector.coded(vector.rows / largest * largest)


@options
class ScalesInPlace(Transform):
    def encode(self, vector: Vector) -> Vector:
        return vector.coded(vector.rows.mul_(0.5))


@options
class CentresTheCohort(Transform):
    def encode(self, vector: Vector) -> Vector:
        return vector.coded(vector.rows - vector.rows.mean(dim=0))


@options
class ForgetsWhatIsBeside(Transform):
    def size(self, before: Size) -> Size:
        return Size(before.numbers, before.bits, 32)

    def encode(self, vector: Vector) -> Vector:
        return vector.coded(vector.rows, self.size(vector.size))


@options
class DeclaresLess(Transform):
    """A scale crosses that is not declared."""

    def encode(self, vector: Vector) -> Vector:
        return vector.coded(vector.rows, replace(vector.size, beside=vector.size.beside + 32))


@options
class ClaimsHalf(Transform):
    """Sixteen bits a number, which arrives as it was."""

    def size(self, before: Size) -> Size:
        return replace(before, bits=16)

    def encode(self, vector: Vector) -> Vector:
        return vector.coded(vector.rows, self.size(vector.size))


@options
class CostsAByte(Transform):
    """What has been rounded to a hundredth fits in no byte."""

    def size(self, before: Size) -> Size:
        return replace(before, bits=8)

    def encode(self, vector: Vector) -> Vector:
        return vector.coded((100 * vector.rows).round() / 100, self.size(vector.size))


@options
class KeepsAnotherShape(Transform):
    def state(self, length: int) -> Any:
        return {"sum": (length,)}

    def encode(self, vector: Vector) -> Vector:
        return vector.coded(vector.rows, sum=vector.rows.sum(dim=1, keepdim=True))


@options
class KeepsWhatItDoesNotName(Transform):
    def encode(self, vector: Vector) -> Vector:
        return vector.coded(vector.rows, last=vector.rows)


@options
class DrawsTheSameEachTurn(Noise):
    def encode(self, vector: Vector) -> Vector:
        return super().encode(replace(vector, sender=replace(vector.sender, turn=0)))


@options
class DrawsTheSameForAll(Noise):
    def encode(self, vector: Vector) -> Vector:
        nobody = torch.zeros_like(vector.sender.clients)
        return super().encode(replace(vector, sender=replace(vector.sender, clients=nobody)))


@options
class DrawsTheSameForEachVector(Noise):
    def encode(self, vector: Vector) -> Vector:
        return super().encode(replace(vector, place=0))


@options
class SeedsItsOwnNoise(Transform):
    def encode(self, vector: Vector) -> Vector:
        generator = torch.Generator().manual_seed(7)
        drawn = torch.randn(vector.rows.shape[1:], generator=generator, dtype=vector.rows.dtype)
        return vector.coded(vector.rows + 0.1 * drawn)


@options
class CountsOnItself(Clip):
    """Clips less and less."""

    def apply(self, vectors: Any) -> Any:
        vars(self)["calls"] = vars(self).get("calls", 0) + 1
        return Clip(max_norm=self.max_norm * vars(self)["calls"]).apply(vectors)


# --- Data sets


def blocks(shift: float = 0.0, x_type: Any = np.float32) -> dict[str, Any]:
    """Twenty examples of three features, two classes and four owners; and eight for the test."""
    x = np.arange(84, dtype=x_type).reshape(28, 3) / 84 + shift
    y, owner = np.arange(28, dtype=np.int64) % 2, np.arange(28, dtype=np.int64) % 4
    names = ("x", "y", "owner")
    train = dict(zip(names, (x[:20].astype(x_type), y[:20], owner[:20]), strict=True))
    test = dict(zip((f"{name}_test" for name in names), (x[20:].astype(x_type), y[20:], owner[20:]), strict=True))
    return {"name": "blocks", "num_classes": 2, **train, **test}


@options
class Blocks:
    """What nothing is wrong with."""

    shift: PositiveFloat = 1.0

    def load(self, folder: DataFolder) -> Dataset:
        return Dataset(**self.arrays())

    def arrays(self) -> dict[str, Any]:
        return blocks(self.shift)


@options
class IsInDouble(Blocks):
    def arrays(self) -> dict[str, Any]:
        return blocks(self.shift, np.float64)


@options
class HasHoles(Blocks):
    def arrays(self) -> dict[str, Any]:
        arrays = blocks(self.shift)
        arrays["x"][3, 1] = np.nan
        return arrays


@options
class CountsFromOne(Blocks):
    def arrays(self) -> dict[str, Any]:
        arrays = blocks(self.shift)
        return arrays | {name: arrays[name] + 1 for name in ("owner", "owner_test")}


@options
class TestsOnItsTraining(Blocks):
    def arrays(self) -> dict[str, Any]:
        arrays = blocks(self.shift)
        return arrays | {f"{name}_test": arrays[name][:8].copy() for name in ("x", "y", "owner")}


SHARED = blocks(1.0)


@options
class LendsItsArrays(Blocks):
    def arrays(self) -> dict[str, Any]:
        return blocks(self.shift) | ({"x": SHARED["x"]} if self.shift == 1.0 else {})


@options
class ShufflesAtRandom(Blocks):
    def arrays(self) -> dict[str, Any]:
        arrays = blocks(self.shift)
        np.random.shuffle(arrays["x"])  # noqa: NPY002
        return arrays


@options
class HasNoFeatures(Blocks):
    def arrays(self) -> dict[str, Any]:
        arrays = blocks(self.shift)
        return arrays | {name: arrays[name][:, 0] for name in ("x", "x_test")}


@options
class FromAFile(Blocks):
    """Numbers of a text file, in the way in which they should be read."""

    path: str = "numbers.txt"

    def load(self, folder: DataFolder) -> Dataset:
        place = folder.find(self.path)
        return Dataset(**blocks(self.shift) | {"x": self.numbers(place)})

    def numbers(self, place: Path) -> Any:
        from fedsim.core.data_files import reading

        with reading(place, "numbers"):
            return np.array(place.read_text(encoding="utf-8").split(), dtype=np.float32).reshape(20, 3)


@options
class SaysNothingOfDamage(FromAFile):
    def numbers(self, place: Path) -> Any:
        return np.array(place.read_text(encoding="utf-8").split(), dtype=np.float32).reshape(20, 3)


@options
class ReadsAnything(FromAFile):
    """Empty or not."""

    def numbers(self, place: Path) -> Any:
        found = np.frombuffer(place.read_bytes().ljust(240, b"1")[:240], dtype=np.uint8)
        return found.astype(np.float32)[:60].reshape(20, 3)


@options
class LooksWhereItIs(FromAFile):
    """Elsewhere, where the folder has nothing."""

    def load(self, folder: DataFolder) -> Dataset:
        try:
            return super().load(folder)
        except InputError:
            return Dataset(**blocks(self.shift))


# --- Losses


@options
class IsOneNumber(Huber):
    """The mean of a client's examples."""

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().examples(outputs, targets).mean(dim=1)


@options
class ForgetsItsBound(Huber):
    def each_with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.each(outputs, targets), outputs - targets


@options
class CentresTheBatch(Pinball):
    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - outputs.mean() - targets).abs()

    def each_with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.each(outputs, targets), (outputs - targets).sign()


@options
class CountsPadding(CrossEntropy):
    """What does not count is of class 0 to it."""

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = self.each(outputs, targets.clamp(min=0))
        return each.flatten(targets.dim() - self.places).mean(dim=-1) if self.places else each

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return by_autograd(self.examples, outputs, targets)


@options
class AddsUp(Pinball):
    """The sum over several numbers."""

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().examples(outputs, targets) * (outputs.shape[-1] if self.places else 1)

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return by_autograd(self.examples, outputs, targets)


# --- Measures


@options
class Undecided(Accuracy):
    """Nobody knows which way it improves."""

    higher_is_better = None  # type: ignore[assignment]


@options
class NamedBadly(Accuracy):
    @property
    def called(self) -> str:
        return "The accuracy"


@options
class DividesByNothing(Measure):
    """Of a class that nobody has, too."""

    tasks = frozenset({"classes"})
    higher_is_better = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(dim=1) == targets)[targets == outputs.shape[1]].double().mean())


@options
class SortsInPlace(MAE):
    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().examples(outputs.clamp_(min=0.0), targets)


@options
class LooksAtTheFirst(Measure):
    tasks = frozenset({"numbers"})
    higher_is_better = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        return float((outputs[0] - targets[0]).abs().mean())


@options
class CountsThemTogether(MAE):
    """Each client has what all have."""

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        return torch.full((len(count),), float((outputs - targets).abs().mean()), dtype=torch.float64)


@options
class HasAnEmptyClient(Accuracy):
    """Of no examples all are right."""

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        return super().of_clients(outputs, targets, count).nan_to_num(1.0)


@options
class ImprovesTheOtherWay(MAE):
    higher_is_better = True
    best = None


@options
class GoesBeyondItsBest(MAE):
    best = 0.5


@options
class DrawsASample(Measure):
    tasks = frozenset({"tags"})
    higher_is_better = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        return float((outputs > 0).ne(targets > 0).double().mean()) + 1e-3 * random.random()


@options
class HasAColumnOfItsOwn(Accuracy):
    """Its columns are another's."""

    @property
    def label(self) -> str:
        return "loss"


class Scaled(nn.Module):
    """A linear layer, whose outputs are multiplied by a number."""

    def __init__(self, inputs: int, outputs: int, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(inputs, outputs), nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.factor


@options
class TakesNothing:
    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        raise InputError("model", "nothing", "takes no inputs at all")


@options
class StumblesOverTokens:
    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        if vocabulary:
            raise KeyError("tokens")
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs))


@options
class HasThreeOutputs:
    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3))


@options
class LearnsNothing:
    """Its outputs are 0 whatever its layer says, and the factor is frozen."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        model = Scaled(6, outputs, 0.0)
        model.factor.requires_grad_(False)
        return model


@options
class DrawsItsFactor:
    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        return Scaled(6, outputs, 1.0 + random.random())
