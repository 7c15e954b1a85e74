"""API.md, "Module": what `import streamlite` brings and what it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import streamlite

CLASSES = "Bus Topic Producer Consumer Message TopicPartition Delivery RecordMetadata GroupDescription"


@pytest.mark.parametrize("name", CLASSES.split())
def test_the_classes_are_at_the_top(name: str) -> None:
    assert isinstance(getattr(streamlite, name), type)


def test_importing_loads_neither_asyncio_nor_a_face(tmp_path: Path) -> None:
    code = (
        "import sys, msgspec, sortedcontainers, xxhash\n"
        "before = set(sys.modules)\n"
        "import streamlite\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    path = str(Path(streamlite.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    loaded = done.stdout.split()
    assert "streamlite" in loaded
    unwanted = ("asyncio", "typer", "rich", "pytest", "streamlite.cli", "streamlite.testing")
    assert [name for name in loaded if name.startswith(unwanted)] == []


def test_messages_and_addresses_are_values() -> None:
    first, second = streamlite.TopicPartition("a", 1), streamlite.TopicPartition("a", 2)
    assert first == streamlite.TopicPartition("a", 1)
    assert {first: 1}[streamlite.TopicPartition("a", 1)] == 1
    assert sorted([streamlite.TopicPartition("b", 0), second, first])[:2] == [first, second]
    assert (first.topic, first.partition) == ("a", 1)
