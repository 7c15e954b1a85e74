"""murmur2 against a second one, written byte by byte; partitions in range; a memo that never disagrees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlite import partitioner as module
from streamlite.partitioner import KeyMemo, murmur2, partitioner


def by_the_book(key: bytes) -> int:
    """MurmurHash2 as its author describes it, words put together by hand, in 32-bit unsigned arithmetic."""
    bits32 = 1 << 32
    multiplier = 0x5BD1E995
    state = 0x9747B28C ^ len(key)
    at = 0
    while len(key) - at >= 4:
        word = key[at] + key[at + 1] * 256 + key[at + 2] * 65536 + key[at + 3] * 16777216
        word = word * multiplier % bits32
        word = (word ^ (word // 2**24)) * multiplier % bits32
        state = (state * multiplier % bits32) ^ word
        at += 4
    tail = key[at:]
    if tail:
        for place, byte in enumerate(tail):
            state ^= byte * 256**place
        state = state * multiplier % bits32
    state = (state ^ (state // 2**13)) * multiplier % bits32
    state ^= state // 2**15
    return state if state < 2**31 else state - bits32


@given(key=st.binary(max_size=300))
def test_murmur2_agrees_with_the_book(key: bytes) -> None:
    assert murmur2(key) == by_the_book(key)


@given(key=st.binary(), count=st.integers(1, 100_000), name=st.sampled_from(["xxh3", "murmur2"]))
def test_a_partition_is_in_range_and_always_the_same(key: bytes, count: int, name: str) -> None:
    place = partitioner(name)
    assert 0 <= place(key, count) < count
    assert place(bytes(key), count) == place(key, count)


@given(keys=st.lists(st.binary(max_size=6)), count=st.integers(1, 10), name=st.sampled_from(["xxh3", "murmur2"]))
def test_a_memo_never_disagrees_whatever_it_forgets(keys: list[bytes], count: int, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MEMO_ENTRIES_MAX", 3)
        patch.setattr(module, "MEMO_KEY_BYTES_MAX", 4)
        memo, place = KeyMemo(name, count), partitioner(name)
        for key in keys + keys:
            assert memo[key] == place(key, count)
            assert len(memo) <= 3
            assert all(len(known) <= 4 for known in memo)
