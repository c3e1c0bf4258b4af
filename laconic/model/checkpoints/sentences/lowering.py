"""Texts in lower case, whatever the tokenizer itself does: `do_lower_case` of older folders."""

import json

from tokenizers.normalizers import Lowercase, Normalizer, Sequence
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from laconic.errors import UserError


def lowering(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer`, changed in place so that it lowers what it reads, as sentence-transformers does and saves it.

    Raises:
        UserError: it is none that normalizes by the library tokenizers.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"sentence_bert_config.json asks for texts in lower case, which a {type(tokenizer).__name__} cannot be "
            "made to read; save its fast tokenizer in the folder."
        )
    backend = tokenizer.backend_tokenizer
    before = backend.normalizer
    if before is None:
        backend.normalizer = Lowercase()
    elif not _lowers(before):
        backend.normalizer = Sequence([Lowercase(), before])
    return tokenizer


def _lowers(normalizer: Normalizer) -> bool:
    said = json.loads(normalizer.__getstate__())
    return any(
        part.get("type") == "Lowercase" or part.get("lowercase") is True
        for part in (said, *said.get("normalizers", ()))
    )
