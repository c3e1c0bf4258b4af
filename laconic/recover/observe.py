"""Run a model and collect its predictions, hidden states, attention maps and value vectors, by stack.

transformers returns hidden states and attention maps. Value vectors are captured with hooks at the outputs of the value
projections, or of fused query-key-value projections. An encoder-decoder has two stacks, the encoder first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from laconic.model import Batch, LanguageModel, Predictions, Stack, gather_predictions, run_model, token_masks
from laconic.model.anatomy import Attention
from laconic.model.fused_rows import count_key_heads, fused_rows
from laconic.model.site import matrix_shape


class Feature(StrEnum):
    """Kinds of layer outputs that can be compared."""

    HIDDEN = "hidden"
    ATTENTION = "attention"
    VALUES = "values"


@dataclass(frozen=True)
class LayerOutputs:
    """The layer outputs of one stack; a feature that was not requested is empty.

    Args:
        mask: (rows, tokens), True at tokens, False at padding.
        hidden: the input of the first block and the output of each block, (rows, tokens, d) each.
        attention: the attention map of each block, (rows, heads, tokens, tokens).
        values: the value vectors of each block, (rows, tokens, d).
    """

    mask: Bool[Tensor, "rows tokens"]
    hidden: Sequence[Float[Tensor, "rows tokens d"]] = ()
    attention: Sequence[Float[Tensor, "rows heads tokens tokens"]] = ()
    values: Sequence[Float[Tensor, "rows tokens d"]] = ()


def observe(
    lm: LanguageModel, batch: Batch, features: frozenset[Feature] = frozenset()
) -> tuple[Predictions, tuple[LayerOutputs, ...]]:
    """Run the model on a batch; the results are differentiable if gradients are enabled.

    Args:
        lm: the model; attention maps are only available within the context of `eager`.
        batch: the batch, on the model's device.
        features: the layer outputs to collect.

    Returns:
        The predictions, and the layer outputs of each stack (empty without features).
    """
    options = {
        name: True
        for name, feature in (("output_hidden_states", Feature.HIDDEN), ("output_attentions", Feature.ATTENTION))
        if feature in features
    }
    with _capture_values(lm, Feature.VALUES in features) as captured:
        output = run_model(lm, batch, **options)
    predictions = gather_predictions(lm, output, batch)
    if not features:
        return predictions, ()
    is_encoder_decoder = lm.model.config.is_encoder_decoder
    prefixes, masks = (
        (("encoder_", "decoder_"), _masks(lm, batch)) if is_encoder_decoder else (("",), _masks(lm, batch)[:1])
    )
    outputs = tuple(
        LayerOutputs(
            mask=mask,
            hidden=tuple(output.get(f"{prefix}hidden_states") or ()),
            attention=tuple(output.get(f"{prefix}attentions") or ()),
            values=tuple(values),
        )
        for prefix, mask, values in zip(prefixes, masks, _values_by_stack(lm, captured, len(masks)), strict=True)
    )
    return predictions, outputs


@contextmanager
def eager(*models: LanguageModel) -> Iterator[None]:
    """Within the context the models use transformers' `eager` attention, which can return attention maps."""
    before = [lm.model.config._attn_implementation for lm in models]
    for lm in models:
        lm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for lm, kind in zip(models, before, strict=True):
            lm.model.set_attn_implementation(kind or "eager")


def _masks(lm: LanguageModel, batch: Batch) -> tuple[Tensor, ...]:
    return token_masks(lm.task, batch)


@contextmanager
def _capture_values(lm: LanguageModel, enabled: bool) -> Iterator[dict[str, list[Tensor]]]:
    """Capture the outputs of the value projections within the context, by path of the block, one for each call."""
    captured: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for stack, blocks in lm.stacks() if enabled else ():
            for path, block in blocks:
                if (found := _projection(stack, block)) is not None:
                    module, values_in = found
                    hooks.callback(
                        module.register_forward_hook(_make_hook(captured.setdefault(path, []), values_in)).remove
                    )
        yield captured


def _make_hook(captured: list[Tensor], values_in: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    def on_forward(_: nn.Module, __: object, output: Tensor) -> None:
        captured.append(values_in(output))

    return on_forward


def _projection(stack: Stack, block: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]] | None:
    """The value projection of a block, or a fused one, and a function that extracts the values from its output."""
    attention = stack.attention
    path = None if attention is None else attention.value or attention.fused
    if attention is None or path is None:
        return None
    cut = _identity if attention.value is not None else partial(_take_rows, rows=_value_rows(attention, block))
    transposed = attention.tokens_first
    return block.get_submodule(path), (lambda output: cut(output.transpose(0, 1))) if transposed else cut


def _identity(output: Tensor) -> Tensor:
    return output


def _take_rows(output: Tensor, rows: Tensor) -> Tensor:
    return output[..., rows.to(output.device)]


def _value_rows(attention: Attention, block: nn.Module) -> Int[Tensor, " rows"]:
    """The rows of the values in the fused projection of a block."""
    assert attention.fused is not None
    (rows, _), (_, columns) = (matrix_shape(block.get_submodule(path)) for path in (attention.fused, attention.output))
    if attention.heads is None:
        return torch.arange(rows).chunk(3)[2]
    size = getattr(block.get_submodule(attention.module), attention.heads.size)
    heads = columns // size
    return fused_rows(attention.fused_layout, heads, count_key_heads(rows, heads, size), size).value.flatten()


def _values_by_stack(lm: LanguageModel, captured: Mapping[str, list[Tensor]], count: int) -> list[list[Tensor]]:
    """The values of each stack, in the order of its blocks; a block shared by several layers has one for each call."""
    if not captured:
        return [[] for _ in range(count)]
    return [[v for path, _ in blocks for v in captured.get(path, ())] for _, blocks in list(lm.stacks())[:count]]
