"""What leaves the server of a round, by changes that are made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedsim.core.streams import SERVER, Streams
from fedsim.exchange.messages import Replies
from fedsim.nets.stack import Layout
from fedsim.privacy.banded import toeplitz
from fedsim.privacy.options import Privacy
from fedsim.privacy.release import Release, bounds_of, clipped

LAYOUT = Layout(("a", "b"), ((3,), (1,)), 2)


def replies(rows, turn=0):
    rows = torch.as_tensor(rows, dtype=torch.float64).reshape(-1, 4)
    ids = torch.arange(len(rows))
    return Replies(
        clients=ids,
        payload={"delta": rows},
        metrics={"loss": torch.ones(len(rows))},
        examples=torch.arange(1, len(rows) + 1),
        failed=ids[:0],
        round=turn,
        versions=torch.full_like(ids, turn),
        durations=torch.ones_like(ids),
        orders=(),
        origin=(0,) * len(rows),
    )


def release(multiplier=0.0, cohort=2.0, factor=None, **options):
    given = {"clip": 1.0, "noise_multiplier": multiplier, "delta": 1e-3} | options
    return Release(Privacy(**given), multiplier, cohort, LAYOUT, Streams(0), factor)


def told(made, rows, turn=0, kept=None):
    kept = made.begin(torch.zeros(4, dtype=torch.float64)) if kept is None else kept
    found, kept, observed = made(kept, replies(rows, turn))
    return found, kept, observed


def test_clipped_changes_are_added_up_and_divided_by_the_cohort_that_is_expected():
    """(3, 0, 0, 4) has norm 5 and becomes (.6, 0, 0, .8); (.5, 0, 0, 0) stays; their sum is divided by 4."""
    found, _, observed = told(release(cohort=4.0), [[3, 0, 0, 4], [0.5, 0, 0, 0]])
    assert found.payload["delta"].tolist() == [pytest.approx([1.1 / 4, 0, 0, 0.8 / 4])]
    assert observed == {"clip": 1.0, "unclipped": 0.5}
    assert found.combine(found.weights("examples")).tolist() == found.payload["delta"][0].tolist()


def test_bounds_of_layers():
    """Two tensors of 3 and 1 numbers: C / sqrt(2) each, or C sqrt(3/4) and C / 2."""
    assert bounds_of("layers", LAYOUT, 2.0) == pytest.approx([math.sqrt(2)] * 2)
    assert bounds_of("sizes", LAYOUT, 2.0) == pytest.approx([math.sqrt(3), 1.0])
    found, count = clipped(torch.tensor([[3.0, 0, 4, 2], [0, 0, 1, 0]]), [1.0, 1.0], [3, 1])
    assert found.tolist() == [pytest.approx([0.6, 0, 0.8, 1.0]), [0, 0, 1, 0]]
    assert count == 1


def test_nobody_moves_the_sum_by_more_than_the_bound():
    rows = 10 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = release(cohort=1.0)
    whole = told(made, rows)[0].payload["delta"]
    for left_out in range(6):
        others = told(made, rows[torch.arange(6) != left_out])[0].payload["delta"]
        assert float((whole - others).norm()) <= 1 + 1e-12


@pytest.mark.parametrize("options", [{}, {"where": "clients", "least": 5}])
def test_the_noise_on_the_mean_has_the_deviation_z_c_over_the_cohort(options):
    """z 2, C 3, 5 of 5 expected clients: 6 / 5, whoever adds it. Of 1,200 draws the deviation is within 8 %."""
    made, zeros = release(2.0, 5.0, clip=3.0, **options), torch.zeros(5, 4)
    drawn = torch.cat([told(made, zeros, turn)[0].payload["delta"][0] for turn in range(300)])
    assert float(drawn.std()) == pytest.approx(6 / 5, rel=0.08)
    assert abs(float(drawn.mean())) < 0.1


def test_of_more_clients_noise_is_more_and_of_fewer_nothing_is_released():
    """Each adds z C / sqrt(least): 8 where 2 are needed make twice the noise."""
    made = release(1.0, 1.0, where="clients", least=2)
    drawn = torch.cat([told(made, torch.zeros(8, 4), turn)[0].payload["delta"][0] for turn in range(200)])
    assert float(drawn.std()) == pytest.approx(2.0, rel=0.1)
    assert len(told(made, torch.zeros(1, 4))[0]) == 0


def test_an_empty_cohort_is_noise():
    found, _, observed = told(release(1.0), torch.zeros(0, 4))
    assert found.payload["delta"].abs().min() > 0
    assert len(found) == 1
    assert observed == {"clip": 1.0}


@pytest.mark.parametrize(("norm", "moved"), [(0.5, math.exp(-0.2 * 0.5)), (5.0, math.exp(0.2 * 0.5))])
def test_a_bound_that_clips_nobody_falls_and_one_that_clips_all_rises(norm, moved):
    made = release(0.0, 4.0, adaptive={})
    _, kept, _ = told(made, [[norm, 0, 0, 0]] * 4)
    assert float(kept["clip"]) == pytest.approx(moved)


def test_the_bound_finds_its_quantile():
    """Norms exp(1 + N(0, 1)) of 100 clients have the median e = 2.718; C begins at .1."""
    generator = np.random.default_rng(0)
    made = release(0.0, 100.0, adaptive={}, clip=0.1)
    kept, seen = made.begin(torch.zeros(4)), []
    for turn in range(90):
        rows = np.zeros((100, 4))
        rows[:, 0] = np.exp(1 + generator.standard_normal(100))
        _, kept, _ = told(made, rows, turn, kept)
        seen.append(float(kept["clip"]))
    assert np.mean(seen[-40:]) == pytest.approx(math.e, rel=0.06)


def test_the_count_of_the_unclipped_has_its_share_of_z():
    """z 1 and noise of 5 on the count leave 1.00503782 for the changes."""
    assert release(1.0, adaptive={"count_noise": 5.0})._deviation == pytest.approx(1.00503782, abs=1e-8)
    assert release(0.6, adaptive={"count_noise": 0.5})._deviation == pytest.approx(0.75)


def test_banded_noise_is_that_of_the_inverse():
    """Rows are C^-1 Z with Z the independent noise of the same rounds."""
    factor = toeplitz(9, 4)
    banded, plain = release(1.0, 1.0, factor, mechanism="banded", bands=4), release(1.0, 1.0)
    kept, rows, own = banded.begin(torch.zeros(4, dtype=torch.float64)), [], []
    for turn in range(9):
        found, kept, _ = told(banded, torch.zeros(1, 4), turn, kept)
        rows.append(found.payload["delta"][0])
        own.append(told(plain, torch.zeros(1, 4), turn)[0].payload["delta"][0])
    assert torch.stack(rows).numpy() == pytest.approx(np.linalg.inv(factor) @ torch.stack(own).numpy(), abs=1e-12)
    assert kept["privacy"].shape == (3, 4)


def test_noise_is_the_servers_own():
    drawn = Streams(0).normal("privacy", torch.tensor([SERVER]), (4,), turn=3, dtype=torch.float64)
    found = told(release(1.0, 1.0), torch.zeros(0, 4), 3)[0].payload["delta"]
    assert torch.equal(found, drawn)
