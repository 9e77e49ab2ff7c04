"""Products of small matrices that lie in one vector of numbers, by fused multiply-adds in vectors of a fixed length.

A matrix is the place of its first number and the length of its rows, which are filled up to whole vectors. `broad` and
`dots` add a product to what is there; in `broad` every number is one sum in the order of its factors, in `dots` of as
many sums as `WIDTH` bytes have numbers, which are then added in pairs. So how long the processor's own vectors are
changes no bit: where they are shorter, `dots` makes one part of these sums after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fedsim.nets.kernels.compiling import features, part

WIDTH = 64
"""Bytes that rows are filled up to, and of the sums that `dots` makes of a number."""
VECTOR = 64 if "+avx512f" in features() else 32
"""Bytes of the vectors of products: tiles of longer ones would not fit into the registers of AVX2."""
AT_ONCE = 4
"""Columns that `dots` makes at once; so many rows of its right factor there must be, or a multiple."""
PLACE, LANE = ir.IntType(64), ir.IntType(32)


class Emitter:
    """Writes instructions on vectors of so many bytes of the numbers of one array."""

    def __init__(self, context: Any, builder: Any, array: Any, value: Any, nbytes: int) -> None:
        self.builder = builder
        self.data = context.make_array(array)(context, builder, value).data
        self.number = context.get_data_type(array.dtype)
        self.size = array.dtype.bitwidth // 8
        self.lanes = nbytes // self.size
        self.vector = ir.VectorType(self.number, self.lanes)
        fma = ir.FunctionType(self.vector, [self.vector] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, fma, f"llvm.fma.v{self.lanes}f{8 * self.size}")

    def at(self, place: Any, count: int, stride: Any = None) -> Any:
        """The place `count` strides, or numbers, further on."""
        far = ir.Constant(PLACE, count)
        return self.builder.add(place, far if stride is None else self.builder.mul(stride, far))

    def load(self, place: Any, kind: Any = None) -> Any:
        """The vector at a place."""
        pointer = self.builder.gep(self.data, [place])
        kind = self.vector if kind is None else kind
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=self.size)

    def store(self, value: Any, place: Any) -> None:
        """Write a vector."""
        pointer = self.builder.bitcast(self.builder.gep(self.data, [place]), value.type.as_pointer())
        self.builder.store(value, pointer, align=self.size)

    def everywhere(self, place: Any) -> Any:
        """The number at a place, in all lanes."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(nothing, self.load(place, self.number), ir.Constant(LANE, 0))
        return self.lanes_of(one, nothing, [0] * self.lanes)

    def fma(self, left: Any, right: Any, start: Any) -> Any:
        """Left right + start, rounded once."""
        return self.builder.call(self._fma, [left, right, start])

    def lanes_of(self, left: Any, right: Any, chosen: Sequence[int]) -> Any:
        """Lanes of two vectors, the second's numbered after the first's."""
        mask = ir.Constant(ir.VectorType(LANE, len(chosen)), list(chosen))
        return self.builder.shuffle_vector(left, right, mask)

    def paired(self, left: Any, right: Any, first: Sequence[int], second: Sequence[int]) -> Any:
        """The sum of two choices of lanes."""
        return self.builder.fadd(self.lanes_of(left, right, first), self.lanes_of(left, right, second))

    def sums(self, four: Sequence[Any]) -> Any:
        """The sums of the lanes of four vectors, in four lanes: halves, neighbours but one, neighbours, halves.

        four: vectors of WIDTH // 2 bytes, the first addition behind them.
        """
        if WIDTH // 2 // self.size == 4:
            first, second = (self.paired(x, y, [0, 4, 2, 6], [1, 5, 3, 7]) for x, y in (four[:2], four[2:]))
            return self.paired(first, second, [0, 1, 4, 5], [2, 3, 6, 7])
        low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
        first, second = (self.paired(x, y, low, high) for x, y in (four[:2], four[2:]))
        halves = self.paired(first, second, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])
        return self.paired(halves, halves, [0, 1, 2, 3], [4, 5, 6, 7])

    def outer(
        self, rows: int, vectors: int, depth: Any, left: Callable[[int, Any], Any], right: Callable[[Any], Any], c: Any,
        c_row: Any,
    ) -> None:  # fmt: skip
        """`rows` times `vectors` of C += A B. left: where number k of a row of A is; right: where row k of B begins."""
        builder, tiles = self.builder, [(r, v) for r in range(rows) for v in range(vectors)]
        places = {(r, v): self.at(self.at(c, r, c_row), v * self.lanes) for r, v in tiles}
        sums = {tile: cgutils.alloca_once(builder, self.vector) for tile in tiles}
        for tile in tiles:
            builder.store(self.load(places[tile]), sums[tile])
        with cgutils.for_range(builder, depth) as loop:
            begin = right(loop.index)
            loaded = [self.load(self.at(begin, v * self.lanes)) for v in range(vectors)]
            for r in range(rows):
                own = self.everywhere(left(r, loop.index))
                for v in range(vectors):
                    builder.store(self.fma(own, loaded[v], builder.load(sums[r, v])), sums[r, v])
        for tile in tiles:
            self.store(builder.load(sums[tile]), places[tile])


def _broad(rows: int, vectors: int, nbytes: int = VECTOR) -> Any:
    @intrinsic
    def tile(
        typing: Any, w: Any, a: Any, row: Any, column: Any, depth: Any, b: Any, b_row: Any, c: Any, c_row: Any
    ) -> Any:
        """`rows` times `vectors` of C += A B: a number of A is at a + row r + column k; rows of B and C follow on."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = Emitter(context, builder, signature.args[0], args[0], nbytes)
            a, row, column, depth, b, b_row, c, c_row = args[1:]
            begin = [emit.at(a, r, row) for r in range(rows)]

            def left(r: int, k: Any) -> Any:
                return builder.add(begin[r], builder.mul(k, column))

            def right(k: Any) -> Any:
                return builder.add(b, builder.mul(k, b_row))

            emit.outer(rows, vectors, depth, left, right, c, c_row)
            return context.get_dummy_value()

        return types.void(w, *[types.int64] * 8), generate

    return tile


def _dots(rows: int, nbytes: int = VECTOR) -> Any:
    @intrinsic
    def tile(typing: Any, w: Any, a: Any, a_row: Any, depth: Any, b: Any, b_row: Any, c: Any, c_row: Any) -> Any:
        """`rows` times `AT_ONCE` of C += A B^T."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = Emitter(context, builder, signature.args[0], args[0], nbytes)
            a, a_row, depth, b, b_row, c, c_row = args[1:]
            tiles = [(r, n) for r in range(rows) for n in range(AT_ONCE)]
            left = [emit.at(a, r, a_row) for r in range(rows)]
            right = [emit.at(b, n, b_row) for n in range(AT_ONCE)]
            lanes = ir.Constant(PLACE, WIDTH // emit.size)
            parts = []
            for begin in range(0, WIDTH // emit.size, emit.lanes):
                sums = {tile: cgutils.alloca_once(builder, emit.vector) for tile in tiles}
                for tile in tiles:
                    builder.store(ir.Constant(emit.vector, [0.0] * emit.lanes), sums[tile])
                with cgutils.for_range(builder, builder.sdiv(depth, lanes)) as loop:
                    away = emit.at(builder.mul(loop.index, lanes), begin)
                    factors = [emit.load(builder.add(place, away)) for place in left]
                    for n in range(AT_ONCE):
                        other = emit.load(builder.add(right[n], away))
                        for r in range(rows):
                            builder.store(emit.fma(factors[r], other, builder.load(sums[r, n])), sums[r, n])
                parts.append({tile: builder.load(sums[tile]) for tile in tiles})
            if len(parts) == 1:
                low, high = list(range(emit.lanes // 2)), list(range(emit.lanes // 2, emit.lanes))
                half = {tile: emit.paired(parts[0][tile], parts[0][tile], low, high) for tile in tiles}
            else:
                half = {tile: builder.fadd(parts[0][tile], parts[1][tile]) for tile in tiles}
            for r in range(rows):
                found = emit.sums([half[r, n] for n in range(AT_ONCE)])
                place = emit.at(c, r, c_row)
                emit.store(builder.fadd(emit.load(place, found.type), found), place)
            return context.get_dummy_value()

        return types.void(w, *[types.int64] * 7), generate

    return tile


_broad_42, _broad_41, _broad_12, _broad_11 = (_broad(4, 2), _broad(4, 1), _broad(1, 2), _broad(1, 1))
_dots_2, _dots_1 = _dots(2), _dots(1)


@part
def aligned(size, like):
    """Room for so many numbers of the kind of an array's, which begins where a vector does."""
    lanes = WIDTH // like.itemsize
    room = np.empty(size + lanes, like.dtype)
    begins = (-(room.ctypes.data // like.itemsize)) % lanes
    return room[begins : begins + size]


@part
def broad(w, a, row, column, rows, depth, b, b_row, c, c_row, columns):
    """C [rows, columns] += A B, in the vector w; the number (r, k) of A is at a + row r + column k."""
    lanes = VECTOR // w.itemsize
    j = 0
    while j + 2 * lanes <= columns:
        r = 0
        while r + 4 <= rows:
            _broad_42(w, a + r * row, row, column, depth, b + j, b_row, c + r * c_row + j, c_row)
            r += 4
        while r < rows:
            _broad_12(w, a + r * row, row, column, depth, b + j, b_row, c + r * c_row + j, c_row)
            r += 1
        j += 2 * lanes
    while j < columns:
        r = 0
        while r + 4 <= rows:
            _broad_41(w, a + r * row, row, column, depth, b + j, b_row, c + r * c_row + j, c_row)
            r += 4
        while r < rows:
            _broad_11(w, a + r * row, row, column, depth, b + j, b_row, c + r * c_row + j, c_row)
            r += 1
        j += lanes


@part
def dots(w, a, a_row, rows, depth, b, b_row, c, c_row, columns):
    """C [rows, columns] += A B^T, in the vector w; depth and columns filled up; see the module's text."""
    j = 0
    while j < columns:
        r = 0
        while r + 2 <= rows:
            _dots_2(w, a + r * a_row, a_row, depth, b + j * b_row, b_row, c + r * c_row + j, c_row)
            r += 2
        if r < rows:
            _dots_1(w, a + r * a_row, a_row, depth, b + j * b_row, b_row, c + r * c_row + j, c_row)
        j += AT_ONCE
