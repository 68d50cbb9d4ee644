"""Bodies packed and unpacked: back bit for bit, never beyond the bounds, and never anything but our errors."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest, PayloadTooLarge
from serve_apps.oip.compression import FREE_BYTES, MIN_BYTES, chosen, compress, decompress

MOST = 4 << 20


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(body) + packer.flush()


PACKERS = {
    "gzip": ("gzip", gzip.compress), "x-gzip": ("X-GZip", gzip.compress), "deflate": (" deflate ", zlib.compress),
    "deflate without its header": ("deflate", raw_deflate), "identity": ("identity", bytes), "nothing": ("", bytes),
}  # fmt: skip
BODIES = st.one_of(st.binary(max_size=3000), st.text(max_size=50).map(lambda text: text.encode() * 50))


@pytest.mark.parametrize("packer", PACKERS)
@given(body=BODIES)
def test_what_others_packed_comes_out_as_it_was(packer: str, body: bytes) -> None:
    encoding, pack = PACKERS[packer]
    assert decompress(pack(body), encoding, max_bytes=len(body)) == body


@given(BODIES, st.sampled_from(["gzip", "deflate", "gzip, deflate, br", "*", "deflate;q=1, gzip;q=0.5"]))
def test_what_we_packed_is_smaller_and_others_can_read_it(body: bytes, accept: str) -> None:
    packed, encoding = compress(body, accept, min_bytes=0)
    if encoding is None:
        assert packed is body
        return
    assert len(packed) < len(body)
    assert (gzip.decompress if encoding == "gzip" else zlib.decompress)(packed) == body


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("gzip", "gzip"), ("GZIP", "gzip"), ("x-gzip", "gzip"), ("deflate", "deflate"), ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"), ("gzip ; q=0", None), ("*", "gzip"), ("*;q=0", None),
        ("gzip;q=0, *", "deflate"), ("br, zstd", None), ("identity", None), ("", None), ("gzip;q=0.2, identity", None),
        ("gzip, identity;q=0.5", "gzip"), ("gzip;q=nan", None), ("gzip;q=-1", None), ("gzip;q=1e9", None),
        ("gzip;q=.", None), ("gzip;level=9", "gzip"), (",;,=;q", None),
    ],
)  # fmt: skip
def test_the_client_s_wish_decides(accept: str, answer: str | None) -> None:
    assert chosen(accept) == answer


@given(st.text(max_size=60))
def test_no_wish_is_an_error(accept: str) -> None:
    assert chosen(accept) in (None, "gzip", "deflate")


def test_what_is_small_or_does_not_pack_goes_as_it_is() -> None:
    assert compress(b"a" * (MIN_BYTES - 1), "gzip") == (b"a" * (MIN_BYTES - 1), None)
    assert compress(b"a" * MIN_BYTES, "gzip")[1] == "gzip"
    assert compress(b"a" * MIN_BYTES, "gzip," * 100)[1] is None, "a wish of that length is none"
    noise = b"".join(zlib.crc32(b"%d" % number).to_bytes(4, "big") for number in range(1000))
    assert compress(noise, "gzip") == (noise, None)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_bomb_is_refused_and_not_unpacked(encoding: str, pack: object) -> None:
    bomb = pack(bytes(64 << 20))  # type: ignore[operator]
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match=rf"{len(bomb)} bytes as {encoding} and more than {MOST} unpacked"):
            decompress(bomb, encoding, max_bytes=MOST)
        with pytest.raises(PayloadTooLarge, match="more than 100 times as many unpacked; send it plain"):
            decompress(bomb, encoding, max_bytes=1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 3 * max(MOST, 100 * len(bomb))
    finally:
        tracemalloc.stop()


def test_the_bounds_are_exact() -> None:
    body = bytes(FREE_BYTES)
    packed = gzip.compress(body)
    assert len(packed) * 100 < FREE_BYTES
    assert decompress(packed, "gzip", max_bytes=FREE_BYTES) == body, "small ones may pack as well as they can"
    with pytest.raises(PayloadTooLarge, match=f"more than {FREE_BYTES - 1} unpacked"):
        decompress(packed, "gzip", max_bytes=FREE_BYTES - 1)
    with pytest.raises(PayloadTooLarge, match="100 times"):
        decompress(gzip.compress(bytes(FREE_BYTES + 1)), "gzip", max_bytes=MOST)
    with pytest.raises(PayloadTooLarge, match="5 bytes; at most 4"):
        decompress(b"12345", "identity", max_bytes=4)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip,deflate", "deflate64", "none\n"])
def test_other_encodings_are_refused_by_name(encoding: str) -> None:
    with pytest.raises(InvalidRequest, match="is not known; send the body plain, or packed once by gzip or deflate"):
        decompress(b"", encoding, max_bytes=MOST)


def test_gzip_in_a_few_parts_is_one_body_and_in_many_it_is_none() -> None:
    assert decompress(gzip.compress(b"ab") + gzip.compress(b"") + gzip.compress(b"c"), "gzip", max_bytes=3) == b"abc"
    with pytest.raises(PayloadTooLarge, match="more than 2 unpacked"):
        decompress(gzip.compress(b"ab") + gzip.compress(b"c"), "gzip", max_bytes=2)
    with pytest.raises(InvalidRequest, match="bytes follow its end"):
        decompress(gzip.compress(b"") * 9, "gzip", max_bytes=MOST)


PACKED = [("gzip", gzip.compress(b"sluice" * 200, mtime=0)), ("deflate", zlib.compress(b"sluice" * 200))]


@given(st.sampled_from(PACKED), st.data())
def test_a_body_that_is_cut_or_continued_is_refused(packed: tuple[str, bytes], data: st.DataObject) -> None:
    encoding, body = packed
    cut = data.draw(st.integers(0, len(body) - 1))
    for wrong in (body[:cut], body + data.draw(st.binary(min_size=1, max_size=20))):
        with pytest.raises(InvalidRequest, match="send it plain"):
            decompress(wrong, encoding, max_bytes=MOST)


@given(st.sampled_from(PACKED), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_a_body_or_our_error(
    packed: tuple[str, bytes], changes: list[tuple[int, int]]
) -> None:
    encoding, body = packed
    changed = bytearray(body)
    for at, value in changes:
        changed[at % len(body)] = value
    try:
        assert len(decompress(bytes(changed), encoding, max_bytes=5000)) <= 5000
    except InvalidRequest as error:
        told = str(error)
    else:
        told = "plain"
    assert "plain" in told or "unpacked" in told
