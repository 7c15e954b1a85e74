"""Columns in, bytes out, and back: how little is written, and that nonsense is refused without building it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import pytest

from streamlite.batch import Batch, decode, encode_payload, peel, timestamp_steps
from streamlite.compression import codec
from streamlite.errors import CorruptionError
from streamlite.format import (
    BATCH_COUNT_MAX,
    ENCODING_KAFKA,
    FLAG_COMPACTED,
    FLAG_TRANSACTION,
    FLAGS_KNOWN,
    BadBatch,
)
from streamlite.message import Columns, Message
from tests.unit.batches import BASE_MS, header_of

PAIRS = (("trace", b"1"), ("empty", None))


def columns_of(payload: bytes) -> list[Any]:
    """What was written, as msgpack says it."""
    return msgspec.msgpack.decode(payload)  # type: ignore[no-any-return]


def decoded(payload: bytes, count: int, **changes: Any) -> Batch:
    return decode(header_of(payload, count, **changes), payload)


def peeled(payload: bytes, count: int, **changes: Any) -> Batch:
    """The same, taken apart column by column."""
    batch = peel(header_of(payload, count, **changes), payload)
    batch.place = ("a file", 7)
    for name in ("timestamps", "keys", "values", "headers"):
        getattr(batch, name)
    return batch


def raw(*columns: Any) -> bytes:
    return msgspec.msgpack.encode(list(columns))


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "values", "expected"),
    [
        (None, [b"a", b"b"], [None, [b"a", b"b"]]),
        ([None, None], [b"a", b"b"], [None, [b"a", b"b"]]),
        ([b"k", b"k"], [b"a", b"b"], [[b"k"], [b"a", b"b"]]),
        ([b"k", b"j", b"k"], [b"a"] * 3, [[b"k", b"j", b"k"], [b"a"]]),
        ([b"k", None], [None, None], [[b"k", None]]),
        ([None, b"k", None], [b"", b"", b""], [[None, b"k", None], [b""]]),
        (None, [None], []),
        ((b"k", b"k"), (b"a", b"b"), [[b"k"], [b"a", b"b"]]),
    ],
)
def test_a_column_is_as_short_as_it_can_be_said(keys: Any, values: Any, expected: list[Any]) -> None:
    assert columns_of(encode_payload(keys, values)) == expected


def test_a_million_keyless_messages_cost_no_key_bytes() -> None:
    assert len(encode_payload([None] * 1_000_000, [b"v"] * 1_000_000)) == 6


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (None, None),
        ([None, None], None),
        ([(), ()], None),
        ([None, []], None),
        ([PAIRS, PAIRS], [[["trace", b"1"], ["empty", None]]]),
        ([PAIRS, None], [[["trace", b"1"], ["empty", None]], None]),
        ([(), PAIRS], [[], [["trace", b"1"], ["empty", None]]]),
    ],
)
def test_headers_that_are_the_same_are_said_once(headers: Any, expected: Any) -> None:
    columns = columns_of(encode_payload([b"a", b"b"], [b"c", b"d"], None, headers))
    assert columns[3:] == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("timestamps", "expected"),
    [
        ([5], (5, 5, None)),
        ([5, 5, 5], (5, 5, None)),
        ([5, 6], (5, 6, [0, 1])),
        ([6, 5], (5, 6, [1, 0])),
        ([5] * 4 + [7] * 4, (5, 7, {0: 0, 4: 2})),
        ((5,) * 4 + (7,) * 4, (5, 7, {0: 0, 4: 2})),
        ([7] * 4 + [5] * 4, (5, 7, [2] * 4 + [0] * 4)),
        ([-3] * 9 + [-1], (-3, -1, {0: 0, 9: 2})),
    ],
)
def test_timestamps_are_a_handful_of_steps_or_a_list(timestamps: Any, expected: Any) -> None:
    assert timestamp_steps(timestamps) == expected


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_a_batch_comes_back_as_it_was(compression: str) -> None:
    payload = encode_payload([b"k", None], [b"v", None], [0, 4], [PAIRS, None])
    packed = codec(compression).compress(payload)
    header = header_of(
        packed,
        2,
        compression=codec(compression).id,
        content_bytes=len(payload),
        base_offset=40,
        max_timestamp=BASE_MS + 4,
    )
    batch = decode(header, memoryview(packed))
    assert batch.header is header
    assert list(batch.offsets) == [40, 41]
    assert batch.timestamps == [BASE_MS, BASE_MS + 4]
    assert (batch.keys, batch.values, batch.headers, batch.horizon) == ([b"k", None], [b"v", None], [PAIRS, ()], None)


def test_constant_columns_are_filled() -> None:
    batch = decoded(encode_payload([b"k"] * 3, None, None, [PAIRS] * 3), 3)
    assert (batch.keys, batch.values, batch.headers) == ([b"k"] * 3, [None] * 3, [PAIRS] * 3)
    assert batch.timestamps == [BASE_MS] * 3


def test_steps_of_time_are_filled() -> None:
    base, greatest, steps = timestamp_steps([10] * 5 + [12] * 4 + [17])
    batch = decoded(encode_payload(None, [b"v"] * 10, steps), 10, base_timestamp=base, max_timestamp=greatest)
    assert batch.timestamps == [10] * 5 + [12] * 4 + [17]


def test_a_batch_of_a_transaction_is_read_like_any_other() -> None:
    assert decoded(encode_payload(None, [b"v"]), 1, flags=FLAG_TRANSACTION).values == [b"v"]


def test_a_compacted_batch_has_gaps() -> None:
    payload = encode_payload([b"a", b"b"], [b"v", None], None, None, [2, 7], 99)
    batch = decoded(payload, 2, flags=FLAG_COMPACTED, base_offset=100, last_delta=9)
    assert (batch.offsets, batch.horizon) == ([102, 107], 99)
    assert batch.header.next_offset == 110


def test_messages_are_made_of_the_columns() -> None:
    payload = encode_payload([b"a", b"b", None], [b"x", b"y", b"z"], [0, 1, 2], [PAIRS, None, None])
    batch = decoded(payload, 3, base_offset=5, max_timestamp=BASE_MS + 2)
    expected = [
        Message("orders", 1, 5, BASE_MS, b"a", b"x", PAIRS),
        Message("orders", 1, 6, BASE_MS + 1, b"b", b"y", ()),
        Message("orders", 1, 7, BASE_MS + 2, None, b"z", ()),
    ]
    assert batch.messages("orders", 1) == expected
    for start in range(4):
        for stop in [*range(start, 5), None]:
            assert batch.messages("orders", 1, start, stop) == expected[start:stop]
            columns = batch.columns("orders", 1, start, stop)
            assert [Message("orders", 1, *row) for row in zip(*columns[2:], strict=True)] == expected[start:stop]


def test_messages_without_headers_share_an_empty_one() -> None:
    batch = decoded(encode_payload(None, [b"x", b"y"]), 2)
    assert batch.headers is None
    assert [message.headers for message in batch.messages("orders", 0)] == [(), ()]
    assert batch.columns("orders", 0) == Columns(
        "orders", 0, range(2), [BASE_MS] * 2, [None] * 2, [b"x", b"y"], ((), ())
    )


def test_messages_are_immutable_down_to_their_headers() -> None:
    message = decoded(encode_payload([b"k"], [b"v"], None, [[["a", b"b"]]]), 1).messages("orders", 0)[0]
    assert message.headers == (("a", b"b"),)
    assert hash(message) == hash(Message("orders", 0, 0, BASE_MS, b"k", b"v", (("a", b"b"),)))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "no sense"),
        (b"\xc1", "no sense"),
        (raw() + b"\x00", "trailing"),
        (msgspec.msgpack.encode({"keys": None}), "no sense"),
        (raw(["a", "b"]), "no sense"),
        (raw([1, 2]), "no sense"),
        (raw(None, [b"a", b"b", b"c"]), "3 values in a batch of 2"),
        (raw([]), "0 keys in a batch of 2"),
        (raw(None, None, [0]), "1 timestamps in a batch of 2"),
        (raw(None, None, []), "0 timestamps in a batch of 2"),
        (raw(None, None, [0, -1]), "no sense"),
        (raw(None, None, [0, 8]), f"timestamps up to {BASE_MS + 8} in a batch that ends at {BASE_MS + 7}"),
        (raw(None, None, [0, (1 << 64) - 1]), "timestamps up to"),
        (raw(None, None, {}), "steps out of order"),
        (raw(None, None, {1: 0}), "steps out of order"),
        (raw(None, None, {0: 0, 2: 1}), "steps out of order"),
        (raw(None, None, {1: 1, 0: 0}), "steps out of order"),
        (raw(None, None, {-1: 0, 0: 1}), "steps out of order"),
        (raw(None, None, {0: 8}), "timestamps up to"),
        (raw(None, None, {0: -1}), "no sense"),
        (raw(None, None, {0: 0, 1 << 63: 1}), "steps out of order"),
        (raw(None, None, None, [[["a"]], None]), "no sense"),
        (raw(None, None, None, [[["a", b"b", b"c"]], None]), "no sense"),
        (raw(None, None, None, [[[b"a", b"b"]], None]), "no sense"),
        (raw(None, None, None, [None] * 3), "3 headers in a batch of 2"),
        (raw(None, None, None, None, [0, 1]), "only a compacted batch has"),
        (raw(None, None, None, None, None, 7), "only a compacted batch has"),
        (raw(None, None, None, None, None, None, [b"new"]), "no sense"),
        (b"\x94\xc0\xc0\xc0\x92\x91\x92\xa2\xff\xfe\xc0\xc0", "no sense"),
    ],
)
def test_columns_that_make_no_sense_are_refused(payload: bytes, why: str) -> None:
    with pytest.raises(BadBatch, match=why):
        decoded(payload, 2, max_timestamp=BASE_MS + 7)
    with pytest.raises((BadBatch, CorruptionError), match=why):
        peeled(payload, 2, max_timestamp=BASE_MS + 7)


def test_a_column_that_makes_no_sense_says_where_it_stands() -> None:
    with pytest.raises(CorruptionError, match="a file is damaged at position 7: values") as caught:
        peeled(raw(None, [b"a", b"b", b"c"]), 2)
    assert (caught.value.file, caught.value.position) == ("a file", 7)


@pytest.mark.parametrize("headers", [None, [[["a", b"b"]], None, [["c", None]]]])
@pytest.mark.parametrize("keys", [None, [b"k"], [b"a", None, b"c"]])
@pytest.mark.parametrize("times", [None, {0: 0, 2: 4}, [0, 3, 1]])
def test_column_by_column_is_what_all_at_once_is(keys: Any, times: Any, headers: Any) -> None:
    payload = raw(keys, [b"x", None, b"z"], times, headers)
    whole, apart = (make(payload, 3, max_timestamp=BASE_MS + 7) for make in (decoded, peeled))
    for name in ("offsets", "timestamps", "keys", "values", "headers", "sequences", "horizon"):
        assert getattr(apart, name) == getattr(whole, name), name
    assert apart.messages("t", 1) == whole.messages("t", 1)
    assert apart.columns("t", 1, 1, 3) == whole.columns("t", 1, 1, 3)


@pytest.mark.parametrize(
    "payload",
    [
        raw(None, [b"a", b"b"]),
        raw(None, [b"a", b"b"], None, None, [0]),
        raw(None, [b"a", b"b"], None, None, [1, 0]),
        raw(None, [b"a", b"b"], None, None, [1, 1]),
        raw(None, [b"a", b"b"], None, None, [-1, 1]),
        raw(None, [b"a", b"b"], None, None, [0, 10]),
        raw(None, [b"a", b"b"], None, None, [0, (1 << 64) - 1]),
        raw(None, [b"a", b"b"], None, None, [0, 1, 2]),
    ],
)
def test_offsets_that_do_not_rise_within_a_compacted_batch_are_refused(payload: bytes) -> None:
    with pytest.raises(BadBatch):
        decoded(payload, 2, flags=FLAG_COMPACTED, last_delta=9)


def test_a_greatest_timestamp_below_the_base_is_refused() -> None:
    with pytest.raises(BadBatch, match="timestamps up to"):
        decoded(raw(None, [b"a"]), 1, max_timestamp=BASE_MS - 1)


def test_another_encoding_is_refused() -> None:
    with pytest.raises(BadBatch, match="encoding 75"):
        decoded(raw(), 1, encoding=ENCODING_KAFKA)


def test_a_flag_of_a_later_release_is_refused() -> None:
    with pytest.raises(BadBatch, match="flags 0x8 "):
        decoded(raw(), 1, flags=FLAGS_KNOWN + 1)


def test_a_compression_of_a_later_release_is_refused() -> None:
    with pytest.raises(BadBatch, match="compression 9 is not known"):
        decoded(raw(), 1, compression=9)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_payload_of_another_length_than_stated_is_refused(compression: str, wrong: int) -> None:
    payload = raw(None, [b"a" * 100])
    packed = codec(compression).compress(payload)
    header = header_of(packed, compression=codec(compression).id, content_bytes=len(payload) + wrong)
    with pytest.raises(BadBatch):
        decode(header, packed)


def test_nesting_without_end_is_refused() -> None:
    for payload in (
        b"\x91" * 200_000,
        b"\x97\xc0\xc0\xc0\xc0\xc0\xc0" + b"\x91" * 200_000,
        b"\x94\xc0\xc0\xc0" + b"\x91" * 9999,
    ):
        with pytest.raises(BadBatch):
            decoded(payload, 1)
        with pytest.raises(BadBatch):
            peeled(payload, 1)


# -- how much is built -------------------------------------------------------------------------------------------------


def peak_bytes(payload: bytes, count: int, **changes: Any) -> int:
    """The most that decoding allocated, be it refused or not."""
    tracemalloc.start()
    try:
        decoded(payload, count, **changes)
    except BadBatch:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def test_the_largest_count_of_constant_columns_builds_a_few_mebibytes() -> None:
    payload = raw([b"k"], [b"v"], {0: 0}, [[["a", b"b"]]])
    assert decoded(payload, BATCH_COUNT_MAX).values == [b"v"] * BATCH_COUNT_MAX
    assert peak_bytes(payload, BATCH_COUNT_MAX) < 16 << 20


@pytest.mark.parametrize(
    "prefix", [b"\x91", b"\x92\xc0", b"\x93\xc0\xc0", b"\x94\xc0\xc0\xc0", b"\x95\xc0\xc0\xc0\xc0"]
)
def test_a_column_longer_than_any_batch_is_refused_before_it_is_built(prefix: bytes) -> None:
    count = BATCH_COUNT_MAX + 1
    elements = b"\x00" if prefix[0] in (0x93, 0x95) else b"\xc0"
    payload = prefix + b"\xdd" + count.to_bytes(4, "big") + elements * count
    with pytest.raises(BadBatch, match="length <= 131072"):
        decoded(payload, 1, flags=FLAG_COMPACTED)
    assert peak_bytes(payload, 1) < 1 << 16


@pytest.mark.parametrize("size", [1 << 20, (1 << 32) - 1])
def test_a_forged_length_builds_nothing(size: int) -> None:
    for kind in (b"\xdd", b"\xdf", b"\xc6"):
        for prefix in (b"\x91", b"\x91\x91", b"\x93\xc0\xc0", b"\x94\xc0\xc0\xc0\x91"):
            assert peak_bytes(prefix + kind + size.to_bytes(4, "big"), 1) < 1 << 16
