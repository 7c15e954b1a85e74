"""The fault model of a machine that stops: what it may leave of a run, worked out from a recording of the run's calls.

`RecordedFiles` is a directory in memory that notes down everything that changes it, and what of it was synced. From
these notes `Recording.states` builds, for every point of the run, what the device may hold if the machine stops there:

* `sync` of a file brings its data and its size to the device, not its name; `sync_dir` the names in that directory,
  not the directory's own. Whatever was not brought there may be there or not, each change by itself.
* A write that was not synced is made of sectors of 512 bytes, each of which is old, new or zero; the file's size may
  have grown alone. A sector below the size that was synced is old or new: it has been written before, and no file
  system gives it back as zeros.
* A rename is one step, for both names, and may be there before the data of what it names.
* A page of a mapping may be what it was at any time, each for itself.
* After a sync that failed, what it was for reads as it was written until the machine stops, and may be gone then,
  whatever was synced later.

Of what was not synced all subsets are taken where there are at most `ALL` changes, else `SAMPLES` that are drawn; to
each belong some ways in which its writes are torn. What is the same comes once. What lies in `wake/`, the names of
locks, and the counters, which nobody believes after another boot, are drawn for each state and tell no two apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import xxhash

from streamlite.files import File
from streamlite.files.memory import MemoryFile, MemoryFiles, _Directory
from tests.crash.faulty import Call, FaultyFiles

ALL = 8
"""Of so many changes that were not synced, all subsets."""
SAMPLES = 64
"""Of more, so many."""
TEARS = 3
"""To each subset, so many ways to tear its writes."""
SECTOR = 512
PAGE = 4096
CONTENTS_MOST = 10_000
"""Contents that are kept to be used again."""
QUIET = ("wake", "counters")
"""What tells no two states apart."""


# -- what was done -----------------------------------------------------------------------------------------------------


class Wrote(NamedTuple):
    """To a file."""

    file: int
    position: int
    data: bytes


class Resized(NamedTuple):
    """A file was cut, or grew."""

    file: int
    size: int


class Named(NamedTuple):
    """Names of directories lead elsewhere now, in one step: `(directory, name, to what)`; `None` for a removal."""

    changes: tuple[tuple[int, str, int | None], ...]


class Stored(NamedTuple):
    """A page of a mapping is another."""

    file: int
    page: int
    data: bytes


class Synced(NamedTuple):
    """A file or directory."""

    node: int


class Unsafe(NamedTuple):
    """A sync of a file failed."""

    file: int


class Noted(NamedTuple):
    """Nothing was done, but what is known of the run is another."""


Change = Wrote | Resized | Named
Event = Change | Stored | Synced | Unsafe | Noted


class RecordedFile(MemoryFile):
    """A file that notes down what is done to it."""

    def __init__(self, path: str, files: RecordedFiles) -> None:
        super().__init__(path)
        self._note = files.note
        self.number = files.number(self)

    def write(self, buffers: Sequence[bytes], position: int) -> None:
        data = b"".join(buffers)
        super().write([data], position)
        if data:
            self._note(Wrote(self.number, position, data))

    def truncate(self, size: int) -> None:
        before = len(self.data)
        super().truncate(size)
        if size != before:
            self._note(Resized(self.number, size))

    def sync(self) -> None:
        self._note(Synced(self.number))


class RecordedFiles(MemoryFiles):
    """A directory in memory that notes down what changes it. `begin`: what is there, all of it on the device.

    To be used through `RecordedCalls`, one call at a time.
    """

    def __init__(self, begin: MemoryFiles | None = None) -> None:
        super().__init__()
        self._kept: list[object] = []  # or numbers would be given twice
        self._numbers: dict[int, int] = {}
        self._pages: dict[tuple[int, int], bytes] = {}
        self._mapped: list[tuple[RecordedFile, int]] = []
        self.told: Callable[[], Any] = lambda: None
        """What is known of the run: goes with each event."""
        self.recording = Recording(self.number(self._tree))
        if begin is not None:
            self._take(begin._tree, self._tree)

    def number(self, node: object) -> int:
        """The file's or directory's."""
        found = self._numbers.get(id(node))
        if found is None:
            found = self._numbers[id(node)] = len(self._kept)
            self._kept.append(node)
            if isinstance(node, _Directory) and found:
                self.recording.directories[found] = {}
        return found

    def _take(self, given: _Directory, into: _Directory) -> None:
        names = self.recording.directories[self.number(into)]
        for name, found in given.items():
            if isinstance(found, _Directory):
                directory = into[name] = _Directory()
                names[name] = self.number(directory)
                self._take(found, directory)
            else:
                file = into[name] = RecordedFile(found.path, self)
                file.data = bytearray(image_of(found))
                names[name] = file.number
                self.recording.files[file.number] = bytes(file.data)

    def note(self, event: Event) -> None:
        """Something was done."""
        self.look()
        self.recording.add(event, self.told())

    def look(self) -> None:
        """What was stored in mapped pages since the last look."""
        for file, offset in self._mapped:
            found = bytes(file.maps[offset])
            before = self._pages[file.number, offset]
            if found != before:
                self._pages[file.number, offset] = found
                for at in range(0, len(found), PAGE):
                    if found[at : at + PAGE] != before[at : at + PAGE]:
                        page = (offset + at) // PAGE
                        self.recording.add(Stored(file.number, page, found[at : at + PAGE]), self.told())

    def say(self) -> None:
        """What is known of the run has changed."""
        self.look()
        self.recording.add(Noted(), self.told())

    def unsafe(self, path: str) -> None:
        """A sync failed."""
        file = self._find(path)
        if isinstance(file, RecordedFile):
            self.note(Unsafe(file.number))

    def _named(self, *changes: tuple[_Directory, str, object]) -> None:
        self.note(
            Named(
                tuple(
                    (self.number(parent), name, None if found is None else self.number(found))
                    for parent, name, found in changes
                )
            )
        )

    def _file(self, path: str, *, create: bool) -> MemoryFile:
        with self._mutex:
            if create and path and self._find(path) is None:
                parent, name = self._parent(path)
                parent[name] = RecordedFile(path, self)
                self._named((parent, name, parent[name]))
            return super()._file(path, create=create)

    def map(self, path: str, offset: int, size: int) -> memoryview:
        with self._mutex:
            view = super().map(path, offset, size)
            file = self._file(path, create=False)
            assert isinstance(file, RecordedFile)
            if (file, offset) not in self._mapped:
                self._mapped.append((file, offset))
                self._pages[file.number, offset] = bytes(file.maps[offset])
            return view

    def replace_file(self, path: str, data: bytes, *, sync: bool) -> None:
        raise AssertionError("FaultyFiles does it in steps")

    def make_dir(self, path: str) -> None:
        there = self._find(path)
        super().make_dir(path)
        if there is None:
            parent, name = self._parent(path)
            self._named((parent, name, parent[name]))

    def rename(self, path: str, to: str) -> None:
        moved, there = self._find(path), self._find(to)
        super().rename(path, to)
        if there is not moved:
            (parent, name), (to_parent, to_name) = self._parent(path), self._parent(to)
            self._named((parent, name, None), (to_parent, to_name, moved))

    def remove(self, path: str) -> None:
        there = self._find(path)
        super().remove(path)
        if there is not None:
            self._named((*self._parent(path), None))

    def remove_tree(self, path: str) -> None:
        there = self._find(path)
        super().remove_tree(path)
        if there is not None:
            self._named((*self._parent(path), None))

    def sync_dir(self, path: str) -> None:
        super().sync_dir(path)
        self.note(Synced(self.number(self._directory("sync", path))))


class RecordedCalls(FaultyFiles):
    """The seam over `RecordedFiles`; may go wrong as planned."""

    inner: RecordedFiles

    def __init__(self, inner: RecordedFiles, *args: Any, **named: Any) -> None:
        super().__init__(inner, *args, **named)

    def run(self, call: Call, do: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        with self._mutex:
            failed = len(self.hits)
            try:
                return super().run(call, do, half)
            finally:
                if call.name == "sync" and len(self.hits) > failed and not self.dead:
                    self.inner.unsafe(call.path)

    def scratch(self) -> File:
        return MemoryFile("scratch")  # has no name, and is gone with its process


def image_of(file: MemoryFile) -> bytes:
    """What a file holds, what was stored in its mappings too."""
    if not file.maps:
        return bytes(file.data)
    data = bytearray(file.data)
    for offset, view in file.maps.items():
        data[offset : offset + len(view)] = view
    return bytes(data)


# -- what may be left of it --------------------------------------------------------------------------------------------


class Left(NamedTuple):
    """What a machine that stopped left: the directory, what was known of the run, after how many events, a name."""

    files: MemoryFiles
    note: Any
    at: int
    chosen: str


class Scale(NamedTuple):
    """How many states are built."""

    all: int = ALL
    samples: int = SAMPLES
    tears: int = TEARS
    every: int = 1
    """Only at each so-manieth point of the run."""


FULL = Scale()


class Recording:
    """What was done to a directory, in order, and what was in it before."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.files: dict[int, bytes] = {}
        self.directories: dict[int, dict[str, int]] = {root: {}}
        self.events: list[tuple[Event, Any]] = []

    def add(self, event: Event, note: Any) -> None:
        """It was done."""
        self.events.append((event, note))

    def states(self, seed: int = 0, scale: Scale = FULL) -> Iterator[Left]:
        """What may be left, at every point; each once for what is known of the run there."""
        device = _Device(self)
        seen: set[tuple[int, Any]] = set()
        for at, (event, note) in enumerate(self.events):
            device.take(event)
            if isinstance(event, Stored) or (at + seed) % scale.every:
                continue  # the call that follows it makes the point
            draw = random.Random(seed * 1_000_003 + at)
            for chosen in device.choices(draw, scale):
                tree = device.tree(chosen)
                known = (device.identity(tree), note)
                if known not in seen:
                    seen.add(known)
                    yield Left(build(tree), note, at, device.describe(chosen))


class _Pending:
    """A change that is not on the device for certain. `nodes`: the files or directories whose sync makes it safe."""

    __slots__ = ("change", "nodes", "number", "quiet", "safe", "trusted")

    def __init__(self, number: int, change: Change, *, quiet: bool) -> None:
        self.number = number
        self.change = change
        if isinstance(change, Named):
            self.nodes = frozenset(directory for directory, _, _ in change.changes)
        else:
            self.nodes = frozenset((change.file,))
        self.quiet = quiet
        """Whether it tells no two states apart."""
        self.trusted = True
        """Whether a sync may still make it safe: not after one that failed."""
        self.safe = False
        """On the device for certain, but behind one in the same place that is not."""


class _Chosen(NamedTuple):
    """Which pending changes are there, by number; of which torn write each sector is what; the mapped pages.

    A letter a sector: (o)ld, (n)ew, (z)ero.
    """

    there: frozenset[int]
    torn: tuple[tuple[int, str], ...]
    pages: dict[tuple[int, int], int]


class _Content(NamedTuple):
    """Of a file."""

    data: bytes
    identity: int


_Tree = dict[str, Any]
"""Names to trees and contents."""
_EMPTY: dict[str, int] = {}
_ZEROS = bytes(PAGE)


class _Device:
    """What of a directory is on the device for certain, and what may be."""

    def __init__(self, recording: Recording) -> None:
        self.root = recording.root
        self.files = {number: (0, data) for number, data in recording.files.items()}
        """On the device for certain: how often it changed there, and the data."""
        self.directories = {number: dict(names) for number, names in recording.directories.items()}
        self.pending: list[_Pending] = []
        self.pages: dict[tuple[int, int], list[bytes]] = {}
        """By file and page: what it was at any time."""
        self._folders = recording.directories
        self._count = 0
        self._quiet: set[int] = set()
        self._contents: dict[Any, tuple[bytes, int]] = {}

    # -- the run goes on ----------------------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """It was done."""
        match event:
            case Named(changes):
                quiet = [self._is_quiet(*change) for change in changes]
                self._add(event, quiet=all(quiet))
            case Wrote(file) | Resized(file):
                self._add(event, quiet=file in self._quiet)
            case Stored(file, page, data):
                self.pages.setdefault((file, page), []).append(data)
            case Unsafe(file):
                for one in self.pending:
                    one.trusted = one.trusted and file not in one.nodes
            case Synced(node):
                for one in self.pending:
                    one.safe = one.safe or (one.trusted and node in one.nodes)
                self._settle()
            case _:
                pass

    def _add(self, change: Change, *, quiet: bool) -> None:
        self._count += 1
        self.pending.append(_Pending(self._count, change, quiet=quiet))

    def _is_quiet(self, directory: int, name: str, node: int | None) -> bool:
        """Of a lock the name alone says nothing; of what is for wake-ups, and of the counters, all is made anew."""
        quiet = directory in self._quiet or (directory == self.root and name in QUIET)
        if quiet and node is not None:
            self._quiet.add(node)
        return quiet or name == "lock" or name.endswith(".lock")

    def _settle(self) -> None:
        """Do what is safe, as long as nothing that is not stands before it in the same place."""
        left: list[_Pending] = []
        blocked: set[int] = set()
        for one in self.pending:
            if one.safe and not blocked & one.nodes:
                self._do(one.change)
            else:
                blocked |= one.nodes
                left.append(one)
        self.pending = left

    def _do(self, change: Change) -> None:
        if isinstance(change, Named):
            _name(self.directories, change)
        else:
            version, before = self.files.get(change.file, (0, b""))
            data = bytearray(before)
            _apply(data, change)
            self.files[change.file] = version + 1, bytes(data)

    # -- the machine stops --------------------------------------------------------------------------------------------

    def choices(self, draw: random.Random, scale: Scale) -> Iterator[_Chosen]:
        """Ways in which what is pending may be there or not."""
        certain = [one.number for one in self.pending if one.safe]
        open_ = [one for one in self.pending if not one.safe]
        numbers = [one.number for one in open_ if not one.quiet]
        quiet = [one.number for one in open_ if one.quiet]
        writes = [one for one in open_ if isinstance(one.change, Wrote) and not one.quiet]
        for subset in _subsets(numbers, draw, scale):
            for tear in range(1 + (scale.tears if writes else 0)):
                there = {*certain, *subset, *_some(quiet, draw, draw.choice((0.0, 0.5, 1.0)))}
                torn = self._torn(draw.choice(writes), draw) if tear else ()
                there.update(number for number, _ in torn)
                yield _Chosen(frozenset(there), torn, self._some_pages(draw))

    def _torn(self, one: _Pending, draw: random.Random) -> tuple[tuple[int, str], ...]:
        """The write, its sectors drawn: cut off, in pieces, or with its size alone."""
        assert isinstance(one.change, Wrote)
        first, last = one.change.position // SECTOR, (one.change.position + len(one.change.data) - 1) // SECTOR
        count = last - first + 1
        way = draw.random()
        if way < 0.4:
            whole = draw.randrange(count)
            letters = "n" * whole + draw.choice("oz") * (count - whole)
        elif way < 0.7:
            letters = "o" * count
        else:
            letters = "".join(draw.choice("onz") for _ in range(count))
        return ((one.number, letters),)

    def _some_pages(self, draw: random.Random) -> dict[tuple[int, int], int]:
        way = draw.choice((-1, 0, 1))
        if way < 0:
            return dict.fromkeys(self.pages, -1)  # as they were made: zeros
        if not way:
            return {place: len(versions) - 1 for place, versions in self.pages.items()}
        return {place: draw.randrange(-1, len(versions)) for place, versions in self.pages.items()}

    def tree(self, chosen: _Chosen) -> _Tree:
        """What the directory looks like then."""
        directories = dict(self.directories)
        copied: set[int] = set()
        changes: dict[int, list[_Pending]] = {}
        for one in self.pending:
            if one.number in chosen.there:
                if isinstance(one.change, Named):
                    for directory in one.nodes - copied:
                        directories[directory] = dict(directories.get(directory, {}))
                        copied.add(directory)
                    _name(directories, one.change)
                else:
                    changes.setdefault(one.change.file, []).append(one)
        torn = dict(chosen.torn)
        mapped: dict[int, list[tuple[int, int]]] = {}
        for (file, page), version in chosen.pages.items():
            mapped.setdefault(file, []).append((page, version))

        def below(directory: int) -> _Tree:
            return {
                name: below(node)
                if node in self._folders
                else self._content(node, changes.get(node, ()), torn, mapped.get(node, ()))
                for name, node in directories.get(directory, _EMPTY).items()
            }

        return below(self.root)

    def _content(
        self,
        file: int,
        changes: Sequence[_Pending],
        torn: Mapping[int, str],
        mapped: Sequence[tuple[int, int]],
    ) -> _Content:
        version, data = self.files.get(file, (0, b""))
        key = (file, version, tuple([(one.number, one.safe, torn.get(one.number)) for one in changes]), tuple(mapped))
        found = self._contents.get(key)
        if found is None:
            if changes or mapped:
                made = bytearray(data)
                synced = len(data)
                for one in changes:
                    assert not isinstance(one.change, Named)
                    if one.safe and isinstance(one.change, Wrote):
                        synced = max(synced, one.change.position + len(one.change.data))
                    letters = torn.get(one.number)
                    if letters is None:
                        _apply(made, one.change)
                    else:
                        _tear(made, one.change, letters, synced)
                for page, at in mapped:
                    stored = self.pages[file, page][at] if at >= 0 else _ZEROS
                    room = max(len(made) - page * PAGE, 0)
                    made[page * PAGE : (page + 1) * PAGE] = stored[:room]
                data = bytes(made)
            if len(self._contents) > CONTENTS_MOST:
                self._contents.clear()
            found = self._contents[key] = _Content(data, 0 if file in self._quiet else xxhash.xxh3_64_intdigest(data))
        return found

    def identity(self, tree: _Tree) -> int:
        """A number that is the same where all names and bytes are that tell states apart."""
        digest = xxhash.xxh3_64()

        def add(part: _Tree, path: str) -> None:
            for name in sorted(part):
                found = part[name]
                if isinstance(found, dict):
                    digest.update(f"{path}{name}/\0".encode())
                    add(found, f"{path}{name}/")
                elif name != "lock" and not name.endswith(".lock"):
                    digest.update(f"{path}{name}\0{found.identity}".encode())

        add({name: found for name, found in tree.items() if name not in QUIET}, "")
        return digest.intdigest()

    def describe(self, chosen: _Chosen) -> str:
        """Which changes are missing, and which are torn: for whoever looks for the cause of a failure."""
        torn = dict(chosen.torn)
        lines = []
        for one in self.pending:
            if one.safe or one.quiet:
                continue
            how = (
                f"torn {torn[one.number]}" if one.number in torn else "there" if one.number in chosen.there else "lost"
            )
            lines.append(f"{how}: {one.change!r:.140}")
        return "\n".join(lines)


def build(tree: _Tree) -> MemoryFiles:
    """A directory that holds that, and that nobody has open."""
    files = MemoryFiles()
    _build(tree, files._tree, "")
    return files


def _build(tree: _Tree, into: _Directory, at: str) -> None:
    for name, found in tree.items():
        if isinstance(found, dict):
            directory = into[name] = _Directory()
            _build(found, directory, f"{at}{name}/")
        else:
            file = into[name] = MemoryFile(f"{at}{name}")
            file.data = bytearray(found.data)


def _subsets(numbers: Sequence[int], draw: random.Random, scale: Scale) -> Iterator[Sequence[int]]:
    """All of them where they are few, else some: nothing, everything, everything but one, and others."""
    if len(numbers) <= scale.all:
        for bits in range(1 << len(numbers)):
            yield [number for at, number in enumerate(numbers) if bits >> at & 1]
        return
    for at in range(scale.samples):
        way = at % 6
        if way == 0:
            yield _some(numbers, draw, draw.choice((0.0, 1.0)))
        elif way == 1:
            without = draw.choice(numbers)
            yield [number for number in numbers if number != without]
        elif way == 2:
            yield [number for number in numbers if number <= draw.choice(numbers)]
        else:
            yield _some(numbers, draw, draw.choice((0.1, 0.5, 0.9)))


def _some(numbers: Sequence[int], draw: random.Random, share: float) -> list[int]:
    return [number for number in numbers if draw.random() < share]


def _name(directories: dict[int, dict[str, int]], change: Named) -> None:
    for directory, name, node in change.changes:
        names = directories.setdefault(directory, {})
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _apply(data: bytearray, change: Wrote | Resized) -> None:
    if isinstance(change, Resized):
        del data[change.size :]
        data.extend(bytes(change.size - len(data)))
        return
    data.extend(bytes(max(change.position - len(data), 0)))
    data[change.position : change.position + len(change.data)] = change.data


def _tear(data: bytearray, change: Wrote | Resized, letters: str, synced: int) -> None:
    """A write of which each sector is what its letter says; below `synced` bytes none is zeros."""
    assert isinstance(change, Wrote)
    position, end = change.position, change.position + len(change.data)
    data.extend(bytes(max(end - len(data), 0)))
    first = position // SECTOR
    for at, letter in enumerate(letters, first):
        start, stop = max(at * SECTOR, position), min((at + 1) * SECTOR, end)
        if letter == "n":
            data[start:stop] = change.data[start - position : stop - position]
        elif letter == "z" and at * SECTOR >= synced:
            data[at * SECTOR : min((at + 1) * SECTOR, len(data))] = bytes(
                min((at + 1) * SECTOR, len(data)) - at * SECTOR
            )
