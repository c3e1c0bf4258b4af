"""A cache of transformers in whose place a session of an exported model keeps the keys and values.

`generate` makes a cache and hands it from call to call. Here it holds a single layer, which knows the session.
"""

from typing import Any, NoReturn

from jaxtyping import Int
from torch import Tensor
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin

from laconic.runtime.sessions import CachedProgram, Session


class SessionLayer(CacheLayerMixin):
    """The layer of a cache that a session of an exported model stands behind. Its tensors are not read by torch.

    Args:
        session: what keeps the keys and values.
    """

    is_sliding = False

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def get_seq_length(self) -> int:
        """The number of tokens in the cache."""
        return self.session.length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of tokens that the next call sees, and that of the first of them."""
        return self.session.length + query_length, 0

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        """Go on with other rows."""
        self.session.reorder(beam_idx)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> NoReturn:
        """Never called, as no layer of torch runs."""
        raise AssertionError("the keys and values are in the exported model")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Never called, as no layer of torch runs."""
        raise AssertionError("the keys and values are in the exported model")


def session_of(cache: Cache, program: CachedProgram) -> Session:
    """The session that a cache stands for; an empty cache gets a new one.

    Args:
        cache: a cache of transformers.
        program: the exported model.
    """
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    for layer in own.layers:
        if isinstance(layer, SessionLayer):
            return layer.session
    session = program.start()
    own.layers[:] = [SessionLayer(session)]
    return session
