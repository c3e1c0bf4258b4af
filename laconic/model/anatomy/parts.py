"""What is said of an architecture: where its linears are and which of them read the same input. Data only.

Paths are written from the base model (`model.base_model`), and inside a stack from one block. The roles matter: the
query, key and value of one attention read the same input, as do the gate and the up projection, so what is
measured of that input is measured once.
"""

from dataclasses import dataclass
from typing import Literal

from laconic.model.site import Group, InputTokens


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The attributes of an attention module that say how its projections are cut into heads.

    module:       path of the attention module.
    size:         its attribute with the size of a head.
    count:        and with the number of heads, where it keeps one.
    width:        and with the product of the two, where it keeps one.
    vectors:      its parameters with one number for each row of the query, which are no bias of a projection.
    mixers:       its children that mix the heads; where one is there, no head can go.
    bias:         its child with one column a head, which the first attention of a stack adds to the scores of all: the
                  attentions of such a stack lose the same heads.
    shrinks:      the size may change: scores are products of queries with keys and nothing else (a bias may be added),
                  each head has keys of its own, and what scales the scores was computed when the module was made.
    config:       the configuration's name for the size, where it may be any.
    config_count: and for the number of heads; None where the class takes the size from it.
    config_keys:  and for the number of keys and values, where several heads may share them.
    """

    module: str
    size: str
    count: str | None = None
    width: str | None = None
    vectors: tuple[str, ...] = ()
    mixers: tuple[str, ...] = ()
    bias: str | None = None
    shrinks: bool = True
    config: str | None = None
    config_count: str | None = None
    config_keys: str | None = None


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Paths of the projections of one attention; `fused` stands for query, key and value in one matrix, in this order.

    fused_layout:     what the rows of `fused` are: "stacked" is all queries, all keys, all values; "by-head" is query,
                      key and value of the first head, then those of the second.
    heads:            how it is cut into heads; None where these can neither shrink nor go.
    global_query:     and `global_key`, `global_value`: the same three for tokens with global attention. The query
                      reads those tokens alone, the others what `query`, `key` and `value` read.
    position_query:   and `position_key`: projections of relative positions.
    norm:             the norm whose output `query` (or `fused`) and what reads the same input read, and nothing else.
    shares_positions: `query` and `key` may be applied to relative positions too, in a second call.
    tokens_first:     all but `output` are called with (tokens, rows, width).
    """

    output: str
    query: str | None = None
    key: str | None = None
    value: str | None = None
    fused: str | None = None
    fused_layout: Literal["stacked", "by-head"] = "stacked"
    heads: Heads | None = None
    global_query: str | None = None
    global_key: str | None = None
    global_value: str | None = None
    position_query: str | None = None
    position_key: str | None = None
    norm: str | None = None
    shares_positions: bool = False
    tokens_first: bool = False


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """`inner` are the projections that read the block (one, or gate and up), `output` writes it back.

    fused_gate: the one of `inner` holds both: the half that is activated above, what it is multiplied with below.
    width:      path of an attribute with the number of channels, where a module keeps one.
    norm:       norms of which the first that a block has is read by `inner` and nothing else.
    activation: the module between `inner`, where that is one projection, and `output`.
    config:     the configuration's name for that number.
    """

    inner: tuple[str, ...]
    output: str
    config: str
    fused_gate: bool = False
    width: str | None = None
    norm: tuple[str, ...] = ()
    activation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A linear of which nothing is known but its path and its group; it counts as having an input of its own."""

    path: str
    group: Group


@dataclass(frozen=True, kw_only=True)
class BiasTable:
    """A table of relative positions that the first block holds, and whose result all the others use.

    module: path of the module in a block that holds it.
    table:  its name there.
    flag:   the attribute of that module which says that it is there.
    """

    module: str
    table: str
    flag: str


@dataclass(frozen=True, kw_only=True)
class Depth:
    """What depends on how many blocks a stack has, on where a block stands, and where the stream leaves a block.

    count:       the configuration's name for the number of blocks.
    own_count:   and that of the configuration which the stack has for itself, where it is another.
    lists:       the configuration's lists with one entry for each block.
    repeated:    and its list of [[entries, times]], which the first of `lists` was written out from.
    visited:     the configuration's name for the number of groups, where `count` is how often blocks are called: all of
                 a group in turn, the groups in equal shares.
    bias_table:  see `BiasTable`.
    cached_by:   the stack by whose number of blocks transformers makes the cache of this one, where it is another.
    scaled:      the configuration's flag which makes an attention divide its scores by its place, from 1.
    first_stays: a module that the first block cannot do without, from the base model, where the model has it; "" where
                 no other block can ever stand first.
    closing:     the norm that the whole stream passes last in a block, where there is one.
    outer:       the norms that what each sublayer adds to the stream passes before, where there are such.
    entry:       the norm that the stream passes last before the first block, from the base model.
    """

    count: str = "num_hidden_layers"
    own_count: str | None = None
    lists: tuple[str, ...] = ("layer_types",)
    repeated: str | None = None
    visited: str | None = None
    bias_table: BiasTable | None = None
    cached_by: str | None = None
    scaled: str | None = None
    first_stays: str | None = None
    closing: str | None = None
    outer: tuple[str, ...] = ()
    entry: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A `ModuleList` of equal blocks.

    blocks:   its path; `*` stands for every member of a list of such lists.
    reads:    whose tokens pass.
    parallel: the feed-forward reads what the attention reads.
    before:   an attribute of a block that says whether its norms come before what reads them; None where they do.
    plain:    linears whose part in the block is not known.
    depth:    what has to be put right where blocks go; None where that is not known.
    """

    blocks: str
    attention: Attention | None = None
    feed_forward: tuple[FeedForward, ...] = ()
    cross_attention: Attention | None = None
    reads: InputTokens = InputTokens.SOURCE
    parallel: bool = False
    before: str | None = None
    plain: tuple[Plain, ...] = ()
    depth: Depth | None = Depth()

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Those that it has, in forward order."""
        return tuple(attention for attention in (self.attention, self.cross_attention) if attention is not None)


@dataclass(frozen=True)
class Table:
    """A word embedding, and whose tokens it looks up; one that is not `called` only lends its matrix to others."""

    path: str
    reads: InputTokens = InputTokens.SOURCE
    called: bool = True


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One architecture; `embeddings` are the word embeddings in the order in which transformers ties them.

    global_attention: some tokens may attend to all others; `predict` lets the first one do so.
    """

    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]
    embeddings: tuple[Table, ...]
    global_attention: bool = False
