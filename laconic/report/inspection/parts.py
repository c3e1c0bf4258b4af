"""The parts of a model: its stacks of blocks, the matrices that can be compressed, and the bytes of each part."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from laconic.compress.checks import DENSE, dense_share
from laconic.evaluate.footprint import OTHER, PART_ORDER
from laconic.formats import Format
from laconic.model import Group, LanguageModel, ModelTask, Site
from laconic.model.active_parameters import ActiveParameters, count_active
from laconic.model.anatomy.infer import uncalled_stacks
from laconic.report.tables import MEGABYTE, Column, Table


@dataclass(frozen=True, kw_only=True)
class PartSize:
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
class MatrixSize:
    """One matrix that can be compressed, or the matrices of all experts of a stack.

    Args:
        name: the path of its layer, or that of the stack.
        group: part of the model.
        shape: (out, in) of one matrix.
        nbytes: bytes in a file, of all experts of a stack together.
        sparsity: fraction of zeros.
        experts: the number of experts of a stack; None for a matrix that is no expert's.
    """

    name: str
    group: str
    shape: tuple[int, int]
    nbytes: int
    sparsity: float
    experts: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON for this matrix; it has `experts` only for a stack."""
        values = asdict(self) | {"shape": list(self.shape)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ModelParts:
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
        active: the parameters that a token uses in a mixture of experts; None for other models.
        nbytes: bytes of the whole model in a file.
        sites: every matrix that can be compressed; those of a stack of experts are one entry.
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
    parts: tuple[PartSize, ...]
    parameters: int
    active: ActiveParameters | None
    nbytes: int
    sites: tuple["MatrixSize", ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON that `laconic inspect --json` prints."""
        values = {name: value for name, value in asdict(self).items() if name != "active"}
        return {
            **values,
            **({} if self.active is None else {"active_parameters": self.active.active}),
            "stacks": [{"path": path, "blocks": blocks} for path, blocks in self.stacks],
            "idle": [{"path": path, "blocks": blocks} for path, blocks in self.idle],
            "sites": [matrix.to_json() for matrix in self.sites],
        }

    def embedding_notes(self) -> tuple[tuple[str, str], ...]:
        """Notes on the embeddings of an encoder without a head: pairs of heading and text. Empty for other models."""
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
        table = Table.of(
            self.parts,
            (Column("part"), lambda part: part.name),
            (Column("matrices", "{:d}"), lambda part: part.sites),
            (Column("shapes (out × in)"), lambda part: ", ".join(part.shapes)),
            (Column("parameters", "{:,d}"), lambda part: part.parameters),
            (Column("zeros", "{:.1%}"), lambda part: part.sparsity),
            (Column("MB", "{:,.2f}"), lambda part: part.nbytes / MEGABYTE),
            (Column("share", "{:.1%}"), lambda part: part.nbytes / self.nbytes),
        )
        total = (
            "all",
            sum(matrix.experts or 1 for matrix in self.sites),
            "",
            self.parameters,
            None,
            self.nbytes / MEGABYTE,
            1.0,
        )
        return Table(table.columns, (*table.rows, total))


def measure_parts(lm: LanguageModel) -> ModelParts:
    """Collect the sizes and parts of a model. The model is not run.

    Args:
        lm: the model, with weights.
    """
    matrices: list[tuple[Site, MatrixSize]] = []
    for site in lm.sites(("all",)):
        parameter = site.parameter
        sparsity = 1 - int(parameter.count_nonzero()) / max(parameter.numel(), 1)
        group, nbytes = site.group.value, lm.site_nbytes(site)
        matrix = MatrixSize(name=site.name, group=group, shape=site.shape, nbytes=nbytes, sparsity=sparsity)
        matrices.append((site, matrix))
    counted: set[Hashable] = set()
    parts = [
        _part_size(group, [(site, matrix) for site, matrix in matrices if site.group is group], counted)
        for group in PART_ORDER
    ]
    parameters, nbytes = lm.size()
    other = PartSize(
        name=OTHER,
        sites=0,
        shapes=(),
        parameters=parameters - sum(part.parameters for part in parts),
        nbytes=nbytes - sum(part.nbytes for part in parts),
        sparsity=None,
    )
    return ModelParts(
        model=lm.source,
        architecture=f"{lm.model.config.model_type} ({type(lm.model).__name__})",
        task=lm.task.value,
        dtype=str(lm.dtype).removeprefix("torch."),
        stacks=tuple((stack.blocks, len(blocks)) for stack, blocks in lm.stacks()),
        idle=tuple(uncalled_stacks(lm.model)),
        vectors=lm.embedding_pipeline.describe() if lm.task is ModelTask.EMBEDDING else None,
        prompts=lm.embedding_pipeline.describe_prompts(),
        dense=dense_share(lm.coverage(("blocks",))).get(DENSE),
        parts=tuple(part for part in (*parts, other) if part.sites or part.parameters),
        parameters=parameters,
        active=count_active(lm.model, parameters),
        nbytes=nbytes,
        sites=tuple(_merge_experts(matrices)),
    )


def _merge_experts(matrices: Sequence[tuple[Site, MatrixSize]]) -> Iterator[MatrixSize]:
    """Yield each matrix, and the matrices of a stack of experts as one."""
    by_unit: dict[str, list[tuple[Site, MatrixSize]]] = {}
    for site, matrix in matrices:
        by_unit.setdefault(site.unit, []).append((site, matrix))
    for unit, members in by_unit.items():
        site, first = members[0]
        if site.stack is None:
            yield first
            continue
        nbytes = sum(matrix.nbytes for _, matrix in members)
        sparsity = sum(matrix.sparsity for _, matrix in members) / len(members)
        yield replace(first, name=unit, nbytes=nbytes, sparsity=sparsity, experts=len(members))


def _part_size(group: Group, matrices: Sequence[tuple[Site, MatrixSize]], counted: set[Hashable]) -> PartSize:
    """The size of the matrices of a group.

    Args:
        group: the group.
        matrices: its matrices.
        counted: keys of the matrices that count elsewhere; those of this group are added.
    """
    unique = {site.storage: (site, matrix) for site, matrix in matrices}
    uncounted = [unique[key] for key in unique if key not in counted]
    counted.update(unique)
    entries = sum(site.shape[0] * site.shape[1] for site, _ in unique.values())
    zeros = sum(matrix.sparsity * site.shape[0] * site.shape[1] for site, matrix in unique.values())
    return PartSize(
        name=group.value,
        sites=len(matrices),
        shapes=tuple(dict.fromkeys("{} × {}".format(*matrix.shape) for _, matrix in matrices)),
        parameters=sum(_stored_count(site) for site, _ in uncounted),
        nbytes=sum(matrix.nbytes for _, matrix in uncounted),
        sparsity=zeros / entries if entries else None,
    )


def _stored_count(site: Site) -> int:
    """The number of stored weights of a matrix; pruned weights are not stored."""
    module = site.module
    return module.count if isinstance(module, Format) else site.shape[0] * site.shape[1]
