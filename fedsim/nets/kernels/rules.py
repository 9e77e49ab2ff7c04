"""What a step makes of a gradient: clipping, decay, shifts, and the rules of optimizers, elementwise.

p: parameters, g: their gradient, vectors of one length, filled up with zeros that stay so. memory: what a rule
remembers, so many vectors of that length, one after the other, zeros before the step of number 0. A rule may write over
g. numbers: a rule's own, as its `fedsim.client.CompiledRule` has them.
"""

from __future__ import annotations

import math

import numpy as np

from fedsim.nets.kernels.compiling import Rule, part
from fedsim.nets.kernels.exponentials import exp
from fedsim.nets.kernels.tiles import WIDTH

CHAINS = 4
"""Vectors of sums that grow beside each other: each waits for itself alone."""


@part
def inner(one, other, sums):
    """The inner product of two vectors. sums: room for so many numbers as are added at once."""
    wide = CHAINS * (WIDTH // one.itemsize)
    for j in range(wide):
        sums[j] = one.dtype.type(0)
    whole = len(one) // wide * wide
    for k in range(0, whole, wide):
        first, second = one[k : k + wide], other[k : k + wide]
        for j in range(wide):
            sums[j] += first[j] * second[j]
    for k in range(whole, len(one)):
        sums[k - whole] += one[k] * other[k]
    total = one.dtype.type(0)
    for j in range(wide):
        total += sums[j]
    return total


@part
def distance(one, other, away, sums):
    """The l2 norm of a difference, which is left in `away`. sums: as of `inner`."""
    for k in range(len(one)):
        away[k] = one[k] - other[k]
    return math.sqrt(inner(away, away, sums))


@part
def clip(g, sums, bound, epsilon):
    """Scale the gradient to an l2 norm of at most `bound`. sums: room for so many numbers as a vector has."""
    factor = bound / (math.sqrt(inner(g, g, sums)) + epsilon)
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


@Rule
def sgd(p, g, memory, lr, number, numbers):
    """Have v <- momentum v + g; p <- p - lr v, or in Nesterov's form p - lr (g + momentum v). Numbers: both."""
    rate, momentum, nesterov = p.dtype.type(lr), p.dtype.type(numbers[0]), numbers[1] != 0
    if len(memory) == 0:
        for k in range(len(p)):
            p[k] -= rate * g[k]
        return
    for k in range(len(p)):
        v = momentum * memory[k] + g[k]
        memory[k] = v
        p[k] -= rate * (g[k] + momentum * v if nesterov else v)


@Rule
def adam(p, g, memory, lr, number, numbers):
    """Means of g and of its square, each corrected for having begun at 0. Numbers: two betas and epsilon."""
    real, beta1, beta2 = p.dtype.type, numbers[0], numbers[1]
    first, second = memory[: len(p)], memory[len(p) :]
    left1, left2 = real(1.0 - beta1), real(1.0 - beta2)
    kept2, correction = real(beta2), real(1.0 - beta2 ** (number + 1))
    rate, least = real(lr / (1.0 - beta1 ** (number + 1))), real(numbers[2])
    for k in range(len(p)):
        mean = first[k] + left1 * (g[k] - first[k])
        square = kept2 * second[k] + left2 * g[k] * g[k]
        first[k] = mean
        second[k] = square
        p[k] -= rate * mean / (math.sqrt(square / correction) + least)


@Rule
def amsgrad(p, g, memory, lr, number, numbers):
    """Adam with the largest mean of squares so far. Numbers: two betas, epsilon, and whether means are corrected."""
    real, beta1, beta2, corrected = p.dtype.type, numbers[0], numbers[1], numbers[3] != 0
    first, second, largest = memory[: len(p)], memory[len(p) : 2 * len(p)], memory[2 * len(p) :]
    left1, left2 = real(1.0 - beta1), real(1.0 - beta2)
    kept2, least = real(beta2), real(numbers[2])
    correction = real(1.0 - beta2 ** (number + 1) if corrected else 1.0)
    rate = real(lr / (1.0 - beta1 ** (number + 1)) if corrected else lr)
    if number == 0 and not corrected:
        for k in range(len(p), 3 * len(p)):
            memory[k] = numbers[2] ** 2
    for k in range(len(p)):
        mean = first[k] + left1 * (g[k] - first[k])
        square = kept2 * second[k] + left2 * g[k] * g[k]
        most = max(largest[k], square)
        first[k] = mean
        second[k] = square
        largest[k] = most
        p[k] -= rate * mean / (math.sqrt(most / correction) + least)


@Rule
def adabelief(p, g, memory, lr, number, numbers):
    """Adam with a mean of the squares of g less its mean, to which epsilon is added. Numbers: two betas and epsilon."""
    real, beta1, beta2 = p.dtype.type, numbers[0], numbers[1]
    first, second = memory[: len(p)], memory[len(p) :]
    left1, left2 = real(1.0 - beta1), real(1.0 - beta2)
    kept2, correction = real(beta2), real(1.0 - beta2 ** (number + 1))
    rate, least = real(lr / (1.0 - beta1 ** (number + 1))), real(numbers[2])
    for k in range(len(p)):
        mean = first[k] + left1 * (g[k] - first[k])
        away = g[k] - mean
        spread = kept2 * second[k] + left2 * away * away + least
        first[k] = mean
        second[k] = spread
        p[k] -= rate * mean / (math.sqrt(spread / correction) + least)


@Rule
def diffgrad(p, g, memory, lr, number, numbers):
    """Adam times 1 / (1 + exp(-|g - g'|)), g' the gradient before. Numbers: two betas and epsilon."""
    real, beta1, beta2 = p.dtype.type, numbers[0], numbers[1]
    first, second, before = memory[: len(p)], memory[len(p) : 2 * len(p)], memory[2 * len(p) :]
    left1, left2 = real(1.0 - beta1), real(1.0 - beta2)
    one, kept2, least = real(1), real(beta2), real(numbers[2])
    rate = real(lr * math.sqrt(1.0 - beta2 ** (number + 1)) / (1.0 - beta1 ** (number + 1)))
    for k in range(len(p)):
        own = g[k]
        first[k] += left1 * (own - first[k])
        second[k] = kept2 * second[k] + left2 * own * own
        g[k] = -abs(own - before[k])
        before[k] = own
    exp(g)
    for k in range(len(p)):
        p[k] -= rate * (first[k] / (one + g[k])) / (math.sqrt(second[k]) + least)


@Rule
def adagrad(p, g, memory, lr, number, numbers):
    """The sum of the squares of g. Numbers: where it begins, and epsilon."""
    real = p.dtype.type
    rate, least = real(lr), real(numbers[1])
    if number == 0:
        for k in range(len(p)):
            memory[k] = numbers[0]
    for k in range(len(p)):
        square = memory[k] + g[k] * g[k]
        memory[k] = square
        p[k] -= rate * g[k] / (math.sqrt(square) + least)


@Rule
def lion(p, g, memory, lr, number, numbers):
    """The sign of a mean that g is mixed into for the step; the mean itself moves by another share. Numbers: betas."""
    real = p.dtype.type
    left1, left2, rate, zero = real(1.0 - numbers[0]), real(1.0 - numbers[1]), real(lr), real(0)
    for k in range(len(p)):
        away = g[k] - memory[k]
        direction = memory[k] + left1 * away
        memory[k] += left2 * away
        p[k] -= rate if direction > 0 else -rate if direction < 0 else zero


@Rule
def normalised(p, g, memory, lr, number, numbers):
    """A step of the length lr. It has one vector beside those that it remembers."""
    length = math.sqrt(inner(g, g, memory))
    if length > 0:
        add(p, g, p.dtype.type(-lr / length))


@Rule
def adagrad_norm(p, g, memory, lr, number, numbers):
    """The sum of the squares of g's length. Numbers: where it begins, and epsilon. It has one vector more."""
    wide = CHAINS * (WIDTH // p.itemsize)
    if number == 0:
        memory[wide] = numbers[0]
    memory[wide] += inner(g, g, memory)
    add(p, g, p.dtype.type(-lr / (math.sqrt(memory[wide]) + numbers[1])))


@Rule
def induced(p, g, memory, lr, number, numbers):
    """A mean of g, shortened by a mean of its squared length. Numbers: xi, momentum, beta. It has one vector more."""
    real, size, wide = p.dtype.type, len(p), CHAINS * (WIDTH // p.itemsize)
    mean, sums = memory[:size], memory[size:]
    sums[wide] += (numbers[0] * inner(g, g, sums) - sums[wide]) * (1.0 - numbers[2])
    energy = sums[wide] / (1.0 - numbers[2] ** (number + 1))
    left, rate = real(1.0 - numbers[1]), real(lr / (1.0 + energy) / (1.0 - numbers[1] ** (number + 1)))
    for k in range(size):
        mean[k] += left * (g[k] - mean[k])
        p[k] -= rate * mean[k]


@Rule
def dog(p, g, memory, lr, number, numbers):
    """The longest distance over the root of the sum of g's squared lengths; it has one vector more.

    Numbers: reps_rel, epsilon, and the first step size, 0 for none.
    """
    size, wide = len(p), CHAINS * (WIDTH // p.itemsize)
    start, sums = memory[:size], memory[size:]
    if number == 0:
        for k in range(size):
            start[k] = p[k]
        sums[wide] = numbers[0] * (1.0 + math.sqrt(inner(p, p, sums)))
        sums[wide + 1] = numbers[1]
    sums[wide + 1] += inner(g, g, sums)
    rate = numbers[2]
    if number > 0 or rate == 0:
        rate = sums[wide] / math.sqrt(max(sums[wide + 1], np.finfo(p.dtype).tiny))
    add(p, g, p.dtype.type(-lr * rate))
    far = distance(p, start, g, sums)
    sums[wide] = max(sums[wide], far)


@Rule
def a_dog(p, g, memory, lr, number, numbers):
    """DoG's, of which the point w runs ahead; it has one vector more. Numbers: reps_rel and epsilon."""
    real, size, wide = p.dtype.type, len(p), CHAINS * (WIDTH // p.itemsize)
    start, far, sums = memory[:size], memory[size : 2 * size], memory[2 * size :]
    own = sums[wide : wide + 4]  # the distance, the sums of distances and of squared lengths, and alpha
    if number == 0:
        for k in range(size):
            start[k] = p[k]
            far[k] = p[k]
        own[0] = own[1] = numbers[0] * (1.0 + math.sqrt(inner(p, p, sums)))
        own[3] = 1.0
    own[2] += own[3] * own[3] * inner(g, g, sums)
    rate = own[0] / (math.sqrt(max(own[2], np.finfo(p.dtype).tiny)) + numbers[1])
    add(far, g, real(-lr * own[3] * rate))
    add(p, g, real(-lr * rate))
    ahead = distance(far, start, g, sums)
    own[0] = max(own[0], ahead)
    own[1] += own[0]
    own[3] = max(real(1.0), own[1] / (real(2.0) * own[0]))
    share = real(1.0) / own[3]
    for k in range(size):
        p[k] += share * (far[k] - p[k])
