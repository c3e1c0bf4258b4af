"""Which words are one token of a tokenizer, and which token: at the start of a text, after a space, after a bracket."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase


class Place(Enum):
    """What stands before a word: (a text of one word that does not change with what follows it, what parts the two)."""

    START = ("", "")
    SPACED = ("a", " ")
    JOINED = ("(", "")

    @classmethod
    def after(cls, text: str) -> "Place":
        """Of a word that follows `text`."""
        if not text.strip():
            return cls.START
        return cls.SPACED if text[-1].isspace() else cls.JOINED


def single_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], place: Place) -> dict[str, int]:
    """The token of each word that is one in this place; an unknown word is none.

    A byte-pair or sentence-piece tokenizer has other tokens for `Paris` after a space than right after a bracket, and
    tokens of a word are what the text with it has more than the text before it.
    """
    before, gap = place.value
    found = tokenizer([before, *(before + gap + word for word in words)], add_special_tokens=False, verbose=False)
    first, *ids = found["input_ids"]
    return {
        word: tokens[-1]
        for word, tokens in zip(words, ids, strict=True)
        if len(tokens) == len(first) + 1 and tokens[:-1] == first and tokens[-1] != tokenizer.unk_token_id
    }


@dataclass(frozen=True)
class Vocabulary:
    """What may fill a gap, by what stands before it.

    tokens:     of the words that are asked for, those that are one token.
    candidates: tokens that compete, in rising order; None where every token does.
    """

    tokens: Mapping[Place, Mapping[str, int]]
    candidates: Mapping[Place, Int[Tensor, " words"]] | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, asked: Sequence[str], words: Sequence[str] | None) -> "Vocabulary":
        """`words` compete, or every token if None."""
        tokens = {place: single_tokens(tokenizer, list(dict.fromkeys(asked)), place) for place in Place}
        if words is None:
            return cls(tokens, None)
        found = {place: sorted(set(single_tokens(tokenizer, words, place).values())) for place in Place}
        return cls(tokens, {place: torch.tensor(numbers, dtype=torch.long) for place, numbers in found.items()})

    def competes(self, token: int, place: Place) -> bool:
        """Whether a gap may be filled by it."""
        return self.candidates is None or bool((self.candidates[place] == token).any())
