"""Sequence-to-sequence models: how often greedy decoding gives the exact target, and teacher-forced token accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.calibrate.batching import Row, collate, positions, tokenizer_of
from laconic.calibrate.corpus import Corpus
from laconic.errors import UserError
from laconic.evaluate.eval_task import EvalTask, Judged, predicted, rows_per_batch, stacked, to_device, tokenizer_name
from laconic.evaluate.intervals import Metric, Share
from laconic.model import Batch, LanguageModel, Predictions, Task, first_token_mask
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
    """Rows with a source and a target; each generated text must equal its target, spaces around it aside."""

    kinds = (Task.SEQ2SEQ,)

    pairs: str

    @property
    def name(self) -> str:
        return f"seq2seq:{self.pairs}"

    @property
    def source(self) -> str:
        return self.pairs

    @property
    def generates(self) -> bool:
        return True

    def refuse_rows(self, lm: LanguageModel, corpus: Corpus) -> None:
        if any(example.target is None for example in corpus.examples):
            raise UserError(
                f"The task '{self.name}' needs rows with a source and a target; '{corpus.source}' has others."
            )
        super().refuse_rows(lm, corpus)

    def judge(self, lm: LanguageModel, corpus: Corpus, track: Track) -> Judged:
        """The table has, for each row: exact (0 or 1), target tokens predicted right, target tokens."""
        self.refuse(lm)
        self.refuse_rows(lm, corpus)
        context = min(positions(lm) or CONTEXT, CONTEXT)
        rows = _rows(lm, corpus, context)
        places, size = list(rows), rows_per_batch(lm, context, BATCH)
        parts = [places[at : at + size] for at in range(0, len(places), size)]
        data = [collate(lm, [rows[place] for place in part]) for part in parts]
        lines: list[Tensor] = []
        for part, (batch, predictions) in zip(parts, predicted(lm, data, track, self.name), strict=True):
            targets = [(corpus.examples[place].target or "").strip() for place in part]
            exact = [text.strip() == target for text, target in zip(generate(lm, batch), targets, strict=True)]
            lines.append(
                torch.cat((torch.tensor(exact)[:, None].double(), _right_tokens(predictions, len(exact))), dim=1)
            )
        settings = {"context": context, "decoding": "greedy", "tokenizer": tokenizer_name(lm)}
        return Judged(stacked(lines, self.name, corpus), METRICS, settings, tuple(places))

    def metrics(self, settings: Mapping[str, Any]) -> Mapping[str, Metric]:
        return METRICS


def _rows(lm: LanguageModel, corpus: Corpus, context: int) -> dict[int, Row]:
    """By its place in the corpus, each row that has text and tokens on both sides."""
    tokenizer = tokenizer_of(lm)
    target_tokenizer = lm.target_tokenizer or tokenizer
    rows: dict[int, Row] = {}
    for place, example in enumerate(corpus.examples):
        target = example.target or ""
        if example.text.strip() and target.strip():
            ids = tokenizer(example.text, example.pair, truncation=True, max_length=context)["input_ids"]
            labels = target_tokenizer(text_target=target, truncation=True, max_length=context)["input_ids"]
            if ids and labels:
                rows[place] = Row(list(ids), labels=list(labels))
    return rows


@torch.inference_mode()
def generate(lm: LanguageModel, batch: Batch) -> list[str]:
    """What the model writes for each row, decoded greedily; at most one token more than the longest target."""
    inputs = to_device({name: batch[name] for name in ("input_ids", "attention_mask")}, lm.device)
    if lm.anatomy.global_attention:
        inputs["global_attention_mask"] = first_token_mask(inputs["input_ids"])
    longest = min(batch["labels"].shape[1] + 1, (positions(lm) or CONTEXT) - 1)
    write: Any = lm.model.generate
    # One token more than the target is enough to tell that a text does not stop where it should.
    with report_run_errors(lm, inputs["input_ids"], writes=True):
        written = write(**inputs, max_new_tokens=longest, num_beams=1, do_sample=False)
    return (lm.target_tokenizer or tokenizer_of(lm)).batch_decode(written, skip_special_tokens=True)


def _right_tokens(predictions: Predictions, rows: int) -> Tensor:
    """(rows, 2): target tokens that were the likeliest after the true ones before them, and target tokens."""
    assert predictions.labels is not None, "sequence-to-sequence batches carry their targets"
    right = (predictions.values.argmax(-1) == predictions.labels).double()
    sums = torch.zeros(rows, 2, dtype=torch.float64)
    return sums.index_add_(0, predictions.rows, torch.stack((right, torch.ones_like(right)), dim=1))
