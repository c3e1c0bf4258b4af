"""The tokenizer beside a model: there and whole, or not there; a damaged one is an error."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from laconic.errors import UserError, must_be, reason_of
from laconic.model.checkpoints.code import check_tokenizer_code
from laconic.model.checkpoints.place import Place

CONFIG = "tokenizer_config.json"
WHOLE = "tokenizer.json"
FILES = (CONFIG, WHOLE, "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
         "spm.model", "source.spm")  # fmt: skip
"""What a tokenizer is saved in; any of them says that there is one."""
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError)


def check_tokenizer(place: Place) -> None:
    """Raise UserError where the tokenizer at `place` needs code that comes with it, its files are no JSON, or it says a
    length that is no number."""
    if (raw := place.json(CONFIG)) is not None:
        check_tokenizer_code(raw, place.source)
        longest = raw.get("model_max_length")
        if longest is not None and not (type(longest) in (int, float) and longest >= 1):
            what = f"In the tokenizer_config.json of '{place.source}', model_max_length"
            raise must_be(what, "a number of tokens, at least 1", longest)
    if place.folder is not None:
        place.json(WHOLE)


def read_tokenizer(place: Place) -> PreTrainedTokenizerBase | None:
    """The tokenizer at `place`; a model may come without, and what needs one says so.

    Raises:
        UserError: it needs code that comes with it, or is there and cannot be read.
    """
    check_tokenizer(place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place.name,
            revision=place.revision,
            subfolder=place.subfolder,
            local_files_only=not place.fetches,
            trust_remote_code=False,
        )
    except Exception as error:
        # The package tokenizers tells of a file that it cannot read by a bare Exception.
        if not isinstance(error, _DAMAGED) and type(error) is not Exception:
            raise
        found = next((name for name in FILES if place.file(name) is not None), None)
        if found is None:
            return None
        raise UserError(
            f"The tokenizer of the model '{place.source}' cannot be read ({found} is there): {reason_of(error)}; "
            "fetch it again, or take its files away."
        ) from error
    # What is saved with it refers to no code.
    tokenizer.init_kwargs.pop("auto_map", None)
    # From a folder without one, transformers makes up an empty tokenizer of the model's kind.
    files = {CONFIG, *tokenizer.vocab_files_names.values()}
    return tokenizer if place.folder is None or _has_any(place.folder, files) else None


def _has_any(folder: Path, files: set[str]) -> bool:
    return any((folder / file).is_file() for file in files)
