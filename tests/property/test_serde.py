"""Whatever a serde takes comes back; whatever bytes come in, a value or a `SerdeError` comes out."""

from __future__ import annotations

import contextlib
from typing import Any, get_origin

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from streamlite.errors import SerdeError
from streamlite.serde import encode_raw, json, msgpack, serde


class Reading(msgspec.Struct):
    sensor: str
    value: float
    tags: dict[str, int] = {}
    parent: Reading | None = None


finite = st.floats(allow_nan=False, allow_infinity=False)
flat = st.builds(Reading, st.text(), finite, st.dictionaries(st.text(), st.integers(-(2**63), 2**63 - 1)))
readings = st.builds(Reading, st.text(), finite, st.just({}), st.none() | flat)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(value=st.text() | st.binary() | st.none())
def test_raw_is_the_bytes(value: Any) -> None:
    assert encode_raw(value) == (value.encode() if isinstance(value, str) else value)


@given(value=st.text() | st.none())
def test_text_comes_back(value: str | None) -> None:
    text = serde(str)
    assert text is not None
    assert text.decode(text.encode(value)) == value


@given(value=readings)
def test_structs_come_back(value: Reading) -> None:
    for make in (json, msgpack):
        typed = make(Reading)
        assert typed.decode(typed.encode(value)) == value


@given(value=plain)
def test_plain_data_comes_back(value: Any) -> None:
    for make in (json, msgpack):
        typed = make(Any)
        assert typed.decode(typed.encode(value)) == value


def readable(value: Any, kind: Any) -> bool:
    """Whether `value` is of `kind`'s class and a reader of `kind` can read what JSON makes of it."""
    if not isinstance(value, get_origin(kind) or kind):
        return False
    try:
        return bool(msgspec.json.decode(msgspec.json.encode(value), type=kind) == value)
    except msgspec.ValidationError:
        return False


@given(
    value=plain | st.binary(), kind=st.sampled_from([int, str, float, list, dict, list[int], dict[str, float], bool])
)
def test_what_is_taken_can_be_read_and_the_rest_is_refused(value: Any, kind: Any) -> None:
    for make in (json, msgpack):
        typed = make(kind)
        try:
            data = typed.encode(value)
        except SerdeError:
            assert not readable(value, kind)
        else:
            assert typed.decode(data) == value


@given(data=st.binary(), kind=st.sampled_from([str, int, Reading, list[Reading], dict, Any]))
def test_any_bytes_are_a_value_or_a_declared_error(data: bytes, kind: Any) -> None:
    for typed in (serde(kind), json(kind), msgpack(kind)):
        assert typed is not None
        with contextlib.suppress(SerdeError):
            typed.decode(data)
