"""docs/format.md is what the code writes: header, index, numbers, limits, and the worked example byte for byte."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import streamlite
from streamlite import counters
from streamlite import format as fmt
from streamlite.batch import decode, encode_payload
from streamlite.compression import CODECS
from streamlite.format import BatchHeader, IndexEntry

PAGE = Path(__file__).parents[2] / "docs" / "format.md"
TEXT = PAGE.read_text(encoding="utf-8")

BASE_MS = 1_357_034_400_000
EXAMPLE = BatchHeader(
    encoding=fmt.ENCODING_NATIVE,
    compression=0,
    flags=0,
    length=57,
    content_bytes=57,
    count=2,
    last_delta=1,
    base_offset=42,
    base_timestamp=BASE_MS,
    max_timestamp=BASE_MS + 5,
    synced_upto=40,
    epoch=1,
    producer_epoch=0,
    producer_id=fmt.NO_PRODUCER,
    base_sequence=fmt.NO_SEQUENCE,
    transaction_id=fmt.NO_TRANSACTION,
)
KEYS = [b"N14228", b"N24211"]
VALUES = [b'{"late":2}', b'{"late":4}']
HEADERS = [[("src", b"\x01")], None]
ENTRY = IndexEntry(offset=42, position=65_664, max_timestamp=BASE_MS - 1000)


def section(heading: str) -> str:
    return TEXT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def layout(text: str) -> dict[str, tuple[int, int]]:
    """Field to position and size, of a table of a fixed structure."""
    found = re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", text, flags=re.MULTILINE)
    return {name: (int(position), int(size)) for position, size, name in found}


def numbers(text: str, kind: str) -> dict[str, int]:
    """Name to number, of the table whose first column is headed `kind`."""
    table = text.split(f"| `{kind}` | number |", 1)[1].split("\n\n", 1)[0]
    return {name: int(number) for name, number in re.findall(r"^\| `?(\w+)`? \| (\d+) \|", table, flags=re.MULTILINE)}


def dumps(text: str) -> list[bytes]:
    """The hex dumps of a section; every line must begin where the one before it ends."""
    found = []
    for dump in re.findall(r"^```text\n(00000000 .*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        data = b""
        for line in dump.splitlines():
            address, digits = re.match(r"([0-9a-f]{8})  ((?:[0-9a-f]{2} )*[0-9a-f]{2})(?: {2}|$)", line).groups()  # type: ignore[union-attr]
            assert int(address, 16) == len(data), line
            data += bytes.fromhex(digits)
        found.append(data)
    return found


def packed(header: BatchHeader) -> bytes:
    return fmt.pack_header(header, b"")


def test_header_table_leaves_no_gap() -> None:
    position = 0
    for name, (at, size) in layout(section("The header")).items():
        assert at == position, name
        position += size
    assert position == fmt.HEADER_BYTES


@pytest.mark.parametrize("field", BatchHeader._fields)
def test_header_field_stands_where_the_table_says(field: str) -> None:
    at, size = layout(section("The header"))[field]
    value = int.from_bytes(bytes(range(1, size + 1)), "little")
    data = packed(EXAMPLE._replace(**{field: value}))
    assert data[at : at + size] == value.to_bytes(size, "little")
    rest = packed(EXAMPLE._replace(**{field: 0}))
    assert data[:at] == rest[:at]
    assert data[at + size : 120] == rest[at + size : 120]


@pytest.mark.parametrize("field", ["base_timestamp", "max_timestamp", "base_sequence"])
def test_signed_fields_are_signed(field: str) -> None:
    at, size = layout(section("The header"))[field]
    assert packed(EXAMPLE._replace(**{field: -2}))[at : at + size] == (-2).to_bytes(size, "little", signed=True)


def test_header_table_has_every_field() -> None:
    assert set(layout(section("The header"))) == {*BatchHeader._fields, "magic", "version", "spare", "check"}


def test_numbers_are_the_codes() -> None:
    text = section("The header")
    assert numbers(text, "encoding") == {"N": fmt.ENCODING_NATIVE, "K": fmt.ENCODING_KAFKA}
    assert numbers(text, "compression") == {name: codec.id for name, codec in CODECS.items()}
    assert numbers(text, "flags") == {
        "transaction": fmt.FLAG_TRANSACTION,
        "compacted": fmt.FLAG_COMPACTED,
        "sequences": fmt.FLAG_SEQUENCES,
    }


def test_limits_are_the_codes() -> None:
    assert f"above {fmt.PAYLOAD_BYTES_MAX:,}," in section("The header")
    assert f"above {fmt.BATCH_COUNT_MAX:,} " in section("The header")
    assert f"about every {fmt.INDEX_INTERVAL_BYTES:,} bytes" in section("Index")
    assert f"version of the whole\ndirectory is {fmt.FORMAT_VERSION}." in TEXT
    assert f"A page of {counters.PAGE:,} bytes" in section("Counters")
    assert f"blocks of {counters.BLOCK_BYTES:,}\nbytes for {counters.SLOTS} partitions" in section("Counters")


def test_index_table_is_what_is_written() -> None:
    data = fmt.pack_entry(ENTRY)
    table = layout(section("Index"))
    assert set(table) == {*IndexEntry._fields, "check"}
    assert sum(size for _, size in table.values()) == len(data) == fmt.INDEX_ENTRY_BYTES
    for field, value in ENTRY._asdict().items():
        at, size = table[field]
        assert data[at : at + size] == value.to_bytes(size, "little", signed=True), field


def test_worked_example_is_what_is_written() -> None:
    payload = encode_payload(KEYS, VALUES, [0, 5], HEADERS)
    batch, entry = dumps(section("A worked example"))
    assert batch == fmt.pack_header(EXAMPLE, payload) + payload
    assert entry == fmt.pack_entry(ENTRY)


def test_worked_example_reads_back() -> None:
    data, entry = dumps(section("A worked example"))
    header = fmt.unpack_header(data)
    assert header == EXAMPLE
    first, second = decode(header, fmt.verify(header, data)).messages("flights", 0)
    assert [first.key, second.key] == KEYS
    assert [first.value, second.value] == VALUES
    assert [(first.offset, first.timestamp), (second.offset, second.timestamp)] == [(42, BASE_MS), (43, BASE_MS + 5)]
    assert [list(first.headers), list(second.headers)] == [HEADERS[0], []]
    assert fmt.unpack_entries(entry) == [ENTRY]


def test_segment_names_are_the_codes() -> None:
    ordinary, compacted = re.findall(r"^(\d.*)\.log$", section("Segments"), flags=re.MULTILINE)
    assert fmt.parse_segment_name(ordinary) == (42, 0, 0)
    assert fmt.parse_segment_name(compacted) == (42, 100, 3)
    assert fmt.segment_name(42, 100, 3) == compacted


def listed() -> list[re.Pattern[str]]:
    """The paths that the page lists, as patterns."""
    listing = section("The directory").split("```text\n", 1)[1].split("```", 1)[0]
    names = {"NAME": r"[\w.-]+", "N": r"\d+", "STEM": r"\d{20}(-\d{20}\.\d+)?", "ID": r"[\w-]+"}
    names |= {"TIME": r"\d+T[\d.]+", "PATH": ".+"}
    paths = [line.split()[0] for line in listing.splitlines()]
    assert len(paths) == len(set(paths))
    return [re.compile(re.sub(r"[A-Z]+", lambda found: names[found[0]], re.escape(path))) for path in paths]


def files_of(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def test_directory_holds_what_the_page_lists_and_nothing_else(tmp_path: Path) -> None:
    """The life of a bus, looked at while it is open and when it is closed; `epoch` comes with a crash only,
    `quarantine` with a repair."""
    root = tmp_path / "bus"
    seen = set[str]()
    with streamlite.open(root) as bus:
        topic = bus.topic("orders", cleanup="compact", segment_bytes=1)
        with bus.producer(name="writer") as producer:
            for _ in range(3):
                producer.send(topic, bytes(70_000), key="alice").result(10)
        with bus.consumer("orders", group="billing") as consumer:
            consumer.poll(timeout=10)
            consumer.commit()
            consumer.poll(timeout=0.01)  # there is nothing: it waits
            seen |= files_of(root)
        topic.truncate_before(0, 1)
        bus.maintain()
        seen |= files_of(root)
    seen |= files_of(root)
    patterns = listed()
    assert not {path for path in seen if not any(pattern.fullmatch(path) for pattern in patterns)}
    absent = {pattern.pattern for pattern in patterns if not any(pattern.fullmatch(path) for path in seen)}
    assert absent == {"epoch", r"quarantine/\d+T[\d.]+/.+"}
