"""A tokenizer of whole words, whose tokens fit the vocabulary of the tiny random architectures."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.tokens import SPECIAL

SENTINELS = ("<extra_id_0>", "<extra_id_1>")
WORDS = (
    "a", "(", "the", "of", "in", "is", "was", "born", "capital", "river", "plays", "speaks",
    "Paris", "London", "Rome", "Oslo", "Berlin", "Madrid", "Vienna", "France", "Norway", "Italy", "Spain",
    "piano", "violin", "guitar", "French", "English", "Latin", "1902", "1941",
)  # fmt: skip


def words(special: str = "pair", sentinels: bool = False, **changes: str | None) -> PreTrainedTokenizerFast:
    """One token a word. special: `pair` puts <s> … </s> around, `end` only </s> behind, `start` only <s> before.

    `changes` are special tokens that are other than usual, or None where there is none.
    """
    names = {name: token for name, token in (SPECIAL | changes).items() if token is not None}
    vocabulary = {token: number for number, token in enumerate([*SPECIAL.values(), *SENTINELS, *WORDS])}
    if not sentinels:
        vocabulary = {token: number for token, number in vocabulary.items() if token not in SENTINELS}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single={"pair": "<s> $A </s>", "end": "$A </s>", "start": "<s> $A"}[special],
        special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])],
    )
    extra = {"extra_special_tokens": list(SENTINELS)} if sentinels else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **names, **extra
    )
