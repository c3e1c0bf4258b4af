"""Where the linears of each architecture are: a further one is one entry in a file here and its place in the tuple."""

from laconic.model.anatomy.decoders import GPT2, GPT_NEO, GPT_NEOX, LLAMA, OPT, PHI
from laconic.model.anatomy.encoder_decoders import BART, LED, T5
from laconic.model.anatomy.encoders import ALBERT, BERT, DEBERTA, DEBERTA_V2, DISTILBERT, LONGFORMER, MODERNBERT
from laconic.model.anatomy.parts import Anatomy, Attention, BiasTable, Depth, FeedForward, Heads, Plain, Stack, Table

ANATOMIES: tuple[Anatomy, ...] = (
    BERT,
    DISTILBERT,
    ALBERT,
    DEBERTA,
    DEBERTA_V2,
    LONGFORMER,
    MODERNBERT,
    GPT2,
    GPT_NEO,
    GPT_NEOX,
    OPT,
    LLAMA,
    PHI,
    T5,
    BART,
    LED,
)


def entries() -> tuple[Anatomy, ...]:
    """Every architecture that laconic knows; all lookups go through this function.

    Example:
        >>> [entry.model_types for entry in entries() if entry.global_attention]
        [('longformer',), ('led',)]
    """
    return ANATOMIES


def find_entry(model_type: str) -> Anatomy | None:
    """Find the entry of an architecture.

    Args:
        model_type: the name of the architecture, as `model_type` in config.json.

    Returns:
        The entry; None where there is none.

    Example:
        >>> find_entry("roberta") is BERT, find_entry("unknown")
        (True, None)
    """
    return next((anatomy for anatomy in entries() if model_type in anatomy.model_types), None)


__all__ = [
    "ANATOMIES",
    "Anatomy",
    "Attention",
    "BiasTable",
    "Depth",
    "FeedForward",
    "Heads",
    "Plain",
    "Stack",
    "Table",
    "entries",
    "find_entry",
]
