"""How keys and values become bytes, and bytes become keys and values again.

A `Serde` has `encode(value) -> bytes | None` and `decode(data) -> value`. A topic without a type is raw and has none:
`encode_raw` is its whole rule. With a type, everything that msgspec can encode is JSON, typed both ways; `str` is plain
UTF-8, so that a typed text topic and a raw one hold the same bytes; any object with `encode` and `decode` is taken at
its word. Rules:

* `None` is no value, a tombstone or an absent key, and passes every serde unseen, both ways. So nothing else may look
  like it: a value whose encoding is the format's null (in JSON also `nan` and infinities) is refused at `send`.
* An error here is a `SerdeError`, whatever a codec raised (that is its cause), and a type nobody can encode is a
  `ConfigError` at once, not at the first message.
* What `encode` checks. A value of exactly the asked class (of one of them, in a union) goes straight to the encoder:
  fields of a Struct or dataclass, and elements of a bare `list` or `dict`, are believed, as Python believes them.
  An instance of a subclass, and every value of a type that says more than a class (`list[int]`, a TypedDict, a Literal,
  an Annotated bound), is encoded, then decoded as a reader will decode it. Anything else is refused without encoding:
  a dict never passes for a Struct, nor a bool for an int; an int passes for a float.
* Equal values give equal bytes for as long as no dict or set is in them; `order="deterministic"` sorts those too
  (dicts must then have `str` keys), which a key needs: its bytes choose the partition and are what compaction compares.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, is_typeddict

import msgspec
from msgspec import inspect

from streamlite.errors import ConfigError, SerdeError

__all__ = ["Serde", "encode_raw", "json", "msgpack", "serde"]

Order = Literal["deterministic", "sorted"] | None

_SHOWN_MAX: Final = 60
"""Characters of a value, or bytes of a message, that an error shows: enough to recognise it, never a payload."""

_short: Final = reprlib.Repr()
_short.maxstring = _short.maxother = _SHOWN_MAX


def _show(value: object) -> str:
    """A bounded repr which never raises, of a value of any size."""
    try:
        if isinstance(value, (bytes, bytearray, memoryview)):
            head = bytes(value[:_SHOWN_MAX])
            return repr(head) if len(head) == len(value) else f"{head!r}... ({len(value)} bytes)"
        return _short.repr(value)
    except Exception:  # noqa: BLE001 - an error must not hide another: released memoryview, int of too many digits
        return f"<{type(value).__name__}>"


def encode_raw(value: Any, what: str = "value") -> bytes | None:
    """The bytes of a key or value of a topic without a type: bytes-like as they are, `str` as UTF-8, `None` as `None`.

    `what` ("key" or "value") names it in the `SerdeError` that anything else gets.
    """
    if value is None or type(value) is bytes:
        return value
    try:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
    except ValueError as error:  # a lone surrogate, or a memoryview that was released
        raise SerdeError(f"{what} {_show(value)} cannot be encoded as UTF-8: {error}") from error
    raise SerdeError(
        f"a {what} of this topic is bytes, str or None; found {type(value).__name__} ({_show(value)}): "
        f"encode it first, or give the topic a type: bus.topic(name, {what}={_type_hint(value)})"
    )


def _type_hint(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"


class Serde:
    """One way to turn values into bytes and back. `None` passes both ways; every failure is a `SerdeError`."""

    __slots__ = ()

    def encode(self, value: Any) -> bytes | None:
        """The bytes of `value`; `SerdeError` when it is not of this serde's type."""
        raise NotImplementedError

    def decode(self, data: bytes | None) -> Any:
        """The value that `data` holds; `SerdeError` when it holds none of this serde's type."""
        raise NotImplementedError


class _Text(Serde):
    __slots__ = ()

    def encode(self, value: Any) -> bytes | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise SerdeError(f"this topic takes str; found {type(value).__name__} ({_show(value)})")
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise SerdeError(f"{_show(value)} cannot be encoded as UTF-8: {error}") from error

    def decode(self, data: bytes | None) -> Any:
        if data is None:
            return None
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise SerdeError(f"this topic holds str (UTF-8); found {_show(data)}: {error}") from error

    def __repr__(self) -> str:
        return "serde(str)"


class _Typed(Serde):
    """JSON or msgpack of one type, by msgspec."""

    __slots__ = ("_classes", "_decode", "_encode", "_exact", "_format", "_kind", "_null")

    def __init__(self, format_: str, kind: Any, order: Order) -> None:
        codec: Any = msgspec.json if format_ == "json" else msgspec.msgpack
        try:
            _refuse_custom(inspect.type_info(kind), kind)
            decoder, encoder = codec.Decoder(kind), codec.Encoder(order=order)
        except ConfigError:
            raise
        except Exception as error:  # msgspec looks into the type, and so at names that its author may have misspelt
            raise ConfigError(f"{_name(kind)} is not a type that msgspec can encode: {error}") from error
        self._format = format_
        self._kind = kind
        self._decode: Callable[[bytes], Any] = decoder.decode
        self._encode: Callable[[Any], bytes] = encoder.encode
        self._null: bytes = codec.encode(None)
        self._exact, self._classes = _classes(kind)

    def encode(self, value: Any) -> bytes | None:
        if value is None:
            return None
        known = type(value) in self._exact or object in self._exact
        if not known and not isinstance(value, self._classes):
            raise SerdeError(f"{self._wanted()}; found {type(value).__name__} ({_show(value)})")
        try:
            data = self._encode(value)
            if not known:
                self._decode(data)
        except Exception as error:
            raise SerdeError(f"{self._wanted()}; found {_show(value)}, which does not fit: {error}") from error
        if data == self._null:
            raise SerdeError(
                f"{self._wanted()}; found {_show(value)}, which {self._format} can only write as null, and a reader "
                "would not know it from a missing value; for nan and infinities use streamlite.serde.msgpack"
            )
        return data

    def decode(self, data: bytes | None) -> Any:
        if data is None:
            return None
        try:
            return self._decode(data)
        except Exception as error:  # also RecursionError, and whatever a type's own __post_init__ raises
            raise SerdeError(
                f"this topic holds {_name(self._kind)} as {self._format}; found {_show(data)}: {error}"
            ) from error

    def _wanted(self) -> str:
        return f"this topic takes {_name(self._kind)}"

    def __repr__(self) -> str:
        return f"{self._format}({_name(self._kind)})"


class _Custom(Serde):
    """Somebody's own object with `encode` and `decode`: its results are checked, its exceptions wrapped."""

    __slots__ = ("_codec",)

    def __init__(self, codec: Any) -> None:
        self._codec = codec

    def encode(self, value: Any) -> bytes | None:
        if value is None:
            return None
        try:
            data = self._codec.encode(value)
        except Exception as error:
            raise SerdeError(f"{self!r} could not encode {_show(value)}: {error!r:.200}") from error
        if type(data) is bytes:
            return data
        if isinstance(data, (bytes, bytearray, memoryview)):
            return bytes(data)
        raise SerdeError(
            f"{self!r} encoded {_show(value)} as {type(data).__name__} ({_show(data)}); encode must return bytes"
            + (": for a tombstone send None itself" if data is None else "")
        )

    def decode(self, data: bytes | None) -> Any:
        if data is None:
            return None
        try:
            return self._codec.decode(data)
        except Exception as error:
            raise SerdeError(f"{self!r} could not decode {_show(data)}: {error!r:.200}") from error

    def __repr__(self) -> str:
        return f"serde({_show(self._codec)})"


def serde(kind: Any, *, order: Order = None) -> Serde | None:
    """The serde of `kind`; `None` for `None` and `bytes`, which are raw. `ConfigError` when nothing can encode it.

    `kind`: `str`; a type that msgspec can encode (it becomes JSON); a `Serde`; or an object with `encode` and `decode`.
    """
    kind = _without_none(kind)
    if kind is None or kind is bytes:
        return None
    if isinstance(kind, Serde):
        return kind
    if kind is str:
        return _Text()
    if not isinstance(kind, type) and get_origin(kind) is None and _is_codec(kind):
        return _Custom(kind)
    return _Typed("json", kind, order)


def json(kind: Any, *, order: Order = None) -> Serde:
    """`kind` as JSON, by msgspec: what a topic typed with a class does by itself."""
    return _Typed("json", kind, order)


def msgpack(kind: Any, *, order: Order = None) -> Serde:
    """`kind` as MessagePack, by msgspec: smaller and faster than JSON; keeps `nan`, infinities and bytes."""
    return _Typed("msgpack", kind, order)


def _without_none(kind: Any) -> Any:
    """`X` of `X | None`: every serde lets `None` pass."""
    if get_origin(kind) in (Union, UnionType):
        others = [one for one in get_args(kind) if one is not NoneType]
        if len(others) == 1:
            return others[0]
    return kind


def _is_codec(thing: object) -> bool:
    return callable(getattr(thing, "encode", None)) and callable(getattr(thing, "decode", None))


def _name(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) and get_origin(kind) is None else repr(kind)[:200]


def _refuse_custom(info: Any, kind: Any) -> None:
    """`ConfigError` when `kind` reaches a class that msgspec knows nothing about (it would find out at a message)."""
    seen: set[int] = set()
    todo = [info]
    while todo:
        found = todo.pop()
        if isinstance(found, inspect.CustomType):
            hint = (
                f"give an instance of {_name(kind)}, not the class"
                if _is_codec(kind)
                else ("use a msgspec.Struct, a dataclass, typing.Any, or an object with encode and decode")
            )
            raise ConfigError(f"msgspec cannot encode {_name(found.cls)}, which topic type {_name(kind)} needs: {hint}")
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, (list, tuple)):
            todo.extend(found)
        elif isinstance(found, (inspect.Type, inspect.Field)):
            todo.extend(getattr(found, name) for name in found.__struct_fields__)


def _classes(kind: Any) -> tuple[frozenset[type], tuple[type, ...]]:
    """The classes whose very instances need no look, and those whose instances (and subclasses') are worth one.

    `object` among the first: nothing needs a look.
    """
    exact: set[type] = set()
    broad: set[type] = set()
    todo = [kind]
    while todo:
        one = todo.pop()
        origin = get_origin(one)
        if origin in (Union, UnionType):
            todo.extend(get_args(one))
        elif one is Any:  # a class too, from Python 3.11 on
            broad.add(object)
            exact.add(object)
        elif origin is Annotated:
            broad.update(_classes(get_args(one)[0])[1])
        elif origin is Literal:
            broad.update(map(type, get_args(one)))
        elif isinstance(one, type) and origin is None and not is_typeddict(one):
            broad.add(one)
            exact.add(one)
        else:
            broad.update(_broad(one, origin))
    if float in broad:
        broad.add(int)  # as for Python's type checkers; the null check sees NaN
    exact.discard(NoneType)
    return frozenset(exact), tuple(broad)


def _broad(one: Any, origin: Any) -> tuple[type, ...]:
    """The classes of a type that says more than a class; `object` where only the encoder can tell."""
    if is_typeddict(one) or is_typeddict(origin):
        return (dict,)
    if isinstance(origin, type):
        return (origin,)
    inner = getattr(one, "__supertype__", None) or getattr(one, "__value__", None)  # NewType; `type X = ...`
    return _classes(inner)[1] if inner is not None else (object,)
