"""Checks that a changed model computes the function that it should; a reload cannot show that."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from benchmarks.architectures.inputs import batch_for, outputs_of
from laconic.model import Group, LanguageModel
from laconic.model.head_size import find_attentions, resize_heads, zero_padding_maps
from laconic.model.layers import find_layers
from laconic.model.prunable_group import prunable_groups
from laconic.model.scale_folding import find_absorbers, fold_scales
from laconic.testing.formats import expect

PARTS = {"heads": Group.ATTENTION, "channels": Group.FFN}


def check_equal(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Check that two outputs agree, relative to the largest.

    Raises:
        AssertionError: they do not.
    """
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    expect(difference <= tolerance, f"{what}: the outputs differ by {difference:.2g} of the largest")


def check_shared_inputs(model: PreTrainedModel) -> None:
    """Check that sites with the same `input` read the same tensor.

    Raises:
        AssertionError: two do not.
    """
    lm = LanguageModel.of(model)
    seen: dict[str, list[Tensor]] = {}
    with ExitStack() as stack, torch.no_grad():
        for site in lm.sites(("blocks",)):

            def read(_: nn.Module, args: tuple[Tensor, ...], name: str = site.name) -> None:
                seen.setdefault(name, []).append(args[0])

            stack.callback(site.module.register_forward_pre_hook(read).remove)
        model(**batch_for(model))
    first: dict[str, str] = {}
    for site in lm.sites(("blocks",)):
        other = first.setdefault(site.input, site.name)
        mine, others = seen.get(site.name, []), seen.get(other, [])
        same = len(mine) == len(others) and all(map(torch.equal, mine, others))
        expect(same, f"'{site.name}' and '{other}' should read one tensor")


def check_scales(model: PreTrainedModel) -> None:
    """Check that folding random scales into every module that absorbs them leaves the outputs the same.

    Raises:
        AssertionError: it does not.
    """
    lm, before = LanguageModel.of(model), outputs_of(model)
    generator = torch.Generator().manual_seed(0)
    for absorber in find_absorbers(lm):
        fold_scales(lm, absorber, torch.rand(absorber.count, generator=generator) + 0.5)
    check_equal(outputs_of(model), before, "folded scales")


def check_larger_heads(model: PreTrainedModel) -> None:
    """Check that heads which zeros make twice as large leave the outputs the same.

    Raises:
        AssertionError: they do not.
        UserError: the heads have a fixed size.
    """
    lm, before = LanguageModel.of(model), outputs_of(model)
    for attention in find_attentions(lm):
        resize_heads(lm, attention, zero_padding_maps(attention, 2 * attention.size))
    check_equal(outputs_of(model), before, "larger heads")


@torch.no_grad()
def kill_half(model: PreTrainedModel, part: str) -> None:
    """Set the columns of every second head or channel in the output projections to zero, if laconic finds them."""
    if part not in PARTS:
        return
    lm = LanguageModel.of(model)
    for group in prunable_groups(lm, (PARTS[part],)):
        dead = torch.arange(group.writer.shape[1]) // group.size % 2 == 1
        weight = group.writer.parameter
        (weight.T if isinstance(group.writer.module, Conv1D) else weight)[:, dead] = 0


@contextmanager
def skipping(model: PreTrainedModel, dropped: Mapping[str, Sequence[int | str]]) -> Iterator[None]:
    """A context in which some layers return the hidden states that they get.

    Args:
        model: the model.
        dropped: the numbers of the layers by the name of their stack.
    """
    with ExitStack() as stack:
        for layers in find_layers(LanguageModel.of(model)):
            numbers = dropped.get(layers.name, ())
            # A module that is used several times counts its calls; others may be left out of a pass over text.
            is_shared = len(set(layers.paths)) < len(layers)
            every_call = iter(range(len(layers)))

            def skip(
                _: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any,
                *, calls: Iterator[int], numbers: Sequence[int | str] = numbers,
            ) -> Any:  # fmt: skip
                if next(calls) not in numbers:
                    return output
                hidden = args[0] if args else named["hidden_states"]
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            for number, path in enumerate(dict.fromkeys(layers.paths)):
                calls = every_call if is_shared else repeat(number)
                hook = model.get_submodule(path).register_forward_hook(partial(skip, calls=calls), with_kwargs=True)
                stack.callback(hook.remove)
        yield
