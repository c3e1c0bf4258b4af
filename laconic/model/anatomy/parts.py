"""The parts of an entry: dataclasses that describe the blocks, attentions and feed-forwards of one architecture.

Paths are dotted module paths. Paths of stacks and word embeddings start from the base model (`model.base_model`), and
paths inside a stack from a block. Query, key and value of an attention read the same input, as do the gate and up
projections of a feed-forward; statistics of that input are collected once.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from torch import nn

from laconic.model.anatomy.heads import Heads
from laconic.model.site import Group, InputTokens, has_module

FusedLayout = Literal["stacked", "by-head"]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The projections of one attention.

    Args:
        module: the attention module itself.
        output: the output projection.
        query: the query projection; None if it is fused.
        key: the key projection.
        value: the value projection.
        fused: query, key and value in one matrix, in this order.
        fused_layout: the rows of `fused`: "stacked" is all queries, all keys, all values; "by-head" is query, key and
            value of the first head, then those of the second. If heads share keys, "by-head" is the queries of all
            heads that share the first key, then this key and its value, then those of the second.
        heads: its heads; None if they can be neither removed nor resized.
        global_query: the query projection for tokens with global attention; it reads only these tokens.
        global_key: the key projection for these tokens; it reads the same input as `key`.
        global_value: the value projection for these tokens.
        position_query: the query projection of relative positions.
        position_key: the key projection of relative positions.
        norm: the norm whose output only `query` (or `fused`) and the projections with the same input read. Of several
            names, separated by spaces, the first one that a block has is meant.
        shares_positions: whether `query` and `key` may be called a second time, on relative positions.
        tokens_first: whether all projections except `output` read (tokens, rows, width).
    """

    module: str
    output: str
    query: str | None = None
    key: str | None = None
    value: str | None = None
    fused: str | None = None
    fused_layout: FusedLayout = "stacked"
    heads: Heads | None = None
    global_query: str | None = None
    global_key: str | None = None
    global_value: str | None = None
    position_query: str | None = None
    position_key: str | None = None
    norm: str | None = None
    shares_positions: bool = False
    tokens_first: bool = False


def separate_attention(
    module: str, names: str, output: str, *, norm: str | None = None, heads: Heads | None = None
) -> Attention:
    """An attention with a projection each for query, key and value.

    Args:
        module: the attention module.
        names: the names of the three projections in it, separated by spaces.
        output: the path of the output projection from the block.
        norm: as in `Attention`.
        heads: as in `Attention`.

    Example:
        >>> separate_attention("attn", "q_proj k_proj v_proj", "attn.o_proj").value
        'attn.v_proj'
    """
    query, key, value = (f"{module}.{name}" for name in names.split())
    return Attention(module=module, query=query, key=key, value=value, output=output, norm=norm, heads=heads)


@dataclass(frozen=True)
class FeedForward:
    """The projections of one feed-forward.

    Args:
        inner: the input projections: one, or gate and up.
        output: the output projection.
        config_width: the key of the configuration for the number of channels; None if the class computes this number.
        fused_gate: whether the single `inner` projection contains gate (the upper half of its rows, activated) and up.
        width: the path of a module attribute that holds the number of channels, or None.
        norm: names of norms; the output of the first one that a block has is read only by `inner`.
        activation: the module between a single `inner` and `output`.
    """

    inner: tuple[str, ...]
    output: str
    config_width: str | None
    _: KW_ONLY
    fused_gate: bool = False
    width: str | None = None
    norm: tuple[str, ...] = ()
    activation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of a block, of which a router chooses some for each token.

    The names and layouts of their matrices are read from their module (`laconic.formats.expert_layer`).

    Args:
        module: the module that has the matrices of all experts.
        router: the module that chooses; None if the entry does not name it.
    """

    module: str
    router: str | None = None


@dataclass(frozen=True, kw_only=True)
class OtherLinear:
    """A linear that is no projection of an `Attention` or a `FeedForward`.

    Args:
        path: its path from the block.
        group: attention or feed-forward.
        same_as: path of an earlier linear that reads the same input; None if it has its own input.
        norm: the norm whose output only this linear and those with the same input read.
    """

    path: str
    group: Group
    same_as: str | None = None
    norm: str | None = None


@dataclass(frozen=True)
class BiasTable:
    """A table of relative positions that the first block holds and all blocks use.

    Args:
        module: the module in the block that holds it.
        table: its name in that module.
        flag: the attribute of that module that is True if the table is present.
    """

    module: str
    table: str
    flag: str


@dataclass(frozen=True, kw_only=True)
class Depth:
    """The parts of a model that depend on the number of blocks or on the index of a block.

    Args:
        count: the key of the configuration for the number of blocks.
        stack_count: the key for this number in the stack's own configuration, if it has another name there.
        lists: keys of the configuration whose value is a list with one entry per block.
        repeated_list: the key whose value [[entries, times], …] is expanded to the first of `lists`.
        group_count: the key for the number of groups, if blocks are shared. `count` is then the number of calls, and
            all groups are called equally often, one after the other.
        bias_table: the table of relative positions in the first block.
        cache_stack: the name of the stack whose number of blocks sizes the key-value cache, if it is another stack.
        score_scale_flag: the key of the configuration that makes an attention divide its scores by its index + 1.
        first_only: a module, from the base model, that needs the first block; "" if the first block must always stay.
        last_norm: the norm that the whole residual stream passes last in a block, in post-norm models.
        output_norms: the norms between the sub-blocks and the residual stream, if any.
        input_norm: the last norm before the first block, from the base model.
    """

    count: str = "num_hidden_layers"
    stack_count: str | None = None
    lists: tuple[str, ...] = ("layer_types",)
    repeated_list: str | None = None
    group_count: str | None = None
    bias_table: BiasTable | None = None
    cache_stack: str | None = None
    score_scale_flag: str | None = None
    first_only: str | None = None
    last_norm: str | None = None
    output_norms: tuple[str, ...] = ()
    input_norm: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A `ModuleList` of equal blocks.

    Args:
        blocks: its path; `*` stands for every member of a list of such lists.
        attention: the self-attention of a block.
        feed_forward: the feed-forward; several if blocks have one of several forms. A form is ignored
            if the block lacks one of its projections.
        experts: the experts, in the blocks that have them; several if they are at different paths.
        cross_attention: the attention of a decoder block to the encoder.
        reads: the tokens that pass through the blocks.
        parallel: whether the feed-forward reads the same input as the attention, in blocks that have none of its norms.
        pre_norm_flag: the attribute of a block that is True if its norms come before its sub-blocks; None if they
            always do.
        stream_norm_flag: the attribute of a block that is True if the residual stream passes these norms too; None if
            it never does.
        other_linears: linears whose function is not known.
        depth: the changes when blocks are dropped; None if they are not known.
    """

    blocks: str
    attention: Attention | None = None
    feed_forward: tuple[FeedForward, ...] = ()
    experts: tuple[Experts, ...] = ()
    cross_attention: Attention | None = None
    reads: InputTokens = InputTokens.SOURCE
    parallel: bool = False
    pre_norm_flag: str | None = None
    stream_norm_flag: str | None = None
    other_linears: tuple[OtherLinear, ...] = ()
    depth: Depth | None = Depth()

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The self-attention and the cross-attention, without those that the blocks do not have."""
        return tuple(attention for attention in (self.attention, self.cross_attention) if attention is not None)

    def has_experts(self, block: nn.Module) -> bool:
        """Whether a block has experts."""
        return any(has_module(block, experts.module) for experts in self.experts)


@dataclass(frozen=True)
class WordEmbedding:
    """A word embedding.

    Args:
        path: its path from the base model.
        reads: the tokens that it looks up.
        is_called: False if only other embeddings, which share its matrix, are called.
    """

    path: str
    reads: InputTokens = InputTokens.SOURCE
    is_called: bool = True


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The entry of one architecture.

    Args:
        model_types: the `model_type` of each configuration that it describes.
        stacks: the stacks of blocks, in forward order.
        embeddings: the word embeddings, in the order in which transformers ties them.
        global_attention: whether some tokens attend to all others; for predictions, the first token does.
    """

    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]
    embeddings: tuple[WordEmbedding, ...]
    global_attention: bool = False


def one_stack(model_types: str, embedding: str, stack: Stack) -> Anatomy:
    """The entry of architectures with one stack and one word embedding.

    Args:
        model_types: their names, separated by spaces.
        embedding: path of the word embedding from the base model.
        stack: the stack.

    Example:
        >>> one_stack("gpt2 other", "wte", Stack(blocks="h")).model_types
        ('gpt2', 'other')
    """
    return Anatomy(model_types=tuple(model_types.split()), stacks=(stack,), embeddings=(WordEmbedding(embedding),))
