"""Products in which a matrix's rows lie where a table says: those of patches of images, none of which is copied.

An image is one run of numbers, row after row, so the pixels that one tap of a kernel meets, for all places of its
output at once, are the image itself from another beginning. What is made beyond the end of a row of the output is
nobody's, and has the gradient 0.

table: int64, a pair for each tap: where its number of A is, and where its row of B begins. As in `tiles`, every number
is a sum in one order: in `listed` that of the taps, in `correlate` as many sums as a vector has numbers, which are then
added in pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fedsim.nets.kernels.compiling import part
from fedsim.nets.kernels.tiles import AT_ONCE, LANE, PLACE, WIDTH, Emitter


def _reader(context: Any, builder: Any, array: Any, value: Any) -> Callable[[Any, int, int], Any]:
    """Reads a table: the number `field` of the pair that is `further` ones after a tap."""
    data = context.make_array(array)(context, builder, value).data

    def read(tap: Any, further: int, field: int) -> Any:
        place = builder.add(builder.mul(tap, ir.Constant(PLACE, 2)), ir.Constant(PLACE, 2 * further + field))
        return builder.load(builder.gep(data, [place]))

    return read


def _listed(rows: int, vectors: int) -> Any:
    @intrinsic
    def tile(typing: Any, w: Any, table: Any, a: Any, row: Any, depth: Any, b: Any, c: Any, c_row: Any) -> Any:
        """`rows` times `vectors` of C += A B."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = Emitter(context, builder, signature.args[0], args[0], WIDTH)
            read = _reader(context, builder, signature.args[1], args[1])
            a, row, depth, b, c, c_row = args[2:]
            begin = [emit.at(a, r, row) for r in range(rows)]

            def left(r: int, k: Any) -> Any:
                return builder.add(begin[r], read(k, 0, 0))

            def right(k: Any) -> Any:
                return builder.add(b, read(k, 0, 1))

            emit.outer(rows, vectors, depth, left, right, c, c_row)
            return context.get_dummy_value()

        return types.void(w, table, *[types.int64] * 6), generate

    return tile


def _correlated(rows: int, taps: int) -> Any:
    @intrinsic
    def tile(
        typing: Any, w: Any, table: Any, tap: Any, a: Any, a_row: Any, a_size: Any, depth: Any, b: Any, b_size: Any,
        count: Any, c: Any, c_row: Any,
    ) -> Any:  # fmt: skip
        """`rows` times `taps`, 1 or AT_ONCE, of C += A B^T."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = Emitter(context, builder, signature.args[0], args[0], WIDTH)
            half = Emitter(context, builder, signature.args[0], args[0], WIDTH // 2)
            read = _reader(context, builder, signature.args[1], args[1])
            tap, a, a_row, a_size, depth, b, b_size, count, c, c_row = args[2:]
            tiles = [(r, n) for r in range(rows) for n in range(taps)]
            sums = {tile: cgutils.alloca_once(builder, emit.vector) for tile in tiles}
            for tile in tiles:
                builder.store(ir.Constant(emit.vector, [0.0] * emit.lanes), sums[tile])
            left = [emit.at(a, r, a_row) for r in range(rows)]
            right = [builder.add(b, read(tap, n, 1)) for n in range(taps)]
            lanes = ir.Constant(PLACE, emit.lanes)
            with cgutils.for_range(builder, count) as examples:
                begin_a, begin_b = builder.mul(examples.index, a_size), builder.mul(examples.index, b_size)
                with cgutils.for_range(builder, builder.sdiv(depth, lanes)) as loop:
                    away = builder.mul(loop.index, lanes)
                    far_a, far_b = builder.add(begin_a, away), builder.add(begin_b, away)
                    factors = [emit.load(builder.add(place, far_a)) for place in left]
                    for n in range(taps):
                        other = emit.load(builder.add(right[n], far_b))
                        for r in range(rows):
                            builder.store(emit.fma(factors[r], other, builder.load(sums[r, n])), sums[r, n])
            low, high = list(range(half.lanes)), list(range(half.lanes, emit.lanes))
            for r in range(rows):
                halves = [builder.load(sums[r, n]) for n in range(taps)]
                halves = [emit.paired(whole, whole, low, high) for whole in halves]
                found = half.sums([*halves, *halves[:1] * (AT_ONCE - taps)])
                place = emit.at(c, r, c_row)
                if taps == 1:
                    found = builder.extract_element(found, ir.Constant(LANE, 0))
                emit.store(builder.fadd(emit.load(place, found.type), found), place)
            return context.get_dummy_value()

        return types.void(w, table, *[types.int64] * 10), generate

    return tile


_listed_42, _listed_41, _listed_24, _listed_21 = _listed(4, 2), _listed(4, 1), _listed(2, 4), _listed(2, 1)
_listed_14, _listed_11 = _listed(1, 4), _listed(1, 1)
_correlated_24, _correlated_21 = _correlated(2, AT_ONCE), _correlated(2, 1)
_correlated_14, _correlated_11 = _correlated(1, AT_ONCE), _correlated(1, 1)


@part
def listed(w, table, a, row, rows, depth, b, c, c_row, columns):
    """C [rows, columns] += A B; the number (r, k) of A is at a + row r + table[k, 0], row k of B at b + table[k, 1]."""
    lanes = WIDTH // w.itemsize
    r = 0
    while r + 4 <= rows:
        j = 0
        while j + 2 * lanes <= columns:
            _listed_42(w, table, a + r * row, row, depth, b + j, c + r * c_row + j, c_row)
            j += 2 * lanes
        if j < columns:
            _listed_41(w, table, a + r * row, row, depth, b + j, c + r * c_row + j, c_row)
        r += 4
    if r + 2 <= rows:
        j = 0
        while j + 4 * lanes <= columns:
            _listed_24(w, table, a + r * row, row, depth, b + j, c + r * c_row + j, c_row)
            j += 4 * lanes
        while j < columns:
            _listed_21(w, table, a + r * row, row, depth, b + j, c + r * c_row + j, c_row)
            j += lanes
        r += 2
    if r < rows:
        j = 0
        while j + 4 * lanes <= columns:
            _listed_14(w, table, a + r * row, row, depth, b + j, c + r * c_row + j, c_row)
            j += 4 * lanes
        while j < columns:
            _listed_11(w, table, a + r * row, row, depth, b + j, c + r * c_row + j, c_row)
            j += lanes


@part
def correlate(w, table, taps, a, a_row, a_size, rows, depth, b, b_size, count, c, c_row):
    """C [rows, taps] += the sum over `count` examples of A B^T.

    Of an example e row r of A begins at a + a_size e + a_row r, row k of B at b + b_size e + table[k, 1]; both have
    `depth` numbers, which fill whole vectors.
    """
    k = 0
    while k + AT_ONCE <= taps:
        r = 0
        while r + 2 <= rows:
            _correlated_24(w, table, k, a + r * a_row, a_row, a_size, depth, b, b_size, count, c + r * c_row + k, c_row)
            r += 2
        if r < rows:
            _correlated_14(w, table, k, a + r * a_row, a_row, a_size, depth, b, b_size, count, c + r * c_row + k, c_row)
        k += AT_ONCE
    while k < taps:
        r = 0
        while r + 2 <= rows:
            _correlated_21(w, table, k, a + r * a_row, a_row, a_size, depth, b, b_size, count, c + r * c_row + k, c_row)
            r += 2
        if r < rows:
            _correlated_11(w, table, k, a + r * a_row, a_row, a_size, depth, b, b_size, count, c + r * c_row + k, c_row)
        k += 1
