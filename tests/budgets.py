"""How many seconds the tests of a file may take before a change, on two quiet cores; together eight minutes."""

from __future__ import annotations

TOGETHER = 2 * 8 * 60
"""Of both cores."""
OTHERS = 3.0
"""Of a file that is not named here."""
SECONDS = {
    "tests/test_contract.py": 60.0,
}


def seconds(file: str) -> float:
    """What a file may take."""
    return SECONDS.get(file, OTHERS)
