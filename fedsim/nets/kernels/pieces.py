"""Activations with their slopes, and losses with theirs.

z and slope, z and delta: vectors of one length, filled up to whole vectors of the processor with zeros, on which
activations work, too: `chain` puts the zeros back.
"""

from __future__ import annotations

import math

from fedsim.nets.kernels.compiling import part
from fedsim.nets.kernels.exponentials import exp, expm1

RELU, LEAKY_RELU, TANH, SIGMOID, ELU, SILU, GELU = range(7)
CROSS_ENTROPY, SQUARED_ERROR, LOG_COSH = range(3)


@part
def activate(kind, shape, z, slope):
    """Replace z by its activation and write the derivative at z to `slope`. shape: the activation's own number."""
    if kind == RELU:
        relu(z, slope)
    elif kind == LEAKY_RELU:
        leaky_relu(shape, z, slope)
    elif kind == TANH:
        tanh(z, slope)
    elif kind == SIGMOID:
        sigmoid(z, slope)
    elif kind == ELU:
        elu(shape, z, slope)
    elif kind == SILU:
        silu(z, slope)
    else:
        gelu(z, slope)


@part
def relu(z, slope):
    """max(z, 0); what is not a number stays so."""
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for k in range(len(z)):
        low = z[k] <= zero
        slope[k] = zero if low else one
        z[k] = zero if low else z[k]


@part
def leaky_relu(shape, z, slope):
    """Of z above 0 itself, else shape z."""
    one = z.dtype.type(1)
    for k in range(len(z)):
        factor = one if z[k] > 0 else shape
        slope[k] = factor
        z[k] *= factor


@part
def tanh(z, slope):
    """Of |z|: -m / (2 + m), where m = exp(-2 |z|) - 1."""
    one, two = z.dtype.type(1), z.dtype.type(2)
    for k in range(len(z)):
        slope[k] = -two * abs(z[k])
    expm1(slope)
    for k in range(len(z)):
        h = -slope[k] / (two + slope[k])
        z[k] = -h if z[k] < 0 else h
        slope[k] = one - h * h


@part
def sigmoid(z, slope):
    """1 / (1 + exp(-z)), by e = exp(-|z|)."""
    one = z.dtype.type(1)
    for k in range(len(z)):
        slope[k] = -abs(z[k])
    exp(slope)
    for k in range(len(z)):
        h = (slope[k] if z[k] < 0 else one) / (one + slope[k])
        z[k] = h
        slope[k] = h * (one - h)


@part
def elu(shape, z, slope):
    """Of z above 0 itself, else shape (exp(z) - 1)."""
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for k in range(len(z)):
        slope[k] = zero if z[k] > 0 else z[k]
    expm1(slope)
    for k in range(len(z)):
        high, m = z[k] > 0, slope[k]
        z[k] = z[k] if high else shape * m
        slope[k] = one if high else shape * (m + one)


@part
def silu(z, slope):
    """Of z: z s, s = sigmoid(z)."""
    one = z.dtype.type(1)
    for k in range(len(z)):
        slope[k] = -abs(z[k])
    exp(slope)
    for k in range(len(z)):
        own = z[k]
        s = (slope[k] if own < 0 else one) / (one + slope[k])
        z[k] = own * s
        slope[k] = s * (one + own * (one - s))


@part
def gelu(z, slope):
    """Of z: z Phi(z), Phi the normal distribution function."""
    real = z.dtype.type
    half, one = real(0.5), real(1)
    root, density = real(math.sqrt(0.5)), real(1.0 / math.sqrt(2.0 * math.pi))
    for k in range(len(z)):
        slope[k] = -half * z[k] * z[k]
    exp(slope)
    for k in range(len(z)):
        own = z[k]
        below = half * (one + math.erf(own * root))
        z[k] = own * below
        slope[k] = below + own * density * slope[k]


@part
def loss_of(kind, share, z, delta, outputs, label, target, weight):
    """The loss of one example at its outputs, the first so many of z; of delta they are `weight` times its gradient.

    share: of label smoothing. What follows in delta may be anything.
    """
    if kind == CROSS_ENTROPY:
        return cross_entropy(share, z, delta, outputs, label, weight)
    if kind == SQUARED_ERROR:
        return squared_error(z, delta, target, weight)
    return log_cosh(z, delta, target, weight)


@part
def loss_at(kind, share, w, z, delta, row, outputs, labels, targets, example, weight):
    """The same of an example of the data, whose outputs are at z in w, and their gradients are to be at delta.

    row: how many numbers both have there. labels: int64 [n], targets: [n]; the loss reads one of them.
    """
    label = labels[example] if len(labels) > 0 else 0
    target = targets[example] if len(targets) > 0 else w.dtype.type(0)
    return loss_of(kind, share, w[z : z + row], w[delta : delta + row], outputs, label, target, weight)


@part
def cross_entropy(share, z, delta, outputs, label, weight):
    """Of outputs z: log sum exp(z) - (1 - share) z[label] - share mean(z)."""
    real = z.dtype.type
    largest = z[0]
    for k in range(1, outputs):
        largest = max(largest, z[k])
    for k in range(outputs):
        delta[k] = z[k] - largest
    for k in range(outputs, len(delta)):
        delta[k] = real(0)
    exp(delta)
    total, mean = real(0), real(0)
    for k in range(outputs):
        total += delta[k]
        mean += z[k] - largest
    factor, spread = weight / total, weight * share / real(outputs)
    for k in range(outputs):
        delta[k] = delta[k] * factor - spread
    kept = real(1) - share
    delta[label] -= weight * kept
    return math.log(total) - kept * (z[label] - largest) - share * mean / real(outputs)


@part
def squared_error(z, delta, target, weight):
    """Of the output z: (z - target)^2."""
    away = z[0] - target
    delta[0] = z.dtype.type(2) * away * weight
    return away * away


@part
def log_cosh(z, delta, target, weight):
    """Of the output z: log cosh(z - target)."""
    real = z.dtype.type
    away = z[0] - target
    size = abs(away)
    delta[0] = math.tanh(away) * weight
    return size + math.log1p(math.exp(real(-2) * size)) - real(math.log(2.0))
