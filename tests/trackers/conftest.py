"""What all tests of trackers share."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest

from fedsim.problems.supervised import Supervised
from fedsim.running import runner

PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x05\0\0\0\x07"
"""The beginning of a picture, 5 wide and 7 high."""


@pytest.fixture(autouse=True, scope="module")
def picture() -> Iterator[bytes]:
    """Pictures take longer than all else here; one that is none does, and this is what it holds."""
    curves = patch.object(runner, "curves", lambda rows, place, asked: place.write_bytes(PICTURE))
    with curves, patch.object(Supervised, "illustrate", lambda *_: None):
        yield PICTURE
