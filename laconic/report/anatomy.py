"""What a model consists of: its stacks, the matrices that can be compressed, and the bytes of each part."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from laconic.compress.checks import DENSE, dense_share
from laconic.evaluate.parts import ORDER, OTHER
from laconic.formats import Format
from laconic.model import Group, LanguageModel, Site, Task
from laconic.model.structure import uncalled_stacks
from laconic.report.points import MEGABYTE
from laconic.report.tables import Column, Table


@dataclass(frozen=True, kw_only=True)
class Part:
    """The matrices of one group; sites and shapes are empty for what is no site.

    parameters: a zero that was chosen is none.
    sparsity:   fraction of zeros in the matrices; one that is stored like any other number saves no bytes.
    """

    name: str
    sites: int
    shapes: tuple[str, ...]
    parameters: int
    nbytes: int
    sparsity: float | None


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One site: bytes in a file, and the fraction of zeros."""

    name: str
    group: str
    shape: tuple[int, int]
    nbytes: int
    sparsity: float


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Sizes in the stored dtype; parameters shared by several modules count once.

    vectors: what a plain encoder makes of its last hidden states, None elsewhere; prompts: of them, in words.
    idle:    lists of blocks that no run over text calls, and no step changes: the tower of a vision-language model.
    dense:   what in the blocks is no matrix that can be compressed, as `dense_share` tells it; None where all are.
    """

    model: str
    architecture: str
    task: str
    dtype: str
    stacks: tuple[tuple[str, int], ...]
    idle: tuple[tuple[str, int], ...]
    vectors: str | None
    prompts: str | None
    dense: Mapping[str, Any] | None
    parts: tuple[Part, ...]
    parameters: int
    nbytes: int
    sites: tuple["Matrix", ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `laconic inspect --json` prints them."""
        return {
            **asdict(self),
            "stacks": [{"path": path, "blocks": blocks} for path, blocks in self.stacks],
            "idle": [{"path": path, "blocks": blocks} for path, blocks in self.idle],
            "sites": [{**asdict(matrix), "shape": list(matrix.shape)} for matrix in self.sites],
        }

    def said_of_texts(self) -> tuple[tuple[str, str], ...]:
        """What a plain encoder makes of texts, by what to call it; nothing elsewhere."""
        said = (("Vectors", self.vectors), ("Prompts", self.prompts))
        return tuple((name, words) for name, words in said if words)

    def said_of_dense(self) -> str:
        """A line on what in the blocks cannot be compressed; empty where there is nothing."""
        if self.dense is None:
            return ""
        parameters = f"{self.dense['parameters']:,d} of {self.dense['of']:,d} parameters ({self.dense['share']:.1%})"
        return f"Dense in the blocks, whatever the method: {parameters}, {', '.join(self.dense['names'])}"

    def table(self) -> Table:
        """Size by part."""
        columns = (
            Column("part"),
            Column("matrices", "{:d}"),
            Column("shapes (out × in)"),
            Column("parameters", "{:,d}"),
            Column("zeros", "{:.1%}"),
            Column("MB", "{:,.2f}"),
            Column("share", "{:.1%}"),
        )
        rows = tuple(
            (part.name, part.sites, ", ".join(part.shapes), part.parameters, part.sparsity, part.nbytes / MEGABYTE,
             part.nbytes / self.nbytes)
            for part in self.parts
        )  # fmt: skip
        every = ("all", sum(part.sites for part in self.parts), "", self.parameters, None, self.nbytes / MEGABYTE, 1.0)
        return Table(columns, (*rows, every))


def inspect(lm: LanguageModel) -> Inspection:
    """Look at `lm`; nothing is run."""
    matrices = [(site, _matrix(site, lm)) for site in lm.sites(("all",))]
    seen: set[int] = set()
    parts = [
        _part(group, [(site, matrix) for site, matrix in matrices if site.group is group], seen) for group in ORDER
    ]
    parameters, nbytes = lm.size()
    rest = parameters - sum(part.parameters for part in parts), nbytes - sum(part.nbytes for part in parts)
    parts.append(Part(name=OTHER, sites=0, shapes=(), parameters=rest[0], nbytes=rest[1], sparsity=None))
    return Inspection(
        model=lm.source,
        architecture=f"{lm.model.config.model_type} ({type(lm.model).__name__})",
        task=lm.task.value,
        dtype=str(lm.dtype).removeprefix("torch."),
        stacks=tuple((stack.blocks, len(blocks)) for stack, blocks in lm.stacks()),
        idle=tuple(uncalled_stacks(lm.model)),
        vectors=lm.embedding_pipeline.describe() if lm.task is Task.EMBEDDING else None,
        prompts=lm.embedding_pipeline.describe_prompts(),
        dense=dense_share(lm, ("blocks",)).get(DENSE),
        parts=tuple(part for part in parts if part.sites or part.parameters),
        parameters=parameters,
        nbytes=nbytes,
        sites=tuple(matrix for _, matrix in matrices),
    )


def _matrix(site: Site, lm: LanguageModel) -> Matrix:
    held = site.parameter
    sparsity = 1 - int(held.count_nonzero()) / max(held.numel(), 1)
    group, nbytes = site.group.value, lm.site_nbytes(site)
    return Matrix(name=site.name, group=group, shape=site.shape, nbytes=nbytes, sparsity=sparsity)


def _part(group: Group, matrices: Sequence[tuple[Site, Matrix]], seen: set[int]) -> Part:
    every = {id(site.parameter): (site, matrix) for site, matrix in matrices}
    own = [both for place, both in every.items() if place not in seen]
    seen.update(every)
    numbers = [site.shape[0] * site.shape[1] for site, _ in every.values()]
    zeros = sum(matrix.sparsity * n for (_, matrix), n in zip(every.values(), numbers, strict=True))
    return Part(
        name=group.value,
        sites=len(matrices),
        shapes=tuple(dict.fromkeys("{} × {}".format(*matrix.shape) for _, matrix in matrices)),
        parameters=sum(_stored(site) for site, _ in own),
        nbytes=sum(matrix.nbytes for _, matrix in own),
        sparsity=zeros / sum(numbers) if numbers else None,
    )


def _stored(site: Site) -> int:
    """Numbers that a file holds of the matrix."""
    return site.module.count if isinstance(site.module, Format) else site.parameter.numel()
