"""Tokenize rows of text for the model's task, and collate them to batches.

Masked language models get the 15 % masking of Devlin et al. 2019 (https://arxiv.org/abs/1810.04805); every chosen token
is replaced by the mask token. Rows keep their order; a row that is too short for the task is left out.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from laconic.calibrate.choice_rows import choice_rows
from laconic.calibrate.collation import collate
from laconic.calibrate.corpus import Corpus, Example
from laconic.calibrate.labels import Target, convert_labels
from laconic.calibrate.question_answering import answer_rows
from laconic.calibrate.row import IGNORED, Row, row_from, tokenizer_of
from laconic.calibrate.token_classification import tagged_rows
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, ModelTask
from laconic.model.stock import text_config
from laconic.model.tokens import pad_token_id

LENGTH_KEYS = ("max_position_embeddings", "max_seq_len")
"""Keys of configurations for the longest input; MPT has the second."""
MASKED_SHARE = 0.15


def batches(
    lm: LanguageModel,
    corpus: Corpus,
    *,
    batch_size: int = 16,
    max_length: int = 128,
    seed: int = 0,
    labelled: bool = False,
) -> list[Batch]:
    """Tokenize a corpus and collate it to CPU batches, in the order of the corpus.

    The labels depend on the task. A masked language model gets the masked tokens, a sequence-to-sequence model the
    tokens of the target (or of the text itself if a row has no target), and a classifier (of texts, tokens or choices)
    or a model that answers questions the labels of the data, but only if `labelled`. Other batches have no labels,
    except that labels of token classification always mark the first token of each word. A long context of a question
    becomes several rows. An embedding model gets the two texts of a pair as two rows, each preceded by the model's
    default prompt, if it declares one.

    Args:
        lm: the model whose tokenizer and task are used.
        corpus: the rows.
        batch_size: largest number of rows of a batch.
        max_length: largest number of tokens of a row; longer rows are truncated.
        seed: seed of the masking.
        labelled: read the labels of the data.

    Raises:
        UserError: the model has no tokenizer, or a masked language model's tokenizer has no mask token; no row has
            tokens; `labelled` is set and a label is missing or is none of the model's classes; or rows lack what the
            task needs, such as choices.
    """
    rows = tokenize_corpus(lm, corpus, max_length=max_length, seed=seed, labelled=labelled)
    return _collate_all(lm, rows, batch_size)


def tokenize_corpus(
    lm: LanguageModel, corpus: Corpus, *, max_length: int = 128, seed: int = 0, labelled: bool = False
) -> list[Row]:
    """Tokenize a corpus without collating it; the arguments are those of `batches`.

    Raises:
        UserError: for the same reasons as `batches`.
    """
    rows = list(tokenize_rows(lm, corpus, max_length, seed, labelled))
    if not rows:
        raise UserError(f"No row of the {corpus.split} split of '{corpus.source}' has tokens; give longer texts.")
    return rows


def limit_batch_size(lm: LanguageModel, batch_size: int) -> int:
    """Return the allowed number of rows of a batch.

    Args:
        lm: the model.
        batch_size: the number for models that can read padded batches; a classifier without a pad token gets 1.
    """
    # A decoder classifier finds the last token of each row by the pad token, so without one it reads single rows only.
    return 1 if lm.task.is_sequence_classification and pad_token_id(lm) is None else batch_size


def max_positions(lm: LanguageModel) -> int | None:
    """Return the longest input, in tokens, that the model has positions for; None if the length is not limited."""
    for name, module in lm.model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            padding: int | None = module.padding_idx
            if padding is not None:
                # RoBERTa starts its positions after its padding index.
                return int(module.num_embeddings) - padding - 1
    config = text_config(lm.model.config)
    declared: object = next((getattr(config, key) for key in LENGTH_KEYS if getattr(config, key, None)), None)
    # XLNet has −1 here, which means any length.
    return declared if isinstance(declared, int) and declared > 0 else None


def tokenize_rows(
    lm: LanguageModel, corpus: Corpus, max_length: int, seed: int, labelled: bool = False
) -> Iterator[Row]:
    """Yield the rows of the corpus that have tokens, with the labels of the model's task.

    The arguments are those of `batches`. The weights of the model need not be loaded.

    Raises:
        UserError: for the same reasons as `batches`, except that an empty result is no error.
    """
    tokenizer = tokenizer_of(lm)
    # The length that a sentence-transformers configuration declares.
    declared = None if lm.pipeline is None else lm.pipeline.settings.max_length or tokenizer.model_max_length
    longest = min(max_length, max_positions(lm) or max_length, declared or max_length)
    if lm.task.reads_labels:
        labels = convert_labels(lm, corpus) if labelled else [None] * len(corpus.examples)
        make_rows = TASK_ROWS.get(lm.task, _classified_rows)
        return make_rows(lm, tokenizer, corpus.examples, labels, longest)
    if lm.task is ModelTask.CAUSAL:
        # A causal model needs two tokens for one prediction.
        rows = _encode(lm, tokenizer, [Example(example.joined) for example in corpus.examples], longest)
        return (row for row in rows if len(row.input_ids) > 1)
    if lm.task is ModelTask.SEQ2SEQ:
        return _with_targets(lm, tokenizer, corpus.examples, longest)
    if lm.task is ModelTask.MASKED:
        return _mask_tokens(tokenizer, _encode(lm, tokenizer, corpus.examples, longest), seed)
    return _encode_prompted(lm, tokenizer, corpus.examples, longest)


def _encode_prompted(
    lm: LanguageModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], longest: int
) -> Iterator[Row]:
    """One row for each text, preceded by the model's default prompt, if it declares one."""
    prompt = lm.embedding_pipeline.settings.default_prompt
    unpooled = 0
    if prompt and not lm.embedding_pipeline.pools_prompts:
        # As sentence-transformers counts them: with a start token, without an end token.
        ids = tokenizer(prompt, truncation=True, max_length=longest)["input_ids"]
        unpooled = len(ids) - (ids[-1] in tokenizer.all_special_ids)
    texts = (text for example in examples for text in (example.text, example.pair) if text is not None)
    for row in _encode(lm, tokenizer, [Example(prompt + text) for text in texts], longest):
        if row.input_ids:
            row.unpooled = unpooled
            yield row


def _encode(
    lm: LanguageModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], longest: int
) -> Iterator[Row]:
    for example in examples:
        yield row_from(lm, tokenizer(example.text, example.pair, truncation=True, max_length=longest))


def _classified_rows(
    lm: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    labels: Sequence[Target | None],
    longest: int,
) -> Iterator[Row]:
    for row, label in zip(_encode(lm, tokenizer, examples, longest), labels, strict=True):
        row.labels = label
        if row.input_ids:
            yield row


TASK_ROWS: dict[ModelTask, Callable[..., Iterator[Row]]] = {
    ModelTask.TOKEN_CLASSIFICATION: tagged_rows,
    ModelTask.QUESTION_ANSWERING: answer_rows,
    ModelTask.MULTIPLE_CHOICE: choice_rows,
}
"""The functions that tokenize rows for tasks with labels of the data; all others are sequence classification."""


def _with_targets(
    lm: LanguageModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], longest: int
) -> Iterator[Row]:
    target_tokenizer = lm.target_tokenizer or tokenizer
    sources = [Example(example.text, example.pair) for example in examples]
    for example, row in zip(examples, _encode(lm, tokenizer, sources, longest), strict=True):
        target = example.text if example.target is None else example.target
        row.labels = list(target_tokenizer(text_target=target, truncation=True, max_length=longest)["input_ids"])
        if row.input_ids and row.labels:
            yield row


def _mask_tokens(tokenizer: PreTrainedTokenizerBase, rows: Iterator[Row], seed: int) -> Iterator[Row]:
    mask = tokenizer.mask_token_id
    if not isinstance(mask, int):
        raise UserError(
            "The tokenizer has no mask token, which a masked language model predicts; use its own tokenizer."
        )
    generator = torch.Generator().manual_seed(seed)
    special = set(tokenizer.all_special_ids)
    for row in rows:
        words = [at for at, token in enumerate(row.input_ids) if token not in special]
        if words:
            count = max(1, round(MASKED_SHARE * len(words)))
            chosen = {words[at] for at in torch.randperm(len(words), generator=generator)[:count].tolist()}
            row.labels = [token if at in chosen else IGNORED for at, token in enumerate(row.input_ids)]
            row.input_ids = [mask if at in chosen else token for at, token in enumerate(row.input_ids)]
            yield row


def _collate_all(lm: LanguageModel, rows: Sequence[Row], batch_size: int) -> list[Batch]:
    size = limit_batch_size(lm, batch_size)
    return [collate(lm, rows[start : start + size]) for start in range(0, len(rows), size)]


PROBED = 64
"""Number of rows that `check_readable` reads: enough to find a wrong tokenizer. Later rows are checked by `collate`."""


def check_readable(lm: LanguageModel, corpus: Corpus, max_length: int = 128) -> None:
    """Check that the model can read a corpus, by making batches of its first rows. Labels are not checked.

    Args:
        lm: a model with its tokenizers; its weights need not be loaded.
        corpus: the rows.
        max_length: largest number of tokens of a row.

    Raises:
        UserError: the model has no tokenizer, or a masked language model's tokenizer has no mask token; the tokenizer
            gives tokens that the model has no embeddings for; or the configuration of a sequence-to-sequence model has
            no start token for the decoder.
    """
    _collate_all(lm, list(tokenize_rows(lm, corpus.first(PROBED), max_length, seed=0)), PROBED)
