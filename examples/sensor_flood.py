"""A flood of measurements, written and read as columns, without an object each: `python -m examples.sensor_flood`."""

from __future__ import annotations

import struct
import tempfile
import time
from collections import defaultdict

import streamlite

SENSORS, ROUNDS, BATCH = 50, 40, 5_000
VALUE = struct.Struct("<d")


def write(bus: streamlite.Bus) -> None:
    """Send `ROUNDS` batches, a call each; a full buffer makes `send_many` wait, so memory stays bounded."""
    keys = [f"sensor-{number % SENSORS}" for number in range(BATCH)]
    with bus.producer() as producer:
        for lap in range(ROUNDS):
            values = [VALUE.pack(20 + (number + lap) % 7) for number in range(BATCH)]
            producer.send_many("measurements", values, keys=keys)


def read(bus: streamlite.Bus) -> dict[bytes | None, list[float]]:
    """The measurements of each sensor, by as many calls as there are stretches of 20,000."""
    found: dict[bytes | None, list[float]] = defaultdict(list)
    with bus.consumer("measurements", group="averages", max_poll_messages=20_000) as consumer:
        while any(consumer.lag().values()):
            for columns in consumer.poll_columns(timeout=1):
                for key, value in zip(columns.keys, columns.values, strict=True):
                    found[key] += VALUE.unpack(value or b"")
    return found


def main(directory: str) -> None:
    """Write, read, compare."""
    with streamlite.open(directory) as bus:
        bus.topic("measurements", partitions=4)
        begun = time.perf_counter()
        write(bus)
        written = time.perf_counter()
        found = read(bus)
        done, total = time.perf_counter(), ROUNDS * BATCH
        print(f"wrote {total / (written - begun):,.0f}/s, read {total / (done - written):,.0f}/s")
        for sensor, degrees in sorted(found.items())[:3]:
            print(
                f"{sensor!r:14} {len(degrees):,} times, mean {sum(degrees) / len(degrees):.2f}, max {max(degrees):.0f}"
            )
        assert all(len(degrees) == total // SENSORS for degrees in found.values())
        print(f"{sum(map(len, found.values())):,} measurements of {len(found)} sensors, none lost")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch)
