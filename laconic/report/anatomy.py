"""The anatomy of a model: its stacks of blocks, the matrices that can be compressed, and the bytes of each part."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from laconic.compress.checks import DENSE, dense_share
from laconic.evaluate.footprint import ORDER, OTHER
from laconic.formats import Format
from laconic.model import Group, LanguageModel, ModelTask, Site
from laconic.model.anatomy.infer import uncalled_stacks
from laconic.report.costs import MEGABYTE
from laconic.report.tables import Column, Table


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a model, such as attention or the head.

    Args:
        name: the name of the part.
        sites: number of matrices that can be compressed.
        shapes: their shapes, each once.
        parameters: number of parameters; pruned weights are not counted.
        nbytes: bytes in a file.
        sparsity: fraction of zeros in the matrices, whether or not this saves bytes; None without matrices.
    """

    name: str
    sites: int
    shapes: tuple[str, ...]
    parameters: int
    nbytes: int
    sparsity: float | None


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One matrix that can be compressed.

    Args:
        name: the path of its layer.
        group: part of the model.
        shape: (out, in).
        nbytes: bytes in a file.
        sparsity: fraction of zeros.
    """

    name: str
    group: str
    shape: tuple[int, int]
    nbytes: int
    sparsity: float


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The parts of a model. Sizes are in the stored dtype; shared parameters count once.

    Args:
        model: folder or hub name.
        architecture: model type and class.
        task: the task of the model, such as classification.
        dtype: the dtype of the stored weights.
        stacks: path and number of blocks of each stack.
        idle: path and number of blocks of stacks that text input does not use, such as a vision tower.
        vectors: how an encoder without a head pools its last hidden states; None for other models.
        prompts: texts that such an encoder puts before its inputs.
        dense: parameters in the blocks that no method can compress, from `dense_share`; None if there are none.
        parts: the size of each part.
        parameters: the number of parameters of the whole model.
        nbytes: bytes of the whole model in a file.
        sites: every matrix that can be compressed.
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
        """The JSON that `laconic inspect --json` prints."""
        return {
            **asdict(self),
            "stacks": [{"path": path, "blocks": blocks} for path, blocks in self.stacks],
            "idle": [{"path": path, "blocks": blocks} for path, blocks in self.idle],
            "sites": [{**asdict(matrix), "shape": list(matrix.shape)} for matrix in self.sites],
        }

    def embedding_notes(self) -> tuple[tuple[str, str], ...]:
        """How an encoder without a head makes embeddings: pairs of a heading and a text; empty for other models."""
        notes = (("Vectors", self.vectors), ("Prompts", self.prompts))
        return tuple((name, words) for name, words in notes if words)

    def dense_note(self) -> str:
        """A line about parameters in the blocks that no method can compress; empty if there are none."""
        if self.dense is None:
            return ""
        parameters = f"{self.dense['parameters']:,d} of {self.dense['of']:,d} parameters ({self.dense['share']:.1%})"
        return f"Dense in the blocks, whatever the method: {parameters}, {', '.join(self.dense['names'])}"

    def table(self) -> Table:
        """A table of the size of each part."""
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
    """Collect the sizes and parts of a model. The model is not run.

    Args:
        lm: the model, with weights.
    """
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
        vectors=lm.embedding_pipeline.describe() if lm.task is ModelTask.EMBEDDING else None,
        prompts=lm.embedding_pipeline.describe_prompts(),
        dense=dense_share(lm.coverage(("blocks",))).get(DENSE),
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
        parameters=sum(_n_stored(site) for site, _ in own),
        nbytes=sum(matrix.nbytes for _, matrix in own),
        sparsity=zeros / sum(numbers) if numbers else None,
    )


def _n_stored(site: Site) -> int:
    """The number of stored values of the matrix."""
    return site.module.count if isinstance(site.module, Format) else site.parameter.numel()
