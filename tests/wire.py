"""Messages for real: byte strings of what compressors send, and what is read from them again.

A message is what the transforms of a list lay down, the last one's numbers first, then what stands beside, as bits, the
highest first, filled up to whole bytes once at the end. What both ends know is not in it: options, the length of the
vector, the sets of random-k.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fedsim.compression.ef21 import EF21
from fedsim.compression.ef21_plus import EF21Plus
from fedsim.compression.groups import norm
from fedsim.compression.half import Half
from fedsim.compression.integer import Integer
from fedsim.compression.l_greco import LGreCo
from fedsim.compression.lengths import place_bits
from fedsim.compression.low_rank import LowRank
from fedsim.compression.natural import Natural
from fedsim.compression.qsgd import QSGD
from fedsim.compression.random_k import RandomK
from fedsim.compression.sign import Sign
from fedsim.compression.terngrad import TernGrad
from fedsim.compression.top_k import TopK
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Vector

LISTS = {
    "top_k": [TopK(k=20)],
    "top_k with a bit for each": [TopK(ratio=0.5)],
    "top_k of layers": [TopK(ratio=0.02, per="layer")],
    "top_k by rice": [TopK(ratio=0.05, index="rice")],
    "random_k": [RandomK(k=20)],
    "qsgd": [QSGD(levels=4)],
    "qsgd of layers by elias": [QSGD(levels=1, per="layer", code="elias")],
    "qsgd that elias would lengthen": [QSGD(levels=127, per=10, code="elias")],
    "terngrad": [TernGrad(per=100)],
    "natural": [Natural()],
    "sign": [Sign(per="layer")],
    "fp16": [Half()],
    "bf16": [Half(format="bf16")],
    "integer": [Integer(per=64)],
    "integer of three bits": [Integer(bits=3, rounding="random")],
    "low_rank": [LowRank(rank=2, warm_start=False)],
    "top_k, qsgd": [TopK(k=20), QSGD(levels=4, code="elias")],
    "top_k by rice, integer": [TopK(ratio=0.05, index="rice"), Integer(per=16)],
    "top_k of layers, natural": [TopK(ratio=0.1, per="layer"), Natural()],
    "random_k, fp16": [RandomK(k=15), Half()],
    "low_rank, sign": [LowRank(rank=1, warm_start=False), Sign(per=50)],
    "ef21_plus": [EF21Plus(compressor=TopK(ratio=0.1))],
    "l_greco of top_k": [
        LGreCo(compressor={"kind": "top_k", "ratio": 0.1}, candidates=(0.03, 0.1, 0.3), every=1),
    ],
    "l_greco of low_rank": [
        LGreCo(compressor={"kind": "low_rank", "rank": 2, "warm_start": False}, candidates=(1, 2, 3), every=2),
    ],
    "l_greco of random_k": [
        LGreCo(compressor={"kind": "random_k", "ratio": 0.2}, candidates=(0.1, 0.2), every=1, alpha=1.4),
    ],
    "l_greco of qsgd by elias": [
        LGreCo(compressor={"kind": "qsgd", "levels": 8, "code": "elias"}, candidates=(2, 4, 8, 16, 32), every=1),
    ],
}
"""Lists of transforms, each kind and some one after the other."""


class Writer:
    """Bits, written."""

    def __init__(self):
        self.parts = []

    def whole(self, values, width):
        values = np.atleast_1d(np.asarray(values, dtype=np.int64))
        assert ((values >= 0) & (values < 2**width)).all()
        self.parts.append(((values[:, None] >> np.arange(width - 1, -1, -1)) & 1).astype(np.uint8).ravel())

    def floats(self, values):
        values = np.atleast_1d(values)
        self.parts.append(np.unpackbits(values.astype(values.dtype.newbyteorder(">")).view(np.uint8)))

    def unary(self, count):
        self.parts.append(np.array([1] * count + [0], dtype=np.uint8))

    def gamma(self, value):
        length = int(value).bit_length()
        self.whole(int(value), 2 * length - 1)  # so many zeros first as digits follow the leading one

    def bytes(self):
        return np.packbits(np.concatenate([np.zeros(0, dtype=np.uint8), *self.parts])).tobytes()


class Reader:
    """Bits, read."""

    def __init__(self, message):
        self.bits, self.at = np.unpackbits(np.frombuffer(message, dtype=np.uint8)).astype(np.int64), 0

    def whole(self, count, width):
        taken = self.bits[self.at : self.at + count * width].reshape(count, width)
        self.at += count * width
        return taken @ (1 << np.arange(width - 1, -1, -1)) if width else np.zeros(count, dtype=np.int64)

    def floats(self, count, dtype):
        size = 8 * np.dtype(dtype).itemsize * count
        held = np.packbits(self.bits[self.at : self.at + size]).view(np.dtype(dtype).newbyteorder(">"))
        self.at += size
        return held.astype(dtype)

    def unary(self):
        count = 0
        while self.bits[self.at + count]:
            count += 1
        self.at += count + 1
        return count

    def gamma(self):
        zeros = 0
        while not self.bits[self.at + zeros]:
            zeros += 1
        self.at += zeros
        return int(self.whole(1, zeros + 1)[0])


def ends(groups):
    return np.repeat(np.arange(len(groups)), groups)


def write(transform, out, given, sent):
    """Write the numbers of one client that the last transform sends: `sent`, made of what it was handed, `given`."""
    if isinstance(transform, QSGD):
        norms, levels = scales_of(transform, given), levels_of(transform, given, sent)
        if transform.code == "fixed":
            out.floats(norms)
            out.whole(levels + transform.levels, (2 * transform.levels).bit_length())
            return
        coded, plain = Writer(), Writer()
        places = levels.nonzero()[0]
        coded.gamma(len(places) + 1)
        for gap, level in zip(np.diff(places, prepend=-1), levels[places], strict=True):
            coded.gamma(gap)
            coded.whole(int(level < 0), 1)
            coded.gamma(abs(level))
        plain.whole(levels + transform.levels, (2 * transform.levels).bit_length())
        shorter = sum(map(len, coded.parts)) < sum(map(len, plain.parts))
        norms[0] = np.copysign(norms[0], 1.0 if shorter else -1.0)
        out.floats(norms)
        out.parts += coded.parts if shorter else plain.parts
    elif isinstance(transform, TernGrad):
        digits = np.sign(sent).astype(np.int64) + 1
        digits = np.pad(digits, (0, -len(digits) % 5)).reshape(-1, 5)
        out.floats(scales_of(transform, given))
        out.whole(digits @ 3 ** np.arange(5), 8)
    elif isinstance(transform, Natural):
        width = 9 if sent.itemsize == 4 else 12
        out.whole(sent.view(f"u{sent.itemsize}").astype(np.uint64) >> np.uint64(8 * sent.itemsize - width), width)
    elif isinstance(transform, Sign):
        out.floats(np.array([np.abs(part[:1]) for part in parts_of(transform, sent)]).ravel())
        out.whole(given >= 0, 1)
    elif isinstance(transform, Half) and transform.format == "bf16":
        out.whole(sent.astype(np.float32).view(np.uint32) >> 16, 16)
    elif isinstance(transform, Half):
        exponent = 15 - int(np.frexp(np.abs(given).max())[1])
        out.whole(exponent + 2 ** (2 * sent.itemsize - 1), 2 * sent.itemsize)
        out.floats(np.ldexp(sent, exponent).astype(np.float16))
    elif isinstance(transform, Integer):
        scales = scales_of(transform, given)
        step = np.where(scales == 0, 1, scales)[ends(transform.groups(len(given)))]
        out.floats(scales)
        out.whole(np.rint(sent / step).astype(np.int64) + transform.most, transform.bits)
    else:
        out.floats(sent)


def read(transform, found, count, dtype):
    """Read what `write` has written: `count` numbers of a type."""
    if isinstance(transform, TopK | RandomK | LowRank):
        return found.floats(count, dtype)
    if isinstance(transform, Natural):
        width, size = (9, 4) if dtype == np.float32 else (12, 8)
        return (
            (found.whole(count, width).astype(np.uint64) << np.uint64(8 * size - width)).astype(f"u{size}").view(dtype)
        )
    if isinstance(transform, Half) and transform.format == "bf16":
        return (found.whole(count, 16).astype(np.uint32) << 16).view(np.float32).astype(dtype)
    if isinstance(transform, Half):
        bits = 2 * np.dtype(dtype).itemsize
        exponent = int(found.whole(1, bits)[0]) - 2 ** (bits - 1)
        return np.ldexp(found.floats(count, np.float16).astype(dtype), -exponent)
    groups = transform.groups(count)
    scales = found.floats(len(groups), dtype)
    each = np.abs(scales)[ends(groups)]
    if isinstance(transform, TernGrad):
        digits = found.whole(-(-count // 5), 8)[:, None] // 3 ** np.arange(5) % 3
        return each * (digits.ravel()[:count] - 1).astype(dtype)
    if isinstance(transform, Sign):
        return np.where(found.whole(count, 1) == 1, each, -each)
    if isinstance(transform, Integer):
        return each * (found.whole(count, transform.bits) - transform.most).astype(dtype)
    levels = np.zeros(count, dtype=np.int64)
    if transform.code == "elias" and not np.signbit(scales[0]):
        place = -1
        for _ in range(found.gamma() - 1):
            place += found.gamma()
            sign = -1 if found.whole(1, 1)[0] else 1
            levels[place] = sign * found.gamma()
    else:
        levels = found.whole(count, (2 * transform.levels).bit_length()) - transform.levels
    return each / np.dtype(dtype).type(transform.levels) * levels.astype(dtype)


def write_beside(transform, out, numbers, places):
    """Write the places, ascending, of what a top-k selects among so many numbers."""
    if not isinstance(transform, TopK):
        return
    if transform.index == "rice":
        gaps = np.diff(places, prepend=-1) - 1
        best = min(range(32), key=lambda p: sum(int(gap >> p) + 1 + p for gap in gaps))
        out.whole(best, 5)
        for gap in gaps:
            out.unary(int(gap >> best))
            out.whole(int(gap & (2**best - 1)), best)
        return
    first = 0
    for size, count in transform.kept(numbers):
        own = places[(places >= first) & (places < first + size)] - first
        width = max(0, size - 1).bit_length()
        if count * width <= size:
            out.whole(own, width)
        else:
            out.whole(np.isin(np.arange(size), own), 1)
        first += size


def read_beside(transform, found, numbers):
    """Read the places that `write_beside` has written."""
    if transform.index == "rice":
        best = int(found.whole(1, 5)[0])
        gaps = [
            (found.unary() << int(best)) + int(found.whole(1, int(best))[0]) for _ in range(transform.total(numbers))
        ]
        return np.cumsum(np.array(gaps) + 1) - 1
    places, first = [], 0
    for size, count in transform.kept(numbers):
        width = max(0, size - 1).bit_length()
        own = found.whole(count, width) if count * width <= size else found.whole(size, 1).nonzero()[0]
        places.append(first + own)
        first += size
    return np.concatenate(places)


def parts_of(transform, values):
    return np.split(values, np.cumsum(transform.groups(len(values)))[:-1])


def scales_of(transform, given):
    """The norms, or the largest numbers, that cross beside codes."""
    if isinstance(transform, QSGD):
        return np.array([norm(torch.from_numpy(part)).numpy() for part in parts_of(transform, given)]).astype(
            given.dtype
        )
    scales = np.array([np.abs(part).max() for part in parts_of(transform, given)])
    return scales / given.dtype.type(transform.most) if isinstance(transform, Integer) else scales


def levels_of(transform, given, sent):
    norms = scales_of(transform, given)[ends(transform.groups(len(given)))]
    return np.rint(sent / np.where(norms == 0, 1, norms) * transform.levels).astype(np.int64)


def stages(chain, rows, sender, name="delta"):
    """The vector [C, n] of that name before each transform, with what senders remember for it, and after the last."""
    found = [Vector(rows.flatten(1), Size(rows[0].numel(), 8 * rows.element_size()), sender)]
    for transform, own, place in of_name(chain, sender, name):
        found[-1] = replace(found[-1], sender=own, place=place)
        found.append(transform.encode(found[-1]))
    return found


def of_name(chain, sender, name):
    """The transforms of a vector, with what senders remember for each, and the vector's place among those it covers."""
    found = []
    for number, transform in enumerate(chain.transforms):
        names = transform.vectors or (chain.usual,)
        if name in names:
            found.append((transform, sender.of(f"transforms/{number}/{name}/"), names.index(name)))
    return found


def message(chain, found, row, name="delta"):
    """The byte string of a row of what `stages` has found."""
    own, out = [one for one, _, _ in of_name(chain, found[0].sender, name)], Writer()
    lay_down(own, out, [replace(one, rows=one.rows[[row]], sender=one.sender[torch.tensor([row])]) for one in found])
    return out.bytes()


def lay_down(transforms, out, found):
    """Write what transforms make of the first of a single row's vectors: what crosses of the last one, then places."""
    last, (before, after) = transforms[-1], found[-2:]
    if isinstance(last, LGreCo):
        chosen = after.sender.state["chosen"][0].long() + last.usual
        out.whole(chosen, place_bits(len(last.ways)))
        for place, (number, (_, ways)) in enumerate(
            zip(chosen.tolist(), last.layers(before.size.numbers), strict=True)
        ):
            part = last.part(before, place, number)
            lay_down([ways[number]], out, [part, ways[number].encode(part)])
    elif isinstance(last, EF21Plus):
        own, estimate = last.made["compressor"], before.sender.state["estimate"]
        both = [replace(before, rows=rows) for rows in (before.rows, before.rows - estimate)]
        direct = not torch.equal(own.encode(both[1]).rows, after.rows)
        given = both[0] if direct else both[1]
        lay_down([own], out, [given, own.encode(given)])
        out.whole(int(direct), 1)
    else:
        write(last, out, before.rows[0].numpy(), after.rows[0].numpy())
    for transform, vector in zip(transforms, found, strict=False):
        if isinstance(transform, TopK):
            write_beside(transform, out, vector.size.numbers, places_of(transform, vector.rows[0]))


def arrived(chain, message, length, dtype, sender, name="delta"):
    """What a receiver reads, an array [n], who remembers what the sender does, C = 1."""
    found = Reader(message)
    read_back = receive(of_name(chain, sender, name), found, length, dtype)
    assert len(found.bits) - found.at < 8
    return read_back


def receive(own, found, length, dtype):
    """Read what `lay_down` has written, and take back what the transforms have done."""
    lengths, bits, kind = [length], torch.finfo(dtype).bits, torch.zeros(0, dtype=dtype).numpy().dtype
    for transform, _, _ in own:
        lengths.append(transform.size(Size(lengths[-1], bits)).numbers)
    last, sender, at = own[-1]
    if isinstance(last, LGreCo):
        layers = last.layers(lengths[-2])
        chosen = found.whole(len(layers), place_bits(len(last.ways)))
        parts = []
        for place, (number, (size, ways)) in enumerate(zip(chosen.tolist(), layers, strict=True)):
            apart = replace(sender, streams=sender.streams.apart(f"l-greco/{place}"))
            parts.append(receive([(ways[number], apart, at)], found, size, dtype))
        numbers = np.concatenate(parts)
    elif isinstance(last, EF21Plus):
        numbers = receive([(last.made["compressor"], sender, at)], found, lengths[-2], dtype)
        if not found.whole(1, 1)[0]:
            numbers = numbers + sender.state["estimate"][0].numpy()
    else:
        numbers = read(last, found, lengths[-1], kind)
    chosen = {
        number: read_beside(transform, found, lengths[number])
        for number, (transform, _, _) in enumerate(own)
        if isinstance(transform, TopK)
    }
    for number, (transform, sender, place) in reversed([*enumerate(own)]):
        if number in chosen:
            spread = np.zeros(lengths[number], dtype=kind)
            spread[chosen[number]] = numbers
            numbers = spread
        elif isinstance(transform, RandomK | LowRank):
            nothing = Vector(torch.zeros(1, lengths[number], dtype=dtype), Size(lengths[number], bits), sender, place)
            ((decode, _, _),) = transform.encode(nothing).steps  # which does not depend on the numbers
            numbers = decode(torch.from_numpy(numbers).unsqueeze(0))[0].numpy()
        elif isinstance(transform, EF21):
            numbers = numbers + sender.state["estimate"][0].numpy()
    return numbers


def places_of(transform, row):
    """The places of the largest, found one after the other."""
    places, first = [], 0
    for size, count in transform.kept(len(row)):
        own = np.abs(row[first : first + size].numpy())
        places += [first + place for place in np.argsort(-own, kind="stable")[:count]]
        first += size
    return np.array(sorted(places))
