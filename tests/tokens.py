"""A tokenizer of letters, whose tokens fit the vocabulary of the tiny random architectures."""

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}
LETTERS = "abcdefghijklmnopqrstuvwxyz .,'"


def letters(special: str = "pair", **changes: str | None) -> PreTrainedTokenizerFast:
    """One token a letter. special: `pair` puts <s> … </s> around, `start` only <s> before, `none` nothing.

    `changes` are special tokens that are other than usual, or None where there is none.
    """
    names = {name: token for name, token in (SPECIAL | changes).items() if token is not None}
    vocabulary = {token: number for number, token in enumerate([*SPECIAL.values(), *LETTERS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    single, pair = {
        "pair": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
        "start": ("<s> $A", "<s> $A $B"),
        "none": ("$A", "$A $B"),
    }[special]
    tokenizer.post_processor = TemplateProcessing(
        single=single, pair=pair, special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)
