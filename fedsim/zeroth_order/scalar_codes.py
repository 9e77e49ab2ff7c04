"""How a scalar crosses: in four bytes, or as a code of fewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

import torch
from torch import Tensor

from fedsim.core.options import one_of, options
from fedsim.exchange.messages import Scalar
from fedsim.zeroth_order.codec import OneByte, Sign


@options
class Float32:
    """A scalar as it is, in single precision; 0 for NaN and infinity. Four bytes."""

    def encode(self, values: Tensor, uniform: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Float32 of the same shape; there is nothing to choose."""
        return finite(values.to(torch.float32))

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values."""
        return codes.to(dtype)

    def nbytes(self, count: int) -> int:
        """Four bytes a scalar."""
        return 4 * count


ScalarCodec = Annotated[OneByte | Sign | Float32, one_of(byte=OneByte, sign=Sign, fp32=Float32)]
"""A code of scalars, or its name (byte, sign, fp32), or a table with `kind` and its options."""
CODECS: Mapping[str, type[OneByte] | type[Sign] | type[Float32]] = {"byte": OneByte, "sign": Sign, "fp32": Float32}


def described(codec: OneByte | Sign | Float32) -> dict[str, Scalar]:
    """A codec as settings of an order."""
    kind = next(name for name, made in CODECS.items() if type(codec) is made)
    return {"codec": kind} | {f"codec-{field.name}": getattr(codec, field.name) for field in fields(codec)}


def codec_of(config: Mapping[str, Scalar]) -> OneByte | Sign | Float32:
    """The codec that an order describes."""
    own = {name.removeprefix("codec-"): value for name, value in config.items() if name.startswith("codec-")}
    made: Any = CODECS[str(config["codec"])]
    codec: OneByte | Sign | Float32 = made(**own)
    return codec


def packed(codec: OneByte | Sign | Float32, codes: Tensor) -> Tensor:
    """Codes [k, G] as they cross: signs four a byte, uint8 [k, ceil(G / 4)]; others as they are."""
    if not isinstance(codec, Sign):
        return codes
    width = -(-codes.shape[1] // 4)
    filled = torch.zeros(len(codes), 4 * width, dtype=torch.uint8, device=codes.device)
    filled[:, : codes.shape[1]] = (codes + 1).to(torch.uint8)
    quads = filled.view(len(codes), width, 4)
    return quads[..., 0] | quads[..., 1] << 2 | quads[..., 2] << 4 | quads[..., 3] << 6


def unpacked(codec: OneByte | Sign | Float32, payload: Tensor, count: int) -> Tensor:
    """The codes [k, count] that crossed as a payload of `packed`. Two bits that are no sign's are a 0."""
    if not isinstance(codec, Sign):
        return payload
    parts = torch.stack([payload >> shift & 3 for shift in (0, 2, 4, 6)], dim=2).flatten(1)
    return torch.where(parts == 3, 1, parts)[:, :count].to(torch.int8) - 1


def finite(values: Tensor) -> Tensor:
    """The values with 0 in place of NaN and infinity: a step that cannot be taken is left out."""
    return torch.where(values.isfinite(), values, 0.0)
