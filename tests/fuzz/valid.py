"""Requests that are right, in every form that there is, and what must come back."""

from __future__ import annotations

import gzip
import io
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve_apps.oip.codec import decode_response, encode_request
from tests.conformance.models import Subject
from tests.fuzz.wire import Answer, Check

Arrays = Mapping[str, NDArray[np.generic]]


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole request."""
    lines = {"host": "fuzz", "content-length": str(len(body))} | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


@dataclass(frozen=True)
class Request:
    """A request in its parts, and its answer."""

    form: str
    path: str
    body: bytes
    headers: dict[str, str]
    check: Check = field(repr=False)

    @property
    def data(self) -> bytes:
        return post(self.path, self.body, self.headers)


class Valid:
    """Valid requests to one subject."""

    def __init__(self, subject: Subject, path: str) -> None:
        self.subject, self.path = subject, path

    def request(self, rng: random.Random) -> Request:
        """One, in a form chosen at random."""
        forms = ["json", "binary", "gzip", "deflate"]
        if self.subject.name == "pictures":
            forms += ["octets", "png"]
        return self.of(rng.choice(forms), rng)

    def of(self, form: str, rng: random.Random) -> Request:
        """One in that form."""
        inputs, outputs = self._rows(rng)
        if form == "octets":
            [array] = inputs.values()
            return self._made(form, array.tobytes(), {"content-type": "application/octet-stream"}, outputs)
        if form == "png":
            inputs, outputs = self._rows(rng, rows=1)
            made = io.BytesIO()
            Image.fromarray(inputs["image"][0, 0]).save(made, "png")
            return self._made(form, made.getvalue(), {"content-type": "image/png"}, outputs)
        binary = form == "binary"
        body, headers = encode_request(inputs, binary=binary, binary_output=binary, id=f"id-{rng.randrange(999)}")
        if form in ("gzip", "deflate"):
            body = gzip.compress(body, 1) if form == "gzip" else zlib.compress(body, 1)
            headers = headers | {"content-encoding": form}
        return self._made(form, body, headers, outputs)

    def _rows(self, rng: random.Random, rows: int | None = None) -> tuple[dict[str, NDArray[np.generic]], Arrays]:
        """Some of what is known, in any order."""
        have = len(next(iter(self.subject.inputs.values())))
        chosen = [rng.randrange(have) for _ in range(rows or rng.randint(1, 3))]
        return ({name: array[chosen] for name, array in self.subject.inputs.items()},
                {name: array[chosen] for name, array in self.subject.outputs.items()})  # fmt: skip

    def _made(self, form: str, body: bytes, headers: dict[str, str], outputs: Arrays) -> Request:
        def check(answer: Answer) -> str:
            if answer.status != 200:
                return f"{form}: {answer.status} {answer.body[:200]!r}"
            found = decode_response(answer.body, answer.headers)
            for name, want in outputs.items():
                got = found.get(name)
                if got is None or got.shape != want.shape or got.dtype != want.dtype or not (got == want).all():
                    return f"{form}: output {name!r} is wrong"
            return ""

        return Request(form, self.path, body, headers, check)
