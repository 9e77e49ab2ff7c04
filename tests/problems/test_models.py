from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.nets.attention import EncoderLayer
from fedsim.nets.sequences import MeanStep, Padded, Positions, Steps
from fedsim.problems.datasets import Dataset
from fedsim.problems.models import LastStep, Residual, initialise
from fedsim.problems.models.convolutional import CNN, LeNet, ResNet
from fedsim.problems.models.dense import MLP, Logistic
from fedsim.problems.models.recurrent import GRU, LSTM
from fedsim.problems.models.transformers import GPT, Transformer
from fedsim.problems.modules import build_model

IMAGE = (1, 28, 28)
MODELS = [
    # Parameters of each, by hand from the layers' shapes.
    (Logistic(), (8, 8), 10, 0, 64 * 10 + 10),
    (MLP(), (64,), 10, 0, 64 * 64 + 64 + 64 * 10 + 10),
    (MLP(norm="batch"), (64,), 10, 0, 64 * 2 + 64 * 65 + 64 * 2 + 64 * 10 + 10),
    (MLP(hidden=(7,), norm="layer"), (5,), 3, 0, 5 * 2 + 7 * 6 + 7 * 2 + 3 * 8),
    (MLP(hidden=()), (5,), 3, 0, 5 * 3 + 3),
    (MLP(hidden=(7, 6), activation="tanh"), (5,), 1, 0, 5 * 7 + 7 + 7 * 6 + 6 + 6 + 1),
    (CNN(), IMAGE, 10, 0, 1_663_370),  # the paper's count
    (CNN(), (3, 33, 18), 62, 0, 32 * 76 + 64 * 801 + 512 * (64 * 8 * 4 + 1) + 62 * 513),
    (LeNet(), IMAGE, 10, 0, 44_426),
    (LeNet(), (3, 32, 32), 10, 0, 62_006),
    # stem 3*3*9+6; stages of 3, 6, 12 channels: two 3x3 convolutions, two norms, and where the size or the
    # channels change a 1x1 convolution with its norm.
    (
        ResNet(width=3),
        (1, 8, 8),
        10,
        0,
        (27 + 6) + (81 * 2 + 12) + (162 + 324 + 24 + 18 + 12) + (648 + 1296 + 48 + 72 + 24) + (12 * 10 + 10),
    ),
    (ResNet(width=4, blocks=2), (3, 9, 9), 10, 0, None),
    (ResNet(width=2, norm="batch"), (1, 8, 8), 10, 0, None),
    # Four gates of (8 + 100) and (100 + 100) inputs and two biases each.
    (LSTM(), (80,), 90, 90, 90 * 8 + 400 * 108 + 800 + 400 * 200 + 800 + 101 * 90),
    # A step's three numbers to 8; three gates of (8 + 5) inputs and two biases each; 10 classes.
    (GRU(hidden=5, layers=1), (7, 3), 10, 0, 8 * 4 + 15 * 13 + 30 + 6 * 10),
    (LSTM(hidden=5, layers=2, dropout=0.2, read="mean", padding=3), (9,), 4, 11, None),
    # Tokens and 9 places of 64; twice queries, keys, values and what becomes of them, 256 units, and two norms; a norm
    # and 4 classes.
    (Transformer(), (9,), 4, 11, 20 * 64 + 2 * (4 * 64 * 65 + 256 * 65 + 64 * 257 + 256) + 128 + 4 * 65),
    (Transformer(width=8, heads=2, hidden=6, read="last", padding=0), (9,), 4, 11, None),
    (Transformer(width=8, heads=1, hidden=6, layers=1), (9, 3), 4, 0, None),
    # 11 tokens that are also the outputs, which have biases of their own.
    (GPT(width=8, heads=2, hidden=6, layers=1), (9,), 11, 11, 20 * 8 + (4 * 8 * 9 + 6 * 9 + 8 * 7 + 32) + 16 + 11),
    (GPT(width=8, heads=2, tied=False), (9,), 4, 11, None),
]
EVERY = (GPT,)
"""Models that say something at each place."""


@pytest.mark.parametrize(("model", "shape", "classes", "vocabulary", "count"), MODELS)
def test_a_model_has_its_size_and_maps_a_batch_to_logits(model, shape, classes, vocabulary, count):
    module = model.build(shape, classes, vocabulary)
    initialise(module, Streams(3))
    if count is not None:
        assert sum(parameter.numel() for parameter in module.parameters()) == count
    inputs = torch.arange(2 * shape[0]).reshape(2, -1) % vocabulary if vocabulary else torch.ones(2, *shape)
    outputs = module(inputs)
    assert outputs.shape == ((2, shape[0], classes) if isinstance(model, EVERY) else (2, classes))
    assert bool(outputs.isfinite().all())


@pytest.mark.parametrize(("model", "shape", "classes", "vocabulary", "count"), MODELS)
def test_models_are_built_of_the_layers_that_the_engine_knows(model, shape, classes, vocabulary, count):
    known = {nn.Sequential, nn.Flatten, nn.Linear, nn.ReLU, nn.Tanh, nn.Conv2d, nn.MaxPool2d, nn.Embedding}
    known |= {nn.AdaptiveAvgPool2d, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.LSTM, Residual, LastStep}
    known |= {nn.GRU, nn.LayerNorm, nn.Dropout, nn.GELU, MeanStep, Steps, Positions, Padded, EncoderLayer}
    known |= {nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear}
    assert {type(layer) for layer in model.build(shape, classes, vocabulary).modules()} <= known


def test_the_global_generator_is_neither_read_nor_written():
    before = torch.get_rng_state()
    for model, shape, classes, vocabulary, _ in MODELS:
        initialise(model.build(shape, classes, vocabulary), Streams(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_and_the_name_decide_the_parameters():
    def drawn(seed, model=MLP()):  # noqa: B008
        module = model.build((64,), 10, 0)
        initialise(module, Streams(seed))
        return module.state_dict()

    one, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert one["1.weight"].flatten()[:10].ne(one["3.weight"].flatten()[:10]).all()
    # A deeper model's first layer is the same layer under the same name.
    assert torch.equal(drawn(1, MLP(hidden=(64, 5)))["1.weight"], one["1.weight"])


@pytest.mark.parametrize("model", [Logistic(zero=False), MLP(), CNN(), LeNet(), ResNet(), LSTM()])
def test_distributions_are_those_of_torch(model):
    """Each tensor is held to the bounds, and the moments, of a fresh layer made by PyTorch itself."""
    text = isinstance(model, LSTM)
    module = model.build((80,) if text else IMAGE, 10, 90 if text else 0)
    initialise(module, Streams(0))
    for layer in module.modules():
        ours = dict(layer.named_parameters(recurse=False))
        if isinstance(layer, nn.Embedding):
            # 720 normals: the mean's deviation is 0.037, the variance's 0.053; five of each.
            assert abs(layer.weight.mean()) < 5 * 0.037
            assert abs(layer.weight.var() - 1) < 5 * 0.053
        elif isinstance(layer, nn.GroupNorm):
            assert bool((layer.weight == 1).all())
            assert bool((layer.bias == 0).all())
        else:
            for tensor in ours.values():
                size = layer.hidden_size if isinstance(layer, nn.LSTM) else layer.weight[0].numel()
                bound = size**-0.5
                assert tensor.abs().max() <= bound
                if tensor.numel() >= 100:
                    # The largest of 100 uniforms is below 0.9 of the bound once in 1e4 or less often; the
                    # mean's deviation is bound / sqrt(3 n).
                    assert tensor.abs().max() > 0.9 * bound
                    assert abs(tensor.mean()) < 5 * bound / (3 * tensor.numel()) ** 0.5


def test_our_bound_is_the_bound_of_torchs_own_layers():
    # kaiming_uniform with a = sqrt(5): gain sqrt(2 / 6) times sqrt(3 / fan_in) is 1 / sqrt(fan_in).
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = [nn.Linear(300, 400), nn.Conv2d(8, 40, 5), nn.LSTM(50, 64)]
    for layer, size in zip(fresh, (300, 8 * 25, 64), strict=True):
        for tensor in layer.parameters():
            assert 0.9 * size**-0.5 < float(tensor.detach().abs().max()) <= size**-0.5


def test_logistic_starts_at_zero_unless_told_otherwise():
    module = Logistic().build((4,), 3, 0)
    initialise(module, Streams(0))
    assert all(bool((parameter == 0).all()) for parameter in module.parameters())


def test_initialise_covers_dtype_padding_and_batch_norm_and_leaves_the_rest():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((2,), 7.0))

    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Embedding(5, 2, padding_idx=1), Own())
    module[1].running_var.zero_()
    wide = nn.Sequential(nn.Linear(4, 3)).double()
    initialise(module, Streams(0))
    initialise(wide, Streams(0))
    assert torch.equal(wide[0].weight, module[0].weight.double())
    assert bool((module[1].running_var == 1).all())
    assert bool((module[2].weight[1] == 0).all())
    assert bool((module[3].scale == 7).all())


def test_residual_and_last_step():
    layer = Residual(nn.Linear(1, 1), nn.Sequential())
    with torch.no_grad():
        layer.body.weight.fill_(-3)
        layer.body.bias.fill_(1)
    # relu(-3 x + 1 + x): 1 - 2 x, cut at 0.
    assert layer(torch.tensor([[0.25], [2.0]])).flatten().tolist() == [0.5, 0.0]
    outputs = torch.arange(12.0).reshape(2, 3, 2)
    assert LastStep()((outputs, None)).tolist() == [[4.0, 5.0], [10.0, 11.0]]


@pytest.mark.parametrize(
    ("model", "shape", "vocabulary", "kind"),
    [
        (Logistic(), (), 0, "logistic"),
        (MLP(), (80,), 90, "mlp"),
        (CNN(), (64,), 0, "cnn"),
        (CNN(), (1, 3, 28), 0, "cnn"),
        (LeNet(), (1, 15, 28), 0, "lenet"),
        (ResNet(), (28, 28), 0, "resnet"),
        (LSTM(), (1, 28, 28), 0, "lstm"),
        (LSTM(), (80,), 0, "lstm"),
    ],
)
def test_data_that_does_not_fit_is_one_clear_line(model, shape, vocabulary, kind):
    with pytest.raises(InputError, match=f"^model = {kind}: .*(needs|reads)") as caught:
        model.build(shape, 10, vocabulary)
    assert "\n" not in str(caught.value)


def test_the_smallest_images_that_are_accepted_work():
    for model, side in ((CNN(), 4), (LeNet(), 16), (ResNet(width=8), 4)):
        assert model.build((1, side, side), 2, 0)(torch.zeros(1, 1, side, side)).shape == (1, 2)


def test_options_are_checked():
    with pytest.raises(InputError, match="hidden"):
        MLP(hidden=(0,))
    with pytest.raises(InputError, match="activation"):
        MLP(activation="gelu")


def drawn(model, shape, outputs, vocabulary):
    module = model.build(shape, outputs, vocabulary)
    initialise(module, Streams(4))
    return module


def test_attention_starts_as_pytorchs_does():
    """1,728 uniform numbers within sqrt(6 / (3 w + w)), no biases; output weights as of any linear layer."""
    own = drawn(Transformer(width=24, heads=2, layers=1), (9,), 4, 11)[3].self_attn
    bound = (6 / (4 * 24)) ** 0.5
    assert 0.98 * bound < own.in_proj_weight.abs().max() <= bound
    assert bool((own.in_proj_bias == 0).all())
    assert bool((own.out_proj.bias == 0).all())
    assert 0.9 * 24**-0.5 < own.out_proj.weight.abs().max() <= 24**-0.5


def test_a_tied_gpt_has_one_table_of_length_one_for_both_its_ends():
    tied = drawn(GPT(), (9,), 200, 200)
    assert tied[0].weight is tied[-1].weight
    # 200 tokens of 64 numbers: the mean square is 1 / 64 within five deviations, 5 sqrt(2 / 12,800) of it.
    assert abs(64 * tied[0].weight.square().mean() - 1) < 5 * (2 / 12_800) ** 0.5
    loose = drawn(GPT(tied=False), (9,), 200, 200)
    assert torch.equal(loose[0].weight, tied[0].weight)
    assert not torch.equal(loose[-1].weight, tied[-1].weight)


def test_padding_is_the_data_sets_where_the_model_does_not_say():
    tokens, y = np.tile(np.arange(1, 5), (3, 1)), np.arange(3)
    data = Dataset("mine", tokens, y, tokens, y, 3, vocabulary=6, padding=5)
    assert [build_model(model, data, Streams(0)).padding for model in (GRU(), GRU(padding=2))] == [5, 2]
    bare = build_model(LSTM(), replace(data, padding=None), Streams(0))
    assert type(bare) is nn.Sequential
    padded = build_model(Transformer(padding=2), data, Streams(0))
    assert bool((padded[0].weight[2] == 0).all())


@pytest.mark.parametrize(
    ("model", "shape", "vocabulary", "fault"),
    [
        (LSTM(), (3, 4, 5), 0, r"reads sequences of tokens, or \[steps, features\]"),
        (GRU(layers=1, dropout=0.1), (9,), 5, "is between layers, and there is one"),
        (GRU(padding=5), (9,), 5, "is no token: there are 5"),
        (Transformer(padding=0), (9, 2), 0, "is a token, but these inputs are numbers"),
        (Transformer(heads=5), (9,), 5, "do not share the width 64 out"),
        (GPT(), (9, 2), 0, r"reads tokens, but these inputs are numbers of shape \[9, 2\]; use the model transformer"),
        (
            GPT(),
            (9,),
            0,
            "of shape .9.; if they are token ids, set tokens = true of the data set; else use the model mlp",
        ),
        (GRU(), (9,), 0, "if they are token ids, set tokens = true of the data set; else use a model of numbers"),
        (GPT(), (9,), 5, "the 3 outputs are not the 5 tokens that are read; set tied = false"),
    ],
)
def test_what_no_sequence_model_can_be_made_for_is_refused(model, shape, vocabulary, fault):
    with pytest.raises(InputError, match=fault):
        model.build(shape, 3, vocabulary)


@pytest.mark.parametrize("model", [MLP, CNN, LeNet])
def test_weights_for_interval_bounds_keep_boxes_as_wide_as_they_are(model):
    """All but the last layer's are normal of deviation sqrt(2 pi) / fan_in; everything else is drawn as usual."""
    usual, drawn = (model(init=init).build((64,) if model is MLP else IMAGE, 10, 0) for init in ("usual", "ibp"))
    for module in (usual, drawn):
        initialise(module, Streams(3))
    *_, last = (name for name, _ in drawn.named_parameters() if name.endswith("weight"))
    for (name, one), other in zip(drawn.named_parameters(), usual.parameters(), strict=True):
        if not name.endswith("weight") or name == last:
            assert torch.equal(one, other)
            continue
        # Of 64 inputs it is 0.039166. Of n normals the deviation is itself known to 1 / sqrt(2 n): five of these.
        deviation = 0.039166 * 64 / one[0].numel()
        assert float(one.detach().std()) == pytest.approx(deviation, rel=5 / (2 * one.numel()) ** 0.5)
