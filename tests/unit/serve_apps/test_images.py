"""A picture is served as it was trained on, and whatever else comes is refused by name, cheaply."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from cluster.errors import InvalidRequest, PayloadTooLarge
from cluster.tensors import NUMPY_OF_DATATYPE, check_inputs
from cluster.variants import TensorSpec
from serve_apps.images import Limits, PictureInput, from_picture, from_raw, picture_input, single_input
from tests.unit.serve_apps.photographs import encoded, photograph, twelve_megapixels
from train_jobs import datasets

COLOUR = TensorSpec(name="image", datatype="UINT8", shape=(-1, 3, 48, 64))
GREY = TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28))
SMALL = photograph(0, (90, 60))


def served(body: bytes, spec: TensorSpec = COLOUR, **limits: Any) -> np.ndarray:
    tensor = from_picture(body, picture_input([spec]), Limits(**limits))
    check_inputs([spec], {"image": tensor})
    assert tensor.flags.c_contiguous
    return tensor


def trained(folder: Path, body: bytes, suffix: str, spec: TensorSpec) -> np.ndarray:
    """What the loader of a folder of pictures makes of the same file."""
    for split in ("train", "test"):
        for name in ("one", "two"):
            path = folder / split / name / f"picture{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
    _, channels, height, width = spec.shape
    loaded = datasets.load(f"{folder}?size={width}x{height}&mode={'L' if channels == 1 else 'RGB'}")
    return np.asarray(loaded.x_test[:1])


FORMS: dict[str, tuple[bytes, str]] = {
    "jpeg": (encoded(photograph()), ".jpg"),
    "jpeg of grey": (encoded(photograph().convert("L")), ".jpg"),
    "jpeg for print": (encoded(photograph().convert("CMYK")), ".jpg"),
    "jpeg, progressive": (encoded(photograph(), progressive=True), ".jpg"),
    "jpeg with metadata": (
        encoded(photograph(), orientation=1, comment=b"c" * 500, icc_profile=b"i" * 9000, xmp=b"<x/>"), ".jpg"
    ),
    "jpeg of its very size": (encoded(photograph(0, (64, 48))), ".jpg"),
    "png": (encoded(photograph(), "PNG"), ".png"),
    "png of grey": (encoded(photograph().convert("L"), "PNG"), ".png"),
    "png with a palette": (encoded(photograph().convert("P"), "PNG"), ".png"),
    "png with a transparent colour": (encoded(photograph().convert("P"), "PNG", transparency=3), ".png"),
    "png with alpha": (encoded(photograph().convert("RGBA"), "PNG"), ".png"),
    "png of black and white": (encoded(photograph().convert("1"), "PNG"), ".png"),
    **{f"jpeg turned {n}": (encoded(photograph(), orientation=n), ".jpg") for n in range(2, 9)},
    **{f"png turned {n}": (encoded(photograph(), "PNG", orientation=n), ".png") for n in (3, 6)},
}  # fmt: skip


@pytest.mark.parametrize("spec", [COLOUR, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("form", FORMS)
def test_serving_and_training_see_the_same_pixels(form: str, spec: TensorSpec, tmp_path: Path) -> None:
    body, suffix = FORMS[form]
    np.testing.assert_array_equal(served(body, spec), trained(tmp_path, body, suffix, spec))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"orientation": 6}], ids=str)
def test_a_big_jpeg_decoded_smaller_differs_by_little(options: dict[str, Any], tmp_path: Path) -> None:
    body = twelve_megapixels(**options)
    whole = trained(tmp_path, body, ".jpg", COLOUR).astype(int)
    apart = np.abs(served(body).astype(int) - whole)
    assert 0 < apart.mean() < 0.5, "0 would say that it was decoded whole"
    assert apart.max() <= 8


def test_a_camera_s_picture_with_a_second_one_behind_it_is_read() -> None:
    file = io.BytesIO()
    SMALL.save(file, "MPO", save_all=True, append_images=[photograph(1, (90, 60))])
    np.testing.assert_array_equal(served(file.getvalue()), served(encoded(SMALL)))


def test_a_free_size_is_the_picture_s_own() -> None:
    spec = TensorSpec(name="image", datatype="UINT8", shape=(-1, 3, -1, -1))
    body = encoded(SMALL, "PNG", orientation=6)
    assert served(body, spec).shape == (1, 3, 90, 60)
    np.testing.assert_array_equal(served(encoded(SMALL, "PNG"), spec)[0], np.asarray(SMALL).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (TensorSpec(name="x", datatype="FP32", shape=(-1, 3, 8, 8)), r"'x' is FP32 \[-1, 3, 8, 8\].*octet-stream"),
        (TensorSpec(name="x", datatype="UINT8", shape=(-1, 2, 8, 8)), "1 or 3"),
        (TensorSpec(name="x", datatype="UINT8", shape=(-1, 784)), "takes no picture"),
        (TensorSpec(name="x", datatype="UINT8", shape=(4, 3, 8, 8)), "takes no picture"),
    ],
)
def test_a_model_that_takes_no_picture_says_what_it_takes(spec: TensorSpec, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        picture_input([spec])


def test_a_model_of_several_inputs_takes_no_plain_body() -> None:
    with pytest.raises(InvalidRequest, match=r"takes 2 inputs \(image, x\)"):
        single_input([COLOUR, TensorSpec(name="x", datatype="FP32", shape=(-1, 2))])


def png_of(width: int, height: int, *, depth: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        (b"", InvalidRequest, "0 bytes, beginning with nothing"),
        (b"GIF89a" + b"\0" * 50, InvalidRequest, "47 49 46.*neither a JPEG nor a PNG; save"),
        (encoded(SMALL, "BMP"), InvalidRequest, "neither a JPEG nor a PNG"),
        (png_of(50_000, 50_000), PayloadTooLarge, "50000x50000 pixels; at most 25000000"),
        (png_of(1 << 20, 1), PayloadTooLarge, "65535 along a side"),
        (png_of(0, 8), InvalidRequest, "0x8 pixels"),
        (png_of(2, 2, depth=16, pixels=b"\0" * 10), InvalidRequest, "kind I;16.*convert it to 8 bits"),
        (png_of(2, 2, depth=7, pixels=b"\0" * 10), InvalidRequest, "cannot be decoded"),
        (png_of(200, 200, pixels=b"\0" * 100), InvalidRequest, "cannot be decoded"),
        (b"\xff\xd8\xff" + b"\xff" * 100_000, InvalidRequest, "20000 segments"),
        (b"\xff\xd8" + b"\xff\xe1\0\x02" * 50_000, InvalidRequest, "20000 segments"),
        (encoded(SMALL)[:300], InvalidRequest, "JPEG of 300 bytes is cut off or broken at byte"),
        (encoded(SMALL)[:-700], InvalidRequest, "truncated.*send the whole file"),
        (encoded(SMALL, "PNG")[:-700], InvalidRequest, "PNG of .* is cut off or broken at byte"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_reason(body: bytes, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told) as refused:
        served(body)
    assert type(refused.value) is kind


def test_a_bomb_is_refused_before_pillow_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(PayloadTooLarge, match="90x60 pixels; at most 5399"):
        served(encoded(SMALL), max_pixels=5399)
    with pytest.raises(PayloadTooLarge, match=r"bytes; at most 100 are taken"):
        served(encoded(SMALL), max_bytes=100)


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    body = encoded(SMALL, progressive=True)
    last = body.rindex(b"\xff\xda")
    with pytest.raises(InvalidRequest, match="scans, each of which"):
        served(body[:last] + body[last:-2] * 60 + body[-2:])
    np.testing.assert_array_equal(served(body[:last] + body[last:-2] * 3 + body[-2:]).shape, (1, 3, 48, 64))


def test_exif_is_never_read_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    # 4,900 entries that all point to the same 55 kB.
    entries = b"".join(struct.pack("<HHII", 0x9000 + n, 7, 55_000, 8) for n in range(4_900))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 4_900) + entries
    body = encoded(SMALL)
    hostile = body[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif + body[2:]
    monkeypatch.setattr(Image.Exif, "load", None)
    np.testing.assert_array_equal(served(hostile), served(body))


BODIES = [
    encoded(SMALL), encoded(SMALL, progressive=True), encoded(SMALL.convert("CMYK")), encoded(SMALL, "PNG"),
    encoded(SMALL.convert("P"), "PNG"), encoded(SMALL, orientation=6), encoded(SMALL, "PNG", orientation=5),
]  # fmt: skip
SLOW = settings(deadline=2000, max_examples=300, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(st.sampled_from(BODIES), st.data())
def test_changed_bytes_give_a_picture_or_our_error(body: bytes, data: st.DataObject) -> None:
    changed = bytearray(body)
    # Half of the changes hit the header, where sizes and lengths are.
    places = st.one_of(st.integers(0, 700), st.integers(0, len(body) - 1))
    for at, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        changed[at % len(body)] = value
    with suppress(InvalidRequest):
        assert served(bytes(changed)).shape == (1, 3, 48, 64)


@SLOW
@given(st.sampled_from(BODIES), st.data())
def test_a_truncated_file_is_refused_unless_all_its_pixels_were_there(body: bytes, data: st.DataObject) -> None:
    cut = body[: data.draw(st.one_of(st.integers(0, len(body) - 1), st.integers(len(body) - 40, len(body) - 1)))]
    try:
        tensor = served(cut)
    except InvalidRequest:
        return
    assert len(body) - len(cut) < 40
    np.testing.assert_array_equal(tensor, served(body))


@SLOW
@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b""]), st.binary(max_size=400))
def test_noise_is_refused(start: bytes, noise: bytes) -> None:
    with pytest.raises(InvalidRequest):
        served(start + noise)


@given(
    st.sampled_from(sorted(set(NUMPY_OF_DATATYPE) - {"BYTES"})).flatmap(
        lambda datatype: st.tuples(
            st.just(datatype), arrays(NUMPY_OF_DATATYPE[datatype], array_shapes(min_dims=1, max_dims=4, max_side=4))
        )
    )
)
def test_raw_rows_come_back_bit_for_bit(drawn: tuple[str, np.ndarray]) -> None:
    datatype, rows = drawn
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, *rows.shape[1:]))  # type: ignore[arg-type]
    little = rows.astype(rows.dtype.newbyteorder("<"))
    tensor = from_raw(little.tobytes(), spec)
    check_inputs([spec], {"x": tensor})
    assert tensor.tobytes() == rows.tobytes()
    if little.itemsize > 1 or rows[0].size > 1:
        with pytest.raises(InvalidRequest, match=f"has {rows.nbytes + 1} bytes; input 'x' is {datatype}"):
            from_raw(little.tobytes() + b"\0", spec)


@pytest.mark.parametrize(
    ("body", "spec", "told"),
    [
        (b"", COLOUR, "0 bytes.*9216 bytes a row: send whole rows, at least one"),
        (b"\0" * 8, TensorSpec(name="x", datatype="FP32", shape=(-1, -1, -1)), "raw bytes do not tell its shape"),
        (b"\0" * 9, TensorSpec(name="x", datatype="FP32", shape=(-1, -1, 2)), "9 bytes.*8 bytes or a multiple of"),
        (b"", TensorSpec(name="x", datatype="FP32", shape=(-1, -1, 2)), "0 bytes.*8 bytes or a multiple of"),
        (b"\0" * 8, TensorSpec(name="x", datatype="FP32", shape=(2, -1)), "whole 2 rows"),
        (b"\0" * 8, TensorSpec(name="x", datatype="BYTES", shape=(-1, 2)), "BYTES.*do not tell its shape"),
        (b"", TensorSpec(name="x", datatype="BYTES", shape=(-1, 1)), "at least one"),
        (b"\0" * 8, TensorSpec(name="x", datatype="FP32", shape=(3, 1)), "whole 3 rows"),
        (b"\0\2", TensorSpec(name="x", datatype="BOOL", shape=(-1, 1)), "a byte above 1"),
        (b"\0\2", TensorSpec(name="x", datatype="UINT8", shape=(-1, 0)), "0 bytes a row"),
    ],
)
def test_raw_bytes_that_are_no_rows_are_refused(body: bytes, spec: TensorSpec, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        from_raw(body, spec)


@given(st.integers(1, 4), st.integers(1, 50))
def test_a_row_with_one_free_size_is_as_long_as_its_bytes(width: int, length: int) -> None:
    row = np.arange(width * length, dtype=np.float32).reshape(1, length, width)
    tensor = from_raw(row.tobytes(), TensorSpec(name="x", datatype="FP32", shape=(-1, -1, width)))
    np.testing.assert_array_equal(tensor, row)


@given(st.binary(min_size=1), st.sampled_from([(-1,), (-1, 1), (-1, -1), (1, 1)]))
def test_a_text_is_its_bytes(text: bytes, shape: tuple[int, ...]) -> None:
    spec = TensorSpec(name="x", datatype="BYTES", shape=shape)
    tensor = from_raw(text, spec)
    check_inputs([spec], {"x": tensor})
    assert tensor.ravel().tolist() == [text]


def test_raw_bytes_have_their_limit() -> None:
    with pytest.raises(PayloadTooLarge, match="9216 bytes; at most 9215"):
        from_raw(b"\0" * 9216, COLOUR, max_bytes=9215)


def test_the_name_of_the_input_is_told() -> None:
    assert picture_input([GREY]) == PictureInput(name="image", mode="L", height=28, width=28)
