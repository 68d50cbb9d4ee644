"""The same work for every peer: a graph on one ONNX Runtime thread, a body in, logits out. Runs in the peers' own
environments: ONNX Runtime, NumPy, Pillow.

What is served comes as JSON in $SLUICE_BENCH_JOB: model (path of an ONNX file), shape (of one picture, channels first),
jpeg (is the body one, or the picture's bytes?), port, workers, max_batch_size, wait_s (for a batch to fill),
max_latency_s (for frameworks that choose batches by it).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]


def job() -> dict[str, Any]:
    """What this server was started for."""
    given: dict[str, Any] = json.loads(os.environ["SLUICE_BENCH_JOB"])
    return given


def picture_of(image: Image.Image, shape: Sequence[int]) -> Picture:
    """A decoded image as the graph takes it, (3, H, W) uint8; scaled if it is of another size."""
    colour = image.convert("RGB")
    if colour.size != (shape[2], shape[1]):
        colour = colour.resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
    return np.asarray(colour).transpose(2, 0, 1)


class Served:
    """The graph, loaded; normalisation lies inside it."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.shape = tuple(given["shape"])
        self._jpeg = given["jpeg"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # As ours has it: spinning threads would take the core from the server's own ones.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(given["model"], options, providers=["CPUExecutionProvider"])
        self._entry = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self.logits([np.zeros(self.shape, np.uint8)])  # the first batch is slower than those after it

    def picture(self, body: bytes) -> Picture:
        """A request's body, decoded."""
        if self._jpeg:
            return picture_of(Image.open(io.BytesIO(body)), self.shape)
        return np.frombuffer(body, np.uint8).reshape(self.shape)

    def logits(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """(B, K) of a batch."""
        found: NDArray[np.float32] = self._session.run([self._output], {self._entry: np.stack(pictures)})[0]
        return found
