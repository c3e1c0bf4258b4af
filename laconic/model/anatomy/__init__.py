"""The paths of the linears of each architecture as data: one entry per architecture, and the lookup of entries.

To add an architecture:

1. Build a model of it and `print(model.base_model)`. Note the path of the `ModuleList` of blocks, the paths of the
   projections inside one block, and the path of the word embedding.
2. Write an `Anatomy` in `encoders.py`, `decoders.py`, `llama.py`, `mixtures.py`, `hybrids.py` or
   `encoder_decoders.py`; copy the entry of a similar architecture and change its paths. `model_types` has the
   `model_type` of its config.json. Fields that do not apply can be left out: an attention without `heads` keeps all its
   heads, a stack with `depth=None` keeps all its blocks.
3. Add its name to the import and to `ANATOMIES` below.
4. Add a tiny model of it to `TINY_MODELS` in `tests/tiny_models.py`. The tests of every architecture then check the
   entry against the outputs of the model: `pytest tests/model`.

The anatomy of an architecture without an entry is inferred from its modules (`laconic.model.anatomy.infer`): every
linear is found, but heads, channels and shared inputs are not known.
"""

from collections.abc import Callable

from laconic.model.anatomy.decoders import BLOOM, FALCON, GPT2, GPT_BIGCODE, GPT_NEO, GPT_NEOX, GPTJ, MPT, OPT
from laconic.model.anatomy.encoder_decoders import BART, LED, MBART, T5, UMT5
from laconic.model.anatomy.encoders import (
    ALBERT,
    BERT,
    BIG_BIRD,
    DEBERTA,
    DEBERTA_V2,
    DISTILBERT,
    LONGFORMER,
    MODERNBERT,
    MPNET,
)
from laconic.model.anatomy.heads import Heads, Obstacle
from laconic.model.anatomy.hybrids import JAMBA, QWEN3_5, QWEN3_NEXT
from laconic.model.anatomy.llama import COHERE, COHERE2, LLAMA, OLMO2, PHI, PHI3, QWEN2_VL, STABLELM, STARCODER2
from laconic.model.anatomy.mixtures import DEEPSEEK_V3, GPT_OSS, GRANITE_MOE, MIXTRAL, OLMOE, QWEN_MOE
from laconic.model.anatomy.parts import (
    Anatomy,
    Attention,
    BiasTable,
    Depth,
    Experts,
    FeedForward,
    OtherLinear,
    Stack,
    WordEmbedding,
)
from laconic.registry import Registry

# fmt: off
ANATOMIES: tuple[Anatomy, ...] = (
    BERT, DISTILBERT, ALBERT, DEBERTA, DEBERTA_V2, LONGFORMER, MODERNBERT, BIG_BIRD, MPNET,
    GPT2, GPT_NEO, GPT_NEOX, GPTJ, GPT_BIGCODE, OPT, BLOOM, MPT, FALCON,
    LLAMA, QWEN2_VL, PHI, PHI3, STARCODER2, OLMO2, COHERE, COHERE2, STABLELM,
    MIXTRAL, QWEN_MOE, OLMOE, GRANITE_MOE, GPT_OSS, DEEPSEEK_V3,
    QWEN3_NEXT, QWEN3_5, JAMBA,
    T5, UMT5, BART, MBART, LED,
)
# fmt: on
"""The entries that come with laconic."""


def _check_entry(found: object, name: str) -> str | None:
    if not isinstance(found, Anatomy):
        return "is not an object of the class Anatomy"
    return None if name in found.model_types else f"is the entry of the architectures {', '.join(found.model_types)}"


ARCHITECTURE_REGISTRY: Registry[Anatomy] = Registry(
    "laconic.architectures",
    "architecture",
    {model_type: anatomy for anatomy in ANATOMIES for model_type in anatomy.model_types},
    check=_check_entry,
)
"""Every architecture by its `model_type`. Importing an entry of a plug-in registers its classes with transformers."""


def entries() -> tuple[Anatomy, ...]:
    """All distinct entries. Entries of plug-ins are imported; those that cannot be imported are left out.

    Example:
        >>> [entry.model_types for entry in entries() if entry.global_attention]
        [('longformer',), ('led',)]
    """
    found = ARCHITECTURE_REGISTRY.all().values()
    return tuple({id(anatomy): anatomy for anatomy in found}.values())


def list_architectures(condition: Callable[[Anatomy], bool] = lambda _: True) -> str:
    """The names of all architectures whose entry meets a condition, as text for an error."""
    return ", ".join(sorted(name for anatomy in entries() if condition(anatomy) for name in anatomy.model_types))


def find_entry(model_type: str) -> Anatomy | None:
    """Find the entry of an architecture.

    Args:
        model_type: the name of the architecture, as `model_type` in config.json.

    Returns:
        The entry; None if the architecture has none.

    Raises:
        UserError: a plug-in has the entry, and it cannot be used.

    Example:
        >>> find_entry("roberta") is BERT, find_entry("unknown")
        (True, None)
    """
    return ARCHITECTURE_REGISTRY.find(model_type)


__all__ = [
    "ANATOMIES",
    "ARCHITECTURE_REGISTRY",
    "Anatomy",
    "Attention",
    "BiasTable",
    "Depth",
    "Experts",
    "FeedForward",
    "Heads",
    "Obstacle",
    "OtherLinear",
    "Stack",
    "WordEmbedding",
    "entries",
    "find_entry",
    "list_architectures",
]
