"""BLiMP (Warstadt et al. 2020): the share of minimal pairs whose acceptable sentence gets the higher probability.

A causal model scores a sentence by its log-probability, after the start token. A masked model scores it by the
pseudo-log-likelihood: the sum over tokens of the log-probability of each token when only that token is masked (Salazar
et al. 2020, equation 1, https://arxiv.org/abs/1910.14659).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from laconic.calibrate.batching import max_positions
from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.row import IGNORED, Row, tokenizer_of
from laconic.calibrate.sources import data_folder
from laconic.errors import UserError, unknown
from laconic.evaluate.eval_task import MAX_COMPARED_ROWS, EvalTask, TaskResult, read_objects, text_field, tokenizer_name
from laconic.evaluate.metrics import Metric, limit_evenly, macro_weights, means_by_group, metrics_by_group
from laconic.evaluate.prediction import batch_by_length, predict_batches
from laconic.evaluate.windows import start_token
from laconic.model import LanguageModel, ModelTask
from laconic.progress import Track

PHENOMENA: dict[str, tuple[str, ...]] = {
    phenomenon: tuple(members)
    for phenomenon, members in json.loads(Path(__file__).with_name("blimp.json").read_text()).items()
}
"""The paradigms of each phenomenon."""
PHENOMENON_OF = {paradigm: phenomenon for phenomenon, members in PHENOMENA.items() for paradigm in members}
"""The phenomenon of each paradigm."""


def match_paradigms(pattern: str) -> tuple[str, ...]:
    """The paradigms that match a pattern. A phenomenon matches all of its paradigms.

    Args:
        pattern: name or glob of phenomena or paradigms, in any case.

    Raises:
        UserError: no phenomenon and no paradigm matches.
    """
    glob = pattern.lower()
    matches = [
        paradigm
        for phenomenon, members in PHENOMENA.items()
        for paradigm in members
        if fnmatchcase(phenomenon, glob) or fnmatchcase(paradigm.lower(), glob)
    ]
    if not matches:
        close = get_close_matches(glob, [*PHENOMENA, *PHENOMENON_OF], n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(
            f"There is no BLiMP phenomenon '{pattern}': {hint}known are {', '.join(PHENOMENA)}, and the paradigms of "
            "each."
        )
    return tuple(matches)


def pair_files() -> list[Path]:
    """The files with the pairs.

    Raises:
        UserError: LACONIC_DATA is not set to a folder that contains BLiMP.
    """
    data = data_folder()
    folder = None if data is None else data / "blimp"
    files = [] if folder is None else [*folder.glob("*.jsonl"), *(folder / "data").glob("*.jsonl")]
    if not files:
        problem = "LACONIC_DATA is not set" if folder is None else f"there is no .jsonl file in '{folder}'"
        raise UserError(
            f"BLiMP is read from local files, and {problem}; set LACONIC_DATA to a folder that contains blimp/ with "
            "the data/*.jsonl of the release."
        )
    return sorted(files)


def load_pairs(paradigms: Sequence[str]) -> list[Example]:
    """Read the pairs of some paradigms. The `group` of each row is `phenomenon/paradigm`.

    Raises:
        UserError: a row is malformed or names an unknown paradigm, or there is no pair of these paradigms.
    """
    rows: list[Example] = []
    for path in pair_files():
        for place, row in read_objects(path):
            paradigm = text_field(row, ("UID", "phenomenon"), place)
            if paradigm not in PHENOMENON_OF:
                raise unknown("BLiMP paradigm", paradigm, PHENOMENON_OF, f"{place} is of")
            if paradigm in paradigms:
                good = text_field(row, ("sentence_good", "good"), place)
                bad = text_field(row, ("sentence_bad", "bad"), place)
                rows.append(Example(good, pair=bad, group=f"{PHENOMENON_OF[paradigm]}/{paradigm}"))
    if not rows:
        raise UserError(f"BLiMP in LACONIC_DATA has no pair of {', '.join(paradigms)}; put the release's data there.")
    return rows


RIGHT, WEIGHT, PHENOMENON = 0, 1, 2
"""Columns of the table of scores; the last one contains the index of the phenomenon."""


@dataclass(frozen=True)
class Blimp(EvalTask):
    """Minimal pairs of BLiMP.

    Encoder-decoders are not supported: they only give the probability of a text conditional on another one.

    Args:
        pattern: name or glob of phenomena or paradigms; None for all.

    Reference:
        Warstadt et al., TACL 2020, https://arxiv.org/abs/1912.00582.
    """

    prefix = "blimp"
    spellings = ("blimp", "blimp/PHENOMENON")
    kinds = (ModelTask.CAUSAL, ModelTask.MASKED)

    pattern: str | None = None

    @classmethod
    def from_name(cls, name: str) -> "Blimp":
        """The task `blimp[/PATTERN]`.

        Raises:
            UserError: no phenomenon and no paradigm matches the pattern.
        """
        pattern = name[len(cls.prefix) :].strip("/:")
        if pattern:
            match_paradigms(pattern)
        return cls(pattern or None)

    @property
    def source(self) -> str:
        return "blimp" if self.pattern is None else f"blimp/{self.pattern}"

    def check_data(self) -> None:
        pair_files()

    def load_corpus(self, limit: int | None) -> Corpus:
        """The pairs; at most `limit` of them, spread evenly over the paradigms."""
        paradigms = tuple(PHENOMENON_OF) if self.pattern is None else match_paradigms(self.pattern)
        return limit_evenly(Corpus(self.source, "test", tuple(load_pairs(paradigms))), limit)

    def texts(self, corpus: Corpus) -> Corpus:
        """Up to `MAX_COMPARED_ROWS` acceptable sentences, evenly over the paradigms."""
        rows = limit_evenly(corpus, MAX_COMPARED_ROWS).examples
        return replace(corpus, examples=tuple(Example(row.text) for row in rows))

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model.

        The table has three columns: 1 if the acceptable sentence is more probable, else 0; the weight of the pair in
        the mean over paradigms; the index of its phenomenon.
        """
        self.check_model(lm)
        sentences = [sentence for row in corpus.examples for sentence in (row.text, row.pair or "")]
        good, bad = log_probabilities(lm, sentences, track, self.name).reshape(-1, 2).T
        indices = tuple((good.isfinite() & bad.isfinite()).nonzero()[:, 0].tolist())
        if not indices:
            raise UserError(
                f"The model '{lm.source}' can read no pair of '{self.name}'; use one that reads longer sentences."
            )
        right = (good > bad)[list(indices)].double()
        paradigm_of = [corpus.examples[index].group.partition("/")[2] for index in indices]
        phenomenon_of = [PHENOMENON_OF[paradigm] for paradigm in paradigm_of]
        names = list(dict.fromkeys(phenomenon_of))
        numbers = [names.index(phenomenon) for phenomenon in phenomenon_of]
        table = torch.stack((right, macro_weights(paradigm_of), torch.tensor(numbers)), dim=1).numpy()
        settings = {
            "split": corpus.split,
            "score": "log-probability" if lm.task is ModelTask.CAUSAL else "pseudo-log-likelihood",
            "left_out": len(good) - len(indices),
            "tokenizer": tokenizer_name(lm),
            "paradigms": {
                paradigm: {"pairs": pairs, "accuracy": accuracy}
                for paradigm, (pairs, accuracy) in means_by_group(paradigm_of, right.tolist()).items()
            },
        }
        return TaskResult(table, self.metrics(settings), settings, indices)

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        # `paradigms` is in the order of the rows, and so are the indices of the phenomena.
        phenomena = list(dict.fromkeys(PHENOMENON_OF[paradigm] for paradigm in settings["paradigms"]))
        return metrics_by_group({"accuracy": lambda table: table[:, RIGHT]}, WEIGHT, PHENOMENON, phenomena)


BATCH = 64


def log_probabilities(
    lm: LanguageModel, sentences: Sequence[str], track: Track, label: str
) -> Float[Tensor, " sentences"]:
    """The log-probability of each sentence in nats; for a masked model, the pseudo-log-likelihood.

    Args:
        lm: a causal or masked language model.
        sentences: texts.
        track: shows progress.
        label: the name of the task, for progress.

    Returns:
        (sentences,) scores. NaN for a sentence without tokens to predict, or with too many tokens for the model.

    Reference:
        Salazar et al. 2020, equation 1, https://arxiv.org/abs/1910.14659.
    """
    rows = list(_causal_rows(lm, sentences) if lm.task is ModelTask.CAUSAL else _masked_rows(lm, sentences))
    longest = max_positions(lm)
    rows = [(index, row) for index, row in rows if longest is None or len(row.input_ids) <= longest]
    parts, data = batch_by_length(lm, [row for _, row in rows], BATCH)
    sums = torch.zeros(len(sentences), dtype=torch.float64)
    tokens = torch.zeros(len(sentences), dtype=torch.long)
    for part, (_, (values, lines, labels, *_)) in zip(
        parts, predict_batches(lm, data, track, label, labelled_only=True), strict=True
    ):
        assert labels is not None, "the tokens are the labels of a language model"
        numbers = torch.tensor([rows[number][0] for number in part])[lines]
        sums.index_add_(0, numbers, -functional.cross_entropy(values.float(), labels, reduction="none").double())
        tokens.index_add_(0, numbers, torch.ones_like(numbers))
    return torch.where(tokens > 0, sums, torch.nan)


def _causal_rows(lm: LanguageModel, sentences: Sequence[str]) -> Iterator[tuple[int, Row]]:
    tokenizer = tokenizer_of(lm)
    first = start_token(tokenizer)
    encoded = tokenizer(list(sentences), add_special_tokens=False, verbose=False)
    for index, ids in enumerate(encoded["input_ids"]):
        tokens = [token for token in (first, *ids) if token is not None]
        if len(tokens) > 1:
            yield index, Row(tokens, labels=tokens)


def _masked_rows(lm: LanguageModel, sentences: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """One row for each masked token."""
    tokenizer = tokenizer_of(lm)
    mask = tokenizer.mask_token_id
    if not isinstance(mask, int):
        raise UserError(f"The tokenizer of '{lm.source}' has no mask token; use that of a masked language model.")
    encoded = tokenizer(list(sentences), return_special_tokens_mask=True, verbose=False)
    for index, (ids, special) in enumerate(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)):
        for position in (position for position, is_special in enumerate(special) if not is_special):
            labels = [IGNORED] * len(ids)
            labels[position] = ids[position]
            yield index, Row([*ids[:position], mask, *ids[position + 1 :]], labels=labels)
