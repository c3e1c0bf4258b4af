"""Where the linears of each architecture are, as data: one entry per architecture, and the lookup of entries.

To add an architecture:

1. Build a model of it and `print(model.base_model)`. Note the path of the `ModuleList` of blocks, the paths of the
   projections inside one block, and the path of the word embedding.
2. Write an `Anatomy` in `encoders.py`, `decoders.py` or `encoder_decoders.py`; copy the entry of a similar architecture
   and change its paths. `model_types` has the `model_type` of its config.json. Leave out what does not apply: an
   attention without `heads` keeps all its heads, a stack with `depth=None` keeps all its blocks.
3. Add its name to the import and to `ANATOMIES` below.
4. Add a tiny model of it to `TINY_MODELS` in `tests/tiny_models.py`. The tests of every architecture then check the
   entry against what the model computes: `pytest tests/model`.

An architecture without an entry is inferred from its modules (`laconic.model.structure`): every linear is found, but
heads, channels and shared inputs are not known.
"""

from laconic.model.anatomy.decoders import GPT2, GPT_NEO, GPT_NEOX, LLAMA, OPT, PHI
from laconic.model.anatomy.encoder_decoders import BART, LED, T5
from laconic.model.anatomy.encoders import ALBERT, BERT, DEBERTA, DEBERTA_V2, DISTILBERT, LONGFORMER, MODERNBERT
from laconic.model.anatomy.parts import (
    Anatomy,
    Attention,
    BiasTable,
    Depth,
    FeedForward,
    Heads,
    OtherLinear,
    Stack,
    WordEmbedding,
)

# fmt: off
ANATOMIES: tuple[Anatomy, ...] = (
    BERT, DISTILBERT, ALBERT, DEBERTA, DEBERTA_V2, LONGFORMER, MODERNBERT,
    GPT2, GPT_NEO, GPT_NEOX, OPT, LLAMA, PHI,
    T5, BART, LED,
)
# fmt: on
"""The entries that come with laconic."""


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
    "OtherLinear",
    "Stack",
    "WordEmbedding",
    "entries",
    "find_entry",
]
