"""Compaction: of each key only the last value stays, offsets and order as they were.

A pass reads the sealed segments of a partition twice. First the keys: the last offset of each, by a 128-bit digest, at
most `KEYS_MAX` of them, so that memory is bounded; where more come, the pass covers only the segments up to there, and
the next one goes on. Then neighbouring segments, as many as fit one, are written anew without what a later message of
its key replaced. A message without a value (a tombstone) stays readable for `delete_retention_ms` from its first pass
on: the batch notes the time after which it may go.

The new segment is written and synced beside the old ones under a name that no one reads, and gets its own name, which
says which offsets it stands for and of which generation it is, in one rename under the partition's lock. From then on
the old ones are superseded: a crash before that leaves a scrap, one after it leaves files that the next listing
ignores. Readers in the middle of an old segment keep its descriptor, and find the new one when they next look.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final

import xxhash

from streamlite.batch import Batch, decode, encode_payload, timestamp_steps
from streamlite.compression import codec
from streamlite.counters import ACTIVE, CHANGES, START
from streamlite.errors import CorruptionError, StorageError
from streamlite.files import File, MissingFile
from streamlite.format import (
    ENCODING_NATIVE,
    FLAG_COMPACTED,
    NO_PRODUCER,
    NO_SEQUENCE,
    NO_TRANSACTION,
    BadBatch,
    BatchHeader,
    pack_header,
    unpack_header,
    verify,
)
from streamlite.partition import Partition
from streamlite.segment import NEVER_MS, Found, IndexBuilder, Segment, walk_verified

__all__ = ["compact"]

logger = logging.getLogger("streamlite")

KEYS_MAX: Final = 1_000_000
"""Keys remembered in one pass, about 120 bytes each; Kafka's cleaner has a buffer of 128 MiB for the same purpose."""
DIRTY_RATIO: Final = 0.5
"""Kafka's min.cleanable.dirty.ratio: a pass in the background waits until this part of the sealed bytes is new."""
_BATCH_COUNT: Final = 1_000
_BATCH_BYTES: Final = 1 << 20
_SPAN_MAX: Final = 1 << 31
"""Offsets that one batch stands for; its header has 32 bits for them, and of a busy log with few keys few stay."""


def compact(partition: Partition, now_ms: int, *, force: bool) -> None:
    """One pass over a partition. `force`: the active segment is sealed first, and no ratio is asked for."""
    sealed, active = _sealed(partition, force=force)
    if not sealed or not (force or _is_worthwhile(sealed)):
        return
    # A message that is safe must not go for a later one that is not.
    partition.sync(sealed_only=True)
    sources = _ends(sealed, active)
    last, covered = _last_offsets(sources)
    partition.locked(lambda: partition.ctx.preserve(partition, sources[covered - 1][1]))
    for group in _groups(sources[:covered], partition.topic.settings.segment_bytes):
        _Rewrite(partition, group, last, now_ms).run()


def _sealed(partition: Partition, *, force: bool) -> tuple[list[Segment], int]:
    """The sealed segments, and where the active one begins."""

    def seal() -> tuple[list[Segment], int]:
        if force:
            partition.roll()
        slot = partition.slot
        active = slot.get(ACTIVE)
        return [s for s in partition.log.segments(slot.get(CHANGES)).values() if s.base < active], active

    return partition.locked(seal)


def _is_worthwhile(sealed: Sequence[Segment]) -> bool:
    sizes = [(segment.generation, segment.file().size()) for segment in sealed]
    dirty = sum(size for generation, size in sizes if generation == 0)
    return dirty > 0 and dirty >= DIRTY_RATIO * sum(size for _, size in sizes)


def _batches(segment: Segment, until: int) -> Iterator[Batch]:
    """Every batch of a sealed segment up to offset `until`; nothing may be missing, or the segment is left as it is."""
    file = segment.file()
    size = file.size()
    position, expected = 0, segment.base
    for found in walk_verified(file, 0, size):
        if found.header.base_offset != expected:
            break
        data = file.read(found.header.total_bytes, found.position)
        header = unpack_header(data)
        try:
            batch = decode(header, verify(header, data))
        except BadBatch:
            break
        yield batch
        position, expected = found.position + found.header.total_bytes, header.next_offset
    if position != size or expected != until:
        raise CorruptionError(
            f"{segment.log_path} is damaged at position {position}: it is left as it is",
            file=segment.log_path,
            position=position,
        )


def _ends(sealed: Sequence[Segment], active: int) -> list[tuple[Segment, int]]:
    """Each sealed segment with the offset after its last one."""
    return list(zip(sealed, [*(segment.base for segment in sealed[1:]), active], strict=True))


def _last_offsets(sealed: Sequence[tuple[Segment, int]]) -> tuple[dict[bytes, int], int]:
    """The last offset of each key, and how many segments that speaks for."""
    last: dict[bytes, int] = {}
    for count, (segment, until) in enumerate(sealed):
        for batch in _batches(segment, until):
            for key, offset in zip(batch.keys, batch.offsets, strict=True):
                if key is not None:
                    last[_digest(key)] = offset
        if len(last) > KEYS_MAX:
            return last, count + 1
    return last, len(sealed)


_digest = xxhash.xxh3_128_digest


def _groups(sealed: Sequence[tuple[Segment, int]], size_max: int) -> Iterator[list[tuple[Segment, int]]]:
    group: list[tuple[Segment, int]] = []
    size = 0
    for segment, until in sealed:
        bytes_ = segment.file().size()
        if group and size + bytes_ > size_max:
            yield group
            group, size = [], 0
        group.append((segment, until))
        size += bytes_
    if group:
        yield group


class _Rewrite:
    """Writes one segment in place of several."""

    def __init__(
        self, partition: Partition, group: Sequence[tuple[Segment, int]], last: dict[bytes, int], now_ms: int
    ) -> None:
        self._partition = partition
        self._sources = group
        self._group = [segment for segment, _ in group]
        self._covered = group[0][0].base  # the batches written so far stand for all offsets below
        self._last = last
        self._now = now_ms
        self._start = partition.slot.get(START)
        self._rows: list[tuple[int, int, Any, Any, Any]] = []  # offset, timestamp, key, value, headers
        self._rows_bytes = 0
        self._horizon: int | None = None
        self._epoch = 0
        self._synced = 0
        self._builder = IndexBuilder()
        self._position = 0
        self._dropped = False
        generation = max(segment.generation for segment in self._group) + 1
        self._target = partition.log.compacted(self._covered, group[-1][1], generation)

    def run(self) -> None:
        """Write, and swap unless nothing would change."""
        files = self._partition.ctx.files
        scratch = f"{self._target.path}.new"
        try:
            file = files.open(scratch, create=True)
            file.truncate(0)
            for segment, until in self._sources:
                for batch in _batches(segment, until):
                    self._take(batch, file)
            self._flush(file, last=True)
            if not self._dropped and len(self._group) == 1:
                return
            file.sync()
            self._swap(scratch)
        finally:
            files.remove(scratch)

    def _take(self, batch: Batch, file: File) -> None:
        header = batch.header
        if header.epoch != self._epoch:
            self._flush(file)
            self._epoch = header.epoch
        self._synced = max(self._synced, header.synced_upto)
        headers = batch.headers or ((),) * len(batch.offsets)
        for row in zip(batch.offsets, batch.timestamps, batch.keys, batch.values, headers, strict=True):
            if not self._keeps(row, batch):
                self._dropped = True
                continue
            if row[0] - self._covered >= _SPAN_MAX:
                self._flush(file)
                self._reach(file, row[0])
            self._rows.append(row)
            self._rows_bytes += len(row[2] or b"") + len(row[3] or b"")
            if len(self._rows) >= _BATCH_COUNT or self._rows_bytes >= _BATCH_BYTES:
                self._flush(file)

    def _keeps(self, row: tuple[int, int, Any, Any, Any], batch: Batch) -> bool:
        offset, _, key, value, _ = row
        if offset < self._start:
            return False
        if key is None:
            return True  # from before the topic was compacted: no later message can replace it
        if self._last.get(_digest(key), offset) != offset:
            return False
        if value is None:
            horizon = batch.horizon
            if horizon is None:
                horizon = self._now + self._partition.topic.settings.delete_retention_ms
                self._dropped = True  # it must be written, to note the time down
            if self._now >= horizon:
                return False
            self._horizon = max(self._horizon or 0, horizon)
        return True

    def _flush(self, file: File, *, last: bool = False) -> None:
        """Write what is kept so far as one batch.

        Batches tile the segment: each begins where the one before ended, whatever is missing in between, and the last
        reaches to the segment's end, be it empty. So a file that ends early is noticed.
        """
        rows, end = self._rows, self._target.next
        if rows:
            self._write(file, end if last and end - self._covered <= _SPAN_MAX else rows[-1][0] + 1)
        if last:
            self._reach(file, end)

    def _reach(self, file: File, offset: int) -> None:
        """Stand for all offsets below that one, with empty batches."""
        while self._covered < offset:
            self._write(file, min(offset, self._covered + _SPAN_MAX))

    def _write(self, file: File, until: int) -> None:
        """Write the rows as one batch, which stands for the offsets up to `until`."""
        rows, base = self._rows, self._covered
        payload, content_bytes, codec_id, times = self._payload(rows, base)
        header = BatchHeader(
            ENCODING_NATIVE, codec_id, FLAG_COMPACTED, len(payload), content_bytes, len(rows), until - base - 1,
            base, *times, self._synced, self._epoch, 0, NO_PRODUCER, NO_SEQUENCE, NO_TRANSACTION,
        )  # fmt: skip
        file.write([pack_header(header, payload), payload], self._position)
        self._builder.add(Found(header, self._position))
        self._position += header.total_bytes
        self._covered = until
        self._rows, self._rows_bytes, self._horizon = [], 0, None

    def _payload(self, rows: Sequence[Any], base: int) -> tuple[bytes, int, int, tuple[int, int]]:
        """`(payload, its size before compression, the codec's number, (base, greatest) timestamp)` of these rows."""
        chosen = codec(self._partition.topic.settings.compression)
        if not rows:
            content = encode_payload(None, None, None, None, [])
            return chosen.compress(content), len(content), chosen.id, (NEVER_MS, NEVER_MS)
        offsets, timestamps, keys, values, headers = zip(*rows, strict=True)
        first, greatest, steps = timestamp_steps(timestamps)
        column = [pairs or None for pairs in headers] if any(headers) else None
        content = encode_payload(keys, values, steps, column, [offset - base for offset in offsets], self._horizon)
        return chosen.compress(content), len(content), chosen.id, (first, greatest)

    def _index(self) -> None:
        """An index is a cache: where it cannot be written, seeks are slower and nothing is wrong."""
        try:
            self._target.replace_index(self._builder.entries)
        except StorageError as error:
            logger.warning("no index for %s: %s", self._target.log_path, error)

    def _swap(self, scratch: str) -> None:
        """Under the lock: the new segment takes its place, unless retention was quicker."""
        partition = self._partition

        def swap() -> None:
            try:
                present = partition.log.refreshed(partition.slot.get(CHANGES))
                if any(present.get(old.base) is None or present[old.base].path != old.path for old in self._group):
                    return
                self._builder.seal(self._target.next, self._position)
                partition.ctx.files.rename(scratch, self._target.log_path)
                partition.ctx.files.sync_dir(partition.directory)
                self._index()
                partition.replaced(self._group)
            except MissingFile as error:
                logger.info("compaction of %s gave way to retention: %s", partition.directory, error)

        partition.locked(swap)
