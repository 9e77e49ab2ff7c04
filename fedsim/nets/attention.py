"""Attention and the encoder layer around it, as PyTorch computes them, with dropout that is drawn by name.

`take_over` makes of `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` the classes here, in place: parameters,
their names and the results are PyTorch's, without its copies and its ways apart for evaluation. What is said here is
said once, of one client's sequences [B, T, width] and of a stack's [C, B, T, width].

Queries q, keys k and values v [..., H, T, d] of H heads become

    softmax(q k^T / sqrt(d) + mask) v

with nothing but T x T products of each example's own in it, so that a stack is one long batch for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.nets import ghost, products
from fedsim.nets.layers import has_hooks
from fedsim.nets.together import hidden, together

Part = Callable[[Tensor], Tensor]
"""What a part of a layer makes of its input."""


def _by_kernel(heads: Sequence[Tensor], mask: Tensor | None, *, causal: bool) -> Tensor:
    """The module's formula for [N, H, T, d], by PyTorch's kernel; mask: as for `weights_of`."""
    query, key, value = heads
    if not hidden():
        return functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    given = [query, key, value]
    if mask is not None:
        given.append(mask.view(*(1,) * (4 - mask.dim()), *mask.shape).expand(len(query), -1, -1, -1))

    def of_stack(*rows: Tensor) -> Tensor:
        q, k, v, *rest = (part.flatten(0, 1) for part in rows)
        found = functional.scaled_dot_product_attention(q, k, v, rest[0] if rest else None, is_causal=causal)
        return found.view(len(rows[0]), -1, *found.shape[1:])

    return together(of_stack, *given)


def weights_of(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """The softmax of the module's formula for [N, H, T, d], [N, H, T, S].

    mask: whether a place may see another, or what is added for it; may have 1 in place of N, H and T.
    """
    width = query.shape[-1]
    scores = _times(query * width**-0.5, key.mT)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, dim=-1)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Products of the last two axes."""
    found = products.bmm(left.flatten(0, -3), right.flatten(0, -3))
    return found.view(*left.shape[:-2], *found.shape[1:])


def mask_of(attention: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """One mask, of what may be seen or what is added, of those of PyTorch's layers; None: a place sees all.

    attention: what is hidden from places, or added, [T, S] or [N, H, T, S]. padding: the same of keys, [N, S]. A place
    that could see nothing, as in a sequence of padding alone, sees all, where PyTorch's layers give NaN.
    """
    masks = [] if padding is None else [padding[:, None, None, :]]
    masks += [] if attention is None else [attention]
    if not masks:
        return None
    if all(mask.dtype == torch.bool for mask in masks):
        hidden = masks[0] if len(masks) == 1 else masks[0] | masks[1]
        return ~hidden | hidden.all(dim=-1, keepdim=True)
    added = sum(
        torch.zeros(()).to(mask.device).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
        for mask in masks
    )
    assert isinstance(added, Tensor)
    return added.masked_fill((added == -torch.inf).all(dim=-1, keepdim=True), 0.0)


def hidden_behind(length: int, device: torch.device) -> Tensor:
    """What a causal place does not see, [T, T]."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


class Attention(nn.MultiheadAttention):
    """PyTorch's attention of sequences to sequences of the same width.

    drop: a part that drops weights out by name, or None.
    """

    drop: nn.Module | None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Sequences [B, T, width] to the same, and the weights, as PyTorch's; see `mask_of`."""
        given = [query, key, value]
        alone = query.dim() == 2
        if alone or not self.batch_first:
            moved = {id(part): part.unsqueeze(0) if alone else part.transpose(0, 1) for part in given}
            given = [moved[id(part)] for part in given]
        if alone and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        if attn_mask is not None and attn_mask.dim() == 3:  # of each example and head
            attn_mask = attn_mask.view(-1, self.num_heads, *attn_mask.shape[1:])
        masks = attn_mask, key_padding_mask
        seen, weights = self.seen(self._heads(*given), *masks, causal=is_causal, weighs=need_weights)
        found: Tensor = self.out_proj(seen.transpose(1, 2).flatten(2))
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights.squeeze(0) if alone else weights
        if alone:
            return found.squeeze(0), weights
        return found if self.batch_first else found.transpose(0, 1), weights

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Of sequences [B, T, width] what the heads compare and add up, three [B, H, T, d]."""
        own: Any = self._parameters
        weight, bias = own["in_proj_weight"], own["in_proj_bias"]
        if query is key and key is value:
            mixed = functional.linear(query, weight, bias)
            return mixed.view(query.size(0), -1, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind()
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        parts = zip((query, key, value), weight.chunk(3), biases, strict=True)
        shape = query.size(0), -1, self.num_heads, self.head_dim
        return tuple(functional.linear(*part).view(shape).transpose(1, 2) for part in parts)

    def seen(
        self,
        heads: Sequence[Tensor],
        unseen: Tensor | None,
        padding: Tensor | None,
        *,
        causal: bool,
        weighs: bool = False,
        clients: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What queries, keys and values [N, H, T, d] make, and the weights [N, H, T, S] where they are asked for.

        unseen, padding: see `mask_of`. causal: a place sees none behind it, whatever `unseen` says. clients: how many
        lie one after the other in N, in a stack.
        """
        query, key, value = heads
        drops = self.drop is not None and bool(self.drop.active)
        by_kernel = not drops and not weighs
        if causal:
            unseen = None if by_kernel and padding is None else hidden_behind(query.shape[-2], query.device)
        mask = mask_of(unseen, padding)
        if by_kernel:
            return _by_kernel(heads, mask, causal=causal and mask is None), None
        weights = weights_of(query, key, mask)
        if self.drop is not None and clients is None:
            weights = self.drop(weights)
        elif self.drop is not None and clients is not None:
            weights = self.drop(weights.view(clients, -1, *weights.shape[1:])).flatten(0, 1)
        return _times(weights, value), weights if weighs else None


def lowered(layer: nn.Module, prefix: str) -> Callable[..., Tensor] | None:
    """The stacked function of an attention of sequences to themselves, [C, B, T, width], with padding [C, B, T]."""
    if type(layer) is not Attention or not layer.batch_first or has_hooks(layer) or has_hooks(layer.out_proj):
        return None

    def attention(named: Mapping[str, Tensor], x: Tensor, padding: Tensor | None, causal: bool = False) -> Tensor:
        clients, batch, length, width = x.shape
        mixed = products.affine(x.flatten(1, 2), named[f"{prefix}in_proj_weight"], named.get(f"{prefix}in_proj_bias"))
        mixed = ghost.noted(
            mixed.view(*x.shape[:3], -1),
            lambda: {f"{prefix}in_proj_weight": ghost.Products(x), f"{prefix}in_proj_bias": ghost.SHIFT},
        )
        mixed = mixed.view(clients * batch, length, 3, layer.num_heads, layer.head_dim)
        flat = None if padding is None else padding.flatten(0, 1)
        seen, _ = layer.seen(mixed.permute(2, 0, 3, 1, 4).unbind(0), None, flat, causal=causal, clients=clients)
        rows = seen.transpose(1, 2).reshape(clients, batch * length, width)
        out = products.affine(rows, named[f"{prefix}out_proj.weight"], named.get(f"{prefix}out_proj.bias"))
        read = rows.view(x.shape)
        return ghost.noted(
            out.view(x.shape),
            lambda: {f"{prefix}out_proj.weight": ghost.Products(read), f"{prefix}out_proj.bias": ghost.SHIFT},
        )

    return attention


class EncoderLayer(nn.TransformerEncoderLayer):
    """PyTorch's encoder layer: attention and two linear layers, each beside a way around, with norms.

    causal: whether a place sees none behind it, whatever masks say.
    """

    causal = False

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Sequences [B, T, width] to the same, as PyTorch's."""
        if self.causal:
            src_mask = hidden_behind(src.shape[1 if self.self_attn.batch_first else 0], src.device)
        causal = is_causal or self.causal

        def attention(x: Tensor) -> Tensor:
            found: Tensor = self.self_attn(x, x, x, src_key_padding_mask, False, src_mask, is_causal=causal)[0]
            return found

        parts: dict[str, Any] = {**self._modules, "self_attn": attention, "activation": self.activation}
        return self.compute(parts, src)

    def compute(self, part: Mapping[str, Part], x: Tensor) -> Tensor:
        """What the parts, by their names, make of sequences [..., T, width]."""

        def attended(x: Tensor) -> Tensor:
            return part["dropout1"](part["self_attn"](x))

        def fed(x: Tensor) -> Tensor:
            return part["dropout2"](part["linear2"](part["dropout"](part["activation"](part["linear1"](x)))))

        if self.norm_first:
            x = x + attended(part["norm1"](x))
            return x + fed(part["norm2"](x))
        x = part["norm1"](x + attended(x))
        return part["norm2"](x + fed(x))


def take_over(part: nn.Module) -> bool:
    """Make of a layer of PyTorch's the one here, in place; False: it is none, or one with something of its own."""
    if type(part) is nn.TransformerEncoder:
        # Which pads what it gives to the longest sequence of a batch, not of all.
        part.enable_nested_tensor = part.use_nested_tensor = False
        return False
    if has_hooks(part):
        return False
    if type(part) is nn.TransformerEncoderLayer:
        part.__class__ = EncoderLayer
        return True
    plain = type(part) is nn.MultiheadAttention and part._qkv_same_embed_dim
    if not plain or part.add_zero_attn or part.bias_k is not None:
        return False
    part.__class__ = Attention
    return True
