"""Evaluate sequence-to-sequence models: exact match of greedy decoding, and token accuracy with teacher forcing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.calibrate.batching import max_positions
from laconic.calibrate.collation import collate, to_device
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.row import Row, tokenizer_of
from laconic.errors import UserError
from laconic.evaluate.eval_task import EvalTask, TaskResult, source_of, stack_scores, tokenizer_name
from laconic.evaluate.metrics import Metric, Share
from laconic.evaluate.prediction import predict_batches, rows_per_batch
from laconic.model import Batch, LanguageModel, ModelTask, Predictions, first_token_mask
from laconic.model.predictions import report_run_errors
from laconic.progress import Track

BATCH = 32
CONTEXT = 512

METRICS: dict[str, Metric] = {
    "exact_match": Share(lambda table: table[:, 0] > 0),
    "token_accuracy": lambda table: float(table[:, 1].sum() / table[:, 2].sum()),
}


@dataclass(frozen=True)
class Seq2Seq(EvalTask):
    """Exact match and token accuracy of an encoder-decoder on pairs of a source and a target.

    Args:
        pairs: the data source. A generated text matches if it equals the target after stripping spaces at the ends.
    """

    prefix = "seq2seq"
    spellings = ("seq2seq:SOURCE",)
    kinds = (ModelTask.SEQ2SEQ,)

    pairs: str

    @classmethod
    def from_name(cls, name: str) -> "Seq2Seq":
        """The task `seq2seq:SOURCE`."""
        return cls(source_of(name, "dev.jsonl"))

    @property
    def name(self) -> str:
        return f"seq2seq:{self.pairs}"

    @property
    def source(self) -> str:
        return self.pairs

    @property
    def generates(self) -> bool:
        return True

    def check_corpus(self, lm: LanguageModel, corpus: Corpus) -> None:
        if any(example.target is None for example in corpus.examples):
            raise UserError(
                f"The task '{self.name}' needs rows with a source and a target; '{corpus.source}' has rows without one."
            )
        super().check_corpus(lm, corpus)

    def evaluate(self, lm: LanguageModel, corpus: Corpus, track: Track) -> TaskResult:
        """Score a model.

        The table has three columns: exact match (0 or 1), the number of right target tokens, the number of target
        tokens.
        """
        self.check_model(lm)
        self.check_corpus(lm, corpus)
        context = min(max_positions(lm) or CONTEXT, CONTEXT)
        rows = _rows(lm, corpus, context)
        indices, size = list(rows), rows_per_batch(lm, context, BATCH)
        parts = [indices[start : start + size] for start in range(0, len(indices), size)]
        data = [collate(lm, [rows[index] for index in part]) for part in parts]
        lines: list[Tensor] = []
        for part, (batch, predictions) in zip(parts, predict_batches(lm, data, track, self.name), strict=True):
            targets = [(corpus.examples[index].target or "").strip() for index in part]
            exact = [text.strip() == target for text, target in zip(generate(lm, batch), targets, strict=True)]
            lines.append(
                torch.cat((torch.tensor(exact)[:, None].double(), _count_right_tokens(predictions, len(exact))), dim=1)
            )
        settings = {"context": context, "decoding": "greedy", "tokenizer": tokenizer_name(lm)}
        return TaskResult(stack_scores(lines, self.name, corpus), METRICS, settings, tuple(indices))

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return METRICS


def _rows(lm: LanguageModel, corpus: Corpus, context: int) -> dict[int, Row]:
    """The rows whose source and target both have text and tokens, by their index in the corpus."""
    tokenizer = tokenizer_of(lm)
    target_tokenizer = lm.target_tokenizer or tokenizer
    rows: dict[int, Row] = {}
    for index, example in enumerate(corpus.examples):
        target = example.target or ""
        if example.text.strip() and target.strip():
            ids = tokenizer(example.text, example.pair, truncation=True, max_length=context)["input_ids"]
            labels = target_tokenizer(text_target=target, truncation=True, max_length=context)["input_ids"]
            if ids and labels:
                rows[index] = Row(list(ids), labels=list(labels))
    return rows


@torch.inference_mode()
def generate(lm: LanguageModel, batch: Batch) -> list[str]:
    """Generate texts greedily, with at most one token more than the longest target.

    Args:
        lm: an encoder-decoder with its tokenizer.
        batch: inputs, and the targets as labels.
    """
    inputs = to_device({name: batch[name] for name in ("input_ids", "attention_mask")}, lm.device)
    if lm.anatomy.global_attention:
        inputs["global_attention_mask"] = first_token_mask(inputs["input_ids"])
    longest = min(batch["labels"].shape[1] + 1, (max_positions(lm) or CONTEXT) - 1)
    generate_ids: Any = lm.model.generate
    # One token more than the target shows that a text does not end where it should.
    with report_run_errors(lm, inputs["input_ids"], writes=True):
        ids = generate_ids(**inputs, max_new_tokens=longest, num_beams=1, do_sample=False)
    return (lm.target_tokenizer or tokenizer_of(lm)).batch_decode(ids, skip_special_tokens=True)


def _count_right_tokens(predictions: Predictions, rows: int) -> Tensor:
    """(rows, 2): the numbers of rightly predicted target tokens (with teacher forcing) and of all target tokens."""
    assert predictions.labels is not None, "sequence-to-sequence batches carry their targets"
    right = (predictions.values.argmax(-1) == predictions.labels).double()
    sums = torch.zeros(rows, 2, dtype=torch.float64)
    return sums.index_add_(0, predictions.rows, torch.stack((right, torch.ones_like(right)), dim=1))
