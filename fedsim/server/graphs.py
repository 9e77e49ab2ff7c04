"""Graphs: which clients send to which where there is no server, and with what weights they mix what they are sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.errors import InputError, naming
from fedsim.core.files import reason
from fedsim.core.options import PositiveInt, Share, one_of, options
from fedsim.core.streams import Streams

if TYPE_CHECKING:
    import networkx

DENSE = 8
"""A matrix of weights is multiplied as a dense one where more than one in so many of its numbers is not zero."""


@options
class Ring:
    """Each client is linked to the one before and the one after it."""

    directed: bool = False
    """Whether each sends to the one after it alone."""

    def build(self, clients: int, seed: int) -> networkx.Graph:  # noqa: ARG002
        """The graph of so many clients."""
        import networkx

        return networkx.cycle_graph(clients, networkx.DiGraph if self.directed else None)


@options
class Torus:
    """A grid of rows and columns, of which the last is linked to the first: four neighbours each."""

    rows: PositiveInt | None = None
    """Rows, by which the number of clients can be divided. Not given: as many as make it nearest to a square."""

    def build(self, clients: int, seed: int) -> networkx.Graph:  # noqa: ARG002
        """See `Ring`."""
        import networkx

        rows = self.rows or max(row for row in range(1, int(clients**0.5) + 1) if clients % row == 0)
        if clients % rows:
            raise InputError("rows", rows, f"{clients} clients have no {rows} rows of the same length; take a divisor")
        if min(rows, clients // rows) == 1 and clients > 1:
            remedy = f"{clients} clients are one row, which is a ring; take ring, or another number of clients"
            raise InputError("rows", self.rows or "(nothing)", remedy)
        grid = networkx.grid_2d_graph(rows, clients // rows, periodic=True)
        return networkx.convert_node_labels_to_integers(grid, ordering="sorted")


@options
class Complete:
    """Everybody is linked to everybody."""

    def build(self, clients: int, seed: int) -> networkx.Graph:  # noqa: ARG002
        """See `Ring`."""
        import networkx

        return networkx.complete_graph(clients)


@options
class ErdosRenyi:
    """Any two are linked with the same probability, by themselves; drawn for each seed. Erdos and Renyi 1959."""

    p: Annotated[float, Field(gt=0, le=1)]
    """The probability of a link. Graphs of N clients are mostly connected where it is well above log(N) / N."""
    directed: bool = False
    """Whether each direction of a link is drawn by itself."""

    def build(self, clients: int, seed: int) -> networkx.Graph:
        """See `Ring`."""
        import networkx

        return networkx.gnp_random_graph(clients, self.p, seed=seed, directed=self.directed)


@options
class WattsStrogatz:
    """A ring with links to its nearest neighbours, some of which lead elsewhere; drawn for each seed. 1998."""

    neighbours: Annotated[int, Field(ge=2)] = 4
    """How many each is linked to at first, half of them on either side: an even number."""
    p: Share = 0.1
    """The share of links that are drawn anew."""

    def build(self, clients: int, seed: int) -> networkx.Graph:
        """See `Ring`."""
        import networkx

        if self.neighbours % 2 or self.neighbours >= clients:
            raise InputError("neighbours", self.neighbours, f"take an even number below the {clients} clients")
        return networkx.watts_strogatz_graph(clients, self.neighbours, self.p, seed=seed)


@options
class GraphFile:
    """The links of a text file: in each line the numbers of two clients, from 0; # begins a remark."""

    path: Path
    """The file; of a relative path from the experiment's folder."""
    directed: bool = False
    """Whether the first of a line sends to the second, and not also the other way round."""

    def build(self, clients: int, seed: int) -> networkx.Graph:  # noqa: ARG002
        """See `Ring`."""
        import networkx

        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InputError("path", str(self.path), f"cannot be read: {reason(error)}") from error
        except UnicodeDecodeError as error:
            raise InputError("path", str(self.path), "is no text; write two numbers a line") from error
        found = networkx.DiGraph() if self.directed else networkx.Graph()
        found.add_nodes_from(range(clients))
        for number, line in enumerate(lines, start=1):
            words = line.partition("#")[0].split()
            if words and not (len(words) == 2 and all(word.isdecimal() and int(word) < clients for word in words)):
                remedy = f"line {number} is {line[:40]!r}; write the numbers of two clients, 0 to {clients - 1}"
                raise InputError("path", str(self.path), remedy)
            found.add_edges_from([tuple(map(int, words))] if words else [])
        return found


Graph = Annotated[
    Ring | Torus | Complete | ErdosRenyi | WattsStrogatz | GraphFile,
    one_of(
        ring=Ring,
        torus=Torus,
        complete=Complete,
        erdos_renyi=ErdosRenyi,
        watts_strogatz=WattsStrogatz,
        file=GraphFile,
    ),
]
"""A graph, or its name, or a table with `kind` and its options."""


def arrows(graph: Any, clients: int, streams: Streams, *, directed: bool = False) -> Tensor:
    """Who sends to whom, int64 [2, E]: senders and receivers, ascending; of a link both directions.

    directed: whether that may be one way alone. InputError: not everybody is reached from everybody, or it may not.
    """
    import networkx

    with naming("strategy.graph"):
        found = graph.build(clients, streams.derive("graph"))
        found.remove_edges_from(list(networkx.selfloop_edges(found)))
        one_way = found.is_directed()
        if one_way and not directed:
            raise InputError("directed", True, "weights of links that lead one way differ by sender; take push_sum")
        whole = networkx.is_strongly_connected(found) if one_way else networkx.is_connected(found)
        if not whole:
            parts = networkx.number_strongly_connected_components if one_way else networkx.number_connected_components
            remedy = f"the graph is not connected: {parts(found)} parts hear nothing of each other; add links"
            raise InputError("kind", graph.kind, remedy)
    pairs = sorted(found.to_directed().edges)
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()


def among(links: Tensor, some: Tensor, clients: int) -> Tensor:
    """The links [2, E] that are between some clients, int64 [k] ascending, by their places in that: [2, e]."""
    place = torch.full((clients,), -1)
    place[some] = torch.arange(len(some))
    found = place[links]
    return found[:, (found >= 0).all(dim=0)]


def metropolis(links: Tensor, count: int) -> Tensor:
    """W_ij = 1 / (1 + max(deg_i, deg_j)), W_ii what is left: float64 [k, k], sparse, doubly stochastic.

    Of links both ways, [2, e], between k = count clients. Xiao and Boyd 2004.
    """
    degree = torch.bincount(links[0], minlength=count)
    weights = 1.0 / (1.0 + torch.maximum(degree[links[0]], degree[links[1]]).double())
    own = 1.0 - torch.zeros(count, dtype=torch.float64).index_add_(0, links[1], weights)
    return _matrix(links, weights, own)


def pushing(links: Tensor, count: int) -> Tensor:
    """A_ij = A_jj = 1 / (outdegree_j + 1): float64 [k, k], sparse; its columns sum to one. Kempe et al. 2003."""
    own = 1.0 / (1.0 + torch.bincount(links[0], minlength=count).double())
    return _matrix(links, own[links[0]], own)


def _matrix(links: Tensor, weights: Tensor, own: Tensor) -> Tensor:
    diagonal = torch.arange(len(own))
    index = torch.cat((links.flip(0), diagonal.expand(2, -1)), dim=1)
    values, shape = torch.cat((weights, own)), (len(own), len(own))
    return torch.sparse_coo_tensor(index, values, shape, check_invariants=False).coalesce()


def mixed(weights: Tensor, rows: Tensor) -> Tensor:
    """sum_j W_ij x_j of rows x [k, n], and a sparse W [k, k]: [k, n]."""
    if not len(rows):
        return rows
    matrix = weights.to(rows.device, rows.dtype)
    if DENSE * matrix._nnz() > len(rows) ** 2:
        return matrix.to_dense() @ rows
    found: Tensor = torch.sparse.mm(matrix, rows)
    return found


def spread_of(rows: Tensor, centre: Tensor) -> float:
    """How far rows [N, d] are from a vector [d]: sqrt(mean_i |x_i - c|^2), the consensus distance of the mean."""
    return float((rows - centre).square().sum(dtype=torch.float64).div(len(rows)).sqrt())
