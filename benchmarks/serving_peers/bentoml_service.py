"""BentoML: bentoml serve bentoml_service:Classify, with $SLUICE_BENCH_JOB (served.py).

Adaptive batching needs an argument of its own types, and there is none for raw bytes: pictures of 28x28 come as base64
in JSON (784 numbers in JSON take it longer), JPEGs as files of a multipart form. Out comes the class, as JSON.
"""

# No `from __future__ import annotations`: BentoML makes its schema of them.
import base64

import bentoml  # type: ignore[import-not-found]
from PIL.Image import Image
from served import Served, job, picture_of

JOB = job()
settings = bentoml.service(workers=JOB["workers"], traffic={"timeout": 60}, logging={"access": {"enabled": False}})
batched = bentoml.api(
    batchable=True, batch_dim=0, max_batch_size=JOB["max_batch_size"], max_latency_ms=round(JOB["max_latency_s"] * 1e3)
)


class OfBytes:
    """{"pictures": ["base64"]} -> [7]"""

    def __init__(self) -> None:
        self._served = Served(JOB)

    @batched  # type: ignore[untyped-decorator]
    def classify(self, pictures: list[str]) -> list[int]:
        found = self._served.logits([self._served.picture(base64.b64decode(each)) for each in pictures])
        return [int(each) for each in found.argmax(1)]


class OfJpegs:
    """A form with a file `pictures` -> [7]"""

    def __init__(self) -> None:
        self._served = Served(JOB)

    @batched  # type: ignore[untyped-decorator]
    def classify(self, pictures: list[Image]) -> list[int]:
        found = self._served.logits([picture_of(each, self._served.shape) for each in pictures])
        return [int(each) for each in found.argmax(1)]


Classify = settings(OfJpegs if JOB["jpeg"] else OfBytes)
