"""What a model consists of: its stacks, the matrices that can be compressed, and the bytes of each part."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from laconic.model import Group, LanguageModel, Site
from laconic.report.points import MEGABYTE
from laconic.report.tables import Column, Table

OTHER = "other"
"""Norms, biases, positions, and matrices that no target names."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The matrices of one group; sites and shapes are empty for what is no site."""

    name: str
    sites: int
    shapes: tuple[str, ...]
    parameters: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Sizes in the stored dtype; parameters shared by several modules count once."""

    model: str
    architecture: str
    task: str
    dtype: str
    stacks: tuple[tuple[str, int], ...]
    parts: tuple[Part, ...]
    parameters: int
    nbytes: int
    sites: tuple[tuple[str, str, tuple[int, int]], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `laconic inspect --json` prints them."""
        return {
            **asdict(self),
            "stacks": [{"path": path, "blocks": blocks} for path, blocks in self.stacks],
            "sites": [{"name": name, "group": group, "shape": list(shape)} for name, group, shape in self.sites],
        }

    def table(self) -> Table:
        """Size by part."""
        columns = (
            Column("part"),
            Column("matrices", "{:d}"),
            Column("shapes (out × in)"),
            Column("parameters", "{:,d}"),
            Column("MB", "{:,.2f}"),
            Column("share", "{:.1%}"),
        )
        rows = tuple(
            (part.name, part.sites, ", ".join(part.shapes), part.parameters, part.nbytes / MEGABYTE,
             part.nbytes / self.nbytes)
            for part in self.parts
        )  # fmt: skip
        every = ("all", sum(part.sites for part in self.parts), "", self.parameters, self.nbytes / MEGABYTE, 1.0)
        return Table(columns, (*rows, every))


def inspect(lm: LanguageModel) -> Inspection:
    """Look at `lm`; nothing is run."""
    sites = lm.sites(("all", "*"))
    seen: set[int] = set()
    # A head that is tied to the embedding is counted there.
    order = (Group.EMBEDDING, Group.ATTENTION, Group.FFN, Group.HEAD)
    parts = [_part(group, [site for site in sites if site.group is group], lm, seen) for group in order]
    parameters = sum(parameter.numel() for parameter in lm.model.parameters())
    parts.append(_sized(OTHER, (), parameters - sum(part.parameters for part in parts), lm))
    return Inspection(
        model=lm.source,
        architecture=f"{lm.model.config.model_type} ({type(lm.model).__name__})",
        task=lm.task.value,
        dtype=str(lm.dtype).removeprefix("torch."),
        stacks=tuple((stack.blocks, len(blocks)) for stack, blocks in lm.stacks()),
        parts=tuple(part for part in parts if part.sites or part.parameters),
        parameters=parameters,
        nbytes=parameters * lm.dtype.itemsize,
        sites=tuple((site.name, site.group.value, site.shape) for site in sites),
    )


def _part(group: Group, sites: Sequence[Site], lm: LanguageModel, seen: set[int]) -> Part:
    weights = {site.module.get_parameter("weight").data_ptr(): site.shape for site in sites}
    parameters = sum(rows * columns for place, (rows, columns) in weights.items() if place not in seen)
    seen |= weights.keys()
    return _sized(group.value, [site.shape for site in sites], parameters, lm)


def _sized(name: str, shapes: Sequence[tuple[int, int]], parameters: int, lm: LanguageModel) -> Part:
    shown = tuple(dict.fromkeys(f"{rows} × {columns}" for rows, columns in shapes))
    nbytes = parameters * lm.dtype.itemsize
    return Part(name=name, sites=len(shapes), shapes=shown, parameters=parameters, nbytes=nbytes)
