"""Fixed structures: any values come back, any bytes give rising entries and true names."""

from __future__ import annotations

import struct
from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from streamlite.format import (
    BATCH_COUNT_MAX,
    FLAG_COMPACTED,
    INDEX_ENTRY_BYTES,
    OFFSET_MAX,
    PAYLOAD_BYTES_MAX,
    BatchHeader,
    IndexEntry,
    checksum,
    pack_entry,
    pack_header,
    parse_segment_name,
    segment_name,
    unpack_entries,
    unpack_header,
    verify,
)

U8 = st.integers(0, (1 << 8) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
I64 = st.integers(-(1 << 63), (1 << 63) - 1)
OFFSETS = st.integers(0, OFFSET_MAX)


@st.composite
def headers(draw: st.DrawFn) -> BatchHeader:
    """Any header that adds up."""
    compression, flags, count = draw(U8), draw(U8), draw(st.integers(1, BATCH_COUNT_MAX))
    length = draw(st.integers(0, PAYLOAD_BYTES_MAX))
    gap = draw(st.integers(0, (1 << 31))) if flags & FLAG_COMPACTED else 0
    return BatchHeader(
        encoding=draw(U8),
        compression=compression,
        flags=flags,
        length=length,
        content_bytes=draw(st.integers(0, PAYLOAD_BYTES_MAX)) if compression else length,
        count=count,
        last_delta=count - 1 + gap,
        base_offset=draw(st.integers(0, OFFSET_MAX - count - gap)),
        base_timestamp=draw(I64),
        max_timestamp=draw(I64),
        synced_upto=draw(U64),
        epoch=draw(U32),
        producer_epoch=draw(U32),
        producer_id=draw(U64),
        base_sequence=draw(I64),
        transaction_id=draw(U64),
    )


@given(headers(), st.binary(max_size=20))
def test_any_header_comes_back(header: BatchHeader, before: bytes) -> None:
    data = before + pack_header(header, b"")
    assert unpack_header(data, len(before)) == header


@given(headers(), st.binary(max_size=300), st.binary(max_size=20))
def test_any_payload_is_verified(header: BatchHeader, payload: bytes, after: bytes) -> None:
    header = header._replace(length=len(payload), content_bytes=len(payload))
    data = pack_header(header, payload) + payload + after
    assert verify(unpack_header(data), memoryview(data)) == payload


RISING = st.lists(
    st.tuples(st.integers(1, 1 << 40), st.integers(1, 1 << 40), st.integers(0, 1 << 40)), max_size=20
).map(
    lambda steps: [
        IndexEntry(*entry) for entry in accumulate(steps, lambda a, b: tuple(map(sum, zip(a, b, strict=True))))
    ]
)


@given(RISING, st.binary(max_size=3 * INDEX_ENTRY_BYTES))
def test_whole_entries_come_back_whatever_follows(entries: list[IndexEntry], after: bytes) -> None:
    found = unpack_entries(b"".join(map(pack_entry, entries)) + after)
    assert found[: len(entries)] == entries


@given(st.lists(st.tuples(U64, U64, I64), max_size=20), st.data())
def test_any_entries_rise_and_can_be(parts: list[tuple[int, int, int]], data: st.DataObject) -> None:
    stored = [struct.pack("<QQqQ", *part, checksum(struct.pack("<QQq", *part))) for part in parts]
    damaged = bytearray(b"".join(stored))
    if damaged and data.draw(st.booleans()):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1
    found = unpack_entries(bytes(damaged))
    assert found == [IndexEntry(*part) for part in parts][: len(found)]
    assert all(max(entry[:2]) <= OFFSET_MAX for entry in found)
    for before, after in pairwise(found):
        assert before.offset < after.offset
        assert before.position < after.position
        assert before.max_timestamp <= after.max_timestamp


@given(OFFSETS, st.integers(0, OFFSET_MAX), st.integers(0, 1000))
def test_any_segment_name_comes_back(base: int, more: int, generation: int) -> None:
    end = min(base + more, OFFSET_MAX) if generation else 0
    stem = segment_name(base, end, generation)
    expected = None if generation and end <= base else (base, end, generation)
    assert parse_segment_name(stem) == expected


@given(st.text(max_size=60) | st.from_regex(r"[0-9]{18,22}(-[0-9]{18,22})?(\.[0-9]{1,3})?", fullmatch=True))
def test_any_name_is_no_segments_or_just_that_segments(stem: str) -> None:
    parsed = parse_segment_name(stem)
    assert parsed is None or segment_name(*parsed) == stem
