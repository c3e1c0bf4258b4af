"""`laconic.advise`: the ways of storing a model that are fast in a runtime, measured on this machine."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from os import PathLike
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.api.arguments import check_kinds
from laconic.api.compress import compress
from laconic.api.evaluate import evaluate
from laconic.api.results import Part, Result
from laconic.errors import UserError, must_be, unknown
from laconic.progress import Track, silent
from laconic.recipe.stored import STORED, Stored
from laconic.report.advice import Measured, advice_lines, advice_table
from laconic.report.tables import Table

ORIGINAL = "as it is"
"""The name of the original in tables."""
QUALITY = (
    "Quality was not measured: run `laconic compress` with these options, and `laconic evaluate` with --against the "
    "original."
)


@dataclass(frozen=True, repr=False, eq=False)
class AdviseResult(Result):
    """The cost of a model in one runtime, stored in several ways.

    Args:
        runtime: the runtime.
        batch: rows of a batch.
        length: tokens of a row.
        ways: the original, and every way that the runtime computes with.
        machine: the hardware and settings that the speeds depend on.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> result = advise(BertModel(BertConfig(vocab_size=50, **shape)), length=8)
        >>> [way.label for way in result.ways]
        ['as it is', 'low rank, half of the bytes', '8 bits, inputs rounded too', '4 bits, groups of 32']
    """

    runtime: str
    batch: int
    length: int
    ways: Sequence[Measured]
    machine: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The values that `laconic advise --json` prints."""
        return {
            "runtime": self.runtime,
            "batch": self.batch,
            "length": self.length,
            "ways": [way.to_json() for way in self.ways],
            "advice": advice_lines(self.ways),
            "machine": dict(self.machine),
        }

    def _rows(self) -> Sequence[Mapping[str, Any]]:
        """One row for each way."""
        return [way.to_json() for way in self.ways]

    def _headline(self) -> str:
        """The runtime and the machine."""
        threads = self.machine["threads"]
        return f"{self.runtime}, {self.batch} × {self.length} tokens, {threads} thread{'s' if threads != 1 else ''}"

    def _table(self) -> Table:
        """Bytes and speed of each way."""
        return advice_table(self.ways)

    def _notes(self) -> Sequence[str]:
        """The fastest and the smallest way."""
        return [*advice_lines(self.ways), QUALITY]

    def parts(self) -> Iterator[Part]:
        """The table, and the fastest and smallest way below it."""
        yield self._headline(), self._table()
        yield from self._notes()


def advise(
    model: PreTrainedModel | str | PathLike[str],
    runtime: str = "eager",
    *,
    batch: int = 1,
    length: int = 128,
    tokenizer: PreTrainedTokenizerBase | None = None,
    track: Track = silent,
) -> AdviseResult:
    """Measure how fast a model is in a runtime if its matrices are stored in other ways.

    The model is compressed in memory in every way that the runtime computes with, by methods that need no data. A
    loaded model is copied first. Nothing is written, and no quality is measured.

    Args:
        model: a loaded model, or a folder or hub name.
        runtime: the runtime, as in `laconic.evaluate`.
        batch: the number of rows of a batch; 1 in llama.cpp and vLLM.
        length: the number of tokens of a row.
        tokenizer: the tokenizer of the model. None for the one in the folder that it was loaded from.
        track: reports progress.

    Returns:
        Bytes and tokens per second for each way, beside the original, and the fastest.

    Raises:
        UserError: there is no such runtime or model, the runtime is not installed, or it cannot run the model or batch.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> result = advise(BertModel(BertConfig(vocab_size=50, **shape)), length=8)
        >>> result.ways[1].bytes < result.ways[0].bytes
        True
    """
    check_kinds(runtime=runtime, track=track)
    for name, count in (("batch", batch), ("length", length)):
        # `evaluate` also takes several.
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise must_be(name, "a whole number above 0", count)
    if runtime not in STORED:
        raise unknown("runtime", runtime, STORED)
    conditions: dict[str, Any] = {"batch": batch, "length": length, "runtime": runtime, "track": track}
    cost = evaluate(model, tokenizer=tokenizer, **conditions).to_dict()["cost"]
    ways = [Measured.of(ORIGINAL, None, cost)]
    for way in STORED[runtime]:
        ways.append(_measure(model, way, tokenizer, conditions))
    return AdviseResult(runtime, batch, length, tuple(ways), cost["machine"])


def _measure(
    model: PreTrainedModel | str | PathLike[str],
    way: Stored,
    tokenizer: PreTrainedTokenizerBase | None,
    conditions: dict[str, Any],
) -> Measured:
    """Store a copy of the model in one way, and measure it."""
    source = deepcopy(model) if isinstance(model, PreTrainedModel) else model
    try:
        small = compress(source, way.method, way.keep, tokenizer=tokenizer, stream=False, track=conditions["track"])
        cost = evaluate(small.model, tokenizer=small.tokenizer, **conditions).to_dict()["cost"]
    except UserError as error:
        return Measured(label=way.label, options=way.options, refusal=str(error))
    return Measured.of(way.label, way.options, cost)
