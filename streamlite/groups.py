"""What can be asked of groups and done to them from outside: names, descriptions, deletion, new offsets."""

from __future__ import annotations

from typing import Any

from streamlite.config import check_choice, check_int
from streamlite.engine import Engine
from streamlite.errors import ConfigError, UnknownGroupError
from streamlite.group import GroupFiles
from streamlite.group_state import GroupState, owned_by
from streamlite.message import GroupDescription, GroupMember, TopicPartition
from streamlite.offsets import Position
from streamlite.outgoing import check_partition
from streamlite.partition import Partition
from streamlite.reader import cap_offset, offset_for_time
from streamlite.registry import TopicState

__all__ = ["GroupAdmin"]


class GroupAdmin:
    """The groups of one open bus, from outside."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def names(self) -> list[str]:
        """The groups that have members or committed something, sorted."""
        return sorted(self._engine.offsets.groups() | GroupFiles.with_members(self._engine))

    def _require(self, name: str) -> None:
        names = self.names()
        if name not in names:
            known = ", ".join(map(repr, names[:5])) or "none"
            raise UnknownGroupError(f"there is no group {name!r} on {self._engine.ctx.files.root}, which has {known}")

    def describe(self, name: str) -> GroupDescription:
        """The group at this moment."""
        self._require(name)

        def look(state: GroupState) -> tuple[tuple[GroupMember, ...], dict[TopicPartition, tuple[Partition, int]], int]:
            members = tuple(
                GroupMember(member, found.pid, tuple(sorted(owned_by(state, member))))
                for member, found in state.members.items()
            )
            return members, self._committed(name), state.generation

        members, committed, generation = GroupFiles.of(self._engine, name).locked(look)
        owned = [tp for member in members for tp in member.partitions]
        lag = {tp: max(0, partition.end() - offset) for tp, (partition, offset) in committed.items()}
        for tp in owned:
            if tp not in lag:
                partition = self._partition(tp)
                if partition is not None:
                    lag[tp] = partition.end() - partition.start()
        return GroupDescription(name, members, generation, {tp: offset for tp, (_, offset) in committed.items()}, lag)

    def _committed(self, name: str) -> dict[TopicPartition, tuple[Partition, int]]:
        """What the group committed of topics that are still there."""
        found = {}
        for (topic, incarnation, number), (offset, epoch) in sorted(self._engine.offsets.of_group(name).items()):
            tp = TopicPartition(topic, number)
            partition = self._partition(tp)
            if partition is not None and partition.topic.incarnation == incarnation:
                found[tp] = (partition, cap_offset(partition, offset, epoch))
        return found

    def _partition(self, tp: TopicPartition) -> Partition | None:
        state = self._engine.registry.find(tp.topic)
        return state.partitions[tp.partition] if state is not None and tp.partition < len(state.partitions) else None

    def delete(self, name: str) -> None:
        """Forget a group without live members, and everything it committed."""
        self._require(name)
        files = GroupFiles.of(self._engine, name)

        def delete(state: GroupState) -> None:
            files.require_idle(state, "delete")
            stored = self._engine.offsets.of_group(name)
            places = {TopicPartition(topic, number): incarnation for topic, incarnation, number in stored}
            if places:
                self._engine.offsets.commit(name, dict.fromkeys(places), places)
            files.forget(state)

        files.locked(delete)

    def reset(
        self,
        name: str,
        topic: str,
        partition: int | None,
        *,
        to: str | None,
        offset: int | None,
        timestamp_ms: int | None,
        shift: int | None,
    ) -> None:
        """Commit other offsets for a group without live members."""
        given = {"to": to, "offset": offset, "timestamp_ms": timestamp_ms, "shift": shift}
        asked = {key: value for key, value in given.items() if value is not None}
        if len(asked) != 1:
            found = ", ".join(asked) or "none"
            raise ConfigError(f"reset_offsets takes exactly one of to, offset, timestamp_ms and shift; found {found}")
        [(rule, value)] = asked.items()
        if rule == "to":
            check_choice("to", value, ("earliest", "latest"))
        else:
            check_int(rule, value, 0 if rule == "offset" else -(1 << 62), 1 << 62)
        state = self._engine.registry.get(topic)
        self._require(name)
        chosen = state.partitions if partition is None else [state.partitions[check_partition(state, partition)]]
        self._engine.push()
        files = GroupFiles.of(self._engine, name)

        def commit(members: GroupState) -> None:
            files.require_idle(members, "reset the offsets of")
            self._commit(name, state, {one: self._target(name, one, rule, value) for one in chosen})

        files.locked(commit)

    def _target(self, name: str, partition: Partition, rule: str, value: Any) -> int:
        start, end = partition.start(), partition.end()
        if rule == "to":
            return start if value == "earliest" else end
        if rule == "timestamp_ms":
            found = offset_for_time(partition, value)
            return end if found is None else found
        if rule == "shift":
            position = self._engine.offsets.get(name, partition.tp, partition.topic.incarnation)
            present = start if position is None else cap_offset(partition, position.offset, position.epoch)
            value = present + value
        return min(max(int(value), start), end)

    def _commit(self, name: str, state: TopicState, targets: dict[Partition, int]) -> None:
        epoch = self._engine.ctx.epoch
        positions = {one.tp: Position(state.incarnation, offset, epoch) for one, offset in targets.items()}
        self._engine.offsets.commit(name, positions)
