"""Every rule keeps to what all of them do, and every client that trains by it to what all clients do.

That clients keep to it is a row of the contract, of each rule; here it is held once a day.
"""

from __future__ import annotations

from typing import Any

import pytest
from contract import ROWS

from fedsim.core import plugins
from fedsim.testing import checks, conformance

GIVEN: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True},
}
"""Options without which a rule has others that do nothing."""
OTHERS: dict[str, dict[str, Any]] = {
    "adabelief": {"epsilon": 1e-3},
    "ai_sarah": {"restarts": (0, {"gamma": 0.99})},
    "frugal": {"others": "sgd", "gap": 1},
    "muon": {"others": "sgd"},
    "sam": {"base": "lion", "eta": (0.1, {"adaptive": True})},
    "dog": {"gamma": (4.0, {"average": True})},
    "induced": {"beta_rms": (0.5, {"metric": "rms"}), "epsilon": (0.1, {"metric": "rms"})},
    "l_dog": {"gamma": (4.0, {"average": True})},
}
"""Values of options that are not found by their types."""
RATES: dict[str, float] = {
    "adabelief": 0.01,
    "adahessian": 0.01,
    "adam": 0.01,
    "amsgrad": 0.01,
    "diffgrad": 0.01,
    "lion": 0.01,
    "oasis": 0.01,
}
"""Learning rates at which rules work, where these are not the usual ones."""

for name in plugins.ours("optimizers"):
    rule = plugins.make("optimizers", {"kind": name, **GIVEN.get(name, {})}, "optimizer")
    made = globals()[f"Test_{name}"] = conformance(rule, lr=RATES.get(name), others=OTHERS.get(name))
    for check in checks.CHECKS:
        method = f"test_{check.__name__}"
        setattr(made, method, pytest.mark.slow(getattr(made, method)))
del made  # which would be collected once more


def test_every_rule_has_a_row_of_the_contract() -> None:
    """Of clients that train by it and by nothing else of their own."""
    clients = [row["client"] for row in ROWS.values() if isinstance(row.get("client"), dict)]
    stepping = [client["optimizer"] for client in clients if client["kind"] == "sgd" and "optimizer" in client]
    assert {rule if isinstance(rule, str) else rule["kind"] for rule in stepping} >= {*plugins.ours("optimizers")}
