"""One hierarchy, whole after a trip to another process."""

from __future__ import annotations

import builtins
import copy
import pickle

import pytest

from streamlite import errors
from streamlite.errors import CorruptionError, StorageError, StreamliteError
from streamlite.files import MissingFile

PLAIN = sorted(set(errors.__all__) - {"StorageError", "CorruptionError"})
RICH = [
    StorageError("no room", errno=28, path="topics/orders/0"),
    StorageError("no room"),
    MissingFile("not there", errno=2, path="clean"),
    CorruptionError("damaged", file="0.log", position=4096),
]


def test_every_class_of_the_module_is_exported() -> None:
    classes = [thing for thing in vars(errors).values() if isinstance(thing, type)]
    assert {one.__name__ for one in classes if one.__module__ == errors.__name__} == set(errors.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_a_streamlite_error(name: str) -> None:
    assert issubclass(getattr(errors, name), StreamliteError)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("TimeoutError", builtins.TimeoutError),
        ("BufferFullError", errors.TimeoutError),
        ("LockTimeoutError", errors.TimeoutError),
        ("ConfigError", ValueError),
        ("InvalidNameError", ValueError),
        ("SerdeError", ValueError),
    ],
)
def test_an_error_is_what_callers_catch_it_as(name: str, base: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), base)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_error_crosses_processes(name: str, protocol: int) -> None:
    found = pickle.loads(pickle.dumps(getattr(errors, name)("what to do"), protocol))  # noqa: S301
    assert type(found) is getattr(errors, name)
    assert found.args == ("what to do",)
    assert str(found) == "what to do"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", RICH, ids=repr)
def test_attributes_cross_processes(error: StreamliteError, protocol: int) -> None:
    error.add_note("in topic orders")
    for found in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):  # noqa: S301
        assert type(found) is type(error)
        assert str(found) == str(error)
        assert vars(found) == vars(error)
        assert found.__notes__ == error.__notes__


def test_what_the_system_said_is_kept() -> None:
    error = StorageError("no room", errno=28, path="0.log")
    assert (error.errno, error.path) == (28, "0.log")
    assert StorageError("no room").errno is None


def test_a_corruption_says_where() -> None:
    error = CorruptionError("damaged", file="0.log", position=7)
    assert (error.file, error.position) == ("0.log", 7)
