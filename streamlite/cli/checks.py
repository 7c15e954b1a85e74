"""The demo's own checks: what it read against what it was given. Pure: messages and flights in, verdicts out.

Every flight of the data is distinct (carrier, number, origin and time together are), so comparing sets and counts
finds a message that is lost, repeated or changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from streamlite import Message
from streamlite.cli.figures import Check
from streamlite.cli.flights import Flight

__all__ = ["run_checks"]


def run_checks(
    flights: Sequence[Flight],
    *,
    counted: Sequence[Message],
    before: Sequence[Message],
    committed: Mapping[int, int],
    after: Sequence[Message],
    replayed: Sequence[Flight],
    day: str,
    ends: Mapping[int, int],
    lag: Mapping[str, int],
) -> tuple[Check, ...]:
    """All checks, in the order of what the demo did."""
    return (
        _once("delays read every flight once", flights, counted, ends),
        _ordered(flights, counted),
        _resumed(before, committed, after),
        _once("alerts, stopped and resumed, read every flight once", flights, [*before, *after], ends),
        _nothing_left(lag),
        _replay(flights, replayed, day),
    )


def _once(what: str, flights: Sequence[Flight], messages: Sequence[Message], ends: Mapping[int, int]) -> Check:
    """Each flight exactly once, as it was sent, at offsets that run from 0 to each partition's end without a gap."""
    wanted, read = set(flights), {message.value for message in messages}
    changed = sum(not (_as_sent(message) and message.value in wanted) for message in messages)
    places = {(message.partition, message.offset) for message in messages}
    every_place = {(partition, offset) for partition, end in ends.items() for offset in range(end)}
    lost, repeated = len(wanted - read), len(messages) - len(places)
    ok = not (lost or changed or repeated) and places == every_place and len(messages) == len(flights)
    return Check(what, ok, f"{len(messages):,} read, {lost:,} lost, {repeated:,} repeated, {changed:,} not as sent")


def _as_sent(message: Message) -> bool:
    flight: Flight = message.value
    return message.key == flight.tailnum and message.timestamp == flight.scheduled_ms


def _ordered(flights: Sequence[Flight], messages: Sequence[Message]) -> Check:
    """Each tail number stays in one partition, and its flights come in the order they were sent."""
    sent_as = {flight: number for number, flight in enumerate(flights)}
    home: dict[str, int] = {}
    last: dict[str, int] = {}
    moved = disordered = 0
    for message in messages:
        key = message.key
        if key is None:
            continue
        number = sent_as.get(message.value, -1)
        moved += home.setdefault(key, message.partition) != message.partition
        disordered += number <= last.get(key, -1)
        last[key] = number
    found = f"{len(home):,} tail numbers, {moved:,} messages elsewhere, {disordered:,} out of order"
    return Check("each tail number keeps its partition and its order", not (moved or disordered), found)


def _resumed(before: Sequence[Message], committed: Mapping[int, int], after: Sequence[Message]) -> Check:
    """The committed offsets are one past the last message handled, and the first messages after are at them."""
    handled = {message.partition: message.offset + 1 for message in before}
    first = dict(reversed([(message.partition, message.offset) for message in after]))
    wrong = list(_differences(handled, committed, first))
    found = "; ".join(wrong) if wrong else f"offsets {', '.join(f'{p}:{o:,}' for p, o in sorted(committed.items()))}"
    return Check("alerts resumed at its committed offsets", not wrong, found)


def _differences(handled: Mapping[int, int], committed: Mapping[int, int], first: Mapping[int, int]) -> Iterator[str]:
    for partition in sorted({*handled, *committed, *first}):
        done, stored = handled.get(partition, 0), committed.get(partition, 0)
        if stored != done:
            yield f"partition {partition}: handled up to {done:,}, committed {stored:,}"
        if first.get(partition, stored) != stored:
            yield f"partition {partition}: committed {stored:,}, resumed at {first[partition]:,}"


def _nothing_left(lag: Mapping[str, int]) -> Check:
    found = ", ".join(f"{group} {count:,}" for group, count in lag.items())
    return Check("both groups have nothing left to read", not any(lag.values()), f"lag: {found}")


def _replay(flights: Sequence[Flight], replayed: Sequence[Flight], day: str) -> Check:
    """The replay by timestamp holds exactly the flights whose date in the data is that day."""
    wanted = {flight for flight in flights if flight.date == day}
    read = set(replayed)
    missing, foreign, repeated = len(wanted - read), len(read - wanted), len(replayed) - len(read)
    found = f"{len(replayed):,} read, {missing:,} missing, {foreign:,} of other days, {repeated:,} repeated"
    return Check(f"the replay holds exactly the flights of {day}", not (missing or foreign or repeated), found)
