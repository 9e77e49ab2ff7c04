"""Selectors, aggregators and transforms have a base: what is misspelt, or has not that base, is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.exchange.aggregation import WeightedMean
from fedsim.exchange.transforms import Clip
from fedsim.server.selection.uniform import Uniform


@pytest.mark.parametrize(
    ("above", "name", "base"),
    [
        (Uniform, "observes", "Selector"),
        (Uniform, "candidate", "Selector"),
        (WeightedMean, "chek", "Aggregator"),
        (Clip, "aply", "Transform"),
        (Clip, "states", "Transform"),
    ],
)
def test_a_member_that_is_nearly_called_like_one_of_the_base_is_refused(above, name, base):
    with pytest.raises(InputError, match=f"^Mine = {name}: nobody asks a {base} for that; write "):
        type("Mine", (above,), {name: lambda self: None})


class Everything:
    """What each of these kinds must have, but none of their bases."""

    vectors: Any = None

    def __call__(self, *given: Any) -> None: ...

    select = observe = check = state = size = apply = __call__


WithoutBase = options(type("WithoutBase", (Everything,), {"__module__": __name__}))
KIND = {"kind": f"{__name__}:WithoutBase"}


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"selection": KIND}, r"selection\.kind = .*subclass of fedsim\.server\.selection\.Selector$"),
        ({"aggregation": KIND}, r"aggregation\.kind = .*subclass of fedsim\.exchange\.Aggregator$"),
        ({"transforms": [KIND]}, r"transforms\.0\.kind = .*subclass of fedsim\.exchange\.Transform$"),
        ({"order_transforms": [KIND]}, r"order_transforms\.0\.kind = .*subclass of fedsim\.exchange\.Transform$"),
    ],
)
def test_a_class_without_the_base_is_refused(tables, words):
    with pytest.raises(InputError, match=f"^{words}"):
        fedsim.experiment(**tables)
