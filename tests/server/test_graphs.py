"""Graphs: their links and weights by hand, what mixing comes to, and graphs that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.server.graphs import (
    Complete,
    ErdosRenyi,
    GraphFile,
    Ring,
    Torus,
    WattsStrogatz,
    among,
    arrows,
    metropolis,
    mixed,
    pushing,
    spread_of,
)

STREAMS = Streams(3)
HOUSE = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (1, 3))
"""A ring of five with a chord."""
ONE_WAY = ((0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (3, 0), (4, 0))
X = torch.tensor([5.0, 1.0, -2.0, 4.0, 7.0], dtype=torch.float64)


def filed(folder: Path, pairs: Any = HOUSE, **options: Any) -> GraphFile:
    path = folder / "links.txt"
    path.write_text("# links\n" + "".join(f"{one} {other}  # one\n\n" for one, other in pairs))
    return GraphFile(path=path, **options)


def matrix_of(links: Tensor, count: int) -> Tensor:
    return metropolis(links, count).to_dense()


def test_a_ring_of_ten_mixes_at_the_rate_of_its_second_eigenvalue():
    """W has thirds: lambda_2 = 1/3 + 2/3 cos(2 pi / 10); an error falls at least by lambda_2^30 in 30 products."""
    weights = metropolis(arrows(Ring(), 10, STREAMS), 10)
    values = torch.linalg.eigvalsh(weights.to_dense())
    assert values[-2] == pytest.approx(0.872678, abs=1e-6)
    rows = torch.from_numpy(np.random.Generator(np.random.PCG64(1)).normal(size=(10, 4)))
    mean, first = rows.mean(dim=0), spread_of(rows, rows.mean(dim=0))
    for _ in range(30):
        rows = mixed(weights, rows)
    assert torch.allclose(rows.mean(dim=0), mean, rtol=0, atol=1e-15)
    assert 1e-4 < spread_of(rows, mean) / first <= 0.0168


def test_metropolis_weights_by_hand(tmp_path):
    links = arrows(filed(tmp_path), 5, STREAMS)
    weights = metropolis(links, 5)
    assert torch.linalg.eigvalsh(weights.to_dense())[-2] == pytest.approx(0.654508, abs=1e-6)
    expected = [
        (4.666667, 2.0, 0.25, 2.5, 5.583333),
        (4.305556, 2.354167, 1.25, 2.583333, 4.506944),
        (3.884838, 2.623264, 1.859375, 2.673611, 3.958912),
    ]
    rows = X.unsqueeze(1)
    for row in expected:
        rows = mixed(weights, rows)
        assert rows[:, 0].tolist() == pytest.approx(row, abs=1e-6)


def test_push_sum_comes_to_the_mean_where_mixing_alone_does_not(tmp_path):
    weights = pushing(arrows(filed(tmp_path, ONE_WAY, directed=True), 5, STREAMS, directed=True), 5)
    assert torch.allclose(weights.to_dense().sum(dim=0), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-15)
    x, w = X.unsqueeze(1), torch.ones((5, 1), dtype=torch.float64)
    for number in range(60):
        x, w = mixed(weights, x), mixed(weights, w)
        if number == 0:
            assert x[:, 0].tolist() == pytest.approx([6.5, 2.166667, 1.166667, 0.333333, 4.833333], abs=1e-6)
            assert w[:, 0].tolist() == pytest.approx([1.166667, 0.833333, 1.333333, 0.833333, 0.833333], abs=1e-6)
        if number == 1:
            assert (x / w)[:, 0].tolist() == pytest.approx([4.333333, 4.034483, 2.603774, 0.735294, 3.64], abs=1e-6)
    assert (x / w)[:, 0].tolist() == pytest.approx([3.0] * 5, abs=1e-6)
    assert x[:, 0].tolist() == pytest.approx([3.2143, 2.1429, 4.2857, 3.2143, 2.1429], abs=1e-4)


def test_weights_of_those_who_are_there_are_doubly_stochastic(tmp_path):
    """Of the house without 1: 3 and 2, 3 and 4, 4 and 0. Of 0 and 2 alone: nothing is between them."""
    links, there = arrows(filed(tmp_path), 5, STREAMS), torch.tensor([0, 2, 3, 4])
    found = matrix_of(among(links, there, 5), 4)
    third, two = 1 / 3, 2 / 3
    expected = [[two, 0, 0, third], [0, two, third, 0], [0, third, third, third], [third, 0, third, third]]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    alone = torch.tensor([0, 2])
    assert torch.equal(matrix_of(among(links, alone, 5), 2), torch.eye(2, dtype=torch.float64))
    assert mixed(metropolis(links[:, :0], 0), X[:0].unsqueeze(1)).shape == (0, 1)


def test_a_complete_graph_takes_the_mean_and_sparse_is_as_dense():
    assert torch.allclose(matrix_of(arrows(Complete(), 7, STREAMS), 7), torch.full((7, 7), 1 / 7).double())
    rows = torch.from_numpy(np.random.Generator(np.random.PCG64(2)).normal(size=(40, 3)))
    weights = metropolis(arrows(Ring(), 40, STREAMS), 40)  # 120 of 1600 numbers: multiplied as a sparse matrix
    assert torch.allclose(mixed(weights, rows), weights.to_dense() @ rows, rtol=0, atol=1e-15)
    single = mixed(weights, rows.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single, mixed(weights, rows).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("graph", "clients", "degrees"),
    [
        (Ring(), 6, {2}),
        (Ring(), 2, {1}),
        (Ring(), 1, {0}),
        (Ring(directed=True), 5, {1}),
        (Torus(), 12, {4}),
        (Torus(rows=2), 8, {3}),
        (Torus(), 1, {0}),
        (Complete(), 5, {4}),
        (WattsStrogatz(neighbours=4, p=0.0), 9, {4}),
    ],
)
def test_graphs_have_the_links_that_they_say(graph, clients, degrees):
    links = arrows(graph, clients, STREAMS, directed=True)
    found = torch.bincount(links[0], minlength=clients).tolist()
    assert set(found) == degrees
    assert links.T.tolist() == sorted(links.T.tolist())
    if not getattr(graph, "directed", False):
        assert {*map(tuple, links.T.tolist())} == {*map(tuple, links.flip(0).T.tolist())}


def test_a_torus_links_rows_and_columns():
    """Three rows of four: client 0 to 1, 3 (the row's end), 4 and 8 (the column's end)."""
    links = arrows(Torus(), 12, STREAMS)
    assert links[1][links[0] == 0].tolist() == [1, 3, 4, 8]


@pytest.mark.parametrize("graph", [ErdosRenyi(p=0.4), WattsStrogatz(p=0.5)])
def test_drawn_graphs_follow_the_seed_alone(graph):
    first, again, other = (arrows(graph, 20, Streams(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert networkx.is_connected(networkx.from_edgelist(first.T.tolist()))


@pytest.mark.parametrize(
    ("graph", "clients", "why"),
    [
        (Torus(), 7, r"strategy.graph.rows = \(nothing\): 7 clients are one row, which is a ring"),
        (Torus(rows=3), 8, r"strategy.graph.rows = 3: 8 clients have no 3 rows"),
        (ErdosRenyi(p=0.01), 30, r"strategy.graph.kind = erdos_renyi: the graph is not connected: \d+ parts"),
        (Ring(directed=True), 4, r"strategy.graph.directed = True: .*push_sum"),
        (WattsStrogatz(neighbours=3), 9, r"strategy.graph.neighbours = 3: take an even number"),
        (WattsStrogatz(neighbours=10), 9, r"strategy.graph.neighbours = 10"),
        (GraphFile(path=Path("nowhere.txt")), 3, r"strategy.graph.path = nowhere.txt: cannot be read: no such file"),
    ],
)
def test_what_is_no_graph_of_so_many_is_refused_in_a_line(graph, clients, why):
    with pytest.raises(InputError, match=why) as refused:
        arrows(graph, clients, STREAMS)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0 1\n1 5\n", "line 2 is '1 5'; write the numbers of two clients, 0 to 4"),
        ("0 1 2\n", "line 1"),
        ("a b\n", "line 1"),
        ("0 -1\n", "line 1"),
        ("0 1\n2 3\n3 4\n", "the graph is not connected: 2 parts"),
        ("\xff", "no text"),
    ],
)
def test_lines_that_are_no_links_are_named(tmp_path, text, why):
    path = tmp_path / "links.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=why):
        arrows(GraphFile(path=path), 5, STREAMS)


def test_a_graph_that_leads_nowhere_back_is_not_connected(tmp_path):
    with pytest.raises(InputError, match="2 parts hear nothing of each other"):
        arrows(filed(tmp_path, ((0, 1), (1, 0), (1, 2)), directed=True), 3, STREAMS, directed=True)
