"""A JPEG, a PNG or raw bytes -> the one input tensor of a model: what `curl --data-binary @cat.jpg` sends.

    picture -> picture_headers (limits, metadata off) -> Pillow: decode -> grey or colour -> upright -> (1, C, H, W)

The same steps with the same resampling as train_jobs/datasets/folder.py, so that a picture is served as it was trained
on; a test holds both to it. One thing differs: a JPEG of more than DRAFT_PIXELS is decoded at a half, quarter or eighth
of its size where that leaves at least DRAFT_GAP times the pixels that the model takes. Measured on photographs, that
moves a value by 0.2 of 255 levels on average (7 at most), and 12 megapixels take 52 ms, not 87 (133 if turned).

Decoding takes milliseconds, so it runs on the threads of a `Decoder`, never on the event loop.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest, PayloadTooLarge
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec
from serve_apps.picture_headers import Header, read_header

if TYPE_CHECKING:
    from PIL import Image

DRAFT_PIXELS = 1_000_000
DRAFT_GAP = 4
_OTHER_WAYS = "send the tensor as the protocol's JSON, or its raw bytes as application/octet-stream"
_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
_READ_MODES = frozenset({"1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "YCbCr"})
"""As train_jobs/datasets/folder.py: 8 bits a channel at most."""


@dataclass(frozen=True)
class Limits:
    """What one picture may cost."""

    max_bytes: int = 16 << 20
    max_pixels: int = 25_000_000
    """Memory: 4 bytes each, up to 6 more while a progressive JPEG is decoded, 4 more while one is converted or turned.
    """
    max_side: int = 65_535
    """All that a JPEG may have. A resize keeps weights for each column and row: a PNG of one row may not be longer."""


@dataclass(frozen=True)
class PictureInput:
    """The input that takes a picture: its name, its mode, its size; a size of -1 is the picture's own."""

    name: str
    mode: Literal["L", "RGB"]
    height: int
    width: int


def single_input(specs: Sequence[TensorSpec]) -> TensorSpec:
    """The input that a plain body fills. Raises InvalidRequest if the model has several."""
    if len(specs) != 1:
        raise InvalidRequest(
            f"the model takes {len(specs)} inputs ({', '.join(spec.name for spec in specs)}) and a plain body fills "
            "one; send the tensors by name, as the protocol's JSON or binary data"
        )
    return specs[0]


def picture_input(specs: Sequence[TensorSpec]) -> PictureInput:
    """Raises InvalidRequest unless the model takes pictures: one input, UINT8, (batch, 1 or 3, H, W)."""
    spec = single_input(specs)
    batch, channels, height, width = spec.shape if len(spec.shape) == 4 else (0, 0, 0, 0)
    mode = _MODES.get(channels)
    if spec.datatype != "UINT8" or mode is None or batch not in (-1, 1) or 0 in (height, width):
        raise InvalidRequest(
            f"the model takes no picture: its input {spec.name!r} is {spec.datatype} {list(spec.shape)}, and a picture "
            f"fills UINT8 [-1, 1 or 3, height, width]; {_OTHER_WAYS}"
        )
    return PictureInput(spec.name, mode, height, width)


def from_picture(body: bytes, wanted: PictureInput, limits: Limits = Limits()) -> NDArray[np.uint8]:
    """uint8 (1, C, H, W). Raises PayloadTooLarge or InvalidRequest before anything is decoded, InvalidRequest for a
    picture that turns out to be broken."""
    _check_bytes(body, limits.max_bytes)
    header = read_header(body)
    if header.width * header.height > limits.max_pixels or max(header.width, header.height) > limits.max_side:
        raise PayloadTooLarge(
            f"the {header.format} has {header.width}x{header.height} pixels; at most {limits.max_pixels} are taken, "
            f"and {limits.max_side} along a side: make it smaller before you send it"
        )
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(header.body), formats=(header.format,)) as picture:
            box = _draft(picture, header, wanted)
            picture.load()
            if picture.mode in _READ_MODES:
                return _pixels(picture, header, wanted, box)
    except Exception as error:  # Pillow's decoders raise what they like on a broken file
        told = "its header is broken" if isinstance(error, UnidentifiedImageError) else str(error)[:200]
        raise InvalidRequest(
            f"the {header.format} of {len(body)} bytes cannot be decoded ({told}); send the whole file, or save the "
            "picture again"
        ) from error
    raise InvalidRequest(
        f"the {header.format} has pixels of kind {picture.mode}, more than the 8 bits a channel that a model takes; "
        "convert it to 8 bits"
    )


def from_raw(body: bytes, spec: TensorSpec, max_bytes: int = Limits.max_bytes) -> NDArray[np.generic]:
    """The rows of `spec` that lie in `body`, little-endian, one after the other: (rows, ...), a view, not writable.
    Where one size of a row is free, `body` is one row, which tells it; of BYTES it is one element, without its length.
    Raises InvalidRequest unless they are whole rows, one at least."""
    _check_bytes(body, max_bytes)
    known = [size for size in spec.shape[1:] if size >= 0]
    free = len(spec.shape[1:]) - len(known)
    is_text = spec.datatype == "BYTES"
    if free > 1 or not spec.shape or (is_text and math.prod(known) != 1):
        raise InvalidRequest(
            f"input {spec.name!r} is {spec.datatype} {list(spec.shape)}: raw bytes do not tell its shape; send it "
            "with its shape, as the protocol's JSON or binary data"
        )
    dtype = NUMPY_OF_DATATYPE[spec.datatype]
    row_bytes = len(body) if is_text else math.prod(known) * dtype.itemsize
    count, rest = divmod(len(body), row_bytes) if row_bytes else (0, 0)
    rows = 1 if free and count else count
    if rest or not rows or spec.shape[0] not in (-1, rows):
        want = "rows, at least one" if spec.shape[0] == -1 else f"{spec.shape[0]} rows"
        unit = "bytes or a multiple of that" if free else "bytes"
        raise InvalidRequest(
            f"the body has {len(body)} bytes; input {spec.name!r} is {spec.datatype} {list(spec.shape)}, "
            f"{row_bytes} {unit} a row: send whole {want}, little-endian and nothing else"
        )
    shape = (rows, *(count if size < 0 else size for size in spec.shape[1:]))
    if is_text:
        element: NDArray[np.generic] = np.empty(shape, np.object_)
        element[(0,) * len(shape)] = body
        return element
    if spec.datatype == "BOOL" and max(body) > 1:
        raise InvalidRequest(f"input {spec.name!r} is BOOL and holds a byte above 1; a BOOL byte is 0 or 1")
    return np.frombuffer(body, dtype.newbyteorder("<")).reshape(shape).astype(dtype, copy=False)


def _check_bytes(body: bytes, most: int) -> None:
    if len(body) > most:
        raise PayloadTooLarge(
            f"the body has {len(body)} bytes; at most {most} are taken: send a smaller picture, or fewer rows at once"
        )


def _draft(picture: Image.Image, header: Header, wanted: PictureInput) -> tuple[float, ...] | None:
    """Have a big JPEG decoded smaller; the part of the smaller one that is the picture, None if it is left whole."""
    width, height = _size(wanted, header)
    if header.width * header.height <= DRAFT_PIXELS or header.format != "JPEG":
        return None
    chosen: Any = picture.draft(None, (DRAFT_GAP * width, DRAFT_GAP * height))
    return chosen[1] if chosen and picture.size != (header.width, header.height) else None


def _size(wanted: PictureInput, header: Header) -> tuple[int, int]:
    """Width and height to be brought to, as the picture is stored: lying, if it is to be turned."""
    turned = header.orientation > 4
    width, height = (wanted.height, wanted.width) if turned else (wanted.width, wanted.height)
    return (width if width > 0 else header.width, height if height > 0 else header.height)


def _pixels(
    picture: Image.Image, header: Header, wanted: PictureInput, box: tuple[float, ...] | None
) -> NDArray[np.uint8]:
    from PIL import Image

    converted = picture if picture.mode == wanted.mode else picture.convert(wanted.mode)
    size = _size(wanted, header)
    # Turned before it is resized, as in training: the other way round some pixels are rounded to their neighbour. One
    # that was decoded smaller is not exact anyway, and cheaper to turn afterwards.
    if box is None:
        converted = _upright(converted, header.orientation)
        size = size[::-1] if header.orientation > 4 else size
    if converted.size != size or box is not None:
        converted = converted.resize(size, Image.Resampling.BILINEAR, box=box)  # type: ignore[arg-type]
    if box is not None:
        converted = _upright(converted, header.orientation)
    pixels_HWC = np.asarray(converted, dtype=np.uint8).reshape(converted.height, converted.width, -1)
    return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))[None]


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    """Exif's orientations 2 to 8, in order."""
    from PIL.Image import Transpose

    if orientation == 1:
        return picture
    return picture.transpose((
        Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
        Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
    )[orientation - 2])  # fmt: skip
