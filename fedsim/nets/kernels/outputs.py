"""Values of chains of linear layers: the mean loss of a client's examples at points of its own, forward only."""

from __future__ import annotations

from fedsim.nets.kernels.chain import HIDDEN, OUT_ROW, OUTPUTS, ROW, forward, gather, load
from fedsim.nets.kernels.compiling import entry
from fedsim.nets.kernels.pieces import loss_at
from fedsim.nets.kernels.rules import fill
from fedsim.nets.kernels.tiles import aligned


@entry
def values(
    first, last, width, apart, points, x, labels, targets, index, begin, count, layers, shapes, at, loss, share, found,
):  # fmt: skip
    """Evaluate queries first to last - 1, of which query c Q + q is the one of client c at its point q.

    points: [R, d], row c `apart` + q that one. x: [n, i]. labels: int64 [n], targets: [n]; the loss reads one of them.
    index: int64 [m], of which client c has `count` from `begin`, int64 [k]; `width` of them are in `w` at a time.
    layers, shapes, at: as of `chain`. loss, share: as of `loss_of`. found: [k, Q], written; sums are of float64.
    """
    each, w = found.shape[1], aligned(at.size, x)
    fill(w)  # once: nothing is ever written where weights and inputs are filled up, and `forward` clears the rest
    units, out_row = layers[len(layers) - 1, OUTPUTS], layers[len(layers) - 1, OUT_ROW]
    one, share, held = x.dtype.type(1), x.dtype.type(share), -1
    for query in range(first, last):
        c, q = query // each, query % each
        load(w[: at.block], points[c * apart + q], layers)
        total = 0.0
        for start in range(0, count[c], width):
            examples = min(width, count[c] - start)
            own = index[begin[c] + start : begin[c] + start + examples]
            if held != c or count[c] > width:
                gather(w[layers[0, HIDDEN] :], layers[0, ROW], x, own, examples)
                held = c
            forward(w, layers, shapes, at.outputs, examples)
            for r in range(examples):
                z, d = at.outputs + r * out_row, at.delta + r * out_row
                total += loss_at(loss, share, w, z, d, out_row, units, labels, targets, own[r], one)
        found[c, q] = total / count[c]
