"""Hostile gRPC: messages that are none, tensors that contradict themselves, rubbish on the port; judged as over HTTP.

Messages go out as bytes, so that what no library would write can be sent. A refusal has a code of the client's fault
(or UNAVAILABLE) and says why; INTERNAL, UNKNOWN and silence are faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from serve_apps.oip.proto import open_inference_grpc_pb2 as oip
from tests.conformance.models import Subject
from tests.fuzz import h2
from tests.fuzz.campaign import Tally
from tests.fuzz.frames import CANARY
from tests.fuzz.wire import PATIENCE_S, Case, Heard

_SERVICE = "/inference.GRPCInferenceService/"
_FAULTS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED"}
_FIELDS = ["bool_contents", "int_contents", "int64_contents", "uint_contents", "uint64_contents", "fp32_contents",
           "fp64_contents", "bytes_contents"]  # fmt: skip
_METHODS = ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelConfig",
            "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelStreamInfer",
            "Nothing", "", "../ServerLive"]  # fmt: skip
_FIELD_OF = {"BOOL": 0, "INT8": 1, "INT16": 1, "INT32": 1, "INT64": 2, "UINT8": 3, "UINT16": 3, "UINT32": 3,
"UINT64": 4,
             "FP32": 5, "FP64": 6, "BYTES": 7}  # fmt: skip
Message = tuple[str, bytes]
"""(method, bytes)"""


class Grpc:
    """Valid and hostile messages to one subject."""

    def __init__(self, subject: Subject, model: str) -> None:
        self.subject, self.model = subject, model

    def valid(self, rng: random.Random, *, raw: bool | None = None) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
        """A request, and what must come back."""
        have = len(next(iter(self.subject.inputs.values())))
        chosen = [rng.randrange(have) for _ in range(rng.randint(1, 3))]
        raw = rng.random() < 0.6 if raw is None else raw
        made = oip.ModelInferRequest(model_name=self.model, id=f"id-{rng.randrange(999)}")
        for spec in self.subject.variant.inputs:
            array = self.subject.inputs[spec.name][chosen]
            tensor = made.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            if raw or spec.datatype not in _FIELD_OF:
                made.raw_input_contents.append(_packed(array))
            else:
                getattr(tensor.contents, _FIELDS[_FIELD_OF[spec.datatype]]).extend(array.ravel().tolist())
        return made, {name: array[chosen] for name, array in self.subject.outputs.items()}

    def case(self, rng: random.Random) -> tuple[str, Message]:
        """(kind, what is sent)"""
        kinds: list[tuple[str, Callable[[random.Random], Message]]] = [
            ("gRPC: bytes", self._bytes), ("gRPC: tensors", self._tensors), ("gRPC: tensors", self._tensors),
            ("gRPC: names", self._names), ("gRPC: noise", self._noise),
        ]  # fmt: skip
        kind, make = rng.choice(kinds)
        return kind, make(rng)

    def _bytes(self, rng: random.Random) -> Message:
        data = bytearray(self.valid(rng)[0].SerializeToString())
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(min(len(data), rng.choice([60, len(data)])) or 1) if data else 0
            match rng.randrange(4):
                case 0:
                    data[at : at + 1] = rng.randbytes(1)
                case 1:
                    data[at:at] = rng.choice(
                        [b"\xff" * 10, b"\x0b" * 200, b"\x12\xff\xff\xff\xff\x0f", rng.randbytes(3)]
                    )
                case 2:
                    del data[at : at + rng.randint(1, 20)]
                case 3:
                    del data[rng.randrange(len(data) + 1) :]
        return rng.choice(["ModelInfer"] * 6 + ["ModelMetadata", "ModelReady"]), bytes(data)

    def _tensors(self, rng: random.Random) -> Message:
        request = self.valid(rng)[0]
        for _ in range(rng.randint(1, 2)):
            tensor = rng.choice(request.inputs)
            match rng.randrange(11):
                case 0:
                    del tensor.shape[:]
                    tensor.shape.extend(rng.choice([[], [-1], [0], [2**62, 2**62], [2**32] * 4, [1] * 60, [2**63 - 1]]))
                case 1:
                    tensor.datatype = rng.choice(["", "FP64", "FP16", "BYTES", "BF16", "uint8", "x" * 5000, "\u00e9"])
                case 2:
                    getattr(tensor.contents, rng.choice(_FIELDS[1:7])).append(1)
                case 3:
                    tensor.contents.int_contents.extend([rng.choice([-(2**31), 256, 2**31 - 1])] * 784)
                case 4:
                    tensor.contents.bytes_contents.extend([rng.randbytes(9)] * rng.choice([1, 5]))
                case 5:
                    request.raw_input_contents.append(rng.randbytes(rng.choice([0, 1, 784])))
                case 6:
                    if request.raw_input_contents:
                        request.raw_input_contents[0] = rng.choice(
                            [b"", b"\xff" * 3, request.raw_input_contents[0] * 2]
                        )
                case 7:
                    tensor.contents.Clear()
                    del request.raw_input_contents[:]
                case 8:
                    request.inputs.extend([tensor] * rng.choice([1, 500]))
                case 9:
                    del request.inputs[:]
                    request.inputs.add()
                case 10:
                    request.outputs.add(name=rng.choice(["", "nobody", "logits", "x" * 100_000]))
                    request.outputs[0].parameters["binary_data"].int64_param = 7
        return "ModelInfer", request.SerializeToString()

    def _names(self, rng: random.Random) -> Message:
        request = self.valid(rng)[0]
        name = rng.choice(
            [f"../../{CANARY}", f"/etc/{CANARY}", "", "x" * 100_000, "\u0000", f"{CANARY}/int8", "\U0001f600"]
        )
        match rng.randrange(6):
            case 0:
                request.model_name = name
            case 1:
                request.model_version = name or "0"
            case 2:
                request.inputs[0].name = name
            case 3:
                request.id = name
            case 4:
                parameter = rng.choice(["timeout", "priority", "accuracy", "tenant", name])
                value = request.parameters[parameter]
                match rng.randrange(4):
                    case 0:
                        value.string_param = name
                    case 1:
                        value.int64_param = rng.choice([-1, 0, 2**63 - 1, -(2**63)])
                    case 2:
                        value.bool_param = True
            case 5:
                query = oip.ModelMetadataRequest(name=rng.choice([name, self.model]), version=name)
                return rng.choice(
                    ["ModelMetadata", "ModelReady", "ModelConfig", "ModelStatistics", "RepositoryIndex"]
                ), (query.SerializeToString())
        return "ModelInfer", request.SerializeToString()

    def _noise(self, rng: random.Random) -> Message:
        size = rng.choice([0, 1, 10, 1000, 100_000] + [17 << 20] * (rng.random() < 0.1))
        return rng.choice(_METHODS), rng.randbytes(size)


def _packed(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(x).to_bytes(4, "little") + x for x in array.ravel())


def wrong_values(message: bytes, outputs: dict[str, np.ndarray[Any, Any]]) -> str:
    """What is wrong with an answer, "" if nothing."""
    answer = oip.ModelInferResponse.FromString(message)
    found = {output.name: at for at, output in enumerate(answer.outputs)}
    for name, want in outputs.items():
        if name not in found:
            return f"output {name!r} is missing"
        output = answer.outputs[found[name]]
        if answer.raw_output_contents:
            right = answer.raw_output_contents[found[name]] == _packed(want)
        else:
            values = getattr(output.contents, _FIELDS[_FIELD_OF[output.datatype]])
            right = list(values) == want.ravel().tolist()
        if not right or list(output.shape) != list(want.shape):
            return f"output {name!r} is wrong"
    return ""


class GrpcCampaign:
    """As Campaign, over gRPC; the tally is shared."""

    def __init__(self, grpcs: Grpc, places: list[tuple[str, str]], tally: Tally, *, seed: int) -> None:
        self._grpc, self._places, self._tally, self._seed = grpcs, places, tally, seed

    async def run(self, count: int, *, start: int = 0, side_by_side: int = 8) -> None:
        """Case after case, each with a right call behind it on the same channel."""
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        async with contextlib.AsyncExitStack() as stack:
            channels = [
                (place, address, await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options)))
                for place, address in self._places
            ]
            numbers = iter(range(start, start + count))

            async def worker() -> None:
                for number in numbers:
                    place, address, channel = channels[number % len(channels)]
                    rng = random.Random(f"{self._seed}/grpc/{self._grpc.subject.name}/{number}")
                    if rng.random() < 0.3:
                        await self._frames(place, address, rng)
                    else:
                        kind, (method, data) = self._grpc.case(rng)
                        await self._call(channel, place, kind, method, data)
                    await self._right(channel, place, rng)

            await asyncio.gather(*[worker() for _ in range(side_by_side)])

    async def _call(self, channel: grpc.aio.Channel, place: str, kind: str, method: str, data: bytes) -> None:
        heard = Heard()
        code, details = await self._outcome(channel, method, data)
        if code in _FAULTS:
            heard.fault = f"{method}: {code} {details[:200]}"
        elif code != "OK" and not details:
            heard.fault = f"{method}: {code} that does not say why"
        case = Case(kind, f"{method} {len(data)} bytes", data, whole=False)
        self._tally.note(place, case, heard, told=code)

    async def _outcome(self, channel: grpc.aio.Channel, method: str, data: bytes) -> tuple[str, str]:
        try:
            await channel.unary_unary(_SERVICE + method)(data, timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        return "OK", ""

    async def _right(self, channel: grpc.aio.Channel, place: str, rng: random.Random) -> None:
        request, outputs = self._grpc.valid(rng)
        try:
            answer = await channel.unary_unary(_SERVICE + "ModelInfer")(request.SerializeToString(), timeout=PATIENCE_S)
            wrong = wrong_values(answer, outputs)
        except grpc.aio.AioRpcError as error:
            wrong = f"{error.code().name} {error.details()}"
        self._tally.behind += 1
        if wrong:
            self._tally.faults.append(f"{place}, the right call behind a wrong one: {wrong}")

    async def _frames(self, place: str, address: str, rng: random.Random) -> None:
        """Frames on a connection of its own, and a moment for the answer."""
        message = self._grpc.valid(rng)[0].SerializeToString()
        what, data = h2.hostile(rng, message)
        heard, outcome = Heard(), "left"
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(*address.split(":"))
        try:
            writer.write(data)
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(0.05):
                    await writer.drain()
                    while await reader.read(65536):
                        outcome = "answered"
                    outcome = "closed"
        except ConnectionError:
            outcome = "closed"
        finally:
            writer.close()
        heard.took_s = time.monotonic() - began
        self._tally.note(place, Case("gRPC: frames", what, data, whole=False), heard, told=outcome)
