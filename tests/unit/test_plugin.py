"""The pytest plugin in a test run of its own, as a project that uses streamlite has it."""

from __future__ import annotations

import time
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

PLUGIN = "streamlite.testing.plugin"
REAL_LIMIT_S = 10.0
"""The tests below let minutes to months go by on the virtual clock; in real time they take well under a second."""


def run(pytester: pytest.Pytester, source: str) -> pytest.RunResult:
    """Run `source` as a test file, with the plugin as its entry point loads it, or named where it is not installed."""
    pytester.makepyfile(source)
    installed = any(entry.value == PLUGIN for entry in entry_points(group="pytest11"))
    return pytester.runpytest("-W", "error", *(() if installed else ("-p", PLUGIN)))


def test_each_test_gets_an_empty_bus_in_memory(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.parametrize("time", [1, 2])
        def test_send_and_receive(streamlite_bus, time):
            assert streamlite_bus.topics() == []
            orders = streamlite_bus.topic("orders", partitions=4)
            with streamlite_bus.producer() as producer:
                producer.send(orders, b"1", key="alice")
            with streamlite_bus.consumer("orders", group="billing") as consumer:
                assert [message.value for message in consumer.poll(timeout=5)] == [b"1"]

        def test_nothing_on_disk(streamlite_bus, tmp_path):
            streamlite_bus.topic("orders")
            assert list(tmp_path.iterdir()) == []
        """,
    )
    result.assert_outcomes(passed=3)


def test_disk_bus_has_a_directory_of_its_own(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest
        import streamlite

        @pytest.mark.parametrize("time", [1, 2])
        def test_kept(streamlite_disk_bus, tmp_path, time):
            assert streamlite_disk_bus.topics() == []
            with streamlite_disk_bus.producer() as producer:
                producer.send(streamlite_disk_bus.topic("orders"), b"1").result()
            streamlite_disk_bus.close()
            with streamlite.open(tmp_path / "bus") as again:
                assert [message.value for message in again.topic("orders").read()] == [b"1"]
        """,
    )
    result.assert_outcomes(passed=2)


def test_all_three_fixtures_share_one_clock(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def test_time(streamlite_bus, streamlite_disk_bus, streamlite_clock):
            begun = streamlite_clock.time_ms()
            streamlite_clock.advance(3600)
            assert streamlite_clock.time_ms() == begun + 3_600_000
            for bus in (streamlite_bus, streamlite_disk_bus):
                with bus.producer() as producer:
                    stored = producer.send(bus.topic("t"), b"v").result()
                assert stored.timestamp == begun + 3_600_000
        """,
    )
    result.assert_outcomes(passed=1)


def test_retention_needs_no_sleep(pytester: pytest.Pytester) -> None:
    begun = time.monotonic()
    result = run(
        pytester,
        """
        import pytest

        @pytest.fixture(params=["streamlite_bus", "streamlite_disk_bus"])
        def bus(request):
            return request.getfixturevalue(request.param)

        def test_a_month_passes(bus, streamlite_clock):
            day = 86_400
            topic = bus.topic("t", retention_ms=7 * day * 1000, segment_ms=day * 1000)
            with bus.producer() as producer:
                for number in range(30):
                    producer.send(topic, b"%d" % number).result()
                    streamlite_clock.advance(day)
            bus.maintain()
            left = [int(message.value) for message in topic.read()]
            assert left == list(range(left[0], 30))
            assert 21 <= left[0] <= 23
        """,
    )
    result.assert_outcomes(passed=2)
    assert time.monotonic() - begun < REAL_LIMIT_S


def test_timeouts_need_no_sleep(pytester: pytest.Pytester) -> None:
    begun = time.monotonic()
    result = run(
        pytester,
        """
        import pytest

        @pytest.fixture(params=["streamlite_bus", "streamlite_disk_bus"])
        def bus(request):
            return request.getfixturevalue(request.param)

        def test_an_hour_without_a_message(bus, streamlite_clock):
            topic = bus.topic("t")
            with bus.producer() as producer, bus.consumer("t") as consumer:
                begun = streamlite_clock.monotonic()
                assert consumer.poll(timeout=3600) == []
                assert streamlite_clock.monotonic() - begun == pytest.approx(3600, abs=1)
                assert list(consumer.messages(timeout=60)) == []
                assert streamlite_clock.monotonic() - begun == pytest.approx(3660, abs=2)
                producer.send(topic, b"late")
                assert [message.value for message in consumer.poll(timeout=3600)] == [b"late"]
                assert streamlite_clock.monotonic() - begun < 3670

        def test_linger_passes_by_itself(bus):
            topic = bus.topic("t")
            with bus.producer(linger_ms=60_000) as producer:
                for number in range(100):
                    delivery = producer.send(topic, b"%d" % number)
                assert delivery.result(timeout=120).offset == 99
        """,
    )
    result.assert_outcomes(passed=4)
    assert time.monotonic() - begun < REAL_LIMIT_S


def test_undelivered_failure_is_raised_though_the_test_passed(pytester: pytest.Pytester) -> None:
    """The test never looks at its delivery; closing the bus does, in the teardown of the fixture."""
    result = run(
        pytester,
        """
        import pytest
        from streamlite.errors import StorageError
        from streamlite.files.local import LocalFile
        from streamlite.files.memory import MemoryFile

        @pytest.fixture(params=["streamlite_bus", "streamlite_disk_bus"])
        def bus(request):
            return request.getfixturevalue(request.param)

        def send_to_a_full_disk(bus, monkeypatch):
            def refuse(file, buffers, position):
                raise StorageError("no space left")

            topic = bus.topic("t")
            with monkeypatch.context() as disk:
                disk.setattr(LocalFile, "write", refuse)
                disk.setattr(MemoryFile, "write", refuse)
                delivery = bus.producer().send(topic, b"lost")
                assert set(topic.end_offsets().values()) == {0}
            return delivery

        def test_careless(bus, monkeypatch):
            assert send_to_a_full_disk(bus, monkeypatch).done()

        def test_careful(bus, monkeypatch):
            assert isinstance(send_to_a_full_disk(bus, monkeypatch).exception(), StorageError)
        """,
    )
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_careless*", "*StorageError: *no space left*"])
