"""The comparison without a server: where the walks' optimum is, and what is claimed of numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from experiments.gossip import graphs, walks


def test_a_clients_gradient_is_its_distance_from_its_centre() -> None:
    points = walks.centres(3)
    made = walks.problem(points)
    at = torch.tensor([0.3, -1.0, 0.5, 2.0])
    own = made.data.x.view(walks.CLIENTS, walks.DIMENSION, -1)
    away = (own @ at) - made.data.y.view(walks.CLIENTS, walks.DIMENSION)
    gradients = 2 / walks.DIMENSION * (own.transpose(1, 2) @ away.unsqueeze(2)).squeeze(2)
    assert torch.allclose(gradients.double(), at.double() - torch.from_numpy(points), atol=1e-5)
    assert np.ptp(np.linalg.norm(points - points.mean(axis=0), axis=1)) > 0.3


def test_walks_are_drawn_and_judged(tmp_path: Path) -> None:
    errors = walks.walked({"alpha": 5.0}, 0, hops=2 * walks.EVERY)
    assert errors.shape == (2,)
    size = {"alpha 0": 1.0, "alpha 1": 0.5, "alpha 5": 0.1, "alpha 20": 0.05, "to any neighbour, corrected": 1.0}
    found = {label: walks.Measured(label, np.full((2, 4), one)) for label, one in size.items()}
    assert [claim.judge(found)[1] for claim in walks.PART.claims] == [True, True]
    found["alpha 20"] = walks.Measured("alpha 20", np.full((2, 4), 0.2))
    assert walks.falls(found)[1] is False
    walks.draw(found, tmp_path / "walks.png")
    assert (tmp_path / "walks.png").stat().st_size > 5_000
    assert len(walks.table(found).rows) == 5


def test_graphs_are_drawn_and_judged(tmp_path: Path) -> None:
    rounds, flat = np.array([10.0, 20.0]), np.full((3, 2), 0.8)
    apart = {"ring": 0.3, "torus": 0.2, "tracking": 0.1}
    found = {
        name: graphs.Measured(label, "1.0", rounds, flat, flat, np.full(3, apart.get(name, 0.0)), np.ones(3))
        for name, (label, _) in graphs.WAYS.items()
    }
    assert [claim.judge(found)[1] for claim in graphs.PART.claims] == [True, True, None, None]
    graphs.draw(found, tmp_path / "graphs.png")
    assert (tmp_path / "graphs.png").stat().st_size > 5_000
    assert len(graphs.table(found).rows) == len(graphs.WAYS)
