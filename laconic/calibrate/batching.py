"""From rows of text to batches that a model takes: tokens, right padding, and the labels of its task.

Masked language models get the 15 % masking of Devlin et al. 2019 (https://arxiv.org/abs/1810.04805), always by the mask
token. Rows keep their order; a row without any token to predict from or to is left out.

Check that a model can read its rows: the first ones are tokenized, and no weights are loaded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from laconic.calibrate.examples import Corpus, Example
from laconic.calibrate.labels import Target, labels_of
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, Task
from laconic.model.embedding_modules import POOLING_MASK
from laconic.model.stock import text_config
from laconic.model.tokens import check_decoder_start, check_token_ids, pad_token_id, vocabulary_size

MASKED_SHARE = 0.15
IGNORED = -100
"""The label that every loss of transformers leaves out."""


@dataclass
class Row:
    """One tokenized row; `labels` are tokens (a list), a class, a score, one number an output (a tuple), or None.

    unpooled: how many tokens, from the first on, are of a prompt that a vector is not made of.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None = None
    labels: list[int] | Target | None = None
    unpooled: int = 0


def batches(
    lm: LanguageModel,
    corpus: Corpus,
    *,
    batch_size: int = 16,
    max_length: int = 128,
    seed: int = 0,
    labelled: bool = False,
) -> list[Batch]:
    """The corpus as CPU batches of at most `batch_size` rows and `max_length` tokens, in its order.

    Labels: tokens for masked models (drawn with `seed`) and for sequence-to-sequence ones (a row without a target is
    its own); for sequence classification those of the data, where `labelled` asks for them; none otherwise. A plain
    encoder reads the two texts of a pair as two rows, each behind the prompt that its folder puts before every text.

    Raises:
        UserError: the model has no tokenizer, or no mask token where one is needed, or no row has any tokens; labels
            that are asked for are not there, or none of the model's.
    """
    rows = rows_of(lm, corpus, max_length=max_length, seed=seed, labelled=labelled)
    size = at_once(lm, batch_size)
    return [collate(lm, rows[start : start + size]) for start in range(0, len(rows), size)]


def rows_of(
    lm: LanguageModel, corpus: Corpus, *, max_length: int = 128, seed: int = 0, labelled: bool = False
) -> list[Row]:
    """The tokenized rows of a corpus that have tokens, in order; see `batches`.

    Raises:
        UserError: as `batches`.
    """
    rows = list(tokenize_rows(lm, corpus, max_length, seed, labelled))
    if not rows:
        raise UserError(f"No row of the {corpus.split} split of '{corpus.source}' has tokens; give longer texts.")
    return rows


def at_once(lm: LanguageModel, wanted: int) -> int:
    """The number of rows that a batch may have, at most `wanted`; 1 for classifiers without a pad token."""
    # A decoder that classifies finds its last token by the pad token; without one that it can read, rows come alone.
    return 1 if lm.task.is_sequence_classification and pad_token_id(lm) is None else wanted


def tokenizer_of(lm: LanguageModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        UserError: the model has none.
    """
    if lm.tokenizer is None:
        raise UserError(f"The model '{lm.source}' has no tokenizer in its folder; save its tokenizer there too.")
    return lm.tokenizer


def pad_token(lm: LanguageModel) -> int:
    """What padding is filled with; never seen by the model, so any token does where none is declared."""
    known = vocabulary_size(lm.model)
    own = () if lm.tokenizer is None else (lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id)
    candidates = (pad_token_id(lm), *own, 0)
    return next(token for token in candidates if isinstance(token, int) and 0 <= token < known)


def positions(lm: LanguageModel) -> int | None:
    """The longest input in tokens that the model has positions for; None when its positions are relative."""
    for name, module in lm.model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            padding: int | None = module.padding_idx
            if padding is not None:
                # RoBERTa counts positions from behind its padding index.
                return int(module.num_embeddings) - padding - 1
    most: object = getattr(text_config(lm.model.config), "max_position_embeddings", None)
    # XLNet says −1 for any.
    return most if isinstance(most, int) and most > 0 else None


def tokenize_rows(
    lm: LanguageModel, corpus: Corpus, max_length: int, seed: int, labelled: bool = False
) -> Iterator[Row]:
    """The rows of the corpus that have tokens, with the labels of the model's task; as `batches`, in its order."""
    tokenizer = tokenizer_of(lm)
    longest = min(max_length, positions(lm) or max_length, _declared_length(lm, tokenizer) or max_length)
    if lm.task.is_sequence_classification:
        labels = labels_of(lm, corpus) if labelled else [None] * len(corpus.examples)
        return _with_labels(_encode(lm, tokenizer, corpus.examples, longest), labels)
    if lm.task is Task.CAUSAL:
        # One token alone predicts nothing.
        rows = _encode(lm, tokenizer, [Example(example.joined) for example in corpus.examples], longest)
        return (row for row in rows if len(row.input_ids) > 1)
    if lm.task is Task.SEQ2SEQ:
        return _with_targets(lm, tokenizer, corpus.examples, longest)
    if lm.task is Task.MASKED:
        return _mask_tokens(tokenizer, _encode(lm, tokenizer, corpus.examples, longest), seed)
    return _encode_prompted(lm, tokenizer, corpus.examples, longest)


def _declared_length(lm: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest input in tokens where sentence-transformers declares the model; None elsewhere."""
    if lm.pipeline is None:
        return None
    return lm.pipeline.settings.max_length or tokenizer.model_max_length


def _encode_prompted(
    lm: LanguageModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], longest: int
) -> Iterator[Row]:
    """Each text of its own, behind the prompt that stands before all of them, if there is one."""
    prompt = lm.embedding_pipeline.settings.default_prompt
    unpooled = 0 if lm.embedding_pipeline.pools_prompts or not prompt else _prompt_length(tokenizer, prompt, longest)
    texts = (text for example in examples for text in (example.text, example.pair) if text is not None)
    for row in _encode(lm, tokenizer, [Example(prompt + text) for text in texts], longest):
        if row.input_ids:
            row.unpooled = unpooled
            yield row


def _prompt_length(tokenizer: PreTrainedTokenizerBase, prompt: str, longest: int) -> int:
    """Tokens of a prompt, as sentence-transformers counts them: with what is put before it, not with what ends it."""
    ids = tokenizer(prompt, truncation=True, max_length=longest)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)


def _encode(
    lm: LanguageModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], longest: int
) -> Iterator[Row]:
    has_segments = getattr(lm.model.config, "type_vocab_size", 0) > 1
    for example in examples:
        encoded = tokenizer(example.text, example.pair, truncation=True, max_length=longest)
        # Only a model with segment embeddings may get segments: GPT-2 would look them up as words.
        segments = encoded.get("token_type_ids") if has_segments else None
        yield Row(list(encoded["input_ids"]), None if segments is None else list(segments))


def _with_labels(rows: Iterator[Row], labels: Sequence[Target | None]) -> Iterator[Row]:
    for row, label in zip(rows, labels, strict=True):
        row.labels = label
        if row.input_ids:
            yield row


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


def collate(lm: LanguageModel, rows: Sequence[Row]) -> Batch:
    """Pad rows on the right to a batch.

    Args:
        lm: the model that reads the batch.
        rows: tokenized rows of one kind.

    Raises:
        UserError: a token has no embedding, or the configuration does not say how targets begin.
    """
    check_token_ids(lm, (token for row in rows for token in row.input_ids))
    check_decoder_start(lm)
    labels = [row.labels for row in rows if isinstance(row.labels, list)]
    # What was masked is among the labels alone.
    told = (token for tokens in labels for token in tokens if token != IGNORED)
    check_token_ids(lm, told, targets=lm.task is Task.SEQ2SEQ)
    batch = {
        "input_ids": _pad([row.input_ids for row in rows], pad_token(lm)),
        "attention_mask": _pad([[1] * len(row.input_ids) for row in rows], 0),
    }
    if rows[0].token_type_ids is not None:
        batch["token_type_ids"] = _pad([row.token_type_ids or [] for row in rows], 0)
    if any(row.unpooled for row in rows):
        pooled = [[int(at >= row.unpooled) for at in range(len(row.input_ids))] for row in rows]
        batch[POOLING_MASK] = _pad(pooled, 0)
    if isinstance(rows[0].labels, list):
        batch["labels"] = _pad(labels, IGNORED)
    elif rows[0].labels is not None:
        batch["labels"] = torch.tensor([row.labels for row in rows])
    return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`.

    Example:
        >>> to_device({"input_ids": torch.ones(1, 2)}, torch.device("meta"))["input_ids"].device.type
        'meta'
    """
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _pad(sequences: Sequence[list[int]], fill: int) -> Tensor:
    width = max(len(sequence) for sequence in sequences)
    return torch.tensor([sequence + [fill] * (width - len(sequence)) for sequence in sequences])


PROBED = 64
"""Number of rows. A wrong tokenizer shows in the first ones; later rows are checked when they are read."""


def check_readable(lm: LanguageModel, corpus: Corpus, max_length: int = 128) -> None:
    """Make batches of the first rows of `corpus`, as for a calibration, and forget them. Labels are not looked at.

    Args:
        lm: a model with its tokenizers; its weights may be absent.
        corpus: the rows that it is to read.
        max_length: tokens of a row at most.

    Raises:
        UserError: the model has no tokenizer, or one without the mask token that it needs, or one that gives tokens
            which it has no embeddings for, or its configuration does not say how targets begin.
    """
    rows = list(tokenize_rows(lm, corpus.first(PROBED), max_length, seed=0))
    size = at_once(lm, PROBED)
    for start in range(0, len(rows), size):
        collate(lm, rows[start : start + size])
