"""Each argument of each layer that a stack computes in a way of its own: the stack does as the layer, or is left."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.engine.executor import choose_network
from fedsim.nets import lowering
from fedsim.nets.attention import EncoderLayer
from fedsim.nets.dropout import Draw, NamedDropout, drawing
from fedsim.nets.layers import Residual
from fedsim.nets.network import Batch, Network, PlainNetwork
from fedsim.nets.normalisation import DIMENSIONS, BatchNorm
from fedsim.nets.prepared import prepare
from fedsim.nets.recurrence import DROPPING
from fedsim.nets.sequences import LastStep, MeanStep, Padded, Positions, Steps
from fedsim.nets.stack import Stack
from fedsim.testing.problems import DEVICE

# PyTorch says of some layers, when it first meets them, that they could be faster.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
C, B = 3, 5
VECTORS, IMAGES, SEQUENCES, TOKENS = (6,), (2, 8, 8), (5, 4), None
"""Shapes of an input; tokens are five of 0 .. 4."""
NOWHERE = {"device", "dtype", "_weight", "_freeze"}
"""Arguments of constructors that say where numbers lie, or what the first ones are."""


class Forward(nn.Module):
    """A module whose forward pass is any function of itself and its inputs."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], torch.Tensor], **parts: Any) -> None:
        super().__init__()
        self.made = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.made(self, x)


def with_head(*parts: nn.Module, shape: tuple[int, ...] | None) -> nn.Module:
    """The layers, flattened, with as many classes as are asked for behind them."""
    body = nn.Sequential(*parts, *([] if isinstance(parts[-1], LastStep) else [nn.Flatten()]))
    inputs = torch.zeros(2, 5, dtype=torch.int64) if shape is None else torch.ones(2, *shape)
    return nn.Sequential(*body, nn.Linear(body(inputs).shape[1], 3))


def behind(layer: nn.Module, shape: tuple[int, ...] | None) -> nn.Module:
    """The layer behind one whose outputs it may write to."""
    first = nn.Conv2d(2, 4, 3, padding=1) if shape == IMAGES else nn.Linear(shape[-1], 8) if shape else None
    first = None if isinstance(layer, nn.BatchNorm3d) else first
    return with_head(*([] if first is None else [first]), layer, shape=shape)


LINEAR = {"in_features": 6, "out_features": 8, "bias": False}
CONVOLUTION = {"in_channels": 2, "out_channels": 4, "kernel_size": (3, 2)}
POOL = {"kernel_size": 3, "stride": (1, 2), "padding": 1, "ceil_mode": True}
EMBEDDING = {"num_embeddings": 6, "embedding_dim": 4}
SEQUENCE = {"input_size": 4, "hidden_size": 6}
BATCH_NORM = {
    "num_features": (), "eps": (0.5,), "momentum": (0.4, None), "affine": (False,), "track_running_stats": (False,),
    "bias": (False,),
}  # fmt: skip
RECURRENT = {
    "input_size": (), "hidden_size": (3,), "num_layers": (2,), "bias": (False,), "batch_first": (False,),
    "dropout": (0.3,), "bidirectional": (True,),
}  # fmt: skip
ENCODER = {"d_model": 8, "nhead": 2, "dim_feedforward": 6, "batch_first": True}
Cases = dict[type[nn.Module], tuple[tuple[int, ...] | None, dict[str, Any], dict[str, tuple[Any, ...]]]]
# The shape of inputs, the arguments that are needed, and other values of each of the arguments.
LAYERS: Cases = {
    nn.Linear: (
        VECTORS,
        {"in_features": 6, "out_features": 8},
        {"in_features": (), "out_features": (5,), "bias": (False,)},
    ),
    nn.Conv2d: (
        IMAGES,
        CONVOLUTION,
        {
            "in_channels": (), "out_channels": (3,), "kernel_size": ((1, 3), 2), "stride": ((2, 1),),
            "padding": ((1, 2), "same", "valid"), "dilation": ((2, 1),), "groups": (2,), "bias": (False,),
            "padding_mode": ("reflect", "replicate", "circular"),
        },
    ),
    nn.GroupNorm: (
        IMAGES,
        {"num_groups": 2, "num_channels": 4},
        {"num_groups": (4, 1), "num_channels": (), "eps": (0.5,), "affine": (False,), "bias": (False,)},
    ),
    nn.LayerNorm: (
        VECTORS,
        {"normalized_shape": 8},
        {"normalized_shape": ((8,),), "eps": (0.5,), "elementwise_affine": (False,), "bias": (False,)},
    ),
    nn.BatchNorm1d: (VECTORS, {"num_features": 8}, BATCH_NORM),
    nn.BatchNorm2d: (IMAGES, {"num_features": 4}, BATCH_NORM),
    nn.BatchNorm3d: ((2, 2, 3, 2), {"num_features": 2}, BATCH_NORM),
    nn.Embedding: (
        TOKENS,
        EMBEDDING,
        {
            "num_embeddings": (7,), "embedding_dim": (3,), "padding_idx": (1, -5, 0), "max_norm": (0.5, 1e9),
            "norm_type": (1.0,), "scale_grad_by_freq": (True,), "sparse": (True,),
        },
    ),
    nn.LSTM: (SEQUENCES, SEQUENCE | {"batch_first": True}, RECURRENT | {"proj_size": (2,)}),
    nn.GRU: (SEQUENCES, SEQUENCE | {"batch_first": True}, RECURRENT | {"proj_size": ()}),
    nn.TransformerEncoderLayer: (
        SEQUENCES,
        ENCODER,
        {
            "d_model": (), "nhead": (4,), "dim_feedforward": (5,), "dropout": (0.0, 0.3),
            "activation": ("gelu", nn.SiLU(), functional.silu), "layer_norm_eps": (0.5,), "batch_first": (False,),
            "norm_first": (True,), "bias": (False,),
        },
    ),
    nn.TransformerEncoder: (
        SEQUENCES,
        {"num_layers": 2},
        {
            "encoder_layer": (), "num_layers": (1,), "norm": (nn.LayerNorm(8),), "enable_nested_tensor": (False,),
            "mask_check": (False,),
        },
    ),
    LastStep: (SEQUENCES, {}, {}),
    MeanStep: (SEQUENCES, {}, {}),
    Steps: (SEQUENCES, {}, {}),
    Positions: (SEQUENCES, {"length": 6, "width": 8}, {"length": (5,), "width": ()}),
    Padded: (TOKENS, {"padding": 1}, {"padding": (0, 9), "layers": ()}),
    nn.Identity: (VECTORS, {}, {}),
    nn.ReLU: (VECTORS, {}, {"inplace": (True,)}),
    nn.LeakyReLU: (VECTORS, {}, {"negative_slope": (0.4,), "inplace": (True,)}),
    nn.Tanh: (VECTORS, {}, {}),
    nn.Hardtanh: (
        VECTORS,
        {},
        {"min_val": (-0.1,), "max_val": (0.2,), "inplace": (True,), "min_value": (), "max_value": ()},  # older names
    ),
    nn.Dropout: (VECTORS, {}, {"p": (0.0, 0.3), "inplace": (True,)}),
    nn.ELU: (VECTORS, {}, {"alpha": (0.3,), "inplace": (True,)}),
    nn.SELU: (VECTORS, {}, {"inplace": (True,)}),
    nn.GELU: (VECTORS, {}, {"approximate": ("tanh",)}),
    nn.SiLU: (VECTORS, {}, {"inplace": (True,)}),
    nn.Sigmoid: (VECTORS, {}, {}),
    nn.Softplus: (VECTORS, {}, {"beta": (2.0,), "threshold": (0.3,)}),
    nn.MaxPool2d: (
        IMAGES,
        {"kernel_size": 3},
        {
            "kernel_size": (2,), "stride": ((1, 2),), "padding": (1,), "dilation": (2,), "return_indices": (True,),
            "ceil_mode": (True,),
        },
    ),
    nn.AvgPool2d: (
        IMAGES,
        {"kernel_size": 3, "padding": 1},
        {
            "kernel_size": ((2, 3),), "stride": (1,), "padding": (0,), "ceil_mode": (True,),
            "count_include_pad": (False,), "divisor_override": (2,),
        },
    ),
    nn.AdaptiveAvgPool2d: (IMAGES, {"output_size": 2}, {"output_size": ((3, None),)}),
    nn.AdaptiveMaxPool2d: (IMAGES, {"output_size": 2}, {"output_size": ((3, None),), "return_indices": (True,)}),
    nn.ZeroPad2d: (IMAGES, {"padding": 1}, {"padding": ((1, 0, 2, -1),)}),
    nn.Upsample: (
        IMAGES,
        {"scale_factor": 1.5, "mode": "bilinear"},
        {
            "size": (), "scale_factor": (2.0,), "mode": ("bicubic",), "align_corners": (True,),
            "recompute_scale_factor": (True,),
        },
    ),
    nn.Flatten: (IMAGES, {}, {"start_dim": (2, -2, 0), "end_dim": (2, -2)}),
}  # fmt: skip
BY_LOOP = {
    ("Embedding", "scale_grad_by_freq"), ("LSTM", "proj_size"),
}  # fmt: skip
REFUSED = {
    ("Embedding", "max_norm"), ("Embedding", "sparse"), ("LSTM", "batch_first"), ("GRU", "batch_first"),
    ("TransformerEncoderLayer", "batch_first"),
    *((f"BatchNorm{axes}d", "momentum", None) for axes in (1, 2, 3)),
    *((f"BatchNorm{axes}d", "track_running_stats") for axes in (1, 2, 3)),
    ("MaxPool2d", "return_indices"), ("AdaptiveMaxPool2d", "return_indices"), ("Flatten", "start_dim", 0),
}  # fmt: skip
VARIED = [
    (cls, option, value) for cls, (_, _, others) in LAYERS.items() for option in others for value in others[option]
]


def test_every_layer_and_every_argument_is_varied():
    lowered = {
        *lowering.ELEMENTWISE,
        *lowering.EXPONENTIAL,
        *lowering.IMAGEWISE,
        *(kind for kind, _ in lowering.LAYERS),
        *(kind for kind, _ in lowering.READERS),
    }
    stands_for = {NamedDropout: nn.Dropout, EncoderLayer: nn.TransformerEncoderLayer}
    stands_for |= {dropping: plain for plain, dropping in DROPPING.items()}
    lowered = {stands_for.get(kind, kind) for kind in lowered} | {nn.Flatten, *DIMENSIONS}
    assert lowered - {BatchNorm} == set(LAYERS)  # which stands for all of these
    for cls, (_, _, others) in LAYERS.items():
        if issubclass(cls, nn.RNNBase):  # whose arguments are those of its base, which it only hands on
            expected = set(inspect.signature(nn.RNNBase.__init__).parameters) - {"mode"}
        elif cls in DIMENSIONS:
            expected = set(inspect.signature(nn.modules.batchnorm._NormBase.__init__).parameters)
        else:
            own = cls.__init__ not in (nn.Module.__init__, nn.Identity.__init__)  # which take anything, and nothing
            expected = set(inspect.signature(cls.__init__).parameters) if own else set()
        assert set(others) == set(expected) - {"self"} - NOWHERE, cls


def examples(shape: tuple[int, ...] | None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if shape is None:
        x = torch.randint(0, 5, (C * B, 5), generator=generator)
    else:
        x = torch.randn(C * B, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (C * B,), generator=generator)


def slopes_of(network: Network, y: Stack, v: Stack, batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Losses and derivatives in forward mode; None: there are none of running statistics, or of a layer in PyTorch."""
    if network.layout.normalises:
        return None
    try:
        return network.derivatives(y, v, batch)
    except NotImplementedError:
        return None


def executed(make: Callable[[], nn.Module], shape: tuple[int, ...] | None) -> str:
    """By what a model is executed; where that is a stack, after it was held to the model itself.

    Losses, gradients, derivatives along a direction and outputs of three clients, one of whose batches is partly
    padding, in parameters of their own.
    """
    x, y = examples(shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    lists = torch.arange(C * B).view(C, B)
    problem = fedsim.supervised(x, y, model=model, clients=lists, dtype=torch.float64, device=DEVICE)
    name, network = choose_network(problem.model, problem.data, "auto", B)
    if name == "loop" and lowering.loses_to_a_loop(problem.model.module, 1):  # recurrent: faster so, but the same
        try:
            name, network = choose_network(problem.model, problem.data, "stacked", B)
        except InputError:
            return "loop"
    if name == "loop":
        return name
    plain, layout = PlainNetwork(problem.model.module, problem.model.layout, problem.model.loss), problem.model.layout
    moved = torch.randn(2, C, layout.dimension, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    start = problem.initial() + 0.1 * moved[0].to(DEVICE)
    stack, trained = layout.stack(start), layout.stack(start)  # whose statistics a training pass writes
    along = layout.stack(moved[1].to(DEVICE))
    weight = torch.full((C, B), 1 / B, dtype=torch.float64, device=DEVICE)
    weight[1] = torch.tensor([0.5, 0.5, 0, 0, 0])
    rows, before = lists.to(DEVICE), problem.data.x.clone()

    def batch(own: slice) -> Batch:
        draw = Draw(Streams(0), torch.arange(C, device=DEVICE)[own], 0, 0)
        return Batch(problem.data.x[rows[own]], problem.data.y[rows[own]], weight[own], draw)

    everyone = slice(0, C)
    losses, gradient = network.gradients(trained, batch(everyone))
    forward_mode = slopes_of(network, stack, along, batch(everyone))
    outputs = network.outputs(stack, problem.data.x[rows])
    for client in range(C):
        own = slice(client, client + 1)
        trimmed = batch(own).cut(5 if client != 1 else 2)
        alone = layout.stack(start[own])
        loss, expected = plain.gradients(alone, trimmed)
        for found, right in zip(trained.leaves, alone.leaves, strict=True):
            torch.testing.assert_close(found[own], right, rtol=0, atol=1e-12)
        torch.testing.assert_close(losses[own], loss, rtol=0, atol=1e-10)
        for found, right in zip(gradient.leaves, expected.leaves, strict=True):
            torch.testing.assert_close(found[own], right, rtol=0, atol=1e-10)
        expected_slopes = slopes_of(plain, stack[own], along[own], trimmed)
        assert (forward_mode is None) is (expected_slopes is None)
        for found, right in zip(forward_mode or (), expected_slopes or (), strict=True):
            torch.testing.assert_close(found[own], right, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            outputs[own], plain.outputs(stack[own], problem.data.x[rows[own]]), rtol=0, atol=1e-10
        )
    assert torch.equal(problem.data.x, before)
    return name


def made(cls: type[nn.Module], **changes: Any) -> Callable[[], nn.Module]:
    shape, needed, _ = LAYERS[cls]
    given = needed | changes
    if "recompute_scale_factor" in changes:
        given |= {"mode": "nearest"}
    if issubclass(cls, Steps):
        return lambda: with_head(nn.LSTM(4, 6, batch_first=True), cls(), shape=shape)
    if issubclass(cls, nn.RNNBase):
        layers = 2 if "dropout" in changes else given.get("num_layers", 1)
        return lambda: with_head(cls(**given | {"num_layers": layers}), LastStep(), shape=shape)
    if cls is nn.TransformerEncoder:
        return lambda: behind(cls(nn.TransformerEncoderLayer(**ENCODER), **given), shape)
    if cls is Padded:
        return lambda: with_head(Padded(given["padding"], nn.Embedding(6, 4), MeanStep()), shape=shape)
    if cls in (nn.Linear, nn.Conv2d, nn.Embedding):
        return lambda: with_head(cls(**given), nn.LeakyReLU(), shape=shape)
    return lambda: behind(cls(**given), shape)


@pytest.mark.parametrize("cls", LAYERS)
def test_a_layer_as_by_default_is_stacked(cls):
    assert executed(made(cls), LAYERS[cls][0]) == "stacked"


@pytest.mark.parametrize(("cls", "option", "value"), VARIED)
def test_an_argument_of_a_layer_is_kept_by_the_stack_or_the_stack_is_left(cls, option, value):
    make, shape = made(cls, **{option: value}), LAYERS[cls][0]
    if (cls.__name__, option) in REFUSED or (cls.__name__, option, value) in REFUSED:
        try:
            make()
        except (AttributeError, IndexError):  # a pair of tensors, or a batch in one row: no next layer takes that
            return
        with pytest.raises(InputError, match=r"^problem\.model = "):
            executed(make, shape)
    else:
        assert executed(make, shape) == ("loop" if (cls.__name__, option) in BY_LOOP else "stacked")


def hooked(register: str, hook: Callable[..., Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = with_head(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), shape=VECTORS)
        getattr(model[2], register)(hook)
        return model

    return make


def doubled(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return 2 * functional.linear(x, module.weight, module.bias)


def bound() -> nn.Module:
    model = with_head(nn.Linear(6, 8), nn.ReLU(), shape=VECTORS)
    model[0].forward = types.MethodType(doubled, model[0])
    return model


def elsewhere() -> nn.Module:
    model = bound()
    layer = model[0]
    layer.forward = lambda x: doubled(layer, x)
    return model


def token_table() -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 4))


def of_tokens(embedding: Callable[..., torch.Tensor], **options: Any) -> Callable[[], nn.Module]:
    forward = Forward(lambda own, x: embedding(x, own.table, **options))
    forward.table = token_table()
    return lambda: with_head(forward, shape=TOKENS)


FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None, str]] = {
    "a hook before": (hooked("register_forward_pre_hook", lambda m, x: (2 * x[0],)), VECTORS, "stacked"),
    "a hook behind": (hooked("register_forward_hook", lambda m, x, out: 2 * out), VECTORS, "stacked"),
    "a hook on the way back": (
        hooked("register_full_backward_hook", lambda m, x, out: tuple(2 * part for part in x)), VECTORS, "loop",
    ),
    "a hook before the way back": (
        hooked("register_full_backward_pre_hook", lambda m, out: tuple(2 * part for part in out)), VECTORS, "loop",
    ),
    "a forward pass of its own": (bound, VECTORS, "stacked"),
    "a function in place of one": (elsewhere, VECTORS, "refused"),
    "a norm of weights": (
        lambda: with_head(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), shape=VECTORS),
        VECTORS, "stacked",
    ),
    "an embedding": (of_tokens(functional.embedding), TOKENS, "stacked"),
    "an embedding with padding": (of_tokens(functional.embedding, padding_idx=1), TOKENS, "loop"),
    "an embedding with the last for padding": (of_tokens(functional.embedding, padding_idx=-1), TOKENS, "loop"),
    "an embedding by frequency": (of_tokens(functional.embedding, scale_grad_by_freq=True), TOKENS, "loop"),
    "an embedding of PyTorch's": (of_tokens(lambda x, table: torch.embedding(table, x, -1)), TOKENS, "stacked"),
    "padding of PyTorch's": (of_tokens(lambda x, table: torch.embedding(table, x, 1)), TOKENS, "loop"),
    "a layer with padding within": (
        lambda: with_head(Forward(lambda own, x: own.inner(x), inner=nn.Embedding(6, 4, padding_idx=1)), shape=TOKENS),
        TOKENS, "loop",
    ),
    "a bag": (lambda: with_head(nn.EmbeddingBag(6, 4), shape=TOKENS), TOKENS, "stacked"),
    "a bag with padding": (lambda: with_head(nn.EmbeddingBag(6, 4, padding_idx=1), shape=TOKENS), TOKENS, "stacked"),
    "a bag by frequency": (
        lambda: with_head(nn.EmbeddingBag(6, 4, scale_grad_by_freq=True), shape=TOKENS), TOKENS, "loop",
    ),
    "a frozen table with padding": (
        lambda: with_head(nn.Embedding.from_pretrained(torch.randn(6, 4), padding_idx=1), shape=TOKENS),
        TOKENS, "stacked",
    ),
    **{
        f"a residual block that writes by {cls.__name__}": (
            lambda cls=cls: with_head(
                nn.Linear(6, 7),
                Residual(nn.Sequential(cls(inplace=True), nn.Linear(7, 7)), nn.Sequential()), shape=VECTORS,
            ),
            VECTORS, "stacked",
        )
        for cls in (nn.ELU, nn.SiLU, nn.ReLU)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_a_layer_is_kept_by_the_stack_or_the_stack_is_left(name):
    make, shape, by = FORMS[name]
    if by == "refused":
        with pytest.raises(InputError, match=r"^problem\.model = .*function of elsewhere"):
            executed(make, shape)
    else:
        assert executed(make, shape) == by


@pytest.mark.parametrize("executor", ["loop", "auto", "stacked"])
def test_the_row_of_padding_stays_where_it_was(executor):
    x, y = examples(TOKENS)
    model = with_head(nn.Embedding(6, 4, padding_idx=1), shape=TOKENS)
    problem = fedsim.supervised(x, y, model=model, clients=torch.arange(C * B).view(C, B), device=DEVICE)
    client = {"kind": "sgd", "epochs": 2, "batch_size": 2, "lr": 0.5}
    result = fedsim.run(problem=problem, client=client, rounds=2, engine={"executor": executor}, save=False)
    table = result.model()[0].weight
    assert float(table[1].detach().abs().max()) == 0.0
    assert bool((table[[0, 2, 3, 4]] != model[0].weight[[0, 2, 3, 4]].to(DEVICE)).all())


def test_what_cannot_be_stacked_says_so_where_that_is_asked_for():
    x, y = examples(TOKENS)
    model = with_head(nn.Embedding(6, 4, scale_grad_by_freq=True), shape=TOKENS)
    problem = fedsim.supervised(x, y, model=model, clients=[range(5), range(5, 15)], device=DEVICE)
    with pytest.raises(InputError, match=r"engine\.executor = stacked: an embedding has scale_grad_by_freq"):
        fedsim.run(problem=problem, rounds=1, engine={"executor": "stacked"}, save=False)


def test_dropout_in_place_writes_to_its_inputs_what_it_gives_otherwise():
    found = []
    for inplace in (False, True):
        layer, x = prepare(nn.Sequential(nn.Dropout(0.5, inplace=inplace)))[0], torch.ones(2, 50)
        with drawing(Draw(Streams(0), torch.arange(2), 0, 0), stacked=True):
            found.append(layer(x))
        assert torch.equal(x, found[-1]) is inplace
    assert torch.equal(*found)
