"""Select the charts of a study and their data; `scatter` draws them.

A chart shows one measure of quality of one model against one cost: the size of the file, the time of a forward pass, or
a numeric axis. Colours distinguish families of methods, or methods if there is only one family. If groups of layers
were compressed separately, there is a second version of each chart with a colour for each group.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from laconic.evaluate.paired import Verdict
from laconic.report.study.groups import Group, Names, group_cells, verdict_of
from laconic.report.study.measures import SIZE, Measure, amount_measures, quality_measures, time_measures
from laconic.report.study.results import Results


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[int]:
    """The Pareto front: points for which no other point is better in one coordinate and not worse in the other.

    Args:
        points: (cost, quality) of each point; lower cost is better.
        higher_is_better: whether higher quality is better.

    Returns:
        Indices of the points on the front, by rising cost; of equal points only the first.

    Example:
        >>> pareto_front([(1, 0.5), (2, 0.9), (3, 0.8)], higher_is_better=True)
        [0, 1]
    """
    sign = -1 if higher_is_better else 1
    best = float("inf")
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda at: (points[at][0], sign * points[at][1], at)):
        if sign * points[index][1] < best:
            best = sign * points[index][1]
            found.append(index)
    return found


TARGETS = "targets"


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One group of cells in a chart.

    Args:
        at: (cost, quality) in the units of the chart, means over its cells.
        low: lower bound of the 95 % interval of quality over rows, averaged over its cells; None if unknown.
        high: upper bound.
        cells: (cost, quality) of each cell; empty for one cell.
        colour: the value that its colour represents, such as the family or the method.
        shape: the value that its marker represents, such as the method.
        line: dots with the same value are joined by a line.
        order: place on that line.
        compression: the method and other settings of the group, in words.
        amount: the amount of compression, such as "keep 0.5".
        title: the name of the group with its values.
        keys: the keys of its cells.
        on_front: whether it is on the Pareto front.
    """

    at: tuple[float, float]
    low: float | None
    high: float | None
    cells: tuple[tuple[float, float], ...]
    colour: str
    shape: str
    line: str
    order: float
    compression: str
    amount: str
    title: str
    keys: frozenset[str]
    on_front: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart of quality against cost.

    Args:
        stem: name of its files.
        kind: section of the report.
        title: model, and task where there are several.
        cost: measure on the horizontal axis.
        quality: measure on the vertical axis.
        dots: one for each group of cells.
        original: cost and quality of the original; each may be None.
        front: (cost, quality) of the points on the Pareto front.
        conclusive: whether there are enough rows for any change to be significant; otherwise there is no front.
    """

    stem: str
    kind: str
    title: str
    cost: Measure
    quality: Measure
    dots: tuple[Dot, ...]
    original: tuple[float | None, float | None]
    front: tuple[tuple[float, float], ...] = field(default=())
    conclusive: bool = True

    @property
    def caption(self) -> str:
        """The caption: the two measures, and the models on the Pareto front."""
        better = "higher" if self.quality.higher_is_better else "lower"
        text = f"{self.title}: {self.quality.name} against {self.cost.name}; {better} is better."
        if not self.conclusive:
            return f"{text} There are too few rows to tell any of these from the original."
        best: dict[str, list[str]] = {}
        for dot in sorted((dot for dot in self.dots if dot.on_front), key=lambda dot: dot.at[0]):
            best.setdefault(dot.compression, []).append(dot.amount)
        found = [f"{name} ({_join_amounts(amounts)})" if any(amounts) else name for name, amounts in best.items()]
        return f"{text} On the Pareto front: {'; '.join(found)}." if found else text


def charts(results: Results) -> list[Chart]:
    """Every chart of a study, in the order to show them.

    Args:
        results: the table of the study.
    """
    names, groups = Names(results), group_cells(results)
    subjects = list(dict.fromkeys(names.subject(group) for group in groups if not group.baseline))
    targets = results.axes.get(TARGETS)
    colourings: list[tuple[str, str | None]] = [("", None)]
    if targets and len(results.values(targets)) > 1:
        colourings.append((" by group of layers", targets))
    costs = [
        ("size", SIZE),
        *(("time", time) for time in time_measures(results)),
        *(("amount", amount) for amount in amount_measures(results)),
    ]
    found: list[Chart] = []
    for kind, cost in costs:
        for quality in quality_measures(results):
            for subject in subjects:
                here = [group for group in groups if names.subject(group) == subject]
                for suffix, column in colourings:
                    drawn = _ChartBuilder(names, cost, quality, kind, column)
                    found += drawn.chart(here, f"{names.title(subject, quality.column)}{suffix}")
    return found


@dataclass(frozen=True)
class _ChartBuilder:
    """Makes one chart of groups of cells."""

    names: Names
    cost: Measure
    quality: Measure
    kind: str
    column: str | None

    def chart(self, groups: Sequence[Group], title: str) -> Iterator[Chart]:
        """The chart; nothing if no group has both measures."""
        compressed = [group for group in groups if not group.baseline and self._place(group)]
        if not compressed:
            return
        if self.kind == "amount" and len({group.mean(self.cost.column) for group in compressed}) < 2:
            return
        original = self._original(groups)
        dots = [self._dot(group, self._colour(compressed)) for group in compressed]
        edge: list[tuple[float, float]] = []
        conclusive = self._is_conclusive(compressed)
        if self.kind != "amount" and conclusive:
            every = [dot.at for dot in dots]
            if original[0] is not None and original[1] is not None:
                every.append((original[0], original[1]))
            best = pareto_front(every, higher_is_better=self.quality.higher_is_better)
            edge = [every[index] for index in best]
            # Equal points are all on the front.
            dots = [replace(dot, on_front=dot.at in edge) for dot in dots]
        yield Chart(
            stem=_stem(f"{self.quality.column} against {self.cost.column} {title}"),
            kind=self.kind, title=title, cost=self.cost, quality=self.quality, dots=tuple(dots), original=original,
            front=tuple(edge), conclusive=conclusive,
        )  # fmt: skip

    def _is_conclusive(self, groups: Sequence[Group]) -> bool:
        """Whether some comparison with the original had enough rows, or there was none."""
        found = {verdict_of(row, self.quality) for group in groups for row in group.done} - {None}
        return found != {Verdict.CANNOT_TELL}

    def _place(self, group: Group) -> tuple[float, float] | None:
        cost, quality = group.mean(self.cost.column), group.mean(self.quality.column)
        return None if cost is None or quality is None else (cost * self.cost.scale, quality)

    def _original(self, groups: Sequence[Group]) -> tuple[float | None, float | None]:
        base = next((group for group in groups if group.baseline), None)
        if base is None:
            return None, None
        cost = None if self.kind == "amount" else base.mean(self.cost.column)
        # The KL of the original to itself is 0.
        quality = 0.0 if self.quality.column == "kl" else base.mean(self.quality.column)
        return (None if cost is None else cost * self.cost.scale), quality

    def _colour(self, groups: Sequence[Group]) -> Callable[[Group], str]:
        if self.column is not None:
            column = self.column
            return lambda group: str(group.axes[column] or "all")
        if len({group.family for group in groups}) > 1:
            return lambda group: group.family
        # Markers tell the groups of layers of one method apart.
        return lambda group: self.names.compression(group, self.names.groups)

    def _dot(self, group: Group, colour: Callable[[Group], str]) -> Dot:
        at = self._place(group)
        assert at is not None
        without = () if self.column is None else (self.column,)
        along = self.cost.column if self.kind == "amount" else self.names.first_amount(group)
        compression = self.names.compression(group)
        low, high = (group.mean(self._bound(end)) for end in ("low", "high"))
        x, y = self.cost.written(at[0] / self.cost.scale), self.quality.written(at[1])
        return Dot(
            at=at, low=low, high=high, cells=self._cells(group), colour=colour(group),
            shape=self.names.compression(group, without),
            line=f"{compression}, {self.names.amount(group, without=along)}", order=at[0],
            compression=compression, amount=self.names.amount(group),
            title=f"{self.names.full_name(group)}: {y} at {x}", keys=group.keys,
        )  # fmt: skip

    def _bound(self, end: str) -> str:
        return f"kl_{end}" if self.quality.column == "kl" else f"{self.quality.column} {end}"

    def _cells(self, group: Group) -> tuple[tuple[float, float], ...]:
        places = [
            (float(cost) * self.cost.scale, float(quality))
            for row in group.done
            if isinstance(cost := row[self.cost.column], (int, float))
            and isinstance(quality := row[self.quality.column], (int, float))
        ]
        return tuple(places) if len(places) > 1 else ()


def _join_amounts(amounts: Sequence[str]) -> str:
    """`keep 0.3, 0.5` for `keep 0.3` and `keep 0.5`; amounts on several axes are not joined."""
    axes = {amount.rpartition(" ")[0] for amount in amounts}
    if len(axes) > 1 or "," in amounts[0]:
        return "; ".join(amounts)
    return f"{axes.pop()} {', '.join(amount.rpartition(' ')[2] for amount in amounts)}"


def _stem(said: str) -> str:
    """A name for files: letters, digits and single dashes."""
    kept = "".join(character if character.isalnum() and character.isascii() else "-" for character in said.lower())
    return "-".join(filter(None, kept.split("-")))
