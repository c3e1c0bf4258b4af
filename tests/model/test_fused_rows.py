"""The rows that are said to be a head's are those that the head reads, whoever else shares them."""

from collections.abc import Callable

import pytest
import torch

from laconic.model import LanguageModel, Role, Site
from laconic.model.fused_rows import FusedRows, count_key_heads, fused_rows
from tests.architectures import BLOCKS, BY_NAME, HEADS, WIDTH, batch_for

SIZE = WIDTH // HEADS
KEYS = {
    "gpt2": 4, "gpt-neox": 4, "modernbert-masked": 4, "phi3": 2, "falcon-keys": 2, "falcon-one-key": 1,
    "falcon-heads": 4, "falcon-alibi": 4, "gpt-bigcode": 1, "gpt-bigcode-heads": 4, "bloom": 4, "mpt": 4,
}  # fmt: skip


def first_attention(lm: LanguageModel) -> tuple[Site, Site, FusedRows]:
    attention = lm.anatomy.stacks[0].attention
    assert attention is not None
    fused, output, *_ = (site for site in lm.sites(("attention",)) if site.role in (Role.FUSED, Role.OUTPUT))
    keys = count_key_heads(fused.shape[0], HEADS, SIZE)
    return fused, output, fused_rows(attention.fused_layout, HEADS, keys, SIZE)


def heads_changed(lm: LanguageModel, output: Site, change: Callable[[], object]) -> list[int]:
    """The heads whose part of what the output projection reads is no longer the same."""
    seen: list[torch.Tensor] = []
    hook = output.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].unflatten(-1, (HEADS, SIZE))))
    lm.model(**batch_for(lm.model))
    change()
    lm.model(**batch_for(lm.model))
    hook.remove()
    before, after = seen
    return [head for head in range(HEADS) if not torch.equal(before[..., head, :], after[..., head, :])]


@torch.no_grad()
@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_only_the_heads_that_read_them_change(name: str, part: str) -> None:
    lm = BY_NAME[name].lm()
    # One row is computed as in the other model, whatever kernel the shapes ask for.
    lm.model.set_attn_implementation("eager")
    fused, output, rows = first_attention(lm)
    assert len(rows.key) == KEYS[name] and BLOCKS > 1
    chosen = getattr(rows, part)[-1]
    readers = 1 if part == "query" else HEADS // len(rows.key)
    weight = fused.parameter if fused.module.__class__.__name__ != "Conv1D" else fused.parameter.T

    def change() -> None:
        weight[chosen] += 0.5 * torch.randn(SIZE, WIDTH, generator=torch.Generator().manual_seed(0))

    assert heads_changed(lm, output, change) == list(range(HEADS))[-readers:]


@pytest.mark.parametrize("layout", ["stacked", "by-head"])
@pytest.mark.parametrize("keys", [1, 2, 4])
def test_every_row_belongs_to_one_part(layout: str, keys: int) -> None:
    rows = fused_rows(layout, 4, keys, 3)
    assert [part.shape for part in rows] == [(4, 3), (keys, 3), (keys, 3)]
    every = torch.cat([part.flatten() for part in rows])
    assert every.sort().values.tolist() == list(range((4 + 2 * keys) * 3))
    assert count_key_heads(len(every), 4, 3) == keys
