import itertools
import math

import pytest
import torch

from fedsim.core.streams import Streams
from fedsim.engine.scratch import Scratch
from fedsim.parallel.cores import one_core_an_operation
from fedsim.zeroth_order.surrogates.gaussian_process import fit
from fedsim.zeroth_order.surrogates.kernels import RBF
from fedsim.zeroth_order.surrogates.random_features import RandomFeatures, draw


def uniform(purpose, clients, *shape, seed=0):
    """Uniform numbers in [-1, 1): [clients, *shape]."""
    return 2 * Streams(seed).uniform(purpose, torch.arange(clients), shape, dtype=torch.float64) - 1


def full(points):
    return torch.full(points.shape[:1], points.shape[1])


def problem(clients=3, number=40, dimension=5, spread=1.0):
    """Points some length scales of the kernel, 1, from each other, and values of smooth functions."""
    points = spread * uniform("points", clients, number, dimension) / math.sqrt(dimension)
    slopes = uniform("slopes", clients, dimension)
    return points, torch.sin(torch.einsum("cnd,cd->cn", points, slopes)) + (points**2).sum(dim=2)


def test_by_hand():
    # M = 2, so sqrt(2/M) = 1: phi(x) = (cos(2 x), cos(x + pi/2)) = (cos 2x, -sin x); with w = (3, 5) the surrogate is
    # 3 cos 2x - 5 sin x and its gradient -6 sin 2x - 5 cos x.
    features = RandomFeatures(torch.tensor([[2.0], [1.0]]).double(), torch.tensor([0.0, math.pi / 2]).double())
    x = torch.tensor([[0.3], [-1.1]], dtype=torch.float64)
    weights = torch.tensor([3.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(features.features(x), torch.cat((torch.cos(2 * x), -torch.sin(x)), dim=1))
    torch.testing.assert_close(features.gradient(weights, x), -6 * torch.sin(2 * x) - 5 * torch.cos(x))


@pytest.mark.parametrize("dimension", [2, 50, 300])
@pytest.mark.parametrize(("number", "bound"), [(1000, 0.12), (10_000, 0.05)])
def test_products_of_features_are_close_to_the_kernel(dimension, number, bound):
    features = draw(Streams(0), number, dimension)
    points = 2 * problem(clients=1, dimension=dimension)[0][0]
    found = features.features(points)
    exact = RBF().value(torch.cdist(points, points), 1.0)
    assert exact.min() < 0.7
    assert (found @ found.T - exact).abs().max() < bound


def test_the_length_scale_is_the_kernels():
    points = problem(clients=1)[0][0]
    found = draw(Streams(0), 10_000, 5, length_scale=0.5).features(points)
    exact = RBF().value(torch.cdist(points, points), 0.5)
    assert (found @ found.T - exact).abs().max() < 0.05


@pytest.mark.parametrize(("dimension", "bound"), [(2, 0.99), (50, 0.95), (300, 0.90)])
def test_the_gradient_has_the_direction_of_the_exact_one(dimension, bound):
    points, values = problem(dimension=dimension)
    x = 0.3 * uniform("x", 3, dimension) / math.sqrt(dimension)
    features = draw(Streams(0), 10_000, dimension)
    found = features.gradient(features.fit(points, values, full(points), noise=1e-2), x)
    one = torch.ones(1, dtype=torch.float64)
    exact = fit(RBF(), points, values, full(points), noise=1e-2, scales=one).gradient(x.unsqueeze(1)).squeeze(1)
    assert torch.cosine_similarity(found, exact).min() >= bound
    assert (found.norm(dim=1) / exact.norm(dim=1) - 1).abs().max() < 0.5


def test_weights_are_the_ridge_regression_of_the_scaled_values():
    points, values = problem()
    features = draw(Streams(0), 60, 5)
    found = features.fit(points, values, full(points), noise=1e-2)
    for client in range(3):
        low, size = values[client].min(), values[client].max() - values[client].min()
        phi = features.rounded(points[client]) * math.sqrt(2 / 60)
        # (Phi^T Phi + s2 I)^-1 Phi^T y is the same by the identity of Woodbury.
        matrix = phi.T @ phi + 1e-2 * torch.eye(60, dtype=torch.float64)
        plain = torch.linalg.solve(matrix, phi.T @ ((values[client] - low) / size))
        torch.testing.assert_close(found[client], size * plain, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_that_of_the_surrogate():
    points, values = problem(dimension=20)
    features = draw(Streams(0), 500, 20)
    weights = features.fit(points, values, full(points), noise=1e-2)
    x = uniform("x", 3, 20) / 4
    moves = 1e-5 * torch.eye(20, dtype=torch.float64)
    rise = features.features(x.unsqueeze(1) + moves) - features.features(x.unsqueeze(1) - moves)
    found = features.gradient(weights, x)
    differences = torch.einsum("cdm,cm->cd", rise, weights) / 2e-5
    assert ((found - differences).norm(dim=1) / found.norm(dim=1)).max() < 1e-7


def test_the_gradient_of_a_mean_is_the_mean_of_the_gradients():
    points, values = problem(clients=5, dimension=50)
    features = draw(Streams(0), 10_000, 50)
    weights = features.fit(points, values, full(points))
    x = uniform("x", 5, 50) / 7
    together = features.gradient(weights.mean(dim=0), x)
    apart = torch.stack([features.gradient(one, x) for one in weights]).mean(dim=0)
    assert together.norm(dim=1).min() > 0.1
    assert ((together - apart).norm(dim=1) / together.norm(dim=1)).max() < 1e-10
    # One vector for all is as many copies of it.
    assert torch.equal(features.gradient(weights[0], x), features.gradient(weights[:1].expand(5, -1), x))


def test_draws_are_named():
    one, same, other = draw(Streams(0), 400, 3), draw(Streams(0), 400, 3), draw(Streams(1), 400, 3)
    assert torch.equal(one.frequencies, same.frequencies)
    assert torch.equal(one.phases, same.phases)
    assert not torch.equal(one.frequencies, other.frequencies)
    assert not torch.equal(one.phases, other.phases)
    # 1200 standard normal numbers: the mean has a deviation of 0.029, the variance of 0.041. 400 phases: pi, 0.09.
    assert abs(one.frequencies.mean()) < 0.12
    assert abs(one.frequencies.var() - 1) < 0.17
    assert abs(one.phases.mean() - math.pi) < 0.36
    assert one.phases.min() >= 0
    assert one.phases.max() < 2 * math.pi
    # A length scale of 4 is a frequency of a quarter.
    assert torch.equal(draw(Streams(0), 400, 3, length_scale=4.0).frequencies, one.frequencies / 4)


def test_padding_has_no_effect():
    points, values = problem()
    features = draw(Streams(0), 200, 5)
    counts = torch.tensor([40, 17, 2])
    own = torch.arange(40) < counts.unsqueeze(1)
    several = []
    for rubbish in (torch.nan, torch.inf, 7.0):
        x, y = points.masked_fill(~own.unsqueeze(2), rubbish), values.masked_fill(~own, rubbish)
        several.append(features.fit(x, y, counts))
    assert torch.equal(several[0], several[1])
    assert torch.equal(several[0], several[2])
    for client, count in enumerate(counts.tolist()):
        rows = slice(client, client + 1)
        alone = features.fit(points[rows, :count], values[rows, :count], counts[rows])
        # 1e-16 times K's condition, 40 / 1e-6.
        torch.testing.assert_close(alone[0], several[0][client], rtol=0, atol=1e-7 * alone.abs().max().item())


def test_pairs_that_are_not_finite_are_dropped():
    points, values = problem()
    features = draw(Streams(0), 200, 5)
    holes, peaks = points.clone(), values.clone()
    holes[0, 39, 1], peaks[1, 39] = torch.nan, torch.inf
    found = features.fit(holes, peaks, full(points))
    assert torch.equal(found, features.fit(points, values, torch.tensor([39, 39, 40])))


def test_nothing_to_learn_gives_weights_of_0():
    points, values = problem(clients=4)
    values[2] = 3.7
    features = draw(Streams(0), 200, 5)
    found = features.fit(points, values, torch.tensor([0, 1, 40, 40]))
    assert (found[:3] == 0).all()
    assert (features.gradient(found, points[:, 0])[:3] == 0).all()
    assert (found[3] != 0).all()


def test_equal_points_are_fitted_at_their_mean():
    features = draw(Streams(0), 200, 1)
    points = torch.tensor([[[0.0], [0.0], [1.0]]], dtype=torch.float64)
    weights = features.fit(points, torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([3]), noise=1e-6)
    # (0 + 1) / 2 at 0 and 1 at 1, up to the noise.
    assert (features.features(points[0]) @ weights[0]).tolist() == pytest.approx([0.5, 0.5, 1], abs=1e-5)


@pytest.mark.parametrize(("dimension", "number"), [(1, 100), (5, 1000), (50, 1001), (300, 2000)])
def test_a_clients_numbers_do_not_depend_on_who_is_beside_it(dimension, number):
    points, values = problem(clients=7, number=33, dimension=dimension)
    counts = torch.tensor([33, 20, 1, 33, 5, 0, 33])
    features = draw(Streams(0), number, dimension)
    x = uniform("x", 7, dimension)
    with one_core_an_operation():
        weights = features.fit(points, values, counts)
        gradient = features.gradient(weights, x)
        for first, count in itertools.product(range(7), (1, 2, 3, 6)):
            rows = slice(first, min(first + count, 7))
            own = features.fit(points[rows].clone(), values[rows].clone(), counts[rows])
            assert torch.equal(own, weights[rows]), rows
            assert torch.equal(features.gradient(own, x[rows].clone()), gradient[rows]), rows


def test_a_clients_gradient_of_many_features_does_not_depend_on_who_is_beside_it():
    features, x = draw(Streams(0), 10_000, 50), uniform("x", 20, 50)
    weights = uniform("weights", 20, 10_000)
    with one_core_an_operation():
        gradient = features.gradient(weights, x)
        for first, count in itertools.product((0, 5, 13, 19), (1, 2, 3, 4, 9)):
            rows = slice(first, first + count)
            assert torch.equal(features.gradient(weights[rows], x[rows]), gradient[rows]), rows
    assert features.gradient(weights[:0], x[:0]).shape == (0, 50)


def test_single_precision_is_computed_in_double():
    points, values = (part.float() for part in problem())
    features = draw(Streams(0), 200, 5)
    found = features.fit(points, values, full(points))
    assert torch.equal(found, features.fit(points.double(), values.double(), full(points)))
    assert torch.equal(features.gradient(found, points[:, 0]), features.gradient(found, points[:, 0].double()))


def test_inputs_are_left_as_they_are():
    points, values = problem()
    features = draw(Streams(0), 200, 5)
    weights = features.fit(points, values, full(points))
    before = [part.clone() for part in (points, values, weights)]
    features.gradient(weights, points[:, 0])
    assert all(torch.equal(a, b) for a, b in zip((points, values, weights), before, strict=True))


@pytest.mark.parametrize(("number", "places"), [(1, 23), (128, 23), (129, 22), (200, 22), (10_000, 19), (32_768, 19)])
def test_products_of_rounded_cosines_have_no_rounding(number, places):
    # 2^15 products of two multiples of 2^-19 up to 1 are at most 2^15 / 2^-38 = 2^53 units; float32 has 24 bits.
    features = draw(Streams(0), number, 3)
    cosines = features.rounded(problem(clients=1, dimension=3)[0][0])
    assert (cosines * 2.0**places).frac().abs().max() == 0
    assert places == 23 or (cosines * 2.0 ** (places - 1)).frac().abs().max() > 0
    assert torch.equal(cosines.float().double(), cosines)
    exact = [sum(int(v * 2**places) ** 2 for v in row) for row in cosines.tolist()]
    assert [int(v * 4.0**places) for v in (cosines @ cosines.T).diagonal().tolist()] == exact
    plain = features.features(problem(clients=1, dimension=3)[0][0]) / math.sqrt(2 / number)
    assert (cosines - plain).abs().max() <= 2.0 ** -(places + 1)


@pytest.mark.parametrize(("dimension", "number"), [(1, 100), (50, 1001), (300, 2000)])
def test_what_is_known_changes_no_bit(dimension, number):
    """Two clients' points come, go and come again, in windows of 60 of 300, with some in another order."""
    points, values = problem(clients=2, number=300, dimension=dimension)
    features, scratch = draw(Streams(0), number, dimension), Scratch(2**30)
    for first in (0, 1, 20, 5, 150, 90, 0):
        rows = torch.arange(first, first + 60)
        if first == 90:
            rows = rows.flip(0)
        window = points[:, rows], values[:, rows], torch.tensor([60, 41])
        with one_core_an_operation():
            known = features.fit(*window, known=scratch, clients=[7, 3])
            assert torch.equal(known, features.fit(*window))
    # 60 rows of M cosines of 4 bytes and of 60 products of 8.
    assert scratch.nbytes == 2 * 60 * (4 * number + 8 * 60)


def test_what_is_known_is_used_and_only_where_it_fits():
    points, values = problem(clients=1)
    features, scratch = draw(Streams(0), 200, 5), Scratch(2**30)
    weights = features.fit(points, values, full(points), known=scratch, clients=[0])
    table = scratch.take(0)
    scratch.put(0, table, table.nbytes)
    table._cosines.zero_()
    assert not torch.equal(features.fit(points, values, full(points), known=scratch, clients=[0]), weights)
    # Of other features, or of fewer points, it is not used.
    other = draw(Streams(1), 200, 5)
    expected = other.fit(points, values, full(points))
    assert torch.equal(other.fit(points, values, full(points), known=scratch, clients=[0]), expected)
    fewer = points[:, :30], values[:, :30], torch.tensor([30])
    assert torch.equal(other.fit(*fewer, known=scratch, clients=[0]), other.fit(*fewer))


def test_scratch_keeps_what_was_used_last_and_fits():
    scratch = Scratch(10)
    for client in (1, 2, 3):
        scratch.put(client, f"of {client}", 3)
    assert scratch.take(1) == "of 1"
    assert scratch.take(1) is None
    scratch.put(1, "again", 3)
    scratch.put(4, "new", 4)  # 3 + 3 + 4 = 10: client 2, the longest unused, goes
    assert [scratch.take(client) for client in (2, 3, 1, 4)] == [None, "of 3", "again", "new"]
    scratch.put(5, "large", 11)
    assert scratch.take(5) is None
    scratch.put(5, "small", 10)
    assert scratch.nbytes == 10
