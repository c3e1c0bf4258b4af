"""Heads and channels to keep of the tiny models, and the model that what is left must equal."""

import torch
from torch import nn

from laconic.model import Group, LanguageModel
from laconic.model.prunable_group import couple_groups, prunable_groups
from laconic.model.width import keep_parts, update_config_widths
from tests.architectures import BY_NAME, EVERY_ARCHITECTURE

EVERY = tuple(architecture.name for architecture in EVERY_ARCHITECTURE)
ONE_OF_EACH = (
    "bert-classifier", "roberta-masked", "distilbert-masked", "albert-groups", "electra-masked", "deberta-masked",
    "deberta-v2-masked", "deberta-v3-classifier", "longformer-masked", "modernbert-masked", "gpt2", "gpt-neo",
    "gpt-neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi", "t5", "t5-gated",
    "bart", "marian", "led",
)  # fmt: skip
"""The same, an architecture a time."""
FIXED_HEADS = (
    "longformer-masked", "longformer-classifier", "led", "big-bird-masked", "olmo2", "olmo3", "stablelm-parallel",
    "bloom", "mpt", "falcon-alibi",
)  # fmt: skip
"""Those whose heads cannot go."""
COMPUTED_WIDTH = ("bloom", "mpt")
"""Those whose channels are four times the width, whatever the configuration says."""
ROTATED = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi")
STOCK = (
    *ROTATED, "t5", "t5-gated", "granite", "smollm3", "starcoder2", "cohere2", "cohere", "phi3", "mt5", "umt5",
    *(name for name in FIXED_HEADS if name not in COMPUTED_WIDTH),
)  # fmt: skip
"""Those whose class can be told of as few heads in every layer; all can be told of channels."""

Parts = dict[str, list[int]]


def parts_for(lm: LanguageModel, uniform: bool) -> Parts:
    """By what must lose the same: with `uniform` every other part, else so here and all but the first there."""
    chosen: Parts = {}
    for number, (first, *_) in enumerate(couple_groups(prunable_groups(lm))):
        every = list(range(first.count))
        several = number // 2 % 2 and not uniform and not first.is_uniform
        chosen[first.coupling] = (every[1:] if first.count > 2 else every) if several else every[::2]
    return chosen


def narrowed(name: str, uniform: bool) -> LanguageModel:
    """The tiny model with those parts alone, and a configuration that says so where it can."""
    lm = BY_NAME[name].lm()
    chosen = parts_for(lm, uniform)
    for inner in prunable_groups(lm):
        keep_parts(lm, inner, chosen[inner.coupling])
    update_config_widths(lm)
    return lm


@torch.no_grad()
def zeroed(name: str, uniform: bool) -> LanguageModel:
    """The whole model with zeros for the others, in the columns of the projections that write."""
    lm = BY_NAME[name].lm()
    chosen = parts_for(lm, uniform)
    for inner in prunable_groups(lm):
        stays = torch.zeros(inner.count, inner.size)
        stays[chosen[inner.coupling]] = 1
        weight = inner.writer.module.get_parameter("weight")
        weight.mul_(stays.flatten() if isinstance(inner.writer.module, nn.Linear) else stays.flatten()[:, None])
    return lm


def counts(lm: LanguageModel, group: Group) -> list[int]:
    return [inner.count for inner in prunable_groups(lm, (group,))]
