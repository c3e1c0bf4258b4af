"""`laconic.inspect`: the structure of a model, and statistics of its weights."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.api.arguments import check_kinds, to_corpus, to_folder, to_model_input
from laconic.api.results import Part, Result
from laconic.progress import Track, silent
from laconic.recipe.sampling import Sampling
from laconic.report import plots
from laconic.report.inspection.activity import Activity, measure_activity
from laconic.report.inspection.narrative import paragraphs
from laconic.report.inspection.page import draw_figures, inspection_page, inspection_tables
from laconic.report.inspection.parts import ModelParts, measure_parts
from laconic.report.inspection.weights import ModelWeights, weight_statistics
from laconic.report.tables import Table
from laconic.store import check_output
from laconic.store.atomic import new_folder

ROWS = 64
"""Number of rows of the data that the model runs on, drawn with seed 0."""


@dataclass(frozen=True, repr=False, eq=False)
class InspectResult(Result):
    """The structure of a model, and statistics of its weights.

    Args:
        anatomy: stacks, parts and matrices with their sizes.
        weights: distribution, sparsity and spectrum of the weights by part and by layer.
        activity: statistics of activations on texts; None without texts.
        words: a summary in a few paragraphs.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> result = inspect(BertModel(BertConfig(vocab_size=50, **shape)))
        >>> result.anatomy.architecture, len(result.anatomy.sites), result.activity
        ('bert (BertModel)', 14, None)
    """

    anatomy: ModelParts
    weights: ModelWeights
    activity: Activity | None
    words: Sequence[str]

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write a page with figures, the figures and the values to a new folder, whole or not at all.

        Args:
            folder: the folder, which must not exist.

        Returns:
            The folder, with `inspect.html`, `inspect.json` and the figures.

        Raises:
            UserError: the folder exists or cannot be written.
        """
        place = to_folder(folder)
        drawn = draw_figures(self.anatomy, self.weights, self.activity)
        with new_folder(place) as partial:
            for name, picture in drawn.items():
                plots.save(picture.figure, partial / name)
            html = inspection_page(self.anatomy, self.weights, self.activity, drawn)
            (partial / "inspect.html").write_text(html, encoding="utf-8")
            (partial / "inspect.json").write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")
        return place

    def to_dict(self) -> dict[str, Any]:
        """The values that `laconic inspect --json` prints."""
        found = {} if self.activity is None else {"activity": self.activity.to_json()}
        return {**self.anatomy.to_json(), "words": self.words, "weights": self.weights.to_json(), **found}

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """One row for each matrix."""
        return [asdict(matrix) for matrix in self.anatomy.sites]

    def _headline(self) -> str:
        """Architecture, task and dtype."""
        named = f"{self.anatomy.model}: " if self.anatomy.model else ""
        return f"{named}{self.anatomy.architecture}, {self.anatomy.task}, stored as {self.anatomy.dtype}"

    def _table(self) -> Table:
        """Size by part."""
        return self.anatomy.table()

    def _notes(self) -> Sequence[str]:
        """Stacks, and parts that cannot be compressed."""
        lines = [f"Stacks: {_named(self.anatomy.stacks)}"]
        if self.anatomy.idle:
            lines.append(f"Not called for text, so not compressed: {_named(self.anatomy.idle)}")
        lines += [f"{name}: {words}" for name, words in self.anatomy.embedding_notes()]
        if self.anatomy.active is not None:
            lines.append(f"Mixture of experts: {self.anatomy.active}")
        return lines if self.anatomy.dense is None else [*lines, self.anatomy.dense_note()]

    def parts(self) -> Iterator[Part]:
        """All lines and tables that the command line prints."""
        yield self._headline()
        yield from self._notes()
        yield "", self._table()
        yield from inspection_tables(self.weights, self.activity).items()
        yield from (f"{paragraph}\n" for paragraph in self.words)


def inspect(
    model: PreTrainedModel | str | PathLike[str],
    *,
    data: str | PathLike[str] | Iterable[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    output: str | PathLike[str] | None = None,
    track: Track = silent,
) -> InspectResult:
    """Show the structure of a model, and the size, concentration and redundancy of its weights.

    Args:
        model: a loaded model, or a folder or hub name.
        data: texts to run the model on, to find outliers, and blocks and heads that are alike: the name of a source, or
            the texts themselves.
        tokenizer: tokenizer of the model. None for the one in the folder that the model was loaded from.
        output: new folder for a page with figures, as for `save`.
        track: reports progress.

    Returns:
        Sizes, and statistics of the weights.

    Raises:
        UserError: an argument has a wrong value, or the model cannot be loaded.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> result = inspect(BertModel(BertConfig(vocab_size=50, **shape)))
        >>> result
        <InspectResult: bert (BertModel), embedding, stored as float32>
        >>> result.to_frame().shape
        (14, 6)
    """
    check_kinds(track=track)
    model_input = to_model_input(model, tokenizer)
    folder = None if output is None else check_output(to_folder(output), model_input.name)
    # The model is checked before the texts are read.
    structure = model_input.structure()
    texts = None if data is None else to_corpus(data)
    sample = None
    if texts is not None:
        model_input.check_tokenizer()
        sample = Sampling(samples=ROWS).of(model_input.with_inputs(structure), texts, track)
    with model_input.open_model(restore=False, packed=True) as lm:
        anatomy, weights = measure_parts(lm), weight_statistics(lm, track)
        found = None if sample is None or texts is None else measure_activity(lm, sample, texts.source)
    result = InspectResult(anatomy, weights, found, paragraphs(weights, found))
    if folder is not None:
        result.save(folder)
    return result


def _named(stacks: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{path} ({blocks} blocks)" for path, blocks in stacks)
