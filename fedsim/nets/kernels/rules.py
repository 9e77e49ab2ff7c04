"""What a step makes of a gradient: clipping, decay, shifts, and the rules of optimizers, elementwise.

p: parameters, g: their gradient, vectors of one length, filled up with zeros that stay so.
"""

from __future__ import annotations

import math

from fedsim.nets.kernels.compiling import part
from fedsim.nets.kernels.tiles import WIDTH

SGD, ADAM, LION = range(3)


@part
def clip(g, sums, bound, epsilon):
    """Scale the gradient to an l2 norm of at most `bound`. sums: room for so many numbers as a vector has."""
    lanes = WIDTH // g.itemsize
    for j in range(lanes):
        sums[j] = g.dtype.type(0)
    for k in range(len(g) // lanes):
        own = g[k * lanes : (k + 1) * lanes]
        for j in range(lanes):
            sums[j] += own[j] * own[j]
    total = g.dtype.type(0)
    for j in range(lanes):
        total += sums[j]
    factor = bound / (math.sqrt(total) + epsilon)
    if not factor >= 1:  # a norm that is no number makes the gradient none
        scale(g, factor)


@part
def scale(p, factor):
    """Multiply by a number."""
    for k in range(len(p)):
        p[k] *= factor


@part
def add(p, other, factor):
    """Add `factor` times others."""
    for k in range(len(p)):
        p[k] += factor * other[k]


@part
def multiply(p, other):
    """Multiply by others."""
    for k in range(len(p)):
        p[k] *= other[k]


@part
def fill(p):
    """Set to zero."""
    for k in range(len(p)):
        p[k] = p.dtype.type(0)


@part
def finite(bits):
    """Whether all numbers are finite, by their bits as integers: the exponents of others are all ones."""
    ones = bits.dtype.type(0x7F800000 if bits.itemsize == 4 else 0x7FF0000000000000)
    largest = bits.dtype.type(0)
    for k in range(len(bits)):
        largest = max(largest, bits[k] & ones)
    return largest < ones


@part
def sgd(p, g, lr, velocity, momentum, nesterov):
    """Have v <- momentum v + g; p <- p - lr v, or in Nesterov's form p - lr (g + momentum v)."""
    for k in range(len(p)):
        v = momentum * velocity[k] + g[k]
        velocity[k] = v
        p[k] -= lr * (g[k] + momentum * v if nesterov else v)


@part
def adam(p, g, lr, first, second, beta1, beta2, epsilon, step):
    """Means of g and of its square, each corrected for having begun at 0."""
    real = p.dtype.type
    left1, left2 = real(1.0 - beta1), real(1.0 - beta2)
    kept2, correction = real(beta2), real(1.0 - beta2 ** (step + 1))
    rate, least = real(lr / (1.0 - beta1 ** (step + 1))), real(epsilon)
    for k in range(len(p)):
        mean = first[k] + left1 * (g[k] - first[k])
        square = kept2 * second[k] + left2 * g[k] * g[k]
        first[k] = mean
        second[k] = square
        p[k] -= rate * mean / (math.sqrt(square / correction) + least)


@part
def lion(p, g, lr, mean, beta1, beta2):
    """The sign of a mean that g is mixed into for the step; the mean itself moves by another share of g."""
    real = p.dtype.type
    left1, left2, rate = real(1.0 - beta1), real(1.0 - beta2), real(lr)
    for k in range(len(p)):
        away = g[k] - mean[k]
        direction = mean[k] + left1 * away
        mean[k] += left2 * away
        if direction > 0:
            p[k] -= rate
        elif direction < 0:
            p[k] += rate
