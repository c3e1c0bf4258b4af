"""A sentence with a gap as the row of a batch whose last prediction is that of the gap.

Masked models see the mask token in it. Causal ones read what comes before, after the token that starts texts, and are
asked at the place just before the gap, as in the paper (Petroni et al. 2019). Of the encoder-decoders, those with
sentinels write the first sentinel and what it stands for (T5, Raffel et al. 2020, section 3.1.4); those with a mask
token write the sentence itself, of which what comes before the gap is given (BART's infilling, Lewis et al. 2020,
section 2.2). A sentence with several gaps is scored at the first.
"""

from collections.abc import Callable

from laconic.calibrate.batching import IGNORED, Row, tokenizer_of
from laconic.errors import UserError
from laconic.evaluate.lama.facts import MASK
from laconic.evaluate.perplexity import start_token
from laconic.model import LanguageModel, Task

SENTINEL = "<extra_id_{}>"

Writer = Callable[[str, int], Row | None]
"""(sentence, token of the answer) → row; None where nothing comes before the gap that a model could read."""


def writer(lm: LanguageModel) -> Writer:
    """How `lm` is asked.

    Raises:
        UserError: it has no tokenizer, or one without a token for a gap.
    """
    if lm.task is Task.CAUSAL:
        return _causal(lm)
    if fills_sentinels(lm):
        return _sentinel(lm)
    mask = tokenizer_of(lm).mask_token_id
    if not isinstance(mask, int) or lm.target_tokenizer is not None:
        raise UserError(
            f"The model '{lm.source}' cannot be asked with gaps: its tokenizer has no token that stands for one; use a "
            "model that was trained to fill them."
        )
    return _infilling(lm) if lm.task is Task.SEQ2SEQ else _masked(lm, mask)


def fills_sentinels(lm: LanguageModel) -> bool:
    """Whether it is an encoder-decoder whose tokenizer has T5's tokens for gaps."""
    return lm.task is Task.SEQ2SEQ and SENTINEL.format(0) in tokenizer_of(lm).get_vocab()


def _masked(lm: LanguageModel, mask: int) -> Writer:
    tokenizer = tokenizer_of(lm)

    def write(sentence: str, answer: int) -> Row:
        ids = list(tokenizer(sentence.replace(MASK, str(tokenizer.mask_token)), verbose=False)["input_ids"])
        labels = [IGNORED] * len(ids)
        labels[ids.index(mask)] = answer
        return Row(ids, labels=labels)

    return write


def _causal(lm: LanguageModel) -> Writer:
    tokenizer, first = tokenizer_of(lm), start_token(lm)

    def write(sentence: str, answer: int) -> Row | None:
        # The space before the gap is part of the token that fills it.
        text = sentence.partition(MASK)[0].rstrip()
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [token for token in (first, *ids) if token is not None]
        return Row([*ids, answer], labels=[*[IGNORED] * len(ids), answer]) if ids else None

    return write


def _sentinel(lm: LanguageModel) -> Writer:
    tokenizer = tokenizer_of(lm)
    first = tokenizer.get_vocab()[SENTINEL.format(0)]

    def write(sentence: str, answer: int) -> Row:
        before, *rest = sentence.split(MASK)
        text = before + "".join(SENTINEL.format(number) + part for number, part in enumerate(rest))
        return Row(list(tokenizer(text, verbose=False)["input_ids"]), labels=[first, answer])

    return write


def _infilling(lm: LanguageModel) -> Writer:
    tokenizer = tokenizer_of(lm)

    def write(sentence: str, answer: int) -> Row:
        ids = tokenizer(sentence.replace(MASK, str(tokenizer.mask_token)), verbose=False)["input_ids"]
        written: list[int] = list(tokenizer(sentence.partition(MASK)[0].rstrip(), verbose=False)["input_ids"])
        if written and written[-1] == tokenizer.eos_token_id:
            written.pop()
        return Row(list(ids), labels=[*written, answer])

    return write
