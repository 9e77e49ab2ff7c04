import itertools
import math

import pytest
import torch

from fedsim.core.streams import Streams
from fedsim.parallel.cores import one_core_an_operation
from fedsim.zeroth_order.surrogates.gaussian_process import _evidence, factorise, fit, length_scales, nearest
from fedsim.zeroth_order.surrogates.kernels import RBF, Matern52

KERNELS = [Matern52(), RBF()]


def uniform(purpose, clients, *shape, dtype=torch.float64, seed=0):
    """Uniform numbers in [-1, 1): [clients, *shape]."""
    return 2 * Streams(seed).uniform(purpose, torch.arange(clients), shape, dtype=dtype) - 1


def full(points):
    return torch.full(points.shape[:1], points.shape[1])


def cluster(clients=3, number=40, dimension=5, radius=0.01, seed=0):
    """Points within `radius` of a place in the box, and the values of a quadratic that differs between clients."""
    place = 0.5 + 0.4 * uniform("place", clients, dimension, seed=seed)
    points = place.unsqueeze(1) + radius * uniform("points", clients, number, dimension, seed=seed)
    slope = uniform("slope", clients, dimension, seed=seed)
    return place, points, ((points - 0.3) ** 2).sum(dim=2) + torch.einsum("cnd,cd->cn", points, slope)


def differences(process, x, step):
    """Central differences of the posterior mean at x [C, d]: [C, d]."""
    moves = step * torch.eye(x.shape[1], dtype=torch.float64)
    rise = process.mean(x.unsqueeze(1) + moves) - process.mean(x.unsqueeze(1) - moves)
    return rise / (2 * step)


@pytest.mark.parametrize(
    ("scale", "fixed", "profiled", "gradient"),
    [
        (0.5, -3.383949, -2.975255, (1.209449, -0.695584)),
        (1.0, -3.339369, -3.176623, (1.207062, -0.679168)),
        (2.0, -3.675667, -3.585857, (1.091478, -0.586617)),
    ],
)
def test_three_points_by_hand(scale, fixed, profiled, gradient):
    """The likelihood of a function of variance 1, and of the variance that is the likeliest."""
    points = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    values = torch.tensor([[0.0, 1.0, -0.5]], dtype=torch.float64)
    distances = torch.cdist(points, points)
    factor = torch.linalg.cholesky(Matern52().value(distances, scale) + 1e-6 * torch.eye(3, dtype=torch.float64))
    constant = 1.5 * math.log(2.0 * math.pi)
    assert float(_evidence(factor, values)) - constant == pytest.approx(fixed, abs=1e-6)
    assert float(_evidence(factor, values, torch.tensor([3]))) - constant == pytest.approx(profiled, abs=1e-6)
    # Values that are scaled to [0, 1] first have another mean before any data, and so another slope.
    weights = torch.cholesky_solve(values.unsqueeze(2), factor)
    at = torch.tensor([[[0.5, 0.25]]], dtype=torch.float64)
    pull = Matern52().slope(torch.cdist(at, points), torch.full((1, 1, 1), scale, dtype=torch.float64)) * weights.mT
    found = pull @ points - pull.sum() * at
    assert found.flatten().tolist() == pytest.approx(gradient, abs=1e-6)


def test_a_profiled_scale_does_not_depend_on_what_is_dropped_or_on_the_size_of_values():
    _, points, values = cluster(number=20)
    one = fit(Matern52(), points, values, full(points), profiled=True)
    padded = torch.cat((points, points[:, :5] + 3.0), dim=1)
    more = fit(Matern52(), padded, torch.cat((values, values[:, :5]), dim=1), full(points), profiled=True)
    assert torch.equal(one.length_scale, more.length_scale)
    assert not torch.equal(one.length_scale, fit(Matern52(), points, values, full(points)).length_scale)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dimension", [5, 50, 300])
def test_the_gradient_is_that_of_the_mean(kernel, dimension):
    # Points all over the box at noise 1e-2, so that rounding in alpha, at most 1e-16 / 1e-2 times n, is far below the
    # differences' error.
    points = 0.5 + 0.5 * uniform("points", 2, 30, dimension)
    values = torch.sin(3 * points).sum(dim=2)
    x = 0.5 + 0.3 * uniform("x", 2, dimension)
    process = fit(kernel, points, values, full(points), noise=1e-2)
    found = process.gradient(x.unsqueeze(1)).squeeze(1)
    error = (found - differences(process, x, 1e-4)).norm(dim=1) / found.norm(dim=1)
    assert error.max() < 1e-5


def test_the_gradient_of_clustered_points_at_a_noise_of_1e_6():
    place, points, values = cluster()
    process = fit(Matern52(), points, values, full(points))
    found = process.gradient(place.unsqueeze(1)).squeeze(1)
    error = (found - differences(process, place, 1e-5)).norm(dim=1) / found.norm(dim=1)
    assert error.max() < 1e-5


def plain(kernel, points, values, scale, noise, x):
    """One client's mean, gradient and covariance of the gradient at x [d], by the formulas as they are written."""

    def distances(a, b):
        return (a.unsqueeze(1) - b.unsqueeze(0)).norm(dim=2)

    lower, size = values.min(), values.max() - values.min()
    matrix = kernel.value(distances(points, points), scale) + noise * torch.eye(len(points), dtype=torch.float64)
    alpha = torch.linalg.solve(matrix, (values - lower) / size)
    away = distances(x.unsqueeze(0), points)[0]
    jacobian = -kernel.slope(away, scale).unsqueeze(1) * (x - points)
    prior = kernel.gradient_variance(scale) * torch.eye(len(x), dtype=torch.float64)
    mean = lower + size * kernel.value(away, scale) @ alpha
    return mean, size * alpha @ jacobian, prior - jacobian.T @ torch.linalg.solve(matrix, jacobian)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("dimension", "radius"), [(1, 0.3), (2, 0.3), (20, 0.5), (20, 0.01)])
def test_equal_to_the_formulas_as_they_are_written(kernel, dimension, radius):
    place, points, values = cluster(number=12, dimension=dimension, radius=radius)
    process = fit(kernel, points, values, full(points), noise=1e-4)
    queries = torch.stack([place, place + 0.3 * radius, place - 5 * radius], dim=1)
    means, gradients, traces = process.mean(queries), process.gradient(queries), process.uncertainty(queries)
    # K's condition is at most 12 / 1e-4, so that alpha, at most 1 / 1e-4, has 1e5 * 1e-16 * 1e4 = 1e-7 of rounding.
    for client, query in itertools.product(range(3), range(3)):
        scale = process.length_scale[client].item()
        mean, gradient, covariance = plain(kernel, points[client], values[client], scale, 1e-4, queries[client, query])
        torch.testing.assert_close(means[client, query], mean, rtol=0, atol=1e-7)
        torch.testing.assert_close(gradients[client, query], gradient, rtol=0, atol=1e-7 * gradient.norm().item())
        size = dimension * kernel.gradient_variance(scale)
        torch.testing.assert_close(traces[client, query], covariance.trace(), rtol=0, atol=1e-9 * size)
        found = process.covariance(queries[:, query])[client]
        torch.testing.assert_close(found, covariance, rtol=0, atol=1e-9 * size)


@pytest.mark.parametrize("dimension", [50, 784])
def test_the_trace_among_150_points_within_a_hundredth(dimension):
    place, points, values = cluster(number=150, dimension=dimension)
    process = fit(Matern52(), points, values, full(points))
    queries = place.unsqueeze(1) + 0.01 * uniform("queries", 3, 4, dimension)
    traces = process.uncertainty(queries)
    prior = dimension * 5 / (3 * process.length_scale**2)
    for query in range(4):
        whole = process.covariance(queries[:, query]).diagonal(dim1=1, dim2=2).sum(dim=1)
        assert ((traces[:, query] - whole).abs() / prior).max() < 1e-7


def test_the_trace_far_from_all_points_is_the_priors():
    place, points, values = cluster(dimension=7)
    for kernel, factor in ((Matern52(), 5 / 3), (RBF(), 1)):
        process = fit(kernel, points, values, full(points), scales=torch.tensor([0.2], dtype=torch.float64))
        # 100 / 0.2 = 500 length scales away e^-r is below 1e-300.
        far = process.uncertainty((place + 100).unsqueeze(1)).squeeze(1)
        assert far.tolist() == pytest.approx([7 * factor / 0.2**2] * 3, rel=1e-14)
        assert process.gradient((place + 100).unsqueeze(1)).abs().max() < 1e-100


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", range(8))
def test_the_trace_falls_as_points_are_added_and_is_below_the_priors(kernel, seed):
    dimension, radius = (2, 5, 30, 100)[seed % 4], (0.01, 0.5)[seed // 4]
    place, points, values = cluster(clients=2, number=20, dimension=dimension, radius=radius, seed=seed)
    queries = place.unsqueeze(1) + 2 * radius * uniform("queries", 2, 10, dimension, seed=seed)
    scale = radius * math.sqrt(dimension)
    before = torch.full((2, 10), dimension * kernel.gradient_variance(scale), dtype=torch.float64)
    prior = before.clone()
    for count in range(1, 21):
        process = fit(kernel, points, values, torch.tensor([count] * 2), scales=torch.tensor([scale]).double())
        now = process.uncertainty(queries)
        # In float64 with a noise of 1e-6 the trace has some 1e-9 of the prior of rounding.
        assert (now <= before + 1e-8 * prior).all()
        assert (now < prior).all()
        assert (now >= 0).all()
        before = now


def test_a_cluster_far_from_the_origin():
    # 1024 away points keep 13 digits after the point; |a|^2 is some 5e6 there, with an error of 1e-9 that is 1e-5 of
    # the squared distances.
    place, points, values = cluster()
    queries = place.unsqueeze(1) + 0.01 * uniform("queries", 3, 6, 5)
    near = results(fit(Matern52(), points, values, full(points), noise=1e-2), queries)
    far = results(fit(Matern52(), points + 1024, values, full(points), noise=1e-2), queries + 1024)
    for one, other in zip(near, far, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8 * one.abs().max().item())


def test_length_scales():
    # 0.005 sqrt(100) = 0.05 and 10 sqrt(100) = 100, and 12 equal factors of 2000^(1/12) between.
    found = length_scales(100)
    assert found[0].item() == pytest.approx(0.05)
    assert found[-1].item() == pytest.approx(100)
    torch.testing.assert_close(found[1:] / found[:-1], torch.full((12,), 2000 ** (1 / 12), dtype=torch.float64))


@pytest.mark.parametrize("dimension", [2, 50])
def test_the_length_scale_is_the_most_likely_and_within_its_bounds(dimension):
    _, points, values = cluster(dimension=dimension)
    noise = uniform("noise", 3, 40)
    shapes = {"smooth": values, "rough": noise, "steps": (noise > 0).double()}
    grid = length_scales(dimension)
    chosen = {}
    for name, shape in shapes.items():
        process = fit(Matern52(), points, shape, full(points), noise=1e-4)
        chosen[name] = process.length_scale
        assert torch.isin(process.length_scale, grid).all()
        targets = (shape - shape.amin(dim=1, keepdim=True)) / (shape.amax(dim=1) - shape.amin(dim=1)).unsqueeze(1)
        for client in range(3):
            zeros = torch.zeros(40, dtype=torch.float64)
            evidence = []
            for scale in grid:
                matrix = Matern52().value(torch.cdist(points[client], points[client]), scale)
                matrix += 1e-4 * torch.eye(40, dtype=torch.float64)
                normal = torch.distributions.MultivariateNormal(zeros, matrix)
                evidence.append(normal.log_prob(targets[client]).item())
            assert process.length_scale[client] == grid[evidence.index(max(evidence))]
    assert (chosen["smooth"] > chosen["rough"]).all()


def test_the_gradient_points_where_the_function_rises():
    # 60 points within a hundredth span the 50 dimensions, in which a quadratic is nearly a plane.
    place, points, values = cluster(number=60, dimension=50)
    slope = uniform("slope", 3, 50)
    process = fit(Matern52(), points, values, full(points))
    found = process.gradient(place.unsqueeze(1)).squeeze(1)
    assert torch.cosine_similarity(found, 2 * (place - 0.3) + slope).min() > 0.9
    assert ((found.norm(dim=1) / (2 * (place - 0.3) + slope).norm(dim=1)) - 1).abs().max() < 0.3


def test_the_mean_passes_through_the_values_and_is_in_their_units():
    _, points, values = cluster()
    process = fit(Matern52(), points, 1000 * values - 7, full(points))
    torch.testing.assert_close(process.mean(points), 1000 * values - 7, rtol=0, atol=1e-2 * process.scale.max().item())
    usual = fit(Matern52(), points, values, full(points))
    torch.testing.assert_close(process.gradient(points), 1000 * usual.gradient(points), rtol=1e-5, atol=1e-3)


def padded(points, values, counts, width):
    """Pad with what must not matter: NaN, infinity, or a copy of the first point with another value."""
    clients, number, dimension = points.shape
    wide = torch.full((3, clients, width, dimension), torch.nan, dtype=torch.float64)
    wide[1] = torch.inf
    wide[2] = points[:, :1]
    heights = torch.tensor([torch.nan, -torch.inf, 1e9], dtype=torch.float64)
    heights = heights.reshape(3, 1, 1).repeat(1, clients, width)
    own = torch.arange(number) < counts.unsqueeze(1)
    wide[:, :, :number] = torch.where(own.unsqueeze(2), points, wide[:, :, :number])
    heights[:, :, :number] = torch.where(own, values, heights[:, :, :number])
    return wide, heights


def results(process, queries):
    return process.mean(queries), process.gradient(queries), process.uncertainty(queries), process.length_scale


def test_padding_has_no_effect():
    place, points, values = cluster()
    counts = torch.tensor([40, 17, 2])
    queries = place.unsqueeze(1) + 0.01 * uniform("queries", 3, 6, 5)
    rubbish = zip(*padded(points, values, counts, 45), strict=True)
    several = [results(fit(Matern52(), x, y, counts), queries) for x, y in rubbish]
    for other in several[1:]:
        assert all(torch.equal(a, b) for a, b in zip(several[0], other, strict=True))
    # Without padding the factorisation is cut elsewhere, which moves the last of 16 digits by K's condition.
    for client, count in enumerate(counts.tolist()):
        own = fit(
            Matern52(), points[client : client + 1, :count], values[client : client + 1, :count], torch.tensor([count])
        )
        for alone, beside in zip(results(own, queries[client : client + 1]), several[0], strict=True):
            size = alone.abs().max().item()
            torch.testing.assert_close(alone[0], beside[client], rtol=0, atol=1e-6 * size)


def test_pairs_that_are_not_finite_are_dropped():
    place, points, values = cluster()
    holes, peaks = points.clone(), values.clone()
    holes[0, 3, 2], peaks[1, 5], peaks[2, 0] = torch.inf, torch.nan, -torch.inf
    process = fit(Matern52(), holes, peaks, full(points))
    for client, place_of_hole in enumerate((3, 5, 0)):
        assert process.kept[client].logical_not().nonzero().tolist() == [[place_of_hole]]
    assert process.gradient(place.unsqueeze(1)).isfinite().all()


@pytest.mark.parametrize("dimension", [1, 5, 50])
@pytest.mark.parametrize("queries", [1, 2, 7])
def test_a_clients_numbers_do_not_depend_on_who_is_beside_it(dimension, queries):
    place, points, values = cluster(clients=7, number=33, dimension=dimension)
    counts = torch.tensor([33, 20, 1, 33, 5, 0, 33])
    x = place.unsqueeze(1) + 0.01 * uniform("queries", 7, queries, dimension)
    with one_core_an_operation():
        whole = results(fit(Matern52(), points, values, counts), x)
        for first, last in ((0, 1), (3, 4), (6, 7), (2, 5), (1, 7)):
            rows = slice(first, last)
            part = results(fit(Matern52(), points[rows].clone(), values[rows].clone(), counts[rows]), x[rows].clone())
            assert all(torch.equal(a, b[rows]) for a, b in zip(part, whole, strict=True)), rows


def test_a_client_that_fails_does_not_change_the_others():
    # The points of client 1 are 1e-10 apart, so that 1 - k is 1e-20: its K is 1 everywhere, and its second pivot 0.
    _, points, values = cluster(number=4, dimension=3, radius=0.4)
    points[1] = 1e-10 * points[1]
    options = {"noise": 1e-17, "scales": torch.tensor([0.3], dtype=torch.float64)}
    process = fit(RBF(), points, values, full(points), **options)
    # 1 + 1e-16 is 1, and 1 + 1e-15 is not.
    assert process.noise.tolist() == pytest.approx([1e-17, 1e-15, 1e-17], rel=1e-12)
    assert process.weights.isfinite().all()
    for client in (0, 2):
        one = fit(RBF(), points[client : client + 1], values[client : client + 1], torch.tensor([4]), **options)
        assert torch.equal(one.weights[0], process.weights[client])


def test_a_length_scale_that_fails_is_judged_with_the_noise_that_it_takes():
    # A line, of which a long scale explains all; its K has no second pivot that s2 = 1e-17 would save.
    points = torch.linspace(0.0, 1.0, 12, dtype=torch.float64).view(1, 12, 1)
    scales = torch.tensor([0.01, 10.0], dtype=torch.float64)
    process = fit(RBF(), points, points[:, :, 0], full(points), noise=1e-17, scales=scales)
    assert process.length_scale.tolist() == [10.0]
    assert process.noise.item() > 5e-17


def test_the_noise_grows_tenfold_where_a_factorisation_fails():
    ones = torch.ones(4, 3, 3, dtype=torch.float64)
    # Eigenvalues of [[1, 1 + e, 1], ...] with e off the diagonal: the least is -e for one such pair.
    for client, excess in enumerate((0.0, 5e-5, 5e-3, 0.5)):
        ones[client, 0, 1] = ones[client, 1, 0] = 1 + excess
    factor, noise = factorise(ones.clone(), torch.ones(4, 3, dtype=torch.bool), 1e-6)
    assert noise.tolist() == pytest.approx([1e-6, 1e-4, 1e-2, 1e-2])
    assert factor[:3].isfinite().all()
    assert factor[3].isnan().all()
    eye = torch.eye(3, dtype=torch.float64)
    expected = ones[:3] + noise[:3].reshape(3, 1, 1) * eye
    torch.testing.assert_close(factor[:3] @ factor[:3].mT, expected, rtol=1e-12, atol=1e-12)


def test_of_equal_points_the_latest_is_kept():
    _, points, values = cluster()
    # Client 0 has a point three times, client 1 one twice, once as -0 where the other has 0.
    points[0, 4] = points[0, 9] = points[0, 30]
    points[1, 2] = points[1, 3]
    points[1, 2, 0], points[1, 3, 0] = 0.0, -0.0
    process = fit(Matern52(), points, values, full(points))
    assert process.kept.logical_not().nonzero().tolist() == [[0, 4], [0, 9], [1, 2]]
    # The last value is the mean there, up to the noise.
    means = process.mean(points)
    assert means[0, [4, 9, 30]].tolist() == pytest.approx(
        [values[0, 30].item()] * 3, abs=1e-2 * process.scale[0].item()
    )
    # Other values of the dropped have no effect, not even on the range.
    other = values.clone()
    other[0, 4], other[1, 2] = 1e6, -1e6
    assert torch.equal(fit(Matern52(), points, other, full(points)).weights, process.weights)


@pytest.mark.parametrize("size", [1e-3, 0.5, 1e6])
def test_points_that_are_close_are_not_equal(size):
    points = size * uniform("points", 2, 30, 4)
    points[:, 1] = points[:, 0]
    points[:, 1, 3] = torch.nextafter(points[:, 1, 3], torch.tensor(torch.inf).double())
    points[:, 29] = points[:, 28]
    # Two neighbouring numbers, as (a, b) and as (b, a).
    points[:, 2, 0], points[:, 2, 1] = points[:, 1, 3], points[:, 0, 3]
    points[:, 3] = points[:, 2, [1, 0, 2, 3]]
    kept = fit(RBF(), points, points.sum(dim=2), full(points)).kept
    assert kept.logical_not().nonzero().tolist() == [[0, 28], [1, 28]]


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_to_learn_gives_a_gradient_of_0(kernel):
    place, points, values = cluster(clients=4)
    values[2] = 3.7
    counts = torch.tensor([0, 1, 40, 40])
    process = fit(kernel, points, values, counts)
    queries = torch.stack([place, points[:, 0]], dim=1)
    gradient = process.gradient(queries)
    assert (gradient[:3] == 0).all()
    assert (gradient[3] != 0).all()
    assert process.mean(queries)[1:3].tolist() == [[values[1, 0].item()] * 2, [3.7] * 2]
    assert (process.mean(queries)[0] == 0).all()
    # With no data the trace is the prior's.
    assert (
        process.uncertainty(queries)[0].tolist() == [5 * kernel.gradient_variance(process.length_scale[0]).item()] * 2
    )
    assert process.uncertainty(queries).isfinite().all()


def test_single_precision_is_computed_in_double():
    place, points, values = cluster()
    narrow = points.float(), values.float(), place.float().unsqueeze(1)
    wide = [part.double() for part in narrow]
    one, other = (fit(Matern52(), x, y, full(points)) for x, y in (narrow[:2], wide[:2]))
    for a, b in zip(results(one, narrow[2]), results(other, wide[2]), strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, b)


def test_inputs_are_left_as_they_are():
    place, points, values = cluster()
    counts = full(points)
    given = points, values, counts, place.unsqueeze(1)
    before = [part.clone() for part in given]
    process = fit(Matern52(), *given[:3])
    first = results(process, given[3])
    process.covariance(place)
    again = results(process, given[3])
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_nearest():
    # Client 0: distances 3, 1, 1, 2, 0; the padding of client 1, at distance 0, is never among its own two.
    points = torch.tensor([[3.0, 1, -1, 2, 0], [5, 1, 0, 0, 0]]).unsqueeze(2)
    counts, center = torch.tensor([5, 2]), torch.zeros(2, 1)
    found, left = nearest(points, counts, center, 2)
    assert found.tolist() == [[1, 4], [0, 1]]  # of 1 and -1, equally far, the earlier
    assert left.tolist() == [2, 2]
    found, left = nearest(points, counts, center, 3)
    assert found[0].tolist() == [1, 2, 4]
    assert found[1, :2].tolist() == [0, 1]
    assert left.tolist() == [3, 2]
    found, left = nearest(points, counts, center, 9)
    assert found.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert left.tolist() == [5, 2]
    # A stored point that is not finite is farther than all that are, and still before padding.
    points[1, 0] = torch.nan
    assert nearest(points, counts, center, 2)[0][1].tolist() == [0, 1]
    assert nearest(points, counts, center, 1)[0][1].tolist() == [1]


def test_nearest_tells_points_of_a_cluster_far_from_the_origin_apart():
    points = 100 + 1e-5 * uniform("points", 2, 50, 300)
    center = points[:, 7] + 1e-6 * uniform("center", 2, 300)
    expected = (points - center.unsqueeze(1)).norm(dim=2).argsort(dim=1)[:, :10].sort(dim=1).values
    assert torch.equal(nearest(points, full(points), center, 10)[0], expected)
    alone = nearest(points[1:], full(points)[1:], center[1:], 10)[0]
    assert torch.equal(alone[0], expected[1])
