"""Which other values are tried of an option, by what is known of it and by its type."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from clients.sgd import Sgd
from fedsim.core.options import Counts, one_of, options
from fedsim.core.schedules import Constant, Exponential
from fedsim.testing.others import others_of


@options
class Everything:
    flag: bool = False
    kind: Literal["a", "b", "c"] = "b"
    count: int = 3
    bounded: Annotated[int, Field(ge=1)] = 1
    rate: float = 0.4
    nothing: float = 0.0
    perhaps: float | None = None
    size: int | Literal["full"] = "full"
    hidden: Counts = (4, 8)
    schedule: Annotated[Constant | Exponential, one_of(constant=Constant, exponential=Exponential)] = Constant()
    name: str = "x"
    table: Any = None


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("flag", [True]),
        ("kind", ["a", "c"]),
        ("count", [4, 2]),
        ("bounded", [2, 0]),  # 0 is refused when it is tried
        ("rate", [0.2, 0.8]),
        ("nothing", [0.5, 0.1, 2.0]),
        ("perhaps", [0.5, 0.1, 2.0]),
        ("size", [2, 1, 5]),
        ("hidden", [(5, 9)]),
        ("schedule", [{"kind": "exponential"}]),
        ("name", ["x-too"]),
        ("table", []),
    ],
)
def test_values_follow_from_the_type(option, values):
    assert [value for value, needs in others_of(Everything(), option) if not needs] == values


def test_an_option_that_can_be_left_out_is():
    assert [value for value, _ in others_of(Everything(perhaps=2.0), "perhaps")] == [None, 1.0, 4.0]


def test_what_is_known_comes_first_with_what_it_needs():
    client = Sgd(epochs=1)
    assert next(others_of(client, "inverse_power")) == (2.0, {"inverse_decay": 0.5})
    assert next(others_of(client, "steps")) == (7, {"epochs": None, "steps": 4})
    # What is known is what it has already: the type says the rest.
    assert next(others_of(Sgd(epochs=1, batch_size=3), "batch_size")) == (4, {})
