"""Models that pass on what they do not name to the class that they return, as torchvision's do."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from torchvision.models import segmentation


class ResNet(nn.Module):
    def __init__(
        self,
        layers: list[int],
        num_classes: int = 1000,
        groups: int = 1,
        image_size: int = 224,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, groups=groups, bias=False), (norm_layer or nn.BatchNorm2d)(8)
        self.relu, self.dropout, self.fc = nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, num_classes)
        self.layers, self.image_size = layers, image_size
        nn.init.constant_(self.fc.bias, 0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.relu(self.norm(self.conv1(x))).mean(dim=(2, 3))))


def resnet18(*, weights: str | None = None, progress: bool = True, **kwargs: Any) -> ResNet:
    assert weights is None, "this would download"
    return ResNet([2, 2], **kwargs)


def get_model_builder(name: str) -> Callable[..., nn.Module]:
    return {"resnet18": resnet18, "fcn": segmentation.fcn}[name]


def list_models(module: ModuleType | None = None) -> list[str]:
    assert module is not None
    return ["fcn"] if module is segmentation else ["resnet18"]


__all__ = ["get_model_builder", "list_models", "resnet18", "segmentation", "torch"]
