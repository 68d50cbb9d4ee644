"""Your model and your data. Replace the bodies of `model` and `dataset`; keep what they give back.

Sluice imports this file and calls both without arguments:

    sluice tune --model my_model:model --data my_model:dataset --slo slo.yaml --study first

`python my_model.py` prints one test sample as a request for the deployed model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("weights.pt")


def dataset() -> dict[str, Any]:
    """Samples uint8 (N, 1, 8, 8), values 0 to 16, and labels 0 to 9: scikit-learn's handwritten digits.

    Give x_train, y_train, x_test and y_test, or x and y to be split 80/20. Samples may have any shape (N, ...) and any
    number type that the model takes; labels are whole numbers from 0. Training samples calibrate int8 and fine-tune the
    pruned variant; test samples judge all variants and nothing else. The more test samples there are, the smaller the
    differences that can be told: with 1,000, about half a point.
    """
    digits = load_digits()
    x, y = digits.images[:, None].astype(np.uint8), digits.target
    return {
        "x_train": x[::2], "y_train": y[::2], "x_test": x[1::2], "y_test": y[1::2],
        "labels": [str(name) for name in digits.target_names],
    }  # fmt: skip


class Digits(nn.Module):
    """Samples as `dataset` gives them -> a score for each class, float32 (B, 10).

    Scaling is part of the model: what is served can then never differ from what was trained, and a request carries
    one byte a pixel instead of four.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 2 * 2, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x.float() / 16.0)
        return scores


def model() -> nn.Module:
    """The trained classifier: its weights from a file, as you would load yours, or trained now in a few seconds."""
    torch.manual_seed(0)
    classifier = Digits()
    if not WEIGHTS.exists():
        train(classifier)
        torch.save(classifier.state_dict(), WEIGHTS)
    classifier.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return classifier


def train(classifier: nn.Module, epochs: int = 20) -> None:
    """Plain training on the training samples."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is small: more threads would only wait for each other
    data = dataset()
    x, y = torch.from_numpy(data["x_train"]), torch.from_numpy(data["y_train"])
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for batch in (order[start : start + 64] for start in range(0, len(x), 64)):
            loss = nn.functional.cross_entropy(classifier(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    torch.set_num_threads(threads)


def request(index: int = 0) -> dict[str, Any]:
    """One test sample in the Open Inference Protocol. The input of an nn.Module is called "input", its output "logits";
    an ONNX file keeps its own names."""
    sample = dataset()["x_test"][index : index + 1]
    tensor = {"name": "input", "datatype": "UINT8", "shape": list(sample.shape), "data": sample.ravel().tolist()}
    return {"inputs": [tensor]}


if __name__ == "__main__":
    print(json.dumps(request()))
