"""Models of torchvision, timm and transformers: made by the library's own constructor, and never downloaded.

The libraries are stood in for by packages of the same call shape; `test_real_libraries.py` has the real ones.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fedsim
from fedsim.configuration.places import placed
from fedsim.core.errors import InputError
from fedsim.core.plugins import find, make
from fedsim.core.streams import Streams
from fedsim.nets.prepared import prepare
from fedsim.problems.datasets import Dataset
from fedsim.problems.modules import build_model, check_module

STAND_INS = Path(__file__).parents[1] / "libraries"
NAMES = ("torchvision", "timm", "transformers")
CONFIG = {
    "vocab_size": 20,
    "hidden_size": 6,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.2,
    "layers": [1],
}


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]


@pytest.fixture
def libraries(monkeypatch):
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in NAMES}
    forget()
    monkeypatch.syspath_prepend(str(STAND_INS))
    yield
    forget()
    sys.modules.update(before)


@pytest.fixture
def folder(tmp_path, libraries) -> Path:
    """A model of transformers with four labels, saved by itself."""
    import transformers

    place = tmp_path / "bert-tiny"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(CONFIG))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.Model(transformers.AutoConfig(**CONFIG | {"num_labels": 4}))
    save_file(model.state_dict(), place / "model.safetensors")
    return place


def images(channels: int = 1) -> Dataset:
    generator = np.random.Generator(np.random.PCG64(0))
    x, y = generator.normal(size=(6, channels, 4, 4)).astype(np.float32), np.arange(6) % 3
    return Dataset("images", x, y, x, y, num_classes=3)


def tokens() -> Dataset:
    x, y = np.random.Generator(np.random.PCG64(0)).integers(0, 20, (6, 5)), np.arange(6) % 3
    return Dataset("tokens", x, y, x, y, num_classes=3, vocabulary=20)


def built(table: Any, data: Dataset) -> nn.Module:
    return build_model(make("models", table, "problem.model"), data, Streams(0))


def test_a_model_of_torchvision_has_the_outputs_of_the_data_its_own_start_and_the_arguments_that_are_given(libraries):
    model: Any = built({"kind": "torchvision:resnet18", "groups": 1, "norm_layer": "group_norm"}, images())
    assert (type(model).__name__, type(model.norm), model.image_size) == ("ResNet", nn.GroupNorm, 4)
    assert model.fc.bias.tolist() == [0.25] * 3  # the library's; PyTorch's default is drawn
    assert type(built("torchvision:resnet18", images()).norm) is nn.BatchNorm2d
    again: Any = built({"kind": "torchvision:resnet18"}, images())
    assert torch.equal(again.conv1.weight, built("torchvision:resnet18", images()).conv1.weight)


def test_grey_images_are_given_to_all_three_channels(libraries):
    model = built("torchvision:resnet18", images()).eval()
    x = torch.from_numpy(images().x)
    with torch.no_grad():
        assert torch.equal(model(x), model(x.expand(-1, 3, -1, -1).contiguous()[:, :1]))
        assert model(x).shape == (6, 3)
    with pytest.raises(InputError, match=r"model = torchvision:resnet18: reads images of 3 channels.* these have 2"):
        built("torchvision:resnet18", images(2))


def test_a_model_of_segmentation_gives_what_it_calls_out_and_downloads_no_backbone(libraries):
    model = built("torchvision:fcn", images(3))
    assert model(torch.from_numpy(images(3).x)).shape == (6, 3, 4, 4)


def test_a_model_of_timm_follows_channels_and_sides_of_the_data(libraries):
    model: Any = built({"kind": "timm:vit_tiny", "depth": 1}, images(2))
    assert (model.head.in_features, model.head.out_features, len(model.blocks)) == (32, 3, 1)
    assert len(built("timm:vit_tiny", images()).blocks) == 2  # of the entry point, not of the class


def test_a_round_of_an_experiment_runs_and_its_file_says_what_was_made(libraries, tmp_path):
    np.savez(tmp_path / "images.npz", x=images().x, y=images().y)
    tables = {
        "problem": {
            "dataset": {"kind": "npz", "path": str(tmp_path / "images.npz")},
            "model": {"kind": "torchvision:resnet18", "norm_layer": "group_norm"},
        },
        "partition": {"kind": "iid", "clients": 2},
        "client": {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1},
    }
    result = fedsim.run(fedsim.experiment(rounds=1, **tables), out=tmp_path / "run")
    assert result.folder is not None
    assert 'kind = "torchvision:resnet18"' in (result.folder / "config.toml").read_text()


def test_weights_of_a_file_are_started_from_but_for_a_last_layer_of_other_classes(libraries, tmp_path, capsys):
    import torchvision

    other = torchvision.models.resnet18(num_classes=7)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    model: Any = built({"kind": "torchvision:resnet18", "weights": str(tmp_path / "other.pth")}, images())
    assert torch.equal(model.conv1.weight, other.conv1.weight)
    assert model.fc.bias.tolist() == [0.25] * 3
    assert "other.pth is of other classes: fc.weight, fc.bias start as they are made" in capsys.readouterr().err
    fitting = torchvision.models.resnet18(num_classes=3)
    save_file(fitting.state_dict(), tmp_path / "fitting.safetensors")
    whole: Any = built({"kind": "torchvision:resnet18", "weights": str(tmp_path / "fitting.safetensors")}, images())
    assert torch.equal(whole.fc.weight, fitting.fc.weight)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held | {"extra": torch.ones(1)}, r"of another model: extra, which the model has not \(1 such"),
        (lambda held: {"fc.bias": held["fc.bias"]}, "of another model: conv1.weight, .* which the file has not"),
        (lambda held: held | {"conv1.weight": torch.ones(8, 1, 3, 3)}, r"conv1.weight has the shape \(8, 1, 3, 3\)"),
        (lambda held: [1, 2], "is no state dict"),
    ],
)
def test_weights_of_another_model_are_refused(libraries, tmp_path, change, words):
    import torchvision

    torch.save(change(dict(torchvision.models.resnet18(num_classes=3).state_dict())), tmp_path / "other.pth")
    with pytest.raises(InputError, match=words):
        built({"kind": "torchvision:resnet18", "weights": str(tmp_path / "other.pth")}, images())


def test_a_folder_of_transformers_starts_from_its_weights_with_a_last_layer_for_the_labels(folder, capsys):
    kind = f"hf:{folder}"
    model: Any = built(kind, tokens())
    assert torch.equal(model.bert.embedding.weight, load_file(folder / "model.safetensors")["bert.embedding.weight"])
    told = capsys.readouterr().err
    assert f"{kind}: attention_probs_dropout_prob of config.json would read the global generator, and is 0 here" in told
    assert f"{kind}: classifier.bias, classifier.weight start as transformers draws them" in told
    assert check_module(prepare(model).train(), torch.zeros(2, 5, dtype=torch.int64)) == 3  # it draws nothing by itself
    assert model.bert.dropout.p == 0.1


def test_keys_of_a_configuration_are_options_and_nothing_is_changed_that_is_given(folder, capsys):
    table = {"kind": f"hf:{folder}", "attention_probs_dropout_prob": 0.3, "hidden_size": 8, "pretrained": False}
    model: Any = built(table, tokens())
    assert (model.bert.config.attention_probs_dropout_prob, model.classifier.in_features) == (0.3, 8)
    assert capsys.readouterr().err == ""


def test_padding_is_left_out_of_attention(folder):
    table = {"kind": f"hf:{folder}", "padding": 19, "task": "token_classification"}
    model = built(table, tokens()).eval()
    padded = torch.tensor([[3, 4, 5, 19, 19]])
    with torch.no_grad():
        assert torch.allclose(model(padded)[:, :3], model(padded[:, :3]), atol=1e-6)
        assert not torch.allclose(model(padded)[:, :3], built(f"hf:{folder}", tokens()).eval()(padded)[:, None])


def test_what_transformers_would_say_of_loading_is_kept_from_the_terminal(folder):
    import transformers

    transformers.said.clear()
    built(f"hf:{folder}", tokens())
    assert transformers.said[:2] == ["error", "no bar"]
    assert transformers.said[-2:] == ["warning", "bar"]


def test_a_folder_is_from_where_the_file_is(tmp_path):
    tables = {"model": {"kind": "hf:./bert-tiny", "weights": "own.pth"}, "other": "hf:~nobody-is-there/x"}
    (tmp_path / "own.pth").touch()
    found = placed(tables, tmp_path)
    assert found["model"] == {"kind": f"hf:{tmp_path}/bert-tiny", "weights": str(tmp_path / "own.pth")}


REFUSED: dict[str, tuple[Any, str]] = {
    "no such model": ("torchvision:resnet19", "there is no such model of torchvision; did you mean resnet18"),
    "a model of a hub": ("timm:hf-hub:timm/resnet18", "there is no such model of timm"),
    "an unknown argument": ({"kind": "torchvision:resnet18", "group": 2}, r"model\.group = 2: .* did you mean groups"),
    "an argument of another type": ({"kind": "timm:vit_tiny", "depth": "two"}, r"model\.depth = two"),
    "what the library refuses": (
        {"kind": "torchvision:resnet18", "groups": 5},
        r"model = torchvision:resnet18: ValueError: .*\(made with groups = 5, image_size = 4",
    ),
    "an unknown norm": (
        {"kind": "torchvision:resnet18", "norm_layer": "layer"},
        "name as norm_layer one of: batch_norm",
    ),
    "no weights": ({"kind": "timm:vit_tiny", "weights": "absent.pth"}, "= absent.pth: there is no such file"),
    "no folder": ("hf:bert-base-uncased", "there is no bert-base-uncased; nothing is downloaded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_library_cannot_make_is_refused_in_a_line(libraries, name):
    table, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        built(table, images())


def test_other_groups_have_no_models(libraries):
    with pytest.raises(InputError, match=r"strategy\.kind = timm:vit_tiny: of timm there are only models"):
        find("strategies", "timm:vit_tiny", "strategy.kind")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "image_classification"}, "inputs are tokens of the shape"),
        ({"pretrained": False, "vocab_size": -1}, r"hf:.*: RuntimeError: .*vocab_size = -1"),
    ],
)
def test_what_a_folder_cannot_make_is_refused_in_a_line(folder, changes, words):
    with pytest.raises(InputError, match=words):
        built({"kind": f"hf:{folder}"} | changes, tokens())


def test_a_folder_of_another_model_or_of_code_is_refused(folder):
    with pytest.raises(InputError, match="= sequence_classification: inputs are numbers"):
        built({"kind": f"hf:{folder}", "task": "sequence_classification"}, images())
    save_file({"other.weight": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"is of another model, without bert\.embedding\.weight"):
        built(f"hf:{folder}", tokens())
    (folder / "config.json").write_text(json.dumps(CONFIG | {"auto_map": {}, "named": "anew"}))
    with pytest.raises(InputError, match="is none of transformers: The repository contains custom code which"):
        built(f"hf:{folder}", tokens())


@pytest.mark.parametrize(
    ("kind", "extra"), [("torchvision:resnet18", "vision"), ("timm:resnet18", "timm"), ("hf:.", "hf")]
)
def test_a_library_that_is_absent_is_named_with_what_installs_it(kind, extra, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)  # so that an import finds that there is none
    with pytest.raises(InputError, match=rf"is not installed: pip install 'fedsim-lab\[{extra}\]'"):
        find("models", kind, "problem.model.kind")


def test_a_library_for_another_pytorch_is_named(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"timm cannot be imported beside this PyTorch \(RuntimeError: operator"):
        find("models", "timm:resnet18", "problem.model.kind")
