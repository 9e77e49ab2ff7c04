"""Local training of chains of linear layers: one client after the other, each from its first to its last step.

A client's parameters, activations and gradients lie in one vector, `w`, which stays in the processor's cache. Weights
[outputs, inputs] are as in PyTorch, their rows filled up to whole vectors; `Layer` says where each thing is.

Forward: h_l = act(h_{l-1} W_l^T + b_l). Backward: delta_L = weight * d loss / d outputs, delta_{l-1} = (delta_l W_l) *
act'. The step is added to W_l as the product that makes its gradient, unless the rule needs the gradient itself.

Before the chain may stand stages on images (see `convolution`); where there are none, `stages` is None, and all that is
for them is left out when this is compiled.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.nets.kernels.compiling import call, entry, part
from fedsim.nets.kernels.convolution import backward_images, begin_images, forward_images
from fedsim.nets.kernels.pieces import activate, loss_at
from fedsim.nets.kernels.rules import add, clip, fill, finite, multiply, scale
from fedsim.nets.kernels.tiles import AT_ONCE, aligned, broad, dots

(
    INPUTS,  # of the layer
    OUTPUTS,
    ROW,  # of its inputs and weights, filled up
    OUT_ROW,  # of its outputs, filled up
    WEIGHT,  # where its weights are, counted from the parameters' first
    BIAS,  # the same; -1: there is none
    OWN_WEIGHT,  # where its weights are in a vector of all parameters
    OWN_BIAS,
    HIDDEN,  # where its inputs are, counted from the vector's first, like what follows
    SLOPE,  # where the slopes of its outputs' activations are
    ACTIVATION,  # of its outputs; the last layer has none
    FIELDS,
) = range(12)


class Places(NamedTuple):
    """Where things are in the vector of a kernel. size: of all. block: of the parameters, filled up.

    What a rule does not need has no room: gradient, what it remembers, shift.
    """

    size: int
    block: int
    outputs: int
    delta: int
    other: int
    gradient: int
    memory: int
    shift: int


class Settings(NamedTuple):
    """What is trained for, and how a step follows from a gradient.

    plain: a step is a multiple of it. decay: added to it, `decoupled` of the parameters themselves. clip: 0 for none.
    rule: the address of the optimizer's; numbers: its own.
    """

    loss: int
    share: float
    plain: bool
    decay: float
    decoupled: float
    clip: float
    epsilon_norm: float
    rule: int
    numbers: NDArray[np.float64]


@part
def load(block, flat, layers):
    """A vector of all parameters to rows that are filled up; the filling is left alone."""
    for number in range(len(layers)):
        layer = layers[number]
        begin, place = layer[OWN_WEIGHT], layer[WEIGHT]
        for _ in range(layer[OUTPUTS]):
            row, own = block[place : place + layer[INPUTS]], flat[begin : begin + layer[INPUTS]]
            for k in range(layer[INPUTS]):
                row[k] = own[k]
            begin += layer[INPUTS]
            place += layer[ROW]
        if layer[BIAS] >= 0:
            for k in range(layer[OUTPUTS]):
                block[layer[BIAS] + k] = flat[layer[OWN_BIAS] + k]


@part
def keep(block, flat, layers, less, start):
    """The way back; `less`: what is kept is the difference to `start`, another vector of all parameters."""
    for number in range(len(layers)):
        layer = layers[number]
        begin, place = layer[OWN_WEIGHT], layer[WEIGHT]
        for _ in range(layer[OUTPUTS]):
            row, own = block[place : place + layer[INPUTS]], flat[begin : begin + layer[INPUTS]]
            if less:
                away = start[begin : begin + layer[INPUTS]]
                for k in range(layer[INPUTS]):
                    own[k] = row[k] - away[k]
            else:
                for k in range(layer[INPUTS]):
                    own[k] = row[k]
            begin += layer[INPUTS]
            place += layer[ROW]
        if layer[BIAS] >= 0:
            for k in range(layer[OUTPUTS]):
                own_bias = layer[OWN_BIAS] + k
                flat[own_bias] = block[layer[BIAS] + k] - start[own_bias] if less else block[layer[BIAS] + k]


@part
def forward(w, layers, shapes, outputs, count):
    """From the inputs of `count` examples to their outputs, with the slopes of all activations."""
    zero, last = w.dtype.type(0), len(layers) - 1
    for number in range(last + 1):
        layer = layers[number]
        row, out_row, units, bias = layer[ROW], layer[OUT_ROW], layer[OUTPUTS], layer[BIAS]
        out = outputs if number == last else layers[number + 1, HIDDEN]
        made = w[out : out + count * out_row]
        fill(made)
        if bias >= 0:
            for r in range(count):
                add(made[r * out_row : r * out_row + units], w[bias : bias + units], w.dtype.type(1))
        filled = (units + AT_ONCE - 1) // AT_ONCE * AT_ONCE
        dots(w, layer[HIDDEN], row, count, row, layer[WEIGHT], row, out, out_row, filled)
        if number < last:
            slope = w[layer[SLOPE] : layer[SLOPE] + count * out_row]
            activate(layer[ACTIVATION], shapes[number], made, slope)
            if units < out_row:
                for r in range(count):
                    for k in range(units, out_row):
                        made[r * out_row + k] = zero


@part
def backward(w, layers, stages, chosen, into, delta, other, count, factor, beta):
    """Add `factor` times the gradient to `beta` times what is at `into`, which may be the parameters themselves, at 0.

    delta: the gradients of the outputs, which it writes over.
    """
    one, next_to = w.dtype.type(1), np.int64(1)  # of a type, not a literal, for which all would be compiled again
    for number in range(len(layers) - 1, -1, -1):
        layer = layers[number]
        row, out_row, units = layer[ROW], layer[OUT_ROW], layer[OUTPUTS]
        weight, bias = into + layer[WEIGHT], into + layer[BIAS]
        if number > 0 or stages is not None:
            inner = w[other : other + count * row]
            fill(inner)
            broad(w, delta, out_row, next_to, count, units, layer[WEIGHT], row, other, row, row)
            if number > 0:
                slope = layers[number - 1, SLOPE]
                multiply(inner, w[slope : slope + count * row])
        if factor != one:
            scale(w[delta : delta + count * out_row], factor)
        if beta != one:
            scale(w[weight : weight + units * row], beta)
        broad(w, delta, next_to, out_row, units, count, layer[HIDDEN], row, weight, row, row)
        if layer[BIAS] >= 0:
            own = w[bias : bias + units]
            if beta != one:
                scale(own, beta)
            for r in range(count):
                add(own, w[delta + r * out_row : delta + r * out_row + units], one)
        delta, other = other, delta
    if stages is not None:
        backward_images(w, stages, chosen, into, delta, count, factor, beta)


@part
def gather(hidden, row, x, index, count):
    """The inputs of the first `count` examples of a batch; the filling is left alone."""
    for r in range(count):
        own = x[index[r]]
        place = hidden[r * row : r * row + len(own)]
        for k in range(len(own)):
            place[k] = own[k]


@part
def step(w, at, layers, stages, chosen, how, count, lr, number, shifted):
    """From the gradients of the outputs, which are at `delta`, to the parameters after a step."""
    real, p, size = w.dtype.type, w[: at.block], at.block
    g = w[at.gradient : at.gradient + size]
    into, factor, left = np.int64(0), real(-lr), real(1.0 - lr * how.decay)
    if not how.plain:
        into, factor, left = at.gradient, real(1), real(1)
        fill(g)
    backward(w, layers, stages, chosen, into, at.delta, at.other, count, factor, left)
    if how.plain:
        if shifted:
            add(p, w[at.shift : at.shift + size], real(lr))
        return
    if how.clip > 0:
        clip(g, w[at.delta : at.other], real(how.clip), real(how.epsilon_norm))
    if how.decay != 0:
        add(g, p, real(how.decay))
    if shifted:
        add(g, w[at.shift : at.shift + size], real(-1))
    if how.decoupled != 0:
        scale(p, real(1.0 - lr * how.decoupled))
    call(how.rule, p, g, w[at.memory : at.shift], lr, number, how.numbers)


@entry
def descend(
    part, stride, less, start, shift, end, bits, sound, losses, totals, x, labels, targets, index, count, ranked, begin,
    steps, rates, layers, shapes, stages, at, how,
):  # fmt: skip
    """Train clients ranked[part], ranked[part + stride], ...: from rows of `start` [1 or C, d] to rows of `end` [C, d].

    less: these rows are differences to `start`. bits: the same memory as `end`, as integers. sound: bool [C], whether
    all numbers of a row are finite. shift: [0, 1 or C, d]. losses: [R] and totals: [C], their sums, are written; row
    begin[c] + s is client c's at step s. x: [n, i]. labels: int64 [n], targets: [n]; the loss reads one of them. index:
    int64 [R, B]. count: int64 [R]. ranked, begin, steps: int64 [C]. rates: float64 [1 or C, S]. layers: int64 [L,
    FIELDS], those of the stages first. shapes: numbers of the activations, without theirs.
    """
    w = aligned(at.size, x)
    shifted, real = len(shift) > 0, x.dtype.type
    chain = layers if stages is None else layers[len(stages.table) :]
    chosen = np.empty(0 if stages is None else stages.chosen + stages.span, np.int32)
    last = layers[len(layers) - 1]
    units, out_row = last[OUTPUTS], last[OUT_ROW]
    share, clean = real(how.share), False
    for turn in range(part, len(ranked), stride):
        c = ranked[turn]
        own_start = start[c if len(start) > 1 else 0]
        if clean:
            fill(w[at.memory : at.shift])
        else:
            fill(w)  # what another's bad numbers have left where rows are filled up, too
        load(w[: at.block], own_start, layers)
        if shifted:
            load(w[at.shift : at.shift + at.block], shift[c if len(shift) > 1 else 0], layers)
        if stages is not None:
            begin_images(w, stages)
        totals[c], own_rates = 0, rates[c if len(rates) > 1 else 0]
        for number in range(steps[c]):
            row = begin[c] + number
            examples = count[row]
            if stages is None:
                gather(w[layers[0, HIDDEN] :], layers[0, ROW], x, index[row], examples)
            else:
                forward_images(w, stages, chosen, x, index[row], examples)
            forward(w, chain, shapes, at.outputs, examples)
            weight, total = real(1) / real(examples), real(0)
            for r in range(examples):
                z, d = at.outputs + r * out_row, at.delta + r * out_row
                total += weight * loss_at(
                    how.loss, share, w, z, d, out_row, units, labels, targets, index[row, r], weight
                )
            losses[row] = total
            totals[c] += total
            step(w, at, chain, stages, chosen, how, examples, own_rates[number], number, shifted)
        keep(w[: at.block], end[c], layers, less, own_start)
        sound[c] = clean = finite(bits[c])
