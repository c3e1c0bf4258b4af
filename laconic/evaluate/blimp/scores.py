"""How probable a language model finds a sentence, in nats.

A causal model gives the log-probability of its tokens, read after the token that starts texts. A masked one gives the
pseudo-log-likelihood: the sum over tokens of the log-probability of each when it alone is masked (Salazar et al. 2020,
equation 1, https://arxiv.org/abs/1910.14659).
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from laconic.calibrate.batching import IGNORED, Row, positions, tokenizer_of
from laconic.errors import UserError
from laconic.evaluate.eval_task import by_length
from laconic.evaluate.masked_logits import predicted_where_counted
from laconic.evaluate.perplexity import start_token
from laconic.model import LanguageModel, Task
from laconic.progress import Track

BATCH = 64


def log_probabilities(
    lm: LanguageModel, sentences: Sequence[str], track: Track, what: str
) -> Float[Tensor, " sentences"]:
    """Of each sentence; NaN for one that has no tokens to predict, or more than the model reads."""
    rows = list(_causal(lm, sentences) if lm.task is Task.CAUSAL else _masked(lm, sentences))
    longest = positions(lm)
    rows = [(at, row) for at, row in rows if longest is None or len(row.input_ids) <= longest]
    parts, data = by_length(lm, [row for _, row in rows], BATCH)
    sums = torch.zeros(len(sentences), dtype=torch.float64)
    tokens = torch.zeros(len(sentences), dtype=torch.long)
    for part, (_, (values, lines, true, _)) in zip(parts, predicted_where_counted(lm, data, track, what), strict=True):
        assert true is not None, "the tokens are the labels of a language model"
        numbers = torch.tensor([rows[place][0] for place in part])[lines]
        sums.index_add_(0, numbers, -functional.cross_entropy(values.float(), true, reduction="none").double())
        tokens.index_add_(0, numbers, torch.ones_like(numbers))
    return torch.where(tokens > 0, sums, torch.nan)


def _causal(lm: LanguageModel, sentences: Sequence[str]) -> Iterator[tuple[int, Row]]:
    first = start_token(lm)
    for at, ids in enumerate(tokenizer_of(lm)(list(sentences), add_special_tokens=False, verbose=False)["input_ids"]):
        tokens = [*([] if first is None else [first]), *ids]
        if len(tokens) > 1:
            yield at, Row(tokens, labels=tokens)


def _masked(lm: LanguageModel, sentences: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """One row for each token that is masked."""
    tokenizer = tokenizer_of(lm)
    mask = tokenizer.mask_token_id
    if not isinstance(mask, int):
        raise UserError(f"The tokenizer of '{lm.source}' has no mask token; use that of a masked language model.")
    encoded = tokenizer(list(sentences), return_special_tokens_mask=True, verbose=False)
    for at, (ids, special) in enumerate(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)):
        for place in (place for place, added in enumerate(special) if not added):
            labels = [IGNORED] * len(ids)
            labels[place] = ids[place]
            yield at, Row([*ids[:place], mask, *ids[place + 1 :]], labels=labels)
