"""Several processes log, one reads it all, in order per process: `python -m examples.log_aggregation`."""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
from collections import Counter

import streamlite

WORKERS, RECORDS = 3, 200


class StreamliteHandler(logging.Handler):
    """Sends log records to a topic, keyed by process, so that each process's records stay in order."""

    def __init__(self, producer: streamlite.Producer, topic: str) -> None:
        super().__init__()
        self._producer, self._topic = producer, topic
        # What streamlite itself logs, perhaps about this very topic, must not go through streamlite again.
        self.addFilter(lambda record: not f"{record.name}.".startswith("streamlite."))

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record over; it is written in the background."""
        try:
            headers = {"level": record.levelname.encode()}
            self._producer.send(self._topic, self.format(record), key=str(record.process), headers=headers)
        except Exception:  # noqa: BLE001 - as every handler: logging never breaks the program
            self.handleError(record)


def work(directory: str) -> None:
    """What runs in each process, which opens the bus for itself."""
    with streamlite.open(directory) as bus, bus.producer() as producer:
        logging.basicConfig(level=logging.INFO, handlers=[StreamliteHandler(producer, "logs")], format="%(message)s")
        logger = logging.getLogger("work")
        for number in range(RECORDS):
            logger.log(logging.WARNING if number % 50 == 0 else logging.INFO, "step %d", number)
        logging.getLogger("streamlite").warning("this one stays out of the topic")


def main(directory: str) -> None:
    """Start the workers, and read what they log while they do."""
    with streamlite.open(directory) as bus, bus.consumer(bus.topic("logs", key=str, value=str)) as consumer:
        spawn = multiprocessing.get_context("spawn")
        processes = [spawn.Process(target=work, args=(directory,)) for _ in range(WORKERS)]
        for process in processes:
            process.start()
        steps, levels = Counter[str](), Counter[bytes | None]()
        while levels.total() < WORKERS * RECORDS:
            for message in consumer.poll(timeout=10):
                assert message.value == f"step {steps[message.key]}", "a process's records are in order"
                steps[message.key] += 1
                levels[dict(message.headers)["level"]] += 1
        for process in processes:
            process.join()
        assert levels == {b"INFO": WORKERS * (RECORDS - 4), b"WARNING": WORKERS * 4}
        print(f"{levels.total()} records of {len(steps)} processes, none lost, all in order")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch)
