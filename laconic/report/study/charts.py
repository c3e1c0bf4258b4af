"""Select the charts of a study and their data. The module `scatter` draws them.

A chart shows one measure of quality of one model against one cost: the size of the file, the time of a forward pass, or
a numeric axis. Colours distinguish families of methods, or methods if there is only one family. If groups of layers
were compressed separately, there is a second version of each chart with a colour for each group.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from laconic.evaluate.paired import Verdict
from laconic.report.study.groups import (
    KL,
    SIZE,
    CellGroup,
    GroupNames,
    Measure,
    amount_measures,
    group_cells,
    quality_measures,
    time_measures,
    verdict_of,
)
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
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], sign * points[index][1], index)):
        if sign * points[index][1] < best:
            best = sign * points[index][1]
            front.append(index)
    return front


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
        front: dict[str, list[str]] = {}
        for dot in sorted((dot for dot in self.dots if dot.on_front), key=lambda dot: dot.at[0]):
            front.setdefault(dot.compression, []).append(dot.amount)
        models = [f"{name} ({_join_amounts(amounts)})" if any(amounts) else name for name, amounts in front.items()]
        return f"{text} On the Pareto front: {'; '.join(models)}." if models else text


def charts(results: Results) -> list[Chart]:
    """Every chart of a study, in the order to show them.

    Args:
        results: the table of the study.
    """
    names, groups = GroupNames(results), group_cells(results)
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
    builders = [
        (_ChartBuilder(names, cost, quality, kind, column), subject, suffix)
        for kind, cost in costs
        for quality in quality_measures(results)
        for subject in subjects
        for suffix, column in colourings
    ]
    all_charts = (
        builder.chart(
            [group for group in groups if names.subject(group) == subject],
            f"{names.title(subject, builder.quality.column)}{suffix}",
        )
        for builder, subject, suffix in builders
    )
    return [chart for chart in all_charts if chart is not None]


@dataclass(frozen=True)
class _ChartBuilder:
    """Makes one chart of groups of cells.

    Args:
        names: names of the groups.
        cost: measure on the horizontal axis.
        quality: measure on the vertical axis.
        kind: section of the report.
        column: the column whose values have colours; None for colours of families or methods.
    """

    names: GroupNames
    cost: Measure
    quality: Measure
    kind: str
    column: str | None

    def chart(self, groups: Sequence[CellGroup], title: str) -> Chart | None:
        """The chart; None if no group has both measures, or all have the same amount."""
        placed = [(group, point) for group in groups if not group.baseline and (point := self._place(group))]
        if not placed or (self.kind == "amount" and len({point[0] for _, point in placed}) < 2):
            return None
        original = self._original(groups)
        colour = self._colour([group for group, _ in placed])
        dots = [self._dot(group, point, colour) for group, point in placed]
        # Some comparison with the original had enough rows, or there was none.
        verdicts = {verdict_of(row, self.quality) for group, _ in placed for row in group.done} - {None}
        conclusive = verdicts != {Verdict.CANNOT_TELL}
        front: list[tuple[float, float]] = []
        if self.kind != "amount" and conclusive:
            points = [point for _, point in placed]
            if original[0] is not None and original[1] is not None:
                points.append((original[0], original[1]))
            best = pareto_front(points, higher_is_better=self.quality.higher_is_better)
            front = [points[index] for index in best]
            # Equal points are all on the front.
            dots = [replace(dot, on_front=dot.at in front) for dot in dots]
        return Chart(
            stem=_stem(f"{self.quality.column} against {self.cost.column} {title}"),
            kind=self.kind, title=title, cost=self.cost, quality=self.quality, dots=tuple(dots), original=original,
            front=tuple(front), conclusive=conclusive,
        )  # fmt: skip

    def _place(self, group: CellGroup) -> tuple[float, float] | None:
        cost, quality = group.mean(self.cost.column), group.mean(self.quality.column)
        return None if cost is None or quality is None else (cost * self.cost.scale, quality)

    def _original(self, groups: Sequence[CellGroup]) -> tuple[float | None, float | None]:
        base = next((group for group in groups if group.baseline), None)
        if base is None:
            return None, None
        cost = None if self.kind == "amount" else base.mean(self.cost.column)
        # The KL of the original to itself is 0.
        quality = 0.0 if self.quality == KL else base.mean(self.quality.column)
        return (None if cost is None else cost * self.cost.scale), quality

    def _colour(self, groups: Sequence[CellGroup]) -> Callable[[CellGroup], str]:
        if self.column is not None:
            column = self.column
            return lambda group: str(group.axes[column] or "all")
        if len({group.family for group in groups}) > 1:
            return lambda group: group.family
        # Markers distinguish the groups of layers of one method.
        return lambda group: self.names.compression(group, self.names.groups)

    def _dot(self, group: CellGroup, point: tuple[float, float], colour: Callable[[CellGroup], str]) -> Dot:
        without = () if self.column is None else (self.column,)
        line_axis = self.cost.column if self.kind == "amount" else self.names.first_amount(group)
        compression = self.names.compression(group)
        # The bounds of the KL have underscores in their columns.
        bound = "kl_" if self.quality == KL else f"{self.quality.column} "
        cells = [
            (float(cost) * self.cost.scale, float(quality))
            for row in group.done
            if isinstance(cost := row[self.cost.column], (int, float))
            and isinstance(quality := row[self.quality.column], (int, float))
        ]
        x, y = self.cost.to_text(point[0] / self.cost.scale), self.quality.to_text(point[1])
        return Dot(
            at=point, low=group.mean(f"{bound}low"), high=group.mean(f"{bound}high"),
            cells=tuple(cells) if len(cells) > 1 else (), colour=colour(group),
            shape=self.names.compression(group, without),
            line=f"{compression}, {self.names.amount(group, without=line_axis)}",
            compression=compression, amount=self.names.amount(group),
            title=f"{self.names.full_name(group)}: {y} at {x}", keys=group.keys,
        )  # fmt: skip


def _join_amounts(amounts: Sequence[str]) -> str:
    """`keep 0.3, 0.5` for `keep 0.3` and `keep 0.5`; amounts on several axes are not joined."""
    axes = {amount.rpartition(" ")[0] for amount in amounts}
    if len(axes) > 1 or "," in amounts[0]:
        return "; ".join(amounts)
    return f"{axes.pop()} {', '.join(amount.rpartition(' ')[2] for amount in amounts)}"


def _stem(text: str) -> str:
    """A name for files: letters, digits and single dashes."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")
