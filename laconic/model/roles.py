"""What a matrix does in its transformer: the part that it belongs to, and which projection of that part it is."""

from enum import StrEnum


class Group(StrEnum):
    """The part of a transformer that a site belongs to; a target of the command line."""

    ATTENTION = "attention"
    FFN = "ffn"
    HEAD = "head"
    EMBEDDING = "embedding"


class Role(StrEnum):
    """Which projection of its part a site is.

    FUSED:  query, key and value in one matrix.
    INNER:  a feed-forward's projection that reads the block.
    OUTPUT: what writes back an attention or a feed-forward; outside the blocks, the last linear of the model, which
            gives its predictions.
    OTHER:  none of these, or not known.
    """

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    FUSED = "fused"
    INNER = "inner"
    OUTPUT = "output"
    OTHER = "other"


class Reads(StrEnum):
    """Whose tokens the input rows of a matrix are, which says what of them is padding.

    OWN:    none's: relative positions, or the tokens with global attention; every row counts.
    EITHER: the target's or the source's, whichever is as long: a decoder whose cross-attention is not known.
    """

    SOURCE = "source"
    TARGET = "target"
    OWN = "own"
    EITHER = "either"


def group_of(path: str) -> Group:
    """What a matrix inside a block belongs to, where its path is all that is known."""
    parts = path.lower().split(".")
    return Group.ATTENTION if any("attn" in part or "attention" in part for part in parts) else Group.FFN
