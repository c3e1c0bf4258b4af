"""The names of the axes of the inputs of graphs. An axis without a name has a fixed size."""

from laconic.runtime.cache_layout import CROSS, PAST, PAST_LENGTH, PRESENT, TOTAL_LENGTH

BATCH, LENGTH, TARGET_LENGTH, SOURCE_LENGTH = "batch", "length", "target_length", "source_length"
ROWS, CHOICES = (BATCH, LENGTH), (BATCH, "choices", LENGTH)
"""The axes of the inputs of most models, and for multiple choice."""
STATES_READ, SOURCE_MASK = "encoder_hidden_states", "encoder_attention_mask"
"""The inputs of the decoder of an encoder-decoder, where it is a graph of its own."""
SPECIAL: dict[str, tuple[str | None, ...]] = {
    "decoder_input_ids": (BATCH, TARGET_LENGTH),
    STATES_READ: (BATCH, SOURCE_LENGTH, None),
    SOURCE_MASK: (BATCH, SOURCE_LENGTH),
}


def axis_names(name: str, dims: int, cached: bool = False) -> tuple[str | None, ...]:
    """The names of the axes of an input, or of an output that is a part of a cache.

    Args:
        name: the name of the input.
        dims: the number of its axes.
        cached: whether the graph reads a cache, so that masks are longer than the tokens.

    Example:
        >>> axis_names("attention_mask", 2, cached=True)
        ('batch', 'total_length')
        >>> axis_names("past_key_values.0.key", 4)
        ('batch', None, 'past_length', None)
    """
    first, *words = name.split(".")
    if first in (PAST, PRESENT):
        tokens = SOURCE_LENGTH if CROSS in words else PAST_LENGTH if first == PAST else TOTAL_LENGTH
        return BATCH, None, tokens, None
    if cached and name == "attention_mask":
        return BATCH, TOTAL_LENGTH
    return SPECIAL.get(name, CHOICES if dims == len(CHOICES) else ROWS)
