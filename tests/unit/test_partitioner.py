"""Where a key goes: Kafka's published vectors, a fixed placement for xxh3, and the bounds of the memo."""

from __future__ import annotations

import pytest
import xxhash

from streamlite import partitioner as module
from streamlite.errors import ConfigError
from streamlite.partitioner import KeyMemo, murmur2, partitioner

KAFKA_VECTORS = [  # UtilsTest.testMurmur2 of Kafka's Java client
    (b"21", -973932308),
    (b"foobar", -790332482),
    (b"a-little-bit-long-string", -985981536),
    (b"a-little-bit-longer-string", -1486304829),
    (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    (b"abc", 479470107),
]
LIBRDKAFKA_VECTORS = [  # generated with Kafka's client by those who wrote clients in other languages
    (b"", 275646681),
    (bytes([12, 42, 56, 24, 109, 111]), 274204207),
]


@pytest.mark.parametrize(("key", "expected"), KAFKA_VECTORS + LIBRDKAFKA_VECTORS)
def test_murmur2_is_kafkas(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected


def test_murmur2_takes_bytes_above_127_as_unsigned() -> None:
    assert len({murmur2(bytes([byte] * size)) for byte in (0x7F, 0x80, 0xFF) for size in range(1, 9)}) == 24
    assert all(-(1 << 31) <= murmur2(bytes([0xFF] * size)) < 1 << 31 for size in range(64))


@pytest.mark.parametrize(("key", "count", "expected"), [(b"21", 12, 0), (b"foobar", 10, 6), (b"foobar", 1, 0)])
def test_a_negative_hash_loses_its_sign_bit_as_in_kafka(key: bytes, count: int, expected: int) -> None:
    assert partitioner("murmur2")(key, count) == expected
    assert abs(murmur2(b"foobar")) % 10 != 6  # the absolute value would have gone elsewhere


@pytest.mark.parametrize(
    ("key", "digest"),
    [(b"bob", 1442208253991303397), (b"k2", 15290472935236755841), (b"alice", 5593767425381308080)],
)
def test_xxh3_is_the_unsigned_digest_modulo_the_count(key: bytes, digest: int) -> None:
    place = partitioner("xxh3")
    assert xxhash.xxh3_64_intdigest(key) == digest  # stored data depends on it: not to change with a library
    assert [place(key, count) for count in (1, 4, 6, 7)] == [digest % count for count in (1, 4, 6, 7)]


@pytest.mark.parametrize("name", ["xxh3", "murmur2"])
def test_keys_spread_over_all_partitions(name: str) -> None:
    place = partitioner(name)
    counts = [0] * 7
    for number in range(7_000):
        counts[place(b"key-%d" % number, 7)] += 1
    assert min(counts) > 850
    assert max(counts) < 1_150


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="'xxh3', 'murmur2'; found 'crc32'"):
        partitioner("crc32")


@pytest.mark.parametrize("count", [0, -1, True, 1.0])
def test_a_memo_needs_a_possible_count(count: int) -> None:
    with pytest.raises(ConfigError, match="partitions"):
        KeyMemo("xxh3", count)


@pytest.mark.parametrize("name", ["xxh3", "murmur2"])
def test_a_memo_answers_as_the_partitioner_does(name: str) -> None:
    memo, place = KeyMemo(name, 6), partitioner(name)
    keys = [b"k%d" % (number % 100) for number in range(1_000)]
    assert list(map(memo.__getitem__, keys)) == [place(key, 6) for key in keys]
    assert len(memo) == 100


def test_a_memo_computes_a_key_once() -> None:
    memo = KeyMemo("xxh3", 6)
    asked: list[bytes] = []

    def place(key: bytes, count: int) -> int:
        asked.append(key)
        return count - 1

    memo.place = place  # type: ignore[misc]
    assert list(map(memo.__getitem__, [b"a", b"b", b"a", b"a"])) == [5, 5, 5, 5]
    assert asked == [b"a", b"b"]


def test_a_full_memo_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMO_ENTRIES_MAX", 10)
    memo, place = KeyMemo("xxh3", 6), partitioner("xxh3")
    for number in range(25):
        key = b"%d" % number
        assert memo[key] == place(key, 6)
        assert len(memo) <= 10
    assert set(memo) == {b"20", b"21", b"22", b"23", b"24"}


def test_a_memo_keeps_no_long_keys() -> None:
    memo, place = KeyMemo("xxh3", 6), partitioner("xxh3")
    short, long = b"x" * module.MEMO_KEY_BYTES_MAX, b"x" * (module.MEMO_KEY_BYTES_MAX + 1)
    assert memo[long] == place(long, 6)
    assert memo[short] == place(short, 6)
    assert set(memo) == {short}
