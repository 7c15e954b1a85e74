"""Values to bytes and back: what each kind of topic takes, what it refuses, and when."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar

import msgspec
import pytest

from streamlite import serde as module
from streamlite.errors import ConfigError, SerdeError
from streamlite.serde import Serde, encode_raw, json, msgpack, serde

T = TypeVar("T")


class Flight(msgspec.Struct):
    carrier: str
    delay: int = 0


class LongFlight(Flight):
    stops: int = 0


class Arrival(msgspec.Struct, tag=True):
    at: int


class Departure(msgspec.Struct, tag=True):
    at: int


class Box(msgspec.Struct, Generic[T]):
    content: T


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Row(TypedDict):
    id: int


class Pair(NamedTuple):
    left: int
    right: str


class Colour(enum.Enum):
    RED = "red"


class Tree(msgspec.Struct):
    children: list[Tree] = []


class Guarded(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        raise OSError("out of numbers")


UserId = NewType("UserId", int)


class Unknown:
    """A class that msgspec knows nothing about."""


class Upper:
    """A custom serde: text in capitals."""

    def encode(self, value: str) -> bytes:
        return value.upper().encode()

    def decode(self, data: bytes) -> str:
        return data.decode().lower()

    def __repr__(self) -> str:
        return "Upper()"


def made(kind: Any, **options: Any) -> Serde:
    found = serde(kind, **options)
    assert found is not None
    return found


# --- raw


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (b"", b""),
        (b"\xff\x00", b"\xff\x00"),
        ("", b""),
        ("grüß", "grüß".encode()),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
    ],
)
def test_raw_takes_bytes_text_and_tombstones(given: Any, expected: bytes | None) -> None:
    encoded = encode_raw(given)
    assert encoded == expected
    assert encoded is None or type(encoded) is bytes


def test_raw_does_not_copy_bytes() -> None:
    data = b"x" * 100
    assert encode_raw(data) is data


@pytest.mark.parametrize("value", [5, 1.5, True, ["a"], {"a": 1}, Unknown()])
def test_raw_refuses_the_rest_and_says_what_to_do(value: Any) -> None:
    with pytest.raises(SerdeError) as caught:
        encode_raw(value, "key")
    text = str(caught.value)
    assert "a key of this topic is bytes, str or None" in text
    assert f"found {type(value).__name__}" in text
    assert "bus.topic(name, key=" in text
    assert len(text) < 400


def test_raw_names_a_class_where_it_is_found() -> None:
    with pytest.raises(SerdeError, match=r"value=datetime\.datetime\)"):
        encode_raw(datetime.now(UTC))


def test_a_lone_surrogate_is_no_utf8() -> None:
    for encode in (encode_raw, made(str).encode, msgpack(str).encode, made(Any).encode):
        with pytest.raises(SerdeError, match="surrogates") as caught:
            encode("\ud800")
        assert isinstance(caught.value.__cause__, UnicodeEncodeError)


def test_a_released_memoryview_is_refused() -> None:
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(SerdeError, match="<memoryview>"):
        encode_raw(view)


@pytest.mark.parametrize("kind", [None, bytes, bytes | None])
def test_bytes_and_none_are_raw(kind: Any) -> None:
    assert serde(kind) is None


# --- text


@pytest.mark.parametrize("kind", [str, str | None, Optional[str]])  # noqa: UP045
def test_text_is_utf8_both_ways(kind: Any) -> None:
    text = made(kind)
    assert text.encode("grüß\0") == "grüß\0".encode()
    assert text.decode("grüß\0".encode()) == "grüß\0"
    assert text.decode(b"") == ""


@pytest.mark.parametrize("value", [b"bytes", 5, ["a"]])
def test_text_refuses_what_is_not_text(value: Any) -> None:
    with pytest.raises(SerdeError, match=f"takes str; found {type(value).__name__}"):
        made(str).encode(value)


def test_text_that_is_not_utf8_is_shown_in_part() -> None:
    with pytest.raises(SerdeError) as caught:
        made(str).decode(b"\xff" * 100_000)
    assert isinstance(caught.value.__cause__, UnicodeDecodeError)
    assert "UTF-8" in str(caught.value)
    assert "(100000 bytes)" in str(caught.value)
    assert len(str(caught.value)) < 600


# --- typed

ROUND_TRIPS: list[tuple[Any, Any, bytes]] = [
    (Flight, Flight("AA", 5), b'{"carrier":"AA","delay":5}'),
    (Flight | None, Flight("AA"), b'{"carrier":"AA","delay":0}'),
    (Point, Point(1), b'{"x":1,"y":0.5}'),
    (Row, {"id": 7}, b'{"id":7}'),
    (Pair, Pair(1, "a"), b'[1,"a"]'),
    (Colour, Colour.RED, b'"red"'),
    (int, 5, b"5"),
    (int, 2**100, str(2**100).encode()),
    (bool, True, b"true"),
    (float, 0.5, b"0.5"),
    (dict, {"a": [1, None]}, b'{"a":[1,null]}'),
    (list, [1, "a"], b'[1,"a"]'),
    (list[int], [1, 2], b"[1,2]"),
    (dict[int, str], {1: "a"}, b'{"1":"a"}'),
    (Mapping[str, int], {"a": 1}, b'{"a":1}'),
    (tuple[int, str], (1, "a"), b'[1,"a"]'),
    (set[int], {3}, b"[3]"),
    (datetime, datetime(2013, 1, 1, tzinfo=UTC), b'"2013-01-01T00:00:00Z"'),
    (int | str, "a", b'"a"'),
    (int | str, 1, b"1"),
    (Arrival | Departure, Departure(3), b'{"type":"Departure","at":3}'),
    (int | list[int], [3], b"[3]"),
    (Box[int], Box(3), b'{"content":3}'),
    (Literal["a", "b"], "a", b'"a"'),
    (Annotated[int, msgspec.Meta(ge=0)], 0, b"0"),
    (UserId, UserId(3), b"3"),
    (Any, {"a": 1}, b'{"a":1}'),
]


@pytest.mark.parametrize(("kind", "value", "expected"), ROUND_TRIPS)
def test_a_type_is_json_both_ways(kind: Any, value: Any, expected: bytes) -> None:
    typed = made(kind)
    data = typed.encode(value)
    assert data == expected
    decoded = typed.decode(data)
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, value, _ in ROUND_TRIPS if value != 2**100])
def test_a_type_is_msgpack_both_ways(kind: Any, value: Any) -> None:
    typed = msgpack(kind)
    data = typed.encode(value)
    assert data == msgspec.msgpack.encode(value)
    assert typed.decode(data) == value


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Flight, {"carrier": "AA"}),
        (Flight, Departure(1)),
        (Flight, b'{"carrier":"AA"}'),
        (Row, {"id": "seven"}),
        (Row, [7]),
        (Point, {"x": 1}),
        (Pair, (1, "a")),
        (int, "5"),
        (int, 5.0),
        (int, True),
        (float, True),
        (float, "5"),
        (bool, 1),
        (datetime, "2013-01-01T00:00:00Z"),
        (list[int], [1, "a"]),
        (list[int], (1, 2)),
        (dict[str, int], {"a": "b"}),
        (int | str, b"a"),
        (Arrival | Departure, {"type": "Departure", "at": 3}),
        (Box[int], Box("a")),
        (Literal["a"], "b"),
        (Annotated[int, msgspec.Meta(ge=0)], -1),
        (UserId, "3"),
        (Any, Unknown()),
        (dict, {"a": Unknown()}),
        (list, [float("nan"), Unknown()]),
    ],
)
@pytest.mark.parametrize("make", [json, msgpack])
def test_a_wrong_value_is_refused_when_it_is_sent(make: Any, kind: Any, value: Any) -> None:
    with pytest.raises(SerdeError, match="this topic takes ") as caught:
        make(kind).encode(value)
    assert len(str(caught.value)) < 600


def test_json_has_no_dicts_whose_keys_are_not_scalars() -> None:
    with pytest.raises(SerdeError, match="this topic takes dict"):
        json(dict).encode({(1, 2): 3})


def test_an_int_passes_for_a_float() -> None:
    assert made(float).encode(3) == b"3"
    assert made(float).decode(b"3") == 3.0


def test_a_subclass_passes_when_a_reader_can_read_it() -> None:
    assert made(Flight).decode(made(Flight).encode(LongFlight("AA", 1, 2))) == Flight("AA", 1)
    with pytest.raises(SerdeError, match="does not fit"):
        made(Flight).encode(LongFlight("AA", "late"))  # type: ignore[arg-type]


def test_fields_of_the_very_class_are_believed() -> None:
    data = made(Flight).encode(Flight(carrier=5))  # type: ignore[arg-type]
    with pytest.raises(SerdeError, match="Expected `str`, got `int`"):
        made(Flight).decode(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_value_is_written_as_null(value: float) -> None:
    with pytest.raises(SerdeError, match="null"):
        made(float).encode(value)
    assert str(msgpack(float).decode(msgpack(float).encode(value))) == str(value)


@pytest.mark.parametrize(("make", "null"), [(json, b"null"), (msgpack, b"\xc0")])
def test_ready_made_null_is_no_tombstone(make: Any, null: bytes) -> None:
    with pytest.raises(SerdeError, match="null"):
        make(Any).encode(msgspec.Raw(null))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"delay":1}', b'{"carrier":1}', b"[" * 100_000, b'"\xff"'])
def test_bad_bytes_say_what_was_wanted_and_show_a_part(data: bytes) -> None:
    with pytest.raises(SerdeError) as caught:
        made(Flight).decode(data)
    text = str(caught.value)
    assert "this topic holds Flight as json; found b'" in text
    assert caught.value.__cause__ is not None
    assert len(text) < 600


def test_bytes_nested_without_end_are_a_declared_error() -> None:
    with pytest.raises(SerdeError, match="recursion"):
        made(Any).decode(b"[" * 100_000)


def test_a_value_that_holds_itself_is_a_declared_error() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(SerdeError, match="recursion"):
        made(list).encode(loop)


def test_an_error_of_the_types_own_code_is_wrapped() -> None:
    with pytest.raises(SerdeError, match="out of numbers") as caught:
        made(Guarded).decode(b'{"number":1}')
    assert isinstance(caught.value.__cause__, OSError)


def test_a_number_of_too_many_digits_can_be_refused_without_printing_it() -> None:
    with pytest.raises(SerdeError, match="<int>"):
        made(int).encode(10**5_000)


def test_a_big_value_is_shown_in_part() -> None:
    with pytest.raises(SerdeError) as caught:
        made(Flight).encode("x" * 1_000_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("kind", [str, int, Flight, list[int], Any, Upper()])
def test_none_passes_both_ways(kind: Any) -> None:
    assert made(kind).encode(None) is None
    assert made(kind).decode(None) is None
    assert msgpack(int).encode(None) is msgpack(int).decode(None) is None


def test_a_dict_as_key_can_be_made_one_of_a_kind() -> None:
    one, other = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert made(dict).encode(one) != made(dict).encode(other)
    for make in (made, json, msgpack):
        ordered = make(dict, order="deterministic")
        assert ordered.encode(one) == ordered.encode(other)


# --- kinds that cannot be


@pytest.mark.parametrize("kind", [Unknown, list[Unknown], object, complex, "Flight", 42, Arrival | Row, Box[Unknown]])
@pytest.mark.parametrize("make", [serde, json, msgpack])
def test_a_type_nobody_can_encode_is_refused_at_once(make: Any, kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"msgspec cannot encode|not a type that msgspec can encode"):
        make(kind)


def test_a_type_that_contains_itself_is_fine() -> None:
    assert made(Tree).decode(b'{"children":[{"children":[]}]}') == Tree([Tree()])


# --- custom


def test_an_object_with_encode_and_decode_is_a_serde() -> None:
    custom = made(Upper())
    assert custom.encode("abc") == b"ABC"
    assert custom.decode(b"ABC") == "abc"


def test_a_serde_is_taken_as_it_is() -> None:
    packed = msgpack(Flight)
    assert serde(packed) is packed


def test_the_class_of_a_custom_serde_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="give an instance of Upper, not the class"):
        serde(Upper)


def test_exceptions_of_a_custom_serde_are_wrapped() -> None:
    custom = made(Upper())
    with pytest.raises(SerdeError, match=r"serde\(Upper\(\)\) could not encode 5: AttributeError") as caught:
        custom.encode(5)
    assert isinstance(caught.value.__cause__, AttributeError)
    with pytest.raises(SerdeError, match="could not decode") as caught:
        custom.decode(b"\xff")
    assert isinstance(caught.value.__cause__, UnicodeDecodeError)


@pytest.mark.parametrize("result", [None, "text", 5])
def test_a_custom_serde_must_give_bytes(result: Any) -> None:
    class Odd(Upper):
        def encode(self, value: Any) -> Any:
            return result

    with pytest.raises(SerdeError, match=f"as {type(result).__name__} .*must return bytes"):
        made(Odd()).encode("x")


@pytest.mark.parametrize("result", [bytearray(b"ab"), memoryview(b"ab")])
def test_a_custom_serde_may_give_what_is_like_bytes(result: Any) -> None:
    class View(Upper):
        def encode(self, value: Any) -> Any:
            return result

    data = made(View()).encode("x")
    assert data == b"ab"
    assert type(data) is bytes


# --- repr


@pytest.mark.parametrize(
    ("made_", "expected"),
    [
        (serde(str), "serde(str)"),
        (serde(Flight), "json(Flight)"),
        (msgpack(list[int]), "msgpack(list[int])"),
        (serde(Upper()), "serde(Upper())"),
    ],
)
def test_repr_says_how_to_make_it(made_: Serde, expected: str) -> None:
    assert repr(made_) == expected


def test_a_serde_of_ones_own_says_what_is_missing() -> None:
    for call in (Serde().encode, Serde().decode):
        with pytest.raises(NotImplementedError):
            call(b"")
    assert module._show(5) == "5"
