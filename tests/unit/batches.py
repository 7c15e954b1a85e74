"""Batches for tests that need some bytes of a log, and children for tests that need a fork."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

from streamlite.batch import encode_payload
from streamlite.format import (
    ENCODING_NATIVE,
    NO_PRODUCER,
    NO_SEQUENCE,
    NO_TRANSACTION,
    BatchHeader,
    pack_header,
)

BASE_MS = 1_700_000_000_000


def header_of(payload: bytes, count: int = 1, **changes: Any) -> BatchHeader:
    """The header of an ordinary batch with this payload, but for `changes`."""
    plain = BatchHeader(
        encoding=ENCODING_NATIVE,
        compression=0,
        flags=0,
        length=len(payload),
        content_bytes=len(payload),
        count=count,
        last_delta=count - 1,
        base_offset=0,
        base_timestamp=BASE_MS,
        max_timestamp=BASE_MS,
        synced_upto=0,
        epoch=0,
        producer_epoch=0,
        producer_id=NO_PRODUCER,
        base_sequence=NO_SEQUENCE,
        transaction_id=NO_TRANSACTION,
    )
    return plain._replace(**changes)


def batch_of(values: list[bytes], **changes: Any) -> bytes:
    """A whole batch with these values."""
    payload = encode_payload(None, values)
    return pack_header(header_of(payload, len(values), **changes), payload) + payload


def log_of(count: int, size: int = 100) -> list[bytes]:
    """`count` batches of two messages of `size` bytes, a millisecond apart, in order."""
    return [
        batch_of(
            [bytes([at % 251]) * size, bytes([at % 241]) * size],
            base_offset=2 * at,
            base_timestamp=BASE_MS + at,
            max_timestamp=BASE_MS + at,
        )
        for at in range(count)
    ]


def fork() -> int:
    """`os.fork`, where other threads are known and meant: Python 3.12 and later warn of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(call: Callable[[], object]) -> str:
    """What `call` returned or raised in the child of a fork, as text."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            said = str(call())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told and the child ends here
            said = type(error).__name__
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said
