"""The benchmark of events goes on for as many completions as it is asked for, whatever the window."""

from __future__ import annotations

import pytest

from experiments.benchmarks import events


@pytest.mark.parametrize("window", events.STRATEGIES)
def test_clients_without_work_go_on_for_ever(monkeypatch, window):
    """Of a model that stays where it was a run takes no more than 500 rounds."""
    monkeypatch.setattr(events, "CLIENTS", 20)
    simulated = events.simulation(events.problem(), events.STRATEGIES[window])
    assert events.turns(simulated, 700) >= 700
    assert simulated.state.params.min() > 0.0
