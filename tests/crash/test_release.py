"""The driver of `python -m tests.crash`: it goes on after what fails, and where it was ended."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.crash import release
from tests.crash.release import CAMPAIGNS, Campaign, Done, State, main

SEED = 100


def well(seed: int) -> int:
    """A case: leaves a mark."""
    with Path(os.environ["STREAMLITE_MARKS"]).open("a") as marks:
        marks.write(f"{seed}\n")
    return 2


def badly(seed: int) -> int:
    assert seed % 3, f"found something with seed {seed}"
    return 1


def deadly(seed: int) -> int:
    os._exit(7)


def campaign(number: int, function: str, cases: int) -> Campaign:
    return Campaign(number, function, f"tests.crash.test_release:{function}", cases, cases, "things")


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the driver over the campaigns above; its status, and what it says."""
    monkeypatch.setenv("STREAMLITE_MARKS", str(tmp_path / "marks"))
    monkeypatch.setenv("PYTHONPATH", str(release.TREE))

    def go(campaigns: list[Campaign], *words: str) -> tuple[int, str]:
        monkeypatch.setattr(release, "CAMPAIGNS", tuple(campaigns))
        status = main(["--state", str(tmp_path / "state.json"), *words])
        return status, capsys.readouterr().out

    return go


def marks(tmp_path: Path) -> list[int]:
    return sorted(int(line) for line in (tmp_path / "marks").read_text().split())


def state(tmp_path: Path) -> State:
    return msgspec.json.decode((tmp_path / "state.json").read_bytes(), type=State)


def test_it_goes_on_with_the_seeds_that_are_not_done(run: Run, tmp_path: Path) -> None:
    done = Done(next=3, open=[1], cases=2, looked_at=4, failures=[])
    (tmp_path / "state.json").write_bytes(msgspec.json.encode(State(SEED, {"well": done})))
    status, said = run([campaign(1, "well", 10)], "--release")
    assert (status, marks(tmp_path)) == (0, [SEED + 1, SEED + 3, SEED + 4])
    assert f"seed {SEED}, 2 cases are done" in said
    assert state(tmp_path).campaigns["well"].open == []
    status, _ = run([campaign(1, "well", 10)], "--release")
    assert (status, len(marks(tmp_path))) == (0, 3)


def test_no_time_leaves_everything_for_the_next_run(run: Run, tmp_path: Path) -> None:
    status, said = run([campaign(1, "well", 10)], "--release", "--seconds", "0")
    assert status == 0
    assert "not done" in said
    assert state(tmp_path).campaigns["well"] == Done()


def test_what_fails_is_told_and_kept_and_the_others_go_on(run: Run, tmp_path: Path) -> None:
    campaigns = [campaign(1, "well", 4), campaign(2, "badly", 3), campaign(3, "deadly", 1), campaign(4, "absent", 1)]
    status, said = run(campaigns, "--seed", "3", "--count", "2")
    assert status == 1
    assert marks(tmp_path) == [3, 4]
    assert "python -m tests.crash --only badly --seed 3 --count 1" in said
    assert "found something with seed 3" in (tmp_path / "state.failures" / "badly-3.txt").read_text()
    assert "the worker ended with status 7" in (tmp_path / "state.failures" / "deadly-4.txt").read_text()
    table = {line.split()[1]: line for line in said.splitlines() if line.startswith("   ")}
    assert table["well"].endswith("done")
    assert table["badly"].endswith("1 FAILED")
    assert table["deadly"].endswith("2 FAILED")
    assert "NOT THERE" in table["absent"]
    assert not (tmp_path / "state.json").exists(), "a repeated case is no part of a run"


def test_every_campaign_of_the_promises_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CAMPAIGNS)
    assert {int(line.split()[0]) for line in lines} == set(range(1, 17))
    assert len({one.name for one in CAMPAIGNS}) == len(CAMPAIGNS)
    with pytest.raises(SystemExit, match="no campaign nonsense"):
        main(["--list", "--only", "nonsense"])


@pytest.mark.parametrize("one", CAMPAIGNS, ids=lambda one: one.name)
def test_what_a_campaign_names_is_there(one: Campaign) -> None:
    module, _, name = one.function.partition(":")
    missing = [name for name in one.files if not (release.TREE / name).exists()]
    if missing or (module and importlib.util.find_spec(module) is None):
        pytest.skip("not there: the driver says so, and fails")
    if module:
        assert callable(getattr(importlib.import_module(module), name))
