"""Attention and recurrence: PyTorch's own numbers, alone and in a stack, with dropout, masks and padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.core.streams import Streams
from fedsim.nets.attention import Attention, EncoderLayer
from fedsim.nets.dropout import Draw, NamedDropout, drawing
from fedsim.nets.losses import IGNORED, CrossEntropy
from fedsim.nets.network import Batch, PlainNetwork, StackedNetwork
from fedsim.nets.prepared import prepare
from fedsim.nets.sequences import LastStep, MeanStep, Padded, Positions, Steps
from fedsim.nets.stack import Layout
from fedsim.parallel.cores import one_core_an_operation
from fedsim.problems.models.recurrent import LSTM
from fedsim.problems.models.transformers import GPT, Transformer

C, B, T, V, W = 3, 4, 5, 7, 8


class Own(nn.Module):
    """A forward pass of its own around PyTorch's layers."""

    def __init__(self, body: nn.Module, mask: bool = False) -> None:
        super().__init__()
        self.embedding, self.body, self.drop, self.head = nn.Embedding(V, W), body, nn.Dropout(0.2), nn.Linear(W, V)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        masks: dict[str, Any] = {}
        if self.mask:
            masks = {"src_key_padding_mask": x == 0, "mask": torch.ones(T, T, dtype=torch.bool).triu(1)}
        attention = isinstance(self.body, nn.MultiheadAttention)
        h = h + self.body(h, h, 2 * h)[0] if attention else self.body(h, **masks)
        return self.head(self.drop(h).mean(dim=1))


def layer(**given: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(W, 2, 12, **({"batch_first": True, "dropout": 0.3} | given))


def causal(**given: Any) -> nn.TransformerEncoderLayer:
    made = EncoderLayer(W, 2, 12, batch_first=True, **given)
    made.causal = True
    return made


def encoder(**given: Any) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(layer(**given), 2, enable_nested_tensor=True)


def among(*parts: nn.Module, outputs: int = W, read: nn.Module | None = None, padding: int | None = None) -> nn.Module:
    layers = nn.Embedding(V, W), *parts, MeanStep() if read is None else read, nn.Linear(outputs, V)
    return nn.Sequential(*layers) if padding is None else Padded(padding, *layers)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "encoder layer": lambda: among(layer()),
    "without dropout": lambda: among(layer(dropout=0.0)),
    "norm first, gelu, no bias": lambda: among(layer(norm_first=True, activation="gelu", bias=False)),
    "a module for activation": lambda: among(layer(activation=nn.SiLU())),
    "any activation": lambda: among(layer(activation=torch.sin)),
    "encoder": lambda: among(nn.TransformerEncoder(layer(), 2, nn.LayerNorm(W), enable_nested_tensor=False)),
    "causal": lambda: among(causal(dropout=0.0), read=LastStep()),
    "causal with dropout": lambda: among(Positions(T + 2, W), causal(dropout=0.3), read=LastStep()),
    "padded": lambda: among(layer(), layer(dropout=0.0), padding=0),
    "padded, any activation": lambda: among(layer(activation=torch.sin), padding=0),
    "causal, padded": lambda: among(causal(dropout=0.3), causal(dropout=0.0), read=LastStep(), padding=0),
    "lstm": lambda: among(nn.LSTM(W, 6, 2, batch_first=True, dropout=0.4), outputs=6, read=LastStep()),
    "gru": lambda: among(nn.GRU(W, 6, 2, batch_first=True), outputs=6, read=LastStep()),
    "gru with dropout": lambda: among(nn.GRU(W, 6, 3, batch_first=True, dropout=0.4), outputs=6, padding=0),
    "both ways, no bias": lambda: among(
        nn.LSTM(W, 6, 2, batch_first=True, dropout=0.4, bidirectional=True, bias=False), outputs=12
    ),
    "gru both ways": lambda: among(nn.GRU(W, 6, batch_first=True, bidirectional=True, bias=False), outputs=12),
    "a forward of its own": lambda: Own(encoder()),
    "with masks": lambda: Own(encoder(), mask=True),
    "transformer": lambda: Transformer(width=W, heads=2, hidden=6, dropout=0.2).build((T,), V, V),
    "transformer of numbers": lambda: nn.Sequential(
        nn.Embedding(V, 3), Transformer(width=W, heads=2, hidden=6, read="every").build((T, 3), V, 0)
    ),
    "gpt": lambda: GPT(width=W, heads=2, hidden=6, dropout=0.2).build((T,), V, V),
    "gpt, padded": lambda: GPT(width=W, heads=2, hidden=6, dropout=0.2, padding=0, tied=False).build((T,), V, V),
    "lstm of every step": lambda: LSTM(hidden=6, read="every").build((T,), V, V),
    "attention alone": lambda: Own(nn.MultiheadAttention(W, 2, dropout=0.3, batch_first=True)),
    "attention with bias": lambda: Own(nn.MultiheadAttention(W, 2, dropout=0.3, batch_first=True, bias=False)),
}


def made(make: Callable[[], nn.Module], clients: int = C, dtype: torch.dtype = torch.float64) -> Any:
    """A model's networks, and clients with parameters, tokens and targets of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = prepare(make()).to(dtype)
        layout = Layout.of(dict(model.named_parameters()))
        y = layout.stack(torch.randn(clients, layout.dimension, dtype=dtype) * 0.3)
        x = torch.randint(1, V, (clients, B, T))
        x[:, 1, 3:], x[:, 2] = 0, 0  # one that is padded, and one that is nothing but padding
        every = model(x[0]).dim() == 3
        targets = torch.randint(0, V, (clients, B, T) if every else (clients, B))
    if every:
        targets[:, 1, 3:] = IGNORED
    weight = torch.full((clients, B), 1 / B, dtype=dtype)
    batch = Batch(x, targets, weight, Draw(Streams(0), torch.arange(clients), 3, 1))
    loss = CrossEntropy().fitted(targets[0], "classes", V)
    return StackedNetwork(model, layout, loss), PlainNetwork(model, layout, loss), y, batch


def row(batch: Batch, own: slice) -> Batch:
    draw = Draw(batch.draw.streams, batch.draw.clients[own], batch.draw.turn, batch.draw.step)
    return Batch(batch.x[own], batch.y[own], batch.weight[own], draw)


@pytest.mark.parametrize("name", MODELS)
def test_a_stack_computes_what_each_client_computes(name):
    stacked, plain, y, batch = made(MODELS[name])
    losses, gradient = stacked.gradients(y, batch)
    outputs, calm = stacked.outputs(y, batch.x), stacked.values(y, batch)
    assert bool(outputs.isfinite().all())
    assert bool(gradient.flat().isfinite().all())
    for client in range(C):
        own = slice(client, client + 1)
        expected, wanted = plain.gradients(y[own], row(batch, own))
        assert torch.allclose(losses[own], expected, rtol=0, atol=1e-9)
        assert torch.allclose(gradient.flat()[own], wanted.flat(), rtol=0, atol=1e-9)
        assert torch.allclose(outputs[own], plain.outputs(y[own], batch.x[own]), rtol=0, atol=1e-9)
    dropping = any(isinstance(part, NamedDropout) and part.p > 0 for part in plain.model.parts())
    assert torch.equal(losses, calm) is not dropping


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_bit_of_a_client_depends_on_its_company(name, dtype):
    stacked, _, y, batch = made(MODELS[name], clients=7, dtype=dtype)
    with one_core_an_operation():
        _, whole = stacked.gradients(y, batch)
        outputs = stacked.outputs(y, batch.x)
        for count in (1, 2):
            own = slice(4, 4 + count)
            assert torch.equal(stacked.gradients(y[own], row(batch, own))[1].flat(), whole.flat()[own])
            assert torch.equal(stacked.outputs(y[own], batch.x[own]), outputs[own])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A module of PyTorch's as it evaluates, and what stands in its place."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = make().double().eval()
        for own in module.parameters():
            nn.init.normal_(own, std=0.3)
    return module, prepare(nn.Sequential(module))[0]


def assert_same(theirs: Any, ours: Any, *inputs: Tensor, **options: Any) -> None:
    """The same outputs, and gradients of all parameters."""
    wanted, found = theirs(*inputs, **options), ours(*inputs, **options)
    for mine, one in zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]:
        pairs = zip(mine, one, strict=True) if isinstance(mine, tuple) else [(mine, one)]
        assert all(a is b is None or torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in pairs)
    wanted, found = (made[0] if isinstance(made, tuple) else made for made in (wanted, found))
    slopes = [
        torch.autograd.grad(outputs.square().sum(), list(module.parameters()))
        for module, outputs in ((theirs, wanted), (ours, found))
    ]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(*slopes, strict=True))


PADDING = torch.tensor([[False] * 5, [False, False, True, True, True], [False] * 4 + [True]])
CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
BY_HEAD = (random(6, 5, 5, seed=3) > 1) & ~torch.eye(5, dtype=torch.bool)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"key_padding_mask": PADDING},
        {"attn_mask": CAUSAL},
        {"attn_mask": CAUSAL, "is_causal": True},
        {"attn_mask": BY_HEAD, "average_attn_weights": False},
        {"attn_mask": random(5, 5, seed=4), "key_padding_mask": torch.zeros(3, 5).double().masked_fill(PADDING, -9.0)},
        {"attn_mask": CAUSAL, "key_padding_mask": PADDING, "is_causal": True},
    ],
)
def test_attention_is_pytorchs(masks, need_weights):
    x, y, z = (random(3, 5, W, seed=seed) for seed in range(3))
    theirs, ours = pair(lambda: nn.MultiheadAttention(W, 2, dropout=0.3, batch_first=True))
    assert type(ours) is Attention
    for inputs in ((x, x, x), (x, y, z)):
        assert_same(theirs, ours, *inputs, need_weights=need_weights, **masks)
    theirs, ours = pair(lambda: nn.MultiheadAttention(W, 2, bias=False))
    assert_same(theirs, ours, *(part.transpose(0, 1) for part in (x, y, y)), need_weights=need_weights, **masks)
    if masks.keys() <= {"attn_mask", "is_causal"}:
        assert_same(theirs, ours, x[0], x[0], x[0], need_weights=need_weights, **masks)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.GRU(W, 6, 3, dropout=0.3, batch_first=True, bidirectional=True),
        lambda: nn.LSTM(W, 6, 3, dropout=0.3, batch_first=True, bias=False),
        lambda: nn.LSTM(W, 6, 2, dropout=0.3, proj_size=4, bidirectional=True),
    ],
)
def test_recurrent_layers_with_dropout_between_them_are_pytorchs_in_evaluation(make):
    theirs, ours = pair(make)
    assert type(ours) is not type(theirs)
    assert_same(theirs, ours, random(3, 5, W))
    begun = theirs(random(3, 5, W, seed=1))[1]
    begun = tuple(state.detach() for state in begun) if isinstance(begun, tuple) else begun.detach()
    assert_same(theirs, ours, random(3, 5, W), begun)


def test_what_others_have_made_of_a_layer_is_left_to_them():
    class Mine(nn.TransformerEncoderLayer):
        pass

    hooked = layer(dropout=0.0)
    hooked.register_forward_hook(lambda _, __, output: 2 * output)
    model = prepare(nn.ModuleList([Mine(W, 2), hooked, nn.MultiheadAttention(W, 2, kdim=3)]))
    assert [type(part) for part in model] == [Mine, nn.TransformerEncoderLayer, nn.MultiheadAttention]
    with pytest.raises(Exception, match="global generator"):
        prepare(nn.Sequential(nn.MultiheadAttention(W, 2, kdim=3, dropout=0.1)))


def test_weights_of_attention_are_dropped_by_their_name():
    ours = prepare(nn.Sequential(nn.MultiheadAttention(W, 1, dropout=0.4, batch_first=True)).double())[0]
    x, clients = random(2, 5, W), torch.tensor([6])
    still, weights = ours(x, x, x)
    with drawing(Draw(Streams(2), clients, 1, 4), stacked=False):
        found, dropped = ours(x, x, x, need_weights=True)
        again, _ = ours(x, x, x, need_weights=False)
    for call, own in enumerate((dropped, None)):
        kept = Streams(2).uniform(f"dropout/0/{call}", clients, (2, 5, 5), turn=1, step=4)[0] >= 0.4
        share = weights * kept / 0.6
        value = nn.functional.linear(x, ours.in_proj_weight[2 * W :], ours.in_proj_bias[2 * W :])
        assert torch.allclose((found, again)[call], ours.out_proj(share @ value), rtol=0, atol=1e-12)
        assert own is None or torch.allclose(own, share, rtol=0, atol=1e-12)
    assert not torch.allclose(found, still)


@pytest.mark.parametrize("name", ["encoder", "padded", "causal", "with masks", "gru with dropout"])
def test_forward_mode_goes_through_a_stack(name):
    stacked, _, y, batch = made(MODELS[name])
    along = stacked.layout.stack(random(C, stacked.layout.dimension, seed=5))
    _, slopes = stacked.derivatives(y, along, batch)
    step = 1e-6
    ahead, behind = (stacked.values(stacked.layout.stack(y.flat()).add_(along, way * step), batch) for way in (1, -1))
    assert torch.allclose(slopes, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["padded", "causal, padded", "gru with dropout", "gpt, padded"])
def test_a_padded_sequence_says_what_it_says_without_its_padding(name):
    """In a stack and in the loop, whatever token comes behind."""
    stacked, plain, y, batch = made(MODELS[name])
    for network in (stacked, plain):
        short, long = network.outputs(y, batch.x[:, :2, :3]), network.outputs(y, batch.x[:, :2])
        if short.dim() == 4:
            assert torch.allclose(short, long[:, :, :3], rtol=0, atol=1e-12)
        else:
            assert torch.allclose(short[:, 1], long[:, 1], rtol=0, atol=1e-12)
            assert not torch.allclose(short[:, 0], long[:, 0])  # which goes on


@pytest.mark.parametrize("padding", [None, 0])
def test_a_later_token_changes_nothing_before_it(padding):
    stacked, plain, y, batch = made(lambda: among(causal(), causal(dropout=0.0), read=Steps(), padding=padding))
    other = batch.x.clone()
    other[:, :, 3] = 1 + other[:, :, 3] % 2
    for network in (stacked, plain):
        one, two = network.outputs(y, batch.x), network.outputs(y, other)
        assert torch.equal(one[:, :2, :3], two[:, :2, :3])
        assert not torch.allclose(one[:, :, 3:], two[:, :, 3:])


def test_an_encoder_evaluates_padded_sequences_as_it_trains_them():
    """PyTorch's own gives zeros at padding."""
    theirs, ours = pair(lambda: encoder(dropout=0.0))
    x, padding = random(2, 5, W), PADDING[1:2].expand(2, 5)
    with torch.no_grad():
        expected = theirs.train()(x, src_key_padding_mask=padding)
        assert torch.allclose(ours.eval()(x, src_key_padding_mask=padding), expected, rtol=0, atol=1e-12)
