"""The heads of an attention as data: the attributes and keys that describe them, and the reasons why some must stay."""

from dataclasses import dataclass
from operator import attrgetter

from torch import nn

ROTATED = "its queries and keys are rotated in pairs of dimensions"
"""The reason why the size of heads with rotary positions cannot change."""


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """A reason why no head can be removed from an attention.

    Args:
        reason: a clause that follows "…, as", such as "its norms cover all heads".
        module: a submodule of the attention; without it the obstacle does not exist. None if it always exists.
        flag: an attribute path from the attention; if its value is false, the obstacle does not exist.
    """

    reason: str
    module: str | None = None
    flag: str | None = None

    def exists_in(self, attention: nn.Module) -> bool:
        """Whether it exists in an attention module.

        Example:
            >>> Obstacle(reason="a norm covers all heads", module="q_norm").exists_in(nn.Module())
            False
        """
        if self.module is not None and self.module not in dict(attention.named_children()):
            return False
        return self.flag is None or bool(attrgetter(self.flag)(attention))


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads of an attention, as attributes of its module and keys of the configuration.

    Args:
        size: the attribute that holds the size of one head.
        count: the attribute that holds the number of heads, or None.
        kv_count: the attribute that holds the number of key heads, or None.
        width: the attribute that holds the product of `count` and `size`, or None.
        group_size: the attribute that holds the number of heads that share one key head, or None.
        clip: the attribute path of a limit of the queries, keys and values, which is None without a limit; or None.
        head_vectors: parameters of the module with one number for each row of the query, besides the biases.
        head_norms: parameters of the module with one row for each head (or key head), where the module has them.
        mixers: submodules that mix the heads. No head can be removed from an attention that has one of them.
        obstacles: other reasons why no head can be removed.
        position_bias: the embedding with one column per head that the attention adds to its scores.
        shares_position_bias: whether the first attention of a stack adds its embedding to the scores of all blocks; all
            attentions of such a stack lose the same heads.
        model_position_bias: an embedding like `position_bias` outside the blocks, from the base model.
        can_shrink: whether the size can change. It can if scores are plain products of queries and keys (plus a bias),
            and each head has its own keys.
        size_obstacle: the reason why the size cannot change if `can_shrink` is False: a clause that follows "…, as".
        scales_in_forward: whether the scale of the scores is computed from the size when the attention runs, and not
            when the module is made.
        counts_in_config: whether the attention reads `config_count` from its configuration when it runs. All
            attentions must then have equally many heads.
        config_size: the key of the configuration for the size, if it can have any value.
        config_count: the key for the number of heads; None if the class computes the size of a head from it.
        config_kv_count: the key for the number of key and value heads, if several heads can share them.
    """

    size: str
    count: str | None = None
    kv_count: str | None = None
    width: str | None = None
    group_size: str | None = None
    clip: str | None = None
    head_vectors: tuple[str, ...] = ()
    head_norms: tuple[str, ...] = ()
    mixers: tuple[str, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    position_bias: str | None = None
    shares_position_bias: bool = True
    model_position_bias: str | None = None
    can_shrink: bool = True
    size_obstacle: str = "its scores are more than products of queries and keys, or several heads share a key"
    scales_in_forward: bool = False
    counts_in_config: bool = False
    config_size: str | None = None
    config_count: str | None = None
    config_kv_count: str | None = None

    @property
    def are_coupled(self) -> bool:
        """Whether all attentions of a stack lose the same heads, because they share a position bias."""
        return self.model_position_bias is not None or (self.position_bias is not None and self.shares_position_bias)

    def find_obstacle(self, attention: nn.Module) -> str | None:
        """The reason why no head can be removed from an attention module; None if heads can be removed."""
        return next((obstacle.reason for obstacle in self.obstacles if obstacle.exists_in(attention)), None)

    def is_clipped(self, attention: nn.Module) -> bool:
        """Whether an attention module limits its queries, keys and values."""
        return self.clip is not None and bool(attrgetter(self.clip)(attention))
