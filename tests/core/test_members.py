"""Members of a plug-in that cannot be used as those of its base are refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

import fedsim
from clients.sgd import Sgd
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, options
from fedsim.exchange.aggregation import WeightedMean
from fedsim.exchange.transforms import Transform
from fedsim.problems.partitions.library import IID
from fedsim.server.selection.base import Selector
from fedsim.server.selection.size import FixedSize
from fedsim.server.selection.uniform import Uniform
from strategies.fedavg import FedAvg


@options
class AsksOfNobody(FedAvg):
    def ask(self, state: Any) -> Any:  # type: ignore[override]
        return super().ask(state, None)  # type: ignore[arg-type]


@options
class TellsMore(FedAvg):
    def tell(self, state: Any, replies: Any, more: Any) -> Any:  # type: ignore[override]
        return super().tell(state, replies)


@options
class IsTold(FedAvg):
    tell: float = 1.0  # type: ignore[assignment]


@options
class Must(FedAvg):
    tell: float  # type: ignore[assignment]


@options
class IsSent(FedAvg):
    def down(self) -> Any:  # type: ignore[override]
        return frozenset({"params"})


@options
class Number(FedAvg):
    tell = 3  # type: ignore[assignment]


@options
class Trains(Sgd):
    def train(self) -> Any:  # type: ignore[override]
        return None


@options
class Centre(WeightedMean):
    def __call__(self, rows: Any) -> Any:  # type: ignore[override]
        return rows[0]


@options
class Sends(Transform):
    def encode(self) -> Any:  # type: ignore[override]
        return None


@options
class ChoosesNobody(FixedSize):
    """It has no choose."""


@options
class OfNobody(Selector):
    def select(self, state: Any, turn: Any, scores: Any) -> Any:
        return scores, state


@options
class Splits(IID):
    def split(self, data: Any) -> Any:  # type: ignore[override]
        return data


@options
class Loads:
    @staticmethod
    def load() -> Any:
        return None


@options
class Halves(FedAvg):
    def change(self, state: Any, replies: Any, *, half: bool = True) -> Any:
        return super().change(state, replies) / 2

    @staticmethod
    def plan(state: Any, durations: Any) -> Any:  # type: ignore[override]
        return state

    def twice(self, whatever: int) -> int:
        return whatever


@options
class Again(Halves):
    def twice(self) -> int:  # type: ignore[override]
        return 1


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ({"strategy": AsksOfNobody}, "ask is written ask(self, state), and is called as ask(self, state, chosen)"),
        (
            {"strategy": TellsMore},
            "tell is written tell(self, state, replies, more), and is called as tell(self, state, replies)",
        ),
        ({"strategy": IsTold}, "tell is an option, and a method is called so; call the option otherwise"),
        ({"strategy": Must}, "tell is an option, and a method is called so; call the option otherwise"),
        ({"strategy": IsSent}, "down is a method, and is read as a value; write @property above it"),
        ({"strategy": Number}, "tell is a int, and is called as a method: tell(self, state, replies)"),
        ({"client": Trains}, "train is written train(self), and is called as train(self, cohort)"),
        (
            {"aggregation": Centre},
            "__call__ is written __call__(self, rows), and is called as __call__(self, rows, weights)",
        ),
        ({"transforms": Sends}, "encode is written encode(self), and is called as encode(self, vector)"),
        ({"selection": ChoosesNobody}, "it has no choose, which is asked of it"),
        ({"selection": OfNobody}, "it has no of, which is asked of it"),
        ({"partition": Splits}, "split is written split(self, data), and is called as split(self, data, seed)"),
        ({"dataset": Loads}, "load is written load(), and is called as load with 1 argument beside self"),
    ],
)
def test_what_does_not_fit_is_refused(tables, line):
    ((part, made),) = tables.items()
    kind = f"{__name__}:{made.__qualname__}"
    given: dict[str, Any] = {part: {"kind": kind}}
    if part in ("transforms", "dataset"):
        given = {"transforms": [{"kind": kind}]} if part == "transforms" else {"problem": {"dataset": {"kind": kind}}}
    with pytest.raises(InputError) as caught:
        fedsim.experiment(**given)
    assert str(caught.value).partition(f".kind = {kind}: ")[2] == line


@pytest.mark.parametrize("made", [Halves, Again])
def test_what_fits_is_taken(made):
    assert fedsim.experiment(strategy=made()).strategy == made()


def test_an_object_that_does_not_fit_is_refused_too():
    with pytest.raises(InputError, match="ask is written ask"):
        fedsim.experiment(strategy=AsksOfNobody())


def test_a_default_is_held_to_the_type_of_its_option():
    @options
    class Beyond:
        beta: Fraction = 3.0

    @options
    class Text:
        beta: Fraction = "a"  # type: ignore[assignment]

    for made in (Beyond, Text):
        with pytest.raises(InputError, match=r"^beta = (3\.0: input should be less than 1|a: input should be a valid)"):
            made()
        assert made(beta=0.5).beta == 0.5


def test_a_transform_with_neither_encode_nor_apply_is_refused():
    @options
    class Nothing(Transform):
        """It says nothing of what it does."""

    with pytest.raises(InputError, match=r"^transforms\.0\.kind = .*Nothing: it has neither encode nor apply"):
        fedsim.experiment(transforms=[Nothing()])


@pytest.mark.parametrize("name", ["\x1b[31m", "lr[", "constrained-lr", "function-"])
def test_an_unknown_option_may_be_called_like_a_tag_of_pydantic(name):
    with pytest.raises(InputError, match=r"= 1: no such option here; remove it or correct its name") as caught:
        fedsim.experiment(client={"kind": "sgd", "epochs": 1, name: 1})
    assert caught.value.option == f"client.{name}"


def test_a_class_of_nearly_that_name_is_offered():
    with pytest.raises(InputError, match=r"strategies\.fedavg has no FedAvgg; did you mean FedAvg\?$"):
        fedsim.experiment(strategy="strategies.fedavg:FedAvgg")
    assert Uniform(count=1)
