"""Every rule keeps to what all of them do, and every client that trains by it to what all clients do."""

from __future__ import annotations

from typing import Any

from fedsim.core import plugins
from fedsim.testing import conformance

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
    globals()[f"Test_{name}"] = conformance(rule, lr=RATES.get(name), others=OTHERS.get(name))
