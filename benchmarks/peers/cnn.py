"""The trained CNN as plain torch, and a short training of it: what a user of a torch tool has at hand. Runs in the
peers' own environments: torch, NumPy.

The architecture is train_jobs/models/cnn.py's with its names of weights, and a test holds the two together; the
training is that of train_jobs/compression/finetune.py: AdamW, one cycle, the best epoch by validation.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from given import Given
from torch import Tensor, nn


class CNN(nn.Module):
    """uint8 (B, 1, H, W) -> logits (B, K), its sizes read off the weights."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()

        def conv(name: str) -> nn.Conv2d:
            outputs, inputs, size, _ = weights[f"{name}.weight"].shape
            return nn.Conv2d(inputs, outputs, size)

        def linear(name: str) -> nn.Linear:
            outputs, inputs = weights[f"{name}.weight"].shape
            return nn.Linear(inputs, outputs)

        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", weights.pop("preprocess.scale"))
        self.register_buffer("shift", weights.pop("preprocess.shift"))
        self.features = nn.Sequential(
            conv("features.0"), nn.MaxPool2d(2), nn.ReLU(), conv("features.3"), nn.ReLU(), nn.MaxPool2d(2),
            conv("features.6"), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), linear("head.1"), nn.ReLU(), nn.Identity(), linear("head.4"))
        self.load_state_dict({"scale": self.scale, "shift": self.shift, **weights})

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(x_BCHW.to(torch.float32) * self.scale + self.shift))
        return logits_BK


def trained(path: Path) -> CNN:
    """The trained model, in eval mode."""
    with np.load(path) as weights:
        return CNN({name: torch.from_numpy(weights[name]) for name in weights.files}).eval()


def accuracy(model: Any, given: Given) -> float:
    """On the validation part."""
    with torch.inference_mode():
        answers = [model(torch.from_numpy(given.x_validation[i : i + 500])).argmax(1).numpy()
                   for i in range(0, len(given.x_validation), 500)]  # fmt: skip
    return float((np.concatenate(answers) == given.y_validation).mean())


def finetune(model: Any, given: Given, *, epochs: int, lr: float, seconds: float = math.inf) -> Any:
    """Train `model` in place, half by the labels and half by the answers of the trained model (temperature 4), and
    leave it with the weights of its best epoch. After `seconds` an epoch ends where it is, and is the last."""
    torch.manual_seed(0)
    teacher = trained(given.weights)
    x, y = torch.from_numpy(given.x_train), torch.from_numpy(given.y_train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    steps = math.ceil(len(x) / 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    best, best_state = -1.0, copy.deepcopy(model.state_dict())
    begun = time.monotonic()
    for epoch in range(epochs):
        for index in torch.split(torch.randperm(len(x)), 128):
            answer = model(x[index])
            with torch.no_grad():
                wanted = F.log_softmax(teacher(x[index]) / 4, 1)
            apart = F.kl_div(F.log_softmax(answer / 4, 1), wanted, reduction="batchmean", log_target=True) * 16
            loss = 0.5 * F.cross_entropy(answer, y[index]) + 0.5 * apart
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if time.monotonic() - begun > seconds:
                break
        found = accuracy(model, given)
        if found > best:
            best, best_state = found, copy.deepcopy(model.state_dict())
        print(f"epoch {epoch + 1}/{epochs}: validation {found:.4f}, {time.monotonic() - begun:.0f} s", flush=True)
        if time.monotonic() - begun > seconds:
            break
    model.load_state_dict(best_state)
    return model
