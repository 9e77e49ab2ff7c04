"""What the resolvers call of timm, in the same shape, where timm is not installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class VisionTransformer(nn.Module):
    def __init__(
        self, img_size: int | tuple[int, int] = 224, in_chans: int = 3, num_classes: int = 1000, depth: int = 12
    ) -> None:
        super().__init__()
        assert isinstance(img_size, int)
        self.blocks = nn.Sequential(*(nn.Linear(in_chans * img_size**2, in_chans * img_size**2) for _ in range(depth)))
        self.head = nn.Linear(in_chans * img_size**2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x.flatten(1)))


def vit_tiny(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    assert not pretrained, "this would download"
    return VisionTransformer(**({"depth": 2} | kwargs))


def list_models() -> list[str]:
    return ["vit_tiny"]


def model_entrypoint(name: str) -> Callable[..., nn.Module]:
    return {"vit_tiny": vit_tiny}[name]


def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return model_entrypoint(name)(pretrained=pretrained, **kwargs)
