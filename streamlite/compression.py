"""Codecs for a batch's payload: none, lz4, zstd. Pure functions over bytes, bounded on the way back.

lz4 and zstandard are an optional extra, loaded at first use. `decompress` is told the size to expect: it never
allocates more, whatever a frame claims or expands to, nor more than these bytes could expand to, whatever was expected.
"""

from __future__ import annotations

import importlib
from typing import Any, Final, Protocol

from streamlite.errors import UnsupportedError

__all__ = ["CODECS", "Codec", "codec", "codec_by_id"]


class Codec(Protocol):
    """One way of making a payload smaller. `id` is its number in a batch header."""

    id: int
    name: str

    def compress(self, data: bytes) -> bytes:
        """`data`, compressed."""

    def decompress(self, data: bytes | memoryview, size_max: int) -> bytes:
        """What was compressed; `ValueError` when the bytes are not one whole frame, or hold more than `size_max`."""


class _None:
    id = 0
    name = "none"

    def compress(self, data: bytes) -> bytes:
        return data

    def decompress(self, data: bytes | memoryview, size_max: int) -> bytes:
        if len(data) > size_max:
            raise ValueError(f"a payload of {len(data)} bytes, {size_max} expected")
        return bytes(data)


class _Lz4:
    id = 1
    name = "lz4"
    expansion_max = 255  # a length grows by at most that with each byte; LZ4 block format, "Literals" and "Matches"

    def __init__(self) -> None:
        self._frame: Any = _load("lz4.frame", self.name)

    def compress(self, data: bytes) -> bytes:
        return bytes(self._frame.compress(data, store_size=True))

    def decompress(self, data: bytes | memoryview, size_max: int) -> bytes:
        size_max = min(size_max, self.expansion_max * len(data))
        try:
            # A decompressor reads a frame's declared size as no more than a hint when a limit is given.
            decompressor = self._frame.LZ4FrameDecompressor()
            plain = decompressor.decompress(data, max_length=size_max + 1)
        except RuntimeError as error:
            raise ValueError(f"bad lz4 data: {error}") from error
        if not decompressor.eof or decompressor.unused_data or len(plain) > size_max:
            raise ValueError(f"lz4 data that does not end within {size_max} bytes")
        return bytes(plain)


class _Zstd:
    id = 2
    name = "zstd"
    expansion_max = 1 << 15  # a block of one repeated byte: 4 bytes for 128 KiB; RFC 8878, 3.1.1.2

    def __init__(self) -> None:
        self._zstd: Any = _load("zstandard", self.name)

    # The library's objects serve one thread at a time, so each call makes its own.
    def compress(self, data: bytes) -> bytes:
        return bytes(self._zstd.ZstdCompressor(level=3).compress(data))

    def decompress(self, data: bytes | memoryview, size_max: int) -> bytes:
        try:
            declared = self._zstd.frame_content_size(data)
            size_max = min(size_max, self.expansion_max * len(data))
            if declared > size_max:
                raise ValueError(f"zstd data of {declared} bytes, at most {size_max} expected")
            decompressor = self._zstd.ZstdDecompressor(max_window_size=max(1 << 20, 1 << size_max.bit_length()))
            plain = decompressor.decompress(
                data, max_output_size=size_max if declared < 0 else 0, allow_extra_data=False
            )
        except self._zstd.ZstdError as error:
            raise ValueError(f"bad zstd data: {error}") from error
        return bytes(plain)


CODECS: Final[dict[str, type[Codec]]] = {kind.name: kind for kind in (_None, _Lz4, _Zstd)}
_loaded: dict[str, Codec] = {}


def codec(name: str) -> Codec:
    """The codec of that name; `UnsupportedError` when its package is not installed, or no release knows the name."""
    found = _loaded.get(name)
    if found is None:
        if name not in CODECS:
            raise UnsupportedError(f"compression {name!r} is not known; this release has {', '.join(CODECS)}")
        found = _loaded[name] = CODECS[name]()
    return found


def codec_by_id(number: int) -> Codec:
    """The codec with that number in a batch header; `ValueError` for a number that no release has used."""
    for name, kind in CODECS.items():
        if kind.id == number:
            return codec(name)
    raise ValueError(f"compression {number} is not known")


def _load(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            f'compression {name!r} needs a package that is not installed: pip install "streamlite[compression]"'
        ) from error
