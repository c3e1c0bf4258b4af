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


def entry_of(model_type: str) -> Anatomy | None:
    """The entry of a transformers `model_type`; None where there is none."""
    return next((anatomy for anatomy in ANATOMIES if model_type in anatomy.model_types), None)


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
    "entry_of",
]
