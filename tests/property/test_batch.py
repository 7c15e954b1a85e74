"""Batches: any columns come back, any bytes give a `BadBatch` or columns that fit, no damage goes unseen."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from streamlite.batch import Batch, decode, encode_payload, timestamp_steps
from streamlite.compression import CODECS, codec
from streamlite.format import (
    BATCH_COUNT_MAX,
    FLAG_COMPACTED,
    HEADER_BYTES,
    OFFSET_MAX,
    BadBatch,
    pack_header,
    unpack_header,
    verify,
)
from streamlite.message import Message
from tests.unit.batches import header_of

DATA = st.none() | st.binary(max_size=12)
PAIRS = st.lists(st.tuples(st.text(max_size=5), DATA), max_size=3).map(tuple)
TIMES = st.integers(0, 1 << 61)


@st.composite
def columns(draw: st.DrawFn, count: int) -> dict[str, Any]:
    """The columns of a batch: some of them constant, some of them absent."""

    def column(element: st.SearchStrategy[Any]) -> list[Any]:
        constant = draw(st.booleans())
        return [draw(element)] * count if constant else draw(st.lists(element, min_size=count, max_size=count))

    start, steps = draw(TIMES), draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    rising = [start + sum(steps[: at + 1]) for at in range(count)]
    return {
        "keys": draw(st.just(None)) if draw(st.booleans()) else column(DATA),
        "values": column(DATA),
        "timestamps": draw(st.sampled_from([rising, rising[::-1], column(TIMES)])),
        "headers": None if draw(st.booleans()) else column(st.none() | PAIRS),
    }


def packed(found: dict[str, Any], name: str, **changes: Any) -> bytes:
    """A whole batch with these columns, compressed by the codec of that name."""
    base, greatest, steps = timestamp_steps(found["timestamps"])
    content = encode_payload(found["keys"], found["values"], steps, found["headers"], *changes.pop("more", ()))
    payload = codec(name).compress(content)
    header = header_of(
        payload,
        len(found["values"]),
        compression=codec(name).id,
        content_bytes=len(content),
        base_timestamp=base,
        max_timestamp=greatest,
        **changes,
    )
    return pack_header(header, payload) + payload


def read(data: bytes) -> Batch:
    """As a reader does it."""
    header = unpack_header(data)
    return decode(header, verify(header, data))


@given(st.data(), st.integers(1, 40), st.sampled_from(list(CODECS)), st.integers(0, OFFSET_MAX - 50))
def test_any_columns_come_back(data: st.DataObject, count: int, name: str, base: int) -> None:
    found = data.draw(columns(count))
    batch = read(packed(found, name, base_offset=base))
    headers = [pairs or () for pairs in found["headers"] or [()] * count]
    assert list(batch.offsets) == list(range(base, base + count))
    assert batch.timestamps == found["timestamps"]
    assert batch.keys == (found["keys"] or [None] * count)
    assert batch.values == found["values"]
    assert batch.messages("t", 0) == [
        Message("t", 0, base + at, found["timestamps"][at], batch.keys[at], found["values"][at], headers[at])
        for at in range(count)
    ]


@given(st.data(), st.sets(st.integers(0, 1000), min_size=1, max_size=20), st.none() | TIMES, st.integers(0, 1000))
def test_any_compacted_columns_come_back(data: st.DataObject, deltas: set[int], horizon: int | None, more: int) -> None:
    found = data.draw(columns(len(deltas)))
    offsets = sorted(deltas)
    batch = read(
        packed(
            found,
            "none",
            flags=FLAG_COMPACTED,
            base_offset=500,
            last_delta=offsets[-1] + more,
            more=(offsets, horizon),
        )
    )
    assert batch.offsets == [500 + offset for offset in offsets]
    assert batch.values == found["values"]
    assert batch.horizon == horizon
    assert batch.header.next_offset == 500 + offsets[-1] + more + 1


PAYLOADS = (
    st.binary(max_size=60)
    | st.lists(
        st.recursive(
            st.none() | st.integers(-3, (1 << 64) - 1) | st.binary(max_size=4) | st.text(max_size=2),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(-1, 5), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=7,
    ).map(msgspec.msgpack.encode)
    | st.tuples(
        st.none() | st.lists(DATA, max_size=4),
        st.none() | st.lists(DATA, max_size=4),
        st.none() | st.lists(st.integers(-1, 9), max_size=4) | st.dictionaries(st.integers(-1, 4), st.integers(-1, 9)),
        st.none() | st.lists(st.none() | PAIRS, max_size=4),
        st.none() | st.lists(st.integers(-1, 9), max_size=4),
        st.none() | st.integers(),
    ).map(lambda parts: encodable(list(parts)))
)


def encodable(parts: list[Any]) -> bytes:
    """`parts` in msgpack; a number that it has no room for is left out."""
    try:
        return msgspec.msgpack.encode(parts)
    except OverflowError:
        return msgspec.msgpack.encode(parts[:-1])


@given(PAYLOADS, st.integers(1, 4), st.sampled_from([0, FLAG_COMPACTED]), st.integers(0, 9), st.integers(-1, 5))
def test_any_payload_gives_columns_of_equal_length_or_bad_batch(
    payload: bytes, count: int, flags: int, gap: int, span: int
) -> None:
    last_delta = count - 1 + (gap if flags else 0)
    header = header_of(
        payload, count, flags=flags, last_delta=last_delta, base_timestamp=100, max_timestamp=100 + span, base_offset=7
    )
    try:
        batch = decode(header, payload)
    except BadBatch:
        return
    assert len(batch.offsets) == len(batch.timestamps) == len(batch.keys) == len(batch.values) == count
    assert batch.headers is None or len(batch.headers) == count
    assert list(batch.offsets) == sorted(set(batch.offsets))
    assert 7 <= batch.offsets[0] <= batch.offsets[-1] < batch.header.next_offset
    assert 100 <= min(batch.timestamps) <= max(batch.timestamps) <= 100 + span
    assert len(batch.messages("t", 0)) == count


@given(st.binary(max_size=60), st.sampled_from([1, 2, 3]), st.integers(0, 1 << 20))
def test_any_compressed_payload_gives_columns_or_bad_batch(payload: bytes, compression: int, content: int) -> None:
    try:
        batch = decode(header_of(payload, compression=compression, content_bytes=content), payload)
    except BadBatch:
        return
    assert len(batch.values) == 1


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES + 40), st.booleans())
def test_any_bytes_are_a_sensible_header_or_bad_batch(data: bytes, with_magic: bool) -> None:
    data = pack_header(header_of(b""), b"")[:5] + data[5:] if with_magic else data
    try:
        header = unpack_header(data)
    except BadBatch:
        return
    assert 0 < header.count <= min(BATCH_COUNT_MAX, header.last_delta + 1)
    assert header.next_offset <= OFFSET_MAX
    assert max(header.length, header.content_bytes) < 1 << 31


@given(st.data(), st.sampled_from(list(CODECS)))
def test_no_damage_goes_unseen(data: st.DataObject, name: str) -> None:
    batch = bytearray(packed(data.draw(columns(3)), name))
    for at in data.draw(st.sets(st.integers(0, 8 * len(batch) - 1), min_size=1, max_size=5)):
        batch[at // 8] ^= 1 << at % 8
    try:
        read(bytes(batch))
    except BadBatch:
        return
    raise AssertionError("damaged bytes were taken for a batch")


@given(st.data())
def test_a_batch_cut_anywhere_is_refused(data: st.DataObject) -> None:
    batch = packed(data.draw(columns(3)), "none")
    cut = batch[: data.draw(st.integers(0, len(batch) - 1))]
    try:
        read(cut)
    except BadBatch:
        return
    raise AssertionError("a part was taken for the whole")


@given(st.sampled_from(["lz4", "zstd"]), st.binary(max_size=200), st.integers(1, 50), st.data())
def test_decompression_gives_no_more_than_was_said(name: str, data: bytes, times: int, more: st.DataObject) -> None:
    plain = data * times
    frame = codec(name).compress(plain)
    limit = more.draw(st.integers(0, len(plain) + 10))
    if limit >= len(plain):
        assert codec(name).decompress(frame, limit) == plain
        return
    try:
        codec(name).decompress(frame, limit)
    except ValueError:
        return
    raise AssertionError("more than the limit came out")


@given(st.sampled_from(["lz4", "zstd"]), st.binary(max_size=100), st.data())
def test_a_damaged_frame_stays_within_the_limit(name: str, data: bytes, more: st.DataObject) -> None:
    frame = bytearray(codec(name).compress(data * 5))
    for at in more.draw(st.sets(st.integers(0, len(frame) - 1), max_size=4)):
        frame[at] = more.draw(st.integers(0, 255))
    limit = more.draw(st.integers(0, 1000))
    with suppress(ValueError):
        assert len(codec(name).decompress(bytes(frame), limit)) <= limit


@given(st.lists(st.integers(-(1 << 60), 1 << 60), min_size=1, max_size=30) | st.lists(st.integers(0, 3), min_size=1))
def test_timestamps_fit_their_steps(timestamps: list[int]) -> None:
    base, greatest, steps = timestamp_steps(timestamps)
    payload = encode_payload(None, [b"v"] * len(timestamps), steps)
    header = header_of(payload, len(timestamps), base_timestamp=base, max_timestamp=greatest)
    assert decode(header, payload).timestamps == timestamps
    assert (base, greatest) == (min(timestamps), max(timestamps))
