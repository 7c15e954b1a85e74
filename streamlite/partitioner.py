"""Which partition a key belongs to: pure arithmetic on the key's bytes, the same in every process, for ever.

A topic stores the name of its partitioner, because a key that changed its partition would lose its order:

* `"xxh3"`: XXH3 of 64 bits with seed 0 over the key, as an unsigned integer, modulo the count of partitions.
* `"murmur2"`: what Kafka's Java client does, bit for bit: the 32-bit MurmurHash2 of its `Utils.murmur2` (seed
  `0x9747b28c`), the sign bit cleared (Kafka's `toPositive`, not an absolute value), modulo the count. In Python
  it costs some 0.1 µs a byte, which is why a sender keeps a `KeyMemo`.

Messages without a key are not placed here: that is the producer's choice.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import xxhash

from streamlite.config import PARTITIONERS, check_choice, check_partitions

__all__ = ["KeyMemo", "Partitioner", "murmur2", "partitioner"]

Partitioner = Callable[[bytes, int], int]
"""`(key, count) -> partition`, with `0 <= partition < count`."""

MEMO_ENTRIES_MAX: Final = 100_000
MEMO_KEY_BYTES_MAX: Final = 256
"""Together they bound a memo's keys to 25 MB (typically 10 MB with short ones); longer keys are computed each time."""

_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """Kafka's murmur2 of `key`, as its Java returns it: a signed 32-bit integer."""
    length = len(key)
    hashed = _SEED ^ (length & _MASK)
    whole = length & ~3
    for (word,) in struct.iter_unpack("<I", key[:whole]):
        mixed = word * _MULTIPLIER & _MASK
        mixed = (mixed ^ mixed >> 24) * _MULTIPLIER & _MASK
        hashed = (hashed * _MULTIPLIER & _MASK) ^ mixed
    if whole != length:
        hashed = (hashed ^ int.from_bytes(key[whole:], "little")) * _MULTIPLIER & _MASK
    hashed ^= hashed >> 13
    hashed = hashed * _MULTIPLIER & _MASK
    hashed ^= hashed >> 15
    return hashed - (1 << 32) if hashed >> 31 else hashed


def _place_murmur2(key: bytes, count: int) -> int:
    return (murmur2(key) & 0x7FFFFFFF) % count


def _place_xxh3(key: bytes, count: int) -> int:
    return xxhash.xxh3_64_intdigest(key) % count


_BY_NAME: Final[dict[str, Partitioner]] = {"xxh3": _place_xxh3, "murmur2": _place_murmur2}
assert tuple(_BY_NAME) == PARTITIONERS


def partitioner(name: str) -> Partitioner:
    """The partitioner that a topic's setting names; `ConfigError` for an unknown name."""
    return _BY_NAME[check_choice("partitioner", name, PARTITIONERS)]


class KeyMemo(dict[bytes, int]):
    """Key to partition for one fixed count, remembered: `map(memo.__getitem__, keys)` runs at the speed of a dict.

    Bounded: it forgets everything when it is full (which costs a recomputation, where an LRU would cost each hit), and
    does not keep long keys. A topic that grows gets a new memo. Threads may share one: the worst that a race does
    is to compute a partition twice, or to hold a few entries more.
    """

    __slots__ = ("count", "place")

    def __init__(self, name: str, count: int) -> None:
        super().__init__()
        self.place: Final = partitioner(name)
        self.count: Final = check_partitions(count)

    def __missing__(self, key: bytes) -> int:
        partition = self.place(key, self.count)
        if len(key) <= MEMO_KEY_BYTES_MAX:
            if len(self) >= MEMO_ENTRIES_MAX:
                self.clear()
            self[key] = partition
        return partition
