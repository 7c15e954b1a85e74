"""Codecs: what goes in comes out, and nothing that comes out is larger than what was said."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from streamlite import compression
from streamlite.compression import CODECS, codec, codec_by_id
from streamlite.config import COMPRESSIONS
from streamlite.errors import UnsupportedError

zstandard = pytest.importorskip("zstandard")
lz4_frame = pytest.importorskip("lz4.frame")

DATA = bytes(range(256)) * 40 + bytes(5000)
REAL = [name for name in CODECS if name != "none"]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("data", [b"x", DATA, bytes(3 << 20)], ids=["one", "mixed", "zeros"])
def test_what_goes_in_comes_out(name: str, data: bytes) -> None:
    packed = codec(name).compress(data)
    assert codec(name).decompress(packed, len(data)) == data
    assert codec(name).decompress(memoryview(packed), len(data) + 1) == data


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [0, 1, len(DATA) - 1])
def test_more_than_was_said_is_refused(name: str, size: int) -> None:
    packed = codec(name).compress(DATA)
    with pytest.raises(ValueError, match=r"expected|does not end within"):
        codec(name).decompress(packed, size)


@pytest.mark.parametrize("name", REAL)
def test_a_frame_cut_anywhere_is_refused(name: str) -> None:
    packed = codec(name).compress(DATA[:300])
    for size in range(len(packed)):
        with pytest.raises(ValueError, match=name):
            codec(name).decompress(packed[:size], 300)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("more", [b"x", bytes(4)])
def test_bytes_after_a_frame_are_refused(name: str, more: bytes) -> None:
    packed = codec(name).compress(DATA)
    with pytest.raises(ValueError, match=name):
        codec(name).decompress(packed + more, len(DATA))
    with pytest.raises(ValueError, match=name):
        codec(name).decompress(packed + packed, 2 * len(DATA))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("data", [b"", b"x", bytes(50), b"\x04\x22\x4d\x18" * 9, b"\x28\xb5\x2f\xfd" * 9])
def test_what_is_no_frame_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=name):
        codec(name).decompress(data, 1 << 20)


@pytest.mark.parametrize("name", REAL)
def test_a_bomb_goes_off_within_its_limit(name: str) -> None:
    bomb = codec(name).compress(bytes(64 << 20))
    assert len(bomb) < 1 << 19
    with pytest.raises(ValueError, match=name):
        codec(name).decompress(bomb, 1 << 20)


def test_a_zstd_frame_without_its_size_is_bounded_too() -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
    assert codec("zstd").decompress(bomb, 1 << 20) == bytes(1 << 20)
    with pytest.raises(ValueError, match="zstd"):
        codec("zstd").decompress(bomb, (1 << 20) - 1)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("size", [0, 1, 100, 4 << 20])
def test_the_limit_of_expansion_refuses_nothing_that_compresses_well(name: str, size: int) -> None:
    packed = codec(name).compress(bytes(size))
    assert size <= CODECS[name].expansion_max * len(packed)  # type: ignore[attr-defined]
    assert codec(name).decompress(packed, size) == bytes(size)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space that holds")
def test_a_forged_size_allocates_nothing() -> None:
    script = """
        import resource
        from streamlite.compression import codec

        zstd = b"\\x28\\xb5\\x2f\\xfd\\xe0" + (0x7fffffff).to_bytes(8, "little") + b"\\x01\\x00\\x00"
        lz4 = codec("lz4").compress(b"a" * 100)
        codec("zstd").compress(b"a" * 100)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        for name, data in (("zstd", zstd), ("lz4", lz4[:-5])):
            try:
                codec(name).decompress(data, 0x7fffffff)
            except ValueError:
                print(name, "refused")
        print(codec("lz4").decompress(lz4, 0x7fffffff) == b"a" * 100)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert (ran.stdout.split("\n")[:3], ran.stderr) == (["zstd refused", "lz4 refused", "True"], "")


def test_numbers_lead_to_codecs() -> None:
    assert {name: codec_by_id(kind.id).name for name, kind in CODECS.items()} == {name: name for name in CODECS}
    assert tuple(CODECS) == COMPRESSIONS


@pytest.mark.parametrize("number", [3, 255, -1])
def test_a_number_that_no_release_used_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="not known"):
        codec_by_id(number)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="'snappy' is not known; this release has none, lz4, zstd"):
        codec("snappy")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> Any:
        raise ImportError(module)

    monkeypatch.setattr(compression, "_loaded", {})
    monkeypatch.setattr(importlib, "import_module", missing)
    for name in REAL:
        with pytest.raises(UnsupportedError, match=r"streamlite\[compression\]"):
            codec(name)
    assert codec("none").compress(b"x") == b"x"


def test_codecs_are_loaded_once() -> None:
    assert codec("lz4") is codec("lz4") is codec_by_id(1)
