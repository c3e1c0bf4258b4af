"""`CompressResult`, which `laconic.compress` and `laconic.run` return."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.allocate import plan_to_config
from laconic.api.arguments import to_folder
from laconic.api.results import Part, Result
from laconic.compress.allocators.corrected import ALLOCATED, UNIFORM
from laconic.compress.checks import DENSE, REACHED
from laconic.formats import ExpertStack, Format
from laconic.methods import Method
from laconic.model import LanguageModel
from laconic.processes import on_rank_zero
from laconic.recipe import RunRecord, write_recipe
from laconic.recipe.run import extra_files
from laconic.report.evaluation import evaluation_remarks, evaluation_tables
from laconic.report.tables import MEGABYTE, Column, Table
from laconic.store import attach, save


@dataclass(frozen=True)
class CompressedSite:
    """The method and size of one matrix after compression.

    Args:
        method: the method with its size; None if the matrix stayed dense.
        bytes: bytes of the matrix in a file; None if a later step removed it.
        share: `bytes` as a fraction of those of the dense matrix.
    """

    method: Method | None
    bytes: int | None
    share: float | None


@dataclass(frozen=True, repr=False, eq=False)
class CompressResult(Result):
    """A compressed model, with the method and size of each matrix.

    Args:
        model: the compressed model, of the same class as before.
        tokenizer: its tokenizer; None if it has none.
        sites: method and size of each targeted matrix, by its name.
        bytes: bytes of the targeted matrices after compression.
        dense_bytes: bytes of the same matrices before compression.
        seconds: duration of the run without the evaluation.
        record: all other results of the run.

    Example:
        >>> from laconic import compress
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> result = compress(BertModel(BertConfig(vocab_size=50, **shape)), "svd", keep=0.5)
        >>> result.bytes, result.dense_bytes, len(result.sites)
        (32512, 65536, 12)
        >>> result.to_frame().shape
        (12, 5)
        >>> result.save("small").name
        'small'
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    sites: Mapping[str, CompressedSite]
    bytes: int
    dense_bytes: int
    seconds: float
    record: RunRecord

    @property
    def recipe(self) -> str:
        """The recipe in YAML, with which `laconic run` makes the same model."""
        return write_recipe(self.record.recipe)

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the model to a new folder, whole or not at all.

        The folder also contains the tokenizer, a model card, the plan (the method of each matrix) and the recipe. The
        recipe is left out if the model or the texts exist only in memory.

        Args:
            folder: the folder, which must not exist.

        Returns:
            The folder.

        Raises:
            UserError: the folder exists or cannot be written.
        """
        place = to_folder(folder)
        on_rank_zero(save)(self.record.lm, place, extra_files(self.record.recipe, self.record.changes))
        return place

    def to_dict(self) -> dict[str, Any]:
        """The values that `laconic compress --json` prints."""
        return self.record.to_json()

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """One row for each targeted matrix."""
        spelled = plan_to_config(self.record.changes.plan)
        return [
            {
                "site": name,
                "method": None if site.method is None else site.method.name,
                "parameters": _parameters(spelled[name]),
                "bytes": site.bytes,
                "share": site.share,
            }
            for name, site in self.sites.items()
        ]

    def _headline(self) -> str:
        """Bytes of the targeted matrices before and after; steps such as `finetune` target none."""
        changes = self.record.changes
        if not changes.matrices:
            return "No matrix was compressed"
        same = sum(method is None for method in changes.plan.values())
        return (
            f"{changes.matrices} matrices: {changes.dense_nbytes / MEGABYTE:.2f} MB → {changes.nbytes / MEGABYTE:.2f} "
            f"MB ({_kept(changes.nbytes, changes.dense_nbytes)}; {same} not compressed)"
        )

    def _notes(self) -> Sequence[str]:
        """The duration, and deviations from the request."""
        return list(self._lines())

    def parts(self) -> Iterator[Part]:
        """Sizes, deviations from the request, and the evaluation."""
        yield from super().parts()
        if self.record.evaluation is not None:
            yield from evaluation_tables(self.record.evaluation).items()
            yield from evaluation_remarks(self.record.evaluation)

    def _lines(self) -> Iterator[str]:
        record, changes = self.record, self.record.changes
        if record.file_bytes is None:
            yield f"Made in {record.seconds:.1f} s"
        else:
            yield f"Weights in {record.output}: {record.file_bytes / MEGABYTE:.2f} MB, made in {record.seconds:.1f} s"
        if changes.untied:
            yield f"No longer tied, so stored separately: {', '.join(changes.untied)}"
        for step in changes.found:
            for line in step.get(REACHED, ()):
                yield f"keep {line['keep']:g} was requested; the nearest sizes below it keep {line['kept']:.4f}"
        for step in changes.found:
            yield from allocation_fallback(step.get(ALLOCATED))
        yield from dict.fromkeys(_dense(step[DENSE]) for step in changes.found if DENSE in step)
        if record.idle:
            yield f"Compressed: {', '.join(record.stacks)}; no run over text calls {', '.join(record.idle)}"
        for step in changes.dropped:
            named = "; ".join(f"{stack} {', '.join(map(str, blocks))}" for stack, blocks in step.items())
            yield f"Dropped: {named}"

    def _table(self) -> Table | None:
        """Number and size of matrices by method; None if only the shape of the model changed."""
        columns = (Column("matrices", "{:d}"), Column("method"), Column("KB", "{:,.1f}"), Column("of dense", "{:.1%}"))
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in self._rows():
            groups.setdefault(" ".join(filter(None, (row["method"] or DENSE, row["parameters"]))), []).append(row)
        return None if not groups else Table(columns, tuple(_group(name, rows) for name, rows in groups.items()))


def compress_result(record: RunRecord) -> CompressResult:
    """The result of a run; its model is prepared for `save_pretrained`."""
    lm, changes = record.lm, record.changes
    attach(lm.model)
    return CompressResult(
        model=lm.model,
        tokenizer=lm.tokenizer,
        sites={name: _site(lm, name, method) for name, method in changes.plan.items()},
        bytes=changes.nbytes,
        dense_bytes=changes.dense_nbytes,
        seconds=record.seconds,
        record=record,
    )


def _site(lm: LanguageModel, name: str, method: Method | None) -> CompressedSite:
    try:
        module = lm.model.get_submodule(name)
    except AttributeError:
        # The experts of a layer that stayed dense are a parameter of its class.
        dense = dict(lm.model.named_parameters()).get(name)
        return CompressedSite(method, *((None, None) if dense is None else (dense.numel() * lm.dtype.itemsize, 1.0)))
    if isinstance(module, (Format, ExpertStack)):
        nbytes, (rows, columns) = module.nbytes_in(lm.dtype), module.shape
        matrices = module.experts if isinstance(module, ExpertStack) else 1
        return CompressedSite(method, nbytes, nbytes / (matrices * rows * columns * lm.dtype.itemsize))
    assert isinstance(module.weight, nn.Parameter)
    return CompressedSite(method, module.weight.numel() * lm.dtype.itemsize, 1.0)


def _group(name: str, rows: Sequence[Mapping[str, Any]]) -> tuple[int, str, float | None, float | None]:
    nbytes = [row["bytes"] for row in rows if row["bytes"] is not None]
    dense = sum(row["bytes"] / row["share"] for row in rows if row["share"])
    return len(rows), name, sum(nbytes) / 1e3 if nbytes else None, sum(nbytes) / dense if dense else None


def _parameters(spelled: object) -> str:
    """`rank=8` for {svd: {rank: 8}}; empty for a matrix that stayed dense."""
    if not isinstance(spelled, Mapping):
        return ""
    (parameters,) = spelled.values()
    return ",".join(f"{name}={value}" for name, value in (parameters or {}).items())


def allocation_fallback(measured: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield one line if the uniform allocation was used because it measured better than the requested one.

    Args:
        measured: the step's record: the allocation in use, and the KL of each.
    """
    if measured is not None and measured["taken"] == UNIFORM:
        ((name, kl),) = [(name, kl) for name, kl in measured["kl"].items() if name != UNIFORM]
        yield (
            f"allocate: {name} diverges more than equal fractions, so uniform is used: KL {kl:.4g} against "
            f"{measured['kl'][UNIFORM]:.4g} nats on calibration rows"
        )


def _dense(left: Mapping[str, Any]) -> str:
    return (
        f"Not compressed in the blocks, and not counted above: {left['parameters']:,d} of {left['of']:,d} parameters "
        f"({left['share']:.1%}), {', '.join(left['names'])}"
    )


def _kept(nbytes: int, dense_nbytes: int) -> str:
    """The fraction of bytes kept. A tied matrix that gets its own copy has no bytes before."""
    return f"{nbytes / dense_nbytes:.1%} kept" if dense_nbytes else "before, they shared the bytes of other matrices"
