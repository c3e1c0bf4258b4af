"""Progress of long work on a stderr that is no terminal: a line now and then, with the time left once it is known."""

from collections.abc import Iterable, Iterator, Sequence
from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from laconic.cli.terminal import Bars, let_waiting_threads_sleep
from laconic.evaluate.cost import measure_cost
from laconic.progress import Item
from laconic.report.inspection.weights import weight_statistics
from tests.architectures import BY_NAME


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which tests turn on."""
    now = [0.0]
    monkeypatch.setattr("laconic.cli.terminal.time.monotonic", lambda: now[0])
    monkeypatch.setattr("laconic.cli.terminal.resident_memory", lambda: None)
    return now


def told(
    clock: list[float],
    seconds: Sequence[float],
    capsys: pytest.CaptureFixture[str],
    work: Sequence[float] | None = None,
) -> list[str]:
    """The lines about items that take so many `seconds` each."""
    bars = Bars(Progress(disable=True), is_terminal=False)
    for one in bars(seconds, "Work", work):
        clock[0] += one
    return capsys.readouterr().err.splitlines()


def test_the_first_of_many_items_is_no_basis(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert told(clock, [20, 4, 6, 6], capsys) == ["Work: 1 of 4", "Work: 3 of 4, about 10 s left"]


def test_time_left_goes_by_the_work_where_that_is_known(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert told(clock, [90, 6, 4], capsys, work=[9000, 600, 400]) == [
        "Work: 1 of 3, about 10 s left",
        "Work: 2 of 3, about 4 s left",
    ]
    assert told(clock, [1, 1, 1], capsys) == [], "nothing is told of short work"


def test_a_bar_goes_by_the_work_and_counts_items() -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    columns = (TextColumn("{task.description} {task.percentage:.0f}% {task.fields[at]}"),)
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        seen = []
        for one in Bars(progress, is_terminal=True)("abc", "Work", [8, 1, 1]):
            seen.append(one)
            progress.refresh()
        assert seen == ["a", "b", "c"] and progress.tasks == [], "it is gone once the work is done"
    shown = screen.getvalue()
    assert "Work 0% 0/3" in shown and "Work 80% 1/3" in shown and "Work 90% 2/3" in shown


class Noted:
    """A track that notes what it was told of."""

    def __init__(self) -> None:
        self.works: dict[str, list[float] | None] = {}

    def __call__(self, items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]:
        self.works[what] = None if work is None else list(work)
        return self._walked(items)

    def _walked(self, items: Sequence[Item]) -> Iterator[Item]:
        yield from items


def test_a_word_embedding_is_more_work_than_a_small_matrix() -> None:
    track, lm = Noted(), BY_NAME["llama"].lm()
    weight_statistics(lm, track)
    work = track.works["Measuring the weights"]
    assert work is not None and len(work) == len({id(site.parameter) for site in lm.sites(("all",))})
    assert max(work) > min(work) > 0


def test_every_pass_that_is_timed_is_on_a_bar() -> None:
    track = Noted()
    measure_cost(BY_NAME["llama"].lm(), None, (1, 2), (8,), track=track)
    assert track.works.keys() == {
        "cost", "Warming up for 1 × 8 tokens", "Timing 1 × 8 tokens", "Warming up generation after 1 × 8 tokens",
        "Generating after 1 × 8 tokens", "Warming up for 2 × 8 tokens", "Timing 2 × 8 tokens",
        "Warming up generation after 2 × 8 tokens", "Generating after 2 × 8 tokens",
    }  # fmt: skip
    assert track.works["cost"] == [8.0, 16.0]


@pytest.mark.parametrize("chosen", [None, "ACTIVE"])
def test_waiting_threads_sleep_unless_the_user_decided(chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {} if chosen is None else {"OMP_WAIT_POLICY": chosen}
    monkeypatch.setattr("os.environ", environment)
    let_waiting_threads_sleep()
    assert environment["OMP_WAIT_POLICY"] == (chosen or "PASSIVE")
