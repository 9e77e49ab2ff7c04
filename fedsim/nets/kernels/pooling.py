"""Pooling of images, and its derivative: each gradient goes back to where its number was taken from.

The numbers of a channel lie from `made` on, rows `wide` apart; what they are pooled to, [high, width], from `pooled` on
without gaps, each from a window of (tall, broad), the next `down` and `aside` of it. Loops are over rows of windows,
one place of theirs after the other, as far as that goes over whole vectors.
"""

from __future__ import annotations

import numpy as np

from fedsim.nets.kernels.compiling import part

MAXIMUM, AVERAGE = range(2)


@part
def maximum(w, chosen, room, places, made, wide, pooled, high, width, tall, broad, down, aside):
    """The largest number of each window, the first of several, or one that is none; `chosen` is where it was.

    First down the windows, whole rows at once, and then along them. room, in w, and places: for one row of each.
    """
    span = aside * (width - 1) + broad
    best = w[room : room + span]
    for y in range(high):
        corner = made + y * down * wide
        source = w[corner : corner + span]
        for k in range(span):
            best[k] = source[k]
            places[k] = np.int32(corner + k)
        for i in range(1, tall):
            begin = corner + i * wide
            downwards(best, places, w[begin : begin + span], begin)
        to = pooled + y * width
        along(best, places, w[to : to + width], chosen[y * width : (y + 1) * width], broad, aside)


@part
def downwards(best, places, source, begin):
    """Take larger numbers of another row. Nothing may branch here and in `along`: numbers are in no order to guess."""
    for k in range(len(source)):
        own, other, place, here = best[k], source[k], places[k], np.int32(begin + k)
        more = (other > own) | (other != other)
        best[k] = other if more else own
        places[k] = here if more else place


@part
def along(best, places, largest, chosen, broad, aside):
    """The largest of every `broad` numbers, of equal ones the one that came first in its window."""
    for x in range(len(largest)):
        first = aside * x
        own, place = best[first], places[first]
        for j in range(1, broad):
            other, here = best[first + j], places[first + j]
            more = (other > own) | (other != other) | ((other == own) & (here < place))
            own = other if more else own
            place = here if more else place
        largest[x] = own
        chosen[x] = place


@part
def average(w, made, wide, pooled, high, width, tall, broad, down, aside):
    """The mean of each window."""
    share = w.dtype.type(1) / w.dtype.type(tall * broad)
    for y in range(high):
        mean = w[pooled + y * width : pooled + (y + 1) * width]
        for x in range(width):
            mean[x] = w.dtype.type(0)
        for i in range(tall):
            for j in range(broad):
                begin = made + (y * down + i) * wide + j
                source = w[begin : begin + aside * (width - 1) + 1]
                for x in range(width):
                    mean[x] += share * source[aside * x]


@part
def from_maximum(w, chosen, delta):
    """The way back: add the gradients at `delta` where numbers were chosen."""
    for k in range(len(chosen)):
        w[chosen[k]] += w[delta + k]


@part
def from_average(w, made, wide, delta, high, width, tall, broad, down, aside):
    """The way back: add an equal share of each gradient to its window."""
    share = w.dtype.type(1) / w.dtype.type(tall * broad)
    for y in range(high):
        own = w[delta + y * width : delta + (y + 1) * width]
        for i in range(tall):
            for j in range(broad):
                begin = made + (y * down + i) * wide + j
                into = w[begin : begin + aside * (width - 1) + 1]
                for x in range(width):
                    into[aside * x] += share * own[x]
