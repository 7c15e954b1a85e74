"""The demo's data: a month of real flights from New York, packaged with streamlite (data/README.md names the source).

Nothing is invented or repaired here: what the source marks as missing is `None`, and a flight's time is the one the
source gives in UTC (`time_hour`, with the minute of `sched_dep_time`), so no table of time zones is needed.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from importlib import resources
from io import TextIOWrapper
from typing import Final

import msgspec

from streamlite.errors import UnsupportedError

__all__ = ["NEW_YORK", "Flight", "day_bounds_ms", "read_flights"]

FILE: Final = "flights-2013-01.csv.xz"
MISSING: Final = "NA"
NEW_YORK: Final = timezone(timedelta(hours=-5), "EST")
"""Eastern Standard Time, which holds in New York all January; so a machine without a time zone database will do."""


class Flight(msgspec.Struct, frozen=True, gc=False):
    """One flight. Times of day are local, written HHMM; delays (early is negative) and `air_time` are minutes.

    `scheduled_ms` is the scheduled departure in ms since the epoch; `date` the day of it in New York. A flight without
    `dep_time` never left; some of those have no `tailnum` either.
    """

    date: str
    scheduled_ms: int
    carrier: str
    flight: int
    tailnum: str | None
    origin: str
    dest: str
    distance: int
    sched_dep_time: int
    dep_time: int | None
    dep_delay: int | None
    sched_arr_time: int
    arr_time: int | None
    arr_delay: int | None
    air_time: int | None


def read_flights() -> list[Flight]:
    """All 27,004 flights, in the order of the source: by day, then by actual departure."""
    try:
        import lzma
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"the demo's data is xz-compressed, and this Python was built without it: {error}"
        ) from None
    packed = resources.files("streamlite.cli").joinpath("data", FILE)
    with packed.open("rb") as raw, lzma.open(raw) as data, TextIOWrapper(data, encoding="ascii", newline="") as text:
        return [_flight(row) for row in csv.DictReader(text)]


def day_bounds_ms(date: str) -> tuple[int, int]:
    """Begin and end of a New York day (`YYYY-MM-DD`) in ms since the epoch; the end belongs to the next day."""
    begin = datetime.fromisoformat(date).replace(tzinfo=NEW_YORK)
    return _ms(begin), _ms(begin + timedelta(days=1))


def _flight(row: Mapping[str, str]) -> Flight:
    scheduled = int(row["sched_dep_time"])
    return Flight(
        date=f"{row['year']}-{int(row['month']):02}-{int(row['day']):02}",
        scheduled_ms=_hour_ms(row["time_hour"]) + scheduled % 100 * 60_000,
        carrier=row["carrier"],
        flight=int(row["flight"]),
        tailnum=None if row["tailnum"] == MISSING else row["tailnum"],
        origin=row["origin"],
        dest=row["dest"],
        distance=int(row["distance"]),
        sched_dep_time=scheduled,
        dep_time=_number(row["dep_time"]),
        dep_delay=_number(row["dep_delay"]),
        sched_arr_time=int(row["sched_arr_time"]),
        arr_time=_number(row["arr_time"]),
        arr_delay=_number(row["arr_delay"]),
        air_time=_number(row["air_time"]),
    )


def _number(text: str) -> int | None:
    return None if text == MISSING else int(text)


@functools.cache
def _hour_ms(text: str) -> int:
    return _ms(datetime.fromisoformat(text))


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000
