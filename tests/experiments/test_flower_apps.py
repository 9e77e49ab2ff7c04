"""The example apps run, and each method's lines make a model of its own."""

import logging
from pathlib import Path

import pytest
import torch

from fedsim.flower import AppFolder, simulate

APPS = Path(__file__).parents[2] / "experiments" / "flower_apps"


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("flwr"), "disabled", True)


def test_each_method_of_local_training_has_its_model_and_no_reply_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = {}
    for method in ("fedavg", "scaffold", "feddyn", "fedprox", "curriculum"):
        folder = AppFolder.read(APPS / "local_training", (f'method="{method}" rounds=2 local-epochs=1',))
        with folder.on_path():
            ran = simulate(folder.server, folder.client, 4, run_config=folder.run_config, worlds=1)
        models[method] = torch.load(tmp_path / "final_model.pt")["0.weight"]
        assert not ran.errors
        # Half of four clients train; the held-out digits are judged before the first round, too.
        assert [told["replies"] - told["failed"] for told in ran.history["train"].values()] == [2, 2]
        first, *_, last = (told["accuracy"] for told in ran.history["server"].values())
        assert last > first + 0.1
    for one, model in models.items():
        assert [other for other, another in models.items() if torch.equal(model, another)] == [one]
