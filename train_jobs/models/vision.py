"""torchvision's ResNet-18, ResNet-50 and MobileNetV3-Small, for pictures of any channels and from 28x28 upwards; as
published, or thinner and shallower.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; Howard et al., "Searching for
MobileNetV3", ICCV 2019, table 2; width multiplier: Howard et al., "MobileNets", 2017, section 3.3. GroupNorm: Wu and
He, "Group Normalization", ECCV 2018, section 3.

Shapes: B batch, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs.models.layers import Preprocess

_SMALLEST = 28
_LAST = {"resnet18": "fc", "resnet50": "fc", "mobilenet_v3": "classifier.3"}
"""What torchvision calls the layer that decides."""
BLOCKS: dict[str, tuple[int, ...]] = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
"""Residual blocks of each stage, as published."""
_STEM, _MULTIPLE = 64, 8
"""Channels of a ResNet's stem and first stage; a thinner one's are a multiple of this, as a MobileNet's are."""


class VisionConfig(BaseModel):
    """A published architecture, with weights of its own to begin with or, by `transfer`, published ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["resnet18", "resnet50", "mobilenet_v3"] = "resnet18"
    """mobilenet_v3 is the small one."""
    small: bool = False
    """For small pictures (28x28, 32x32): the beginning keeps more of their size. ResNet: a 3x3 stem of stride 1 and no
    max pooling, as the paper's section 4.2 has it for CIFAR; MobileNet: stride 1, not 2, in its first two layers."""
    norm: Literal["batch", "group"] = "batch"
    """group: no sample looks at another, so a run is the same at any number of workers; batch: what published weights
    were trained with."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Before the last layer."""
    width: float = Field(default=1.0, gt=0, le=4)
    """Multiplies the channels of every layer: 0.5 is a student."""
    blocks: int | None = Field(default=None, ge=1)
    """ResNet: at most so many residual blocks in each of its four stages; None: as many as published."""

    @model_validator(mode="after")
    def _has_blocks(self) -> VisionConfig:
        if self.blocks is not None and self.kind not in BLOCKS:
            raise ValueError(f"blocks={self.blocks} is for a ResNet, and {self.kind} has none; unset it, or set width")
        return self

    @property
    def as_published(self) -> bool:
        return self.width == 1.0 and self.blocks is None

    @property
    def family(self) -> str:
        return "cnn"

    def build(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Vision:
        """For pictures (C, H, W) and K classes. Raises ConfigError for other shapes."""
        if len(inputs) != 3 or len(outputs) != 1 or min(inputs[1:]) < _SMALLEST:
            raise ConfigError(
                f"model.kind={self.kind} takes pictures of {_SMALLEST}x{_SMALLEST} or more and gives a score per "
                f"class, not {list(inputs)} -> {list(outputs)}; choose another model.kind (mlp takes any shape)"
            )
        return Vision(self, inputs[0], outputs[0])


class Vision(nn.Module):
    """uint8 (B, C, H, W) -> logits (B, K)."""

    def __init__(self, config: VisionConfig, channels: int, classes: int) -> None:
        super().__init__()
        self._config = config
        self.preprocess = Preprocess()
        self.body = _body(config, channels)
        width = self.body.fc.in_features if config.kind != "mobilenet_v3" else self.body.classifier[3].in_features
        self.head = nn.Linear(width, classes)
        self.dropout = nn.Dropout(config.dropout)
        if config.kind == "mobilenet_v3":
            self.body.classifier[2] = nn.Identity()  # its own dropout; ours is where the config says how much
            self.body.classifier[3] = nn.Identity()
        else:
            self.body.fc = nn.Identity()

    def penultimate(self, x_BCHW: Tensor) -> Tensor:
        """What the last layer decides upon, (B, D): 512, 2048 or 1024 features, times the width."""
        features_BD: Tensor = self.dropout(self.body(self.preprocess(x_BCHW)))
        return features_BD

    def blocks(self) -> list[nn.Module]:
        """From the stem to the head: what transfer learning freezes, and in which order it thaws."""
        body = self.body
        if self._config.kind == "mobilenet_v3":
            *before, last = body.features
            return [*before, nn.ModuleList([last, body.classifier]), self.head]
        layers = (body.layer1, body.layer2, body.layer3, body.layer4)
        return [nn.ModuleList([body.conv1, body.bn1]), *layers, self.head]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.penultimate(x_BCHW))
        return logits_BK

    def own_names(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's weights (a state_dict) under the names that they have here; our own stay as they are.

        Where pictures are grey and the stem was learned on colours, it is summed over them: the same answer as to a
        grey picture in three equal channels.
        """
        if any(name.startswith("body.") for name in theirs):
            return dict(theirs)
        last = f"{_LAST[self._config.kind]}."
        named = {
            f"head.{name.removeprefix(last)}" if name.startswith(last) else f"body.{name}": tensor
            for name, tensor in theirs.items()
        }
        stem = "body.features.0.0.weight" if self._config.kind == "mobilenet_v3" else "body.conv1.weight"
        if stem in named and self.get_parameter(stem).shape[1] == 1:
            named[stem] = named[stem].sum(1, keepdim=True)
        return named

    def published_weights(self) -> dict[str, Tensor]:
        """Those that torchvision publishes, learned on ImageNet-1k: a download into torch's hub cache.

        Raises ConfigError if they are not to be had, or do not go with norm=group or a network of another size.
        """
        from torchvision import models

        kind = "mobilenet_v3_small" if self._config.kind == "mobilenet_v3" else self._config.kind
        if self._config.norm != "batch":
            raise ConfigError(
                "transfer.source=torchvision: its weights were learned with batch normalisation; set model.norm=batch"
            )
        if not self._config.as_published:
            raise ConfigError(
                f"transfer.source=torchvision: its weights are for the whole {self._config.kind}; set model.width=1 "
                "and model.blocks=null"
            )
        published = models.get_model_weights(kind).DEFAULT
        way_out = (
            f"fetch {published.url} elsewhere, set transfer.source to that file, or train without: --set transfer=null"
        )
        cached = os.path.join(torch.hub.get_dir(), "checkpoints", published.url.rsplit("/", 1)[1])
        if os.environ.get("SLUICE_OFFLINE") and not os.path.exists(cached):
            raise ConfigError(f"transfer.source=torchvision is a download, and SLUICE_OFFLINE is set; {way_out}")
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(10.0)  # without a network, say so soon
        try:
            weights: dict[str, Tensor] = published.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(f"transfer.source=torchvision: the download failed ({reason}); {way_out}") from error
        finally:
            socket.setdefaulttimeout(before)
        return self.own_names(weights)


def _body(config: VisionConfig, channels: int) -> Any:
    """torchvision's model, for these channels and, with `small`, with a beginning for small pictures.

    Layers are replaced rather than weights resized, so the seed alone says what a fresh model is.
    """
    from torchvision import models

    norm: dict[str, Any] = {} if config.norm == "batch" else {"norm_layer": _group_norm}
    if config.kind == "mobilenet_v3":
        body = models.mobilenet_v3_small(weights=None, width_mult=config.width, **norm)
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # 0.01 there: an epoch of a small set ends before its statistics are known
        stem, first = body.features[0], body.features[1].block[0]
        if config.small:
            stem[0].stride = first[0].stride = (1, 1)
        stem[0] = _with_channels(stem[0], channels)
        return body
    body = models.get_model(config.kind, weights=None, **norm)
    if not config.as_published:
        _resize(body, config)
    if config.small:
        body.conv1 = nn.Conv2d(channels, body.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
        body.maxpool = nn.Identity()
    else:
        body.conv1 = _with_channels(body.conv1, channels)
    return body


def _resize(body: Any, config: VisionConfig) -> None:
    """Make a ResNet thinner (or wider) and shallower, in place: torchvision's constructor has fixed channels."""
    from torchvision.models.resnet import BasicBlock, Bottleneck

    block: Any = BasicBlock if config.kind == "resnet18" else Bottleneck
    planes = max(_MULTIPLE, round(_STEM * config.width / _MULTIPLE) * _MULTIPLE)
    made: list[nn.Module] = []
    body.inplanes = planes
    body.conv1 = nn.Conv2d(3, planes, 7, stride=2, padding=3, bias=False)
    body.bn1 = body._norm_layer(planes)
    made.append(body.conv1)
    for stage, published in enumerate(BLOCKS[config.kind]):
        count = published if config.blocks is None else min(published, config.blocks)
        layer = body._make_layer(block, planes << stage, count, stride=1 if stage == 0 else 2)
        setattr(body, f"layer{stage + 1}", layer)
        made.append(layer)
    body.fc = nn.Linear((planes << 3) * block.expansion, body.fc.out_features)
    for module in (module for each in made for module in each.modules() if isinstance(module, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _with_channels(convolution: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The same convolution for pictures of so many channels; its own where they are three."""
    if channels == convolution.in_channels:
        return convolution
    made = nn.Conv2d(
        channels, convolution.out_channels, cast(Any, convolution.kernel_size), cast(Any, convolution.stride),
        cast(Any, convolution.padding), bias=False,
    )  # fmt: skip
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


def _group_norm(channels: int) -> nn.GroupNorm:
    """Groups of 16 channels (the paper's section 4.1, "Group division"), of fewer where that does not divide them."""
    return nn.GroupNorm(channels // math.gcd(channels, 16), channels)
