"""What `import streamlite` brings: the names of the API, and nothing heavy.

The time it takes is a matter of the machine; what it loads is not. So the budget here is one of modules, compared with
what the three dependencies load by themselves.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import streamlite
from streamlite import errors

DEPENDENCIES = ("msgspec", "sortedcontainers", "xxhash")

NAMES = """
    open Bus Topic Producer Consumer Message TopicPartition Delivery RecordMetadata GroupDescription errors
""".split()

FORBIDDEN = frozenset(
    """
    asyncio concurrent email http json lz4 multiprocessing pytest rich ssl subprocess tempfile typer unittest urllib
    zstandard
    """.split()
)
"""Nothing here is needed to open a bus; each of them costs more than all of streamlite."""

LATE = frozenset(
    f"streamlite.{name}" for name in ("aio", "cli", "dbapi", "gateway", "kafka", "streams", "testing", "web")
)
"""Faces, and the classes for asyncio, which load on first use."""

STANDARD_MODULES_MAX = 25
"""Of the standard library, beyond what the dependencies load: a handful (logging, threading, mmap ...)."""

METHODS = {
    "Bus": """
        topic create_topic delete_topic topics producer consumer groups group delete_group reset_offsets sync maintain
        close __enter__ __exit__
    """,
    "Topic": """
        name partitions settings bus read read_columns end_offsets beginning_offsets partition_for alter
        increase_partitions truncate_before
    """,
    "Producer": "send send_many flush close __enter__ __exit__",
    "Delivery": "result done exception add_done_callback __await__",
    "Consumer": """
        messages poll poll_columns subscribe unsubscribe assign assignment wait_assigned position epoch
        incarnation seek seek_to_beginning seek_to_end offsets_for_times commit committed lag beginning_offsets
        end_offsets pause resume paused wakeup close __iter__ __enter__ __exit__
    """,
}
"""The rows of the API that this release has."""

SIGNATURES = {
    "open": "location *sync *sync_interval_ms *read_only *lock_timeout *clock",
    "Bus.topic": "name *partitions *value *key **settings",
    "Bus.reset_offsets": "group topic *partition *to *offset *timestamp_ms *shift",
    "Topic.read": "*partition *start *stop *since_ms *until_ms",
    "Topic.read_columns": "*partition *start *stop *since_ms *until_ms",
    "Topic.truncate_before": "partition offset",
    "Producer.send": "topic value *key *partition *timestamp *headers *sequence",
    "Producer.send_many": "topic values *keys *partition *timestamps *headers",
    "Producer.flush": "timeout",
    "Producer.close": "timeout",
    "Delivery.result": "timeout",
    "Delivery.exception": "timeout",
    "Consumer.messages": "timeout",
    "Consumer.poll": "timeout max_messages",
    "Consumer.poll_columns": "timeout max_messages",
    "Consumer.wait_assigned": "timeout",
    "Consumer.seek": "tp offset epoch",
    "Consumer.commit": "message_or_offsets",
}
"""A star: by keyword only."""


def modules_after(*imports: str) -> set[str]:
    """What a fresh interpreter has loaded after these imports."""
    script = (
        f"import {', '.join(imports)}; import sys; names = sorted(sys.modules); import json; print(json.dumps(names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))


def tops(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.fixture(scope="module")
def added() -> set[str]:
    """What `import streamlite` loads beyond its dependencies."""
    return modules_after("streamlite") - modules_after(*DEPENDENCIES)


def test_import_loads_nothing_heavy(added: set[str]) -> None:
    assert not tops(added) & FORBIDDEN


def test_import_loads_no_face(added: set[str]) -> None:
    assert not {name for name in added if ".".join(name.split(".")[:2]) in LATE}


def test_import_stays_small(added: set[str]) -> None:
    standard = {name for name in added if name.partition(".")[0] in sys.stdlib_module_names}
    assert len(standard) <= STANDARD_MODULES_MAX, sorted(standard)


def test_import_loads_only_what_is_declared(added: set[str]) -> None:
    assert tops(added) <= {"streamlite", *DEPENDENCIES, *sys.stdlib_module_names}


WITHOUT_LOCKS = """
import sys

sys.modules["fcntl"] = None
import streamlite

with streamlite.open(":memory:") as bus, bus.producer() as producer:
    print(producer.send(bus.topic("orders"), b"one").result(10).offset)
try:
    streamlite.open(sys.argv[1])
except streamlite.StreamliteError as error:
    print(type(error).__name__, error)
"""


def test_without_posix_locks_a_bus_in_memory_works_and_a_directory_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "bus"
    command = [sys.executable, "-c", WITHOUT_LOCKS, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    offset, refusal = done.stdout.splitlines()
    assert offset == "0"
    assert refusal.startswith("UnsupportedError ")
    assert ":memory:" in refusal
    assert not directory.exists()


def test_plugin_of_pytest_loads_nothing_of_streamlite() -> None:
    loaded = modules_after("streamlite.testing.plugin") - modules_after("pytest")
    heavy = {name for name in loaded if name.startswith("streamlite.") and not name.startswith("streamlite.testing")}
    allowed = modules_after("streamlite")
    assert heavy <= allowed, "the plugin loads no more than importing its own package needs"


def test_names_of_the_api_are_there() -> None:
    missing = [name for name in NAMES if not hasattr(streamlite, name)]
    assert not missing
    assert set(NAMES) <= set(streamlite.__all__)


def test_every_listed_name_is_there() -> None:
    assert all(hasattr(streamlite, name) for name in streamlite.__all__)
    assert set(streamlite.__all__) <= set(dir(streamlite))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        streamlite.no_such_name  # noqa: B018


def test_errors_are_at_the_top_but_for_timeout_error() -> None:
    at_top = {name for name in errors.__all__ if hasattr(streamlite, name)}
    assert at_top == set(errors.__all__) - {"TimeoutError"}
    assert all(getattr(streamlite, name) is getattr(errors, name) for name in at_top)


@pytest.mark.parametrize("name", METHODS)
def test_rows_of_the_api_are_there(name: str) -> None:
    kind = getattr(streamlite, name)
    missing = [method for method in METHODS[name].split() if not hasattr(kind, method) and not annotated(kind, method)]
    assert not missing


def annotated(kind: type, name: str) -> bool:
    return any(name in inspect.get_annotations(base) for base in kind.__mro__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_the_apis(name: str) -> None:
    found = streamlite
    for part in name.split("."):
        found = getattr(found, part)
    kinds = {inspect.Parameter.KEYWORD_ONLY: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(found).parameters.values()  # type: ignore[arg-type]
    stated = [f"{kinds.get(one.kind, '')}{one.name}" for one in parameters if one.name != "self"]
    assert stated == SIGNATURES[name].split()


@pytest.mark.parametrize("name", [name for name in SIGNATURES if name != "open"] + ["open"])
def test_public_calls_say_what_they_mean(name: str) -> None:
    found = streamlite
    for part in name.split("."):
        found = getattr(found, part)
    assert inspect.getdoc(found)
