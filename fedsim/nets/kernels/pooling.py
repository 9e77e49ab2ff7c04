"""Pooling of images, and its derivative: each gradient goes back to where its number was taken from.

The numbers of a channel lie from `made` on, rows `wide` apart; what they are pooled to, [high, width], from `pooled` on
without gaps, each from a window of (tall, broad), the next `down` and `aside` of it. A row of windows is gone through
place by place of theirs, for that goes over whole vectors.
"""

from __future__ import annotations

import numpy as np

from fedsim.nets.kernels.compiling import part

MAXIMUM, AVERAGE = range(2)


@part
def maximum(w, chosen, made, wide, pooled, high, width, tall, broad, down, aside):
    """The largest number of each window, the first of several, or one that is none; `chosen` is where it was."""
    for y in range(high):
        corner, span = made + y * down * wide, aside * (width - 1) + 1
        largest, places = w[pooled + y * width : pooled + (y + 1) * width], chosen[y * width : (y + 1) * width]
        source = w[corner : corner + span]
        for x in range(width):
            largest[x] = source[aside * x]
            places[x] = np.int32(corner + aside * x)
        for i in range(tall):
            for j in range(broad):
                begin = corner + i * wide + j
                source = w[begin : begin + span]
                for x in range(width):
                    own = source[aside * x]
                    more = own > largest[x] or own != own
                    largest[x] = own if more else largest[x]
                    places[x] = np.int32(begin + aside * x) if more else places[x]


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
