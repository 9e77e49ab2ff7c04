"""Stages of a network on images: a convolution, perhaps an activation, perhaps a pooling, perhaps another activation.

They stand before the linear layers of `chain`, whose table has their weights, [outputs, inputs x kernel], in its first
rows. A stage's inputs are images with their padding around them. With W the padded width, (i, j, k) the input channel
and the place within the kernel, d the dilation, and p a place of the output, which is y W + x:

    z[o, p] = b[o] + sum_ijk w[o, ijk] h[i, p + d (j W + k)]
    grad w[o, ijk] = sum_p grad z[o, p] h[i, p + d (j W + k)]
    grad h[i, p] = sum_ojk w[o, ijk] grad z[o, p - d (j W + k)]

`sliding` makes these sums for all p at once. The gradient of z lies where z lay, and is 0 beyond the output's places.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.nets.kernels.compiling import part
from fedsim.nets.kernels.pieces import activate
from fedsim.nets.kernels.pooling import MAXIMUM, average, from_average, from_maximum, maximum
from fedsim.nets.kernels.rules import fill, multiply, scale
from fedsim.nets.kernels.sliding import correlate, listed

(
    CHANNELS,  # of the inputs
    HIGH,  # of the inputs, without padding
    WIDTH,
    PITCH,  # of a padded row of the inputs, and of a row of z
    IMAGES,  # where the padded inputs are, counted from the vector's first, like what follows
    IMAGE,  # from one channel of theirs to the next
    EXAMPLE,  # from one example to the next
    FIRST,  # from a padded channel's begin to its first pixel
    OUTPUTS,  # channels of z
    TAPS,  # of the kernel, in one channel
    FORTH,  # where the table of taps for z begins, in pairs
    BACK,  # the same for the gradient of the inputs
    WEIGHT,  # where weights are, counted from the parameters' first
    WEIGHT_ROW,
    BIAS,  # the same; -1: there is none
    MADE,  # where z is
    CHANNEL,  # from one channel of it to the next
    MADE_EXAMPLE,  # from one example to the next
    MARGIN,  # zeros before a channel
    SPAN,  # numbers of a channel of z that are made, filled up
    BACK_SPAN,  # the same of the gradient of the inputs, from the first pixel on
    POOL,
    TALL,  # the pooling's window
    BROAD,
    DOWN,  # from one window to the next
    ASIDE,
    OUT_HIGH,  # of what is pooled
    OUT_WIDTH,
    POOLED,  # where that is
    ROW,  # from one example to the next, filled up
    CHOSEN,  # where the places of its maxima are, in a vector of their own
    INNER,  # the activation of z; -1: there is none
    INNER_SLOPE,
    OUTER,  # the activation of what is pooled; the same
    OUTER_SLOPE,
    FIELDS,
) = range(36)


class Stages(NamedTuple):
    """The stages before a chain. table: int64 [S, FIELDS]. taps: int64, pairs. shapes: [S, 2], of both activations.

    ones: where `span` ones are, as many as the longest span has. images: where the gradient of one example's inputs has
    room, or a row of z. chosen: how many places of maxima there are, after which there is room for a row.
    """

    table: NDArray[np.int64]
    taps: NDArray[np.int64]
    shapes: NDArray[np.floating]
    ones: int
    span: int
    images: int
    chosen: int


@part
def begin_images(w, stages):
    """Write what stays as it is."""
    for k in range(stages.span):
        w[stages.ones + k] = w.dtype.type(1)


@part
def place_images(w, stage, e, own):
    """The pixels of an example to within their padding. own: [channels x high x width], and perhaps more."""
    high, width = stage[HIGH], stage[WIDTH]
    begin = stage[IMAGES] + e * stage[EXAMPLE] + stage[FIRST]
    for i in range(stage[CHANNELS]):
        for y in range(high):
            place = begin + i * stage[IMAGE] + y * stage[PITCH]
            into, source = w[place : place + width], own[(i * high + y) * width : (i * high + y + 1) * width]
            for x in range(width):
                into[x] = source[x]


@part
def convolve(w, stage, taps, e):
    """Make z of one example."""
    made = stage[MADE] + e * stage[MADE_EXAMPLE] + stage[MARGIN]
    for o in range(stage[OUTPUTS]):
        own = w[made + o * stage[CHANNEL] : made + o * stage[CHANNEL] + stage[SPAN]]
        start = w[stage[BIAS] + o] if stage[BIAS] >= 0 else w.dtype.type(0)
        for k in range(len(own)):
            own[k] = start
    depth, images = stage[CHANNELS] * stage[TAPS], stage[IMAGES] + e * stage[EXAMPLE]
    table, channel = taps[2 * stage[FORTH] :], stage[CHANNEL]
    listed(w, table, stage[WEIGHT], stage[WEIGHT_ROW], stage[OUTPUTS], depth, images, made, channel, stage[SPAN])


@part
def to_images(w, stage, taps, room, into, e):
    """Write the gradient of one example's inputs, without padding, to `into`."""
    span, pitch, width, high = stage[BACK_SPAN], stage[PITCH], stage[WIDTH], stage[HIGH]
    channels, depth, table = stage[CHANNELS], stage[OUTPUTS] * stage[TAPS], taps[2 * stage[BACK] :]
    fill(w[room : room + channels * span])
    made = stage[MADE] + e * stage[MADE_EXAMPLE] + stage[MARGIN] + stage[FIRST]
    listed(w, table, stage[WEIGHT], stage[TAPS], channels, depth, made, room, span, span)
    for i in range(channels):
        for y in range(high):
            place, begin = into + (i * high + y) * width, room + i * span + y * pitch
            own, source = w[place : place + width], w[begin : begin + width]
            for x in range(width):
                own[x] = source[x]


@part
def to_weights(w, stage, taps, ones, into, count):
    """Add the gradients of weights and biases to what is at `into`."""
    made, channel, example, span = stage[MADE] + stage[MARGIN], stage[CHANNEL], stage[MADE_EXAMPLE], stage[SPAN]
    table, depth, outputs = taps[2 * stage[FORTH] :], stage[CHANNELS] * stage[TAPS], stage[OUTPUTS]
    images, far, weight = stage[IMAGES], stage[EXAMPLE], into + stage[WEIGHT]
    correlate(w, table, depth, made, channel, example, outputs, span, images, far, count, weight, stage[WEIGHT_ROW])
    if stage[BIAS] >= 0:  # the first tap is at 0; the sum of products with ones
        nothing, one = np.int64(0), np.int64(1)  # of a type, not literals, for which all would be compiled again
        bias = into + stage[BIAS]
        correlate(w, table, one, made, channel, example, outputs, span, ones, nothing, count, bias, one)


@part
def pool(w, stages, stage, chosen, e):
    """From z of one example to what is pooled."""
    high, width, area, pitch = stage[OUT_HIGH], stage[OUT_WIDTH], stage[OUT_HIGH] * stage[OUT_WIDTH], stage[PITCH]
    tall, broad, down, aside = stage[TALL], stage[BROAD], stage[DOWN], stage[ASIDE]
    for o in range(stage[OUTPUTS]):
        made = stage[MADE] + e * stage[MADE_EXAMPLE] + stage[MARGIN] + o * stage[CHANNEL]
        pooled = stage[POOLED] + e * stage[ROW] + o * area
        if stage[POOL] == MAXIMUM:
            first = stage[CHOSEN] + (e * stage[OUTPUTS] + o) * area
            own, row = chosen[first : first + area], chosen[stages.chosen :]
            maximum(w, own, stages.images, row, made, pitch, pooled, high, width, tall, broad, down, aside)
        else:
            average(w, made, pitch, pooled, high, width, tall, broad, down, aside)


@part
def from_pool(w, stage, chosen, delta, e):
    """The way back of one example's gradients at `delta`, onto zeros."""
    high, width, area, pitch = stage[OUT_HIGH], stage[OUT_WIDTH], stage[OUT_HIGH] * stage[OUT_WIDTH], stage[PITCH]
    tall, broad, down, aside = stage[TALL], stage[BROAD], stage[DOWN], stage[ASIDE]
    for o in range(stage[OUTPUTS]):
        made = stage[MADE] + e * stage[MADE_EXAMPLE] + stage[MARGIN] + o * stage[CHANNEL]
        own = delta + e * stage[ROW] + o * area
        if stage[POOL] == MAXIMUM:
            first = stage[CHOSEN] + (e * stage[OUTPUTS] + o) * area
            from_maximum(w, chosen[first : first + area], own)
        else:
            from_average(w, made, pitch, own, high, width, tall, broad, down, aside)


@part
def forward_images(w, stages, chosen, x, index, count):
    """From the first `count` examples of a batch to the inputs of the chain, which the last stage has pooled."""
    for number in range(len(stages.table)):
        stage = stages.table[number]
        row, units = stage[ROW], stage[OUTPUTS] * stage[OUT_HIGH] * stage[OUT_WIDTH]
        for e in range(count):
            if number == 0:
                place_images(w, stage, e, x[index[e]])
            else:
                before = stages.table[number - 1]
                begin = before[POOLED] + e * before[ROW]
                place_images(w, stage, e, w[begin : begin + before[ROW]])
            convolve(w, stage, stages.taps, e)
        if stage[INNER] >= 0:
            size = count * stage[MADE_EXAMPLE]
            made, slope = stage[MADE], stage[INNER_SLOPE]
            activate(stage[INNER], stages.shapes[number, 0], w[made : made + size], w[slope : slope + size])
        for e in range(count):
            pool(w, stages, stage, chosen, e)
        if stage[OUTER] >= 0:
            pooled, slope, size = stage[POOLED], stage[OUTER_SLOPE], count * row
            activate(stage[OUTER], stages.shapes[number, 1], w[pooled : pooled + size], w[slope : slope + size])
            for e in range(count):
                fill(w[pooled + e * row + units : pooled + (e + 1) * row])


@part
def backward_images(w, stages, chosen, into, delta, count, factor, beta):
    """What `chain.backward` does. delta: the gradients of the chain's inputs, which it writes over."""
    one = w.dtype.type(1)
    for number in range(len(stages.table) - 1, -1, -1):
        stage = stages.table[number]
        if stage[OUTER] >= 0:
            slope, size = stage[OUTER_SLOPE], count * stage[ROW]
            multiply(w[delta : delta + size], w[slope : slope + size])
        size = count * stage[MADE_EXAMPLE]
        made = w[stage[MADE] : stage[MADE] + size]
        fill(made)
        for e in range(count):
            from_pool(w, stage, chosen, delta, e)
        if stage[INNER] >= 0:
            multiply(made, w[stage[INNER_SLOPE] : stage[INNER_SLOPE] + size])
        if number > 0:
            for e in range(count):
                to_images(w, stage, stages.taps, stages.images, delta + e * stages.table[number - 1, ROW], e)
        if factor != one:
            scale(made, factor)
        if beta != one:
            weight, outputs = into + stage[WEIGHT], stage[OUTPUTS]
            scale(w[weight : weight + outputs * stage[WEIGHT_ROW]], beta)
            if stage[BIAS] >= 0:
                scale(w[into + stage[BIAS] : into + stage[BIAS] + outputs], beta)
        to_weights(w, stage, stages.taps, stages.ones, into, count)
