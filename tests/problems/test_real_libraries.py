"""Models of torchvision, timm and transformers themselves, where these are installed: stacked as one at a time.

Their wheels belong to one build of PyTorch. Beside another, torchvision lacks its compiled operators, which no model
here has, and which are declared so that it can be imported.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim
from fedsim.core.plugins import make
from fedsim.core.streams import Streams
from fedsim.problems.datasets import Dataset
from fedsim.problems.models.weights import load_weights
from fedsim.problems.modules import build_model
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment as small

pytestmark = pytest.mark.usefixtures("unpainted")

DECLARED = torch.library.Library("torchvision", "FRAGMENT")
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def need(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    if importlib.util.find_spec("torchvision") is not None:
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                DECLARED.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(name)


def images(side: int = 16, pixels: bool = False) -> Dataset:
    generator = np.random.Generator(np.random.PCG64(0))
    y = generator.integers(0, 3, 16)
    x = (generator.normal(size=(16, 1, side, side)) + y[:, None, None, None]).astype(np.float32)
    y = np.repeat(y[:, None, None], side, 1).repeat(side, 2) if pixels else y
    return Dataset("images", x, y, x, y, num_classes=3)


def tokens(ahead: bool = False) -> Dataset:
    text = np.random.Generator(np.random.PCG64(0)).integers(1, 12, (16, 7))
    x, y = (text[:, :-1], text[:, 1:]) if ahead else (text, (text[:, 0] > 6).astype(int))
    return Dataset("tokens", x, y, x, y, num_classes=12 if ahead else 2, vocabulary=12)


def trained(table: Any, data: Dataset, executor: str) -> tuple[Tensor, Supervised]:
    """The parameters after two rounds of FedAvg, and the problem."""
    lists = np.arange(16).reshape(4, 4)
    model = build_model(make("models", table, "problem.model"), data, Streams(0))
    problem = fedsim.supervised(
        data.x,
        data.y,
        model=model,
        clients=list(lists),
        dtype=torch.float64,
        device="cpu",
        num_classes=data.num_classes,
    )
    client = {"kind": "sgd", "steps": 2, "batch_size": 4, "lr": 0.05}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about each other
        simulation = build_simulation(small(2, client=client, engine={"executor": executor}), problem)
        list(simulation)
    assert not torch.equal(simulation.state.params, problem.initial())
    return simulation.state.params, problem


IMAGES: dict[str, dict[str, Any]] = {
    "resnet18, group": {"kind": "torchvision:resnet18", "norm_layer": "group_norm"},
    "resnet18, batch": {"kind": "torchvision:resnet18"},
    "timm resnet18": {"kind": "timm:resnet18", "layers": [1, 1, 1, 1]},
    "timm vit": {"kind": "timm:vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
}


@pytest.mark.parametrize("name", IMAGES)
def test_models_of_images_train_stacked_as_one_at_a_time(name):
    table = IMAGES[name]
    need(table["kind"].partition(":")[0])
    # Batch normalisation of small maps divides by small deviations, which makes more of the last bits.
    stacked, loop = (trained(table, images(32), executor)[0] for executor in ("stacked", "loop"))
    assert torch.allclose(stacked, loop, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small"])
def test_mobilenets_train(name):
    need("torchvision")
    params, problem = trained(f"torchvision:{name}", images(32), "auto")
    assert np.isfinite(problem.evaluate(params, clients=False)["test_loss"])


def test_a_model_of_segmentation_trains_on_a_class_for_each_pixel():
    need("torchvision")
    params, problem = trained("torchvision:lraspp_mobilenet_v3_large", images(32, pixels=True), "loop")
    assert problem.module(params)(problem.data.x[:2]).shape == (2, 32, 32, 3)


TOKENS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "bert without padding": ("bert", {"padding": 11}),
    "bert by token": ("bert", {"task": "token_classification"}),
    "gpt2": ("gpt2", {"padding": 11}),
    "gpt2, the next token": ("gpt2", {"task": "causal_lm"}),
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A tiny BERT and a tiny GPT-2 with tied weights, as transformers saves them."""
    need("transformers")
    import transformers

    monkeypatch.chdir(tmp_path)
    transformers.BertModel(transformers.BertConfig(vocab_size=12, max_position_embeddings=8, **TINY)).save_pretrained(
        "bert"
    )
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=12, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    ).save_pretrained("gpt2")


@pytest.mark.parametrize("name", TOKENS)
def test_models_of_tokens_train_stacked_as_one_at_a_time(name, folders):
    folder, options = TOKENS[name]
    data = tokens(ahead="task" in options)
    executors = ("loop", "auto") if name == "bert without padding" else ("loop", "stacked")
    stacked, loop = (trained({"kind": f"hf:./{folder}"} | options, data, executor)[0] for executor in executors)
    assert torch.allclose(stacked, loop, rtol=0, atol=1e-9)


def test_tied_weights_are_one_in_the_vector_and_come_back_from_a_file(folders, tmp_path):
    table = {"kind": "hf:./gpt2", "task": "causal_lm"}
    params, problem = trained(table, tokens(ahead=True), "loop")
    assert "lm_head.weight" not in problem.model.layout.names
    problem.start_from(problem.tensors(params))
    assert torch.equal(problem.initial(), params)


def test_weights_of_another_number_of_classes_leave_the_last_layer(tmp_path, capsys):
    need("torchvision")
    import torchvision

    torch.save(torchvision.models.mobilenet_v2(num_classes=7).state_dict(), tmp_path / "other.pth")
    module = torchvision.models.mobilenet_v2(num_classes=3)
    load_weights(module, tmp_path / "other.pth", 3)
    assert "classifier.1.weight, classifier.1.bias start as they are made" in capsys.readouterr().err
