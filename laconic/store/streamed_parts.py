"""The tensors of a streamed model as they are saved, part by part.

A part is a block, a word embedding or a head; "" stands for everything outside the parts, which is in memory. Most
tensors are read from their files in chunks, so that a part need not be in memory to be written or compared.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from laconic.formats import ExpertStack, Format
from laconic.model import LanguageModel
from laconic.model.enumeration import is_below
from laconic.model.loans_parts import stored_state
from laconic.store.folder import exact_names


def part_paths(lm: LanguageModel) -> list[str]:
    """The paths of the parts of a streamed model."""
    assert lm.loans is not None
    return list(lm.loans.paths_in(lm.model))


def part_state(lm: LanguageModel, path: str, paths: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a part by their names in the model; placeholders if it is not on loan.

    Args:
        lm: the model.
        path: the path of the part; "" for all that is in none of them.
        paths: the paths of all parts.
    """
    return stored_state(lm.model, path) if path else _state_outside(lm.model, paths)


def readable(lm: LanguageModel, path: str, stored: PreTrainedModel | None = None) -> AbstractContextManager[None]:
    """A context in which the tensors of a part can be read.

    A part is on loan if it has formats, which pack their tensors, or tensors that are saved in another form, such as
    the experts of a stack one by one. The tensors of all others are read from their files.

    Args:
        lm: the model.
        path: the path of the part.
        stored: the model that is saved; None if the tensors are read in the form that they have in the model.
    """
    part = lm.model.get_submodule(path)
    if path and (
        any(isinstance(module, (Format, ExpertStack)) for module in part.modules())
        or (stored is not None and _is_converted(stored, stored_state(lm.model, path)))
    ):
        return lm.on_loan(path)
    return nullcontext()


def _is_converted(stored: PreTrainedModel, state: dict[str, Tensor]) -> bool:
    """Whether transformers saves some of these tensors in another form, and not only under another name."""
    found = revert_weight_conversion(stored, state)
    return not {id(tensor) for tensor in found.values()} <= {id(tensor) for tensor in state.values()}


def read_chunks(lm: LanguageModel, tensor: Tensor) -> Iterator[Tensor]:
    """The values of a tensor in consecutive chunks on the CPU.

    Raises:
        UserError: they cannot be read, or are not finite.
    """
    assert lm.loans is not None
    return lm.loans.stored.read_chunks(tensor)


def stored_dtypes(lm: LanguageModel, state: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The dtype in which each tensor of a part is saved.

    Args:
        lm: the model.
        state: the tensors of the part. Those that transformers keeps in float32 are read, to find out whether the dtype
            of the model would round them.
    """
    exact = exact_names(lm.model, lm.dtype)

    def is_rounded(tensor: Tensor) -> bool:
        return not all(torch.equal(chunk.to(lm.dtype).to(chunk.dtype), chunk) for chunk in read_chunks(lm, tensor))

    return {
        name: tensor.dtype
        if not tensor.is_floating_point() or (exact.search(name) is not None and is_rounded(tensor))
        else lm.dtype
        for name, tensor in state.items()
    }


def _state_outside(model: PreTrainedModel, paths: Collection[str]) -> dict[str, Tensor]:
    """The tensors that are in no part, as a saved model has them."""

    def collect(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
        if prefix in paths:
            return
        if not any(is_below(path, prefix) for path in paths):
            yield from module.state_dict(prefix=f"{prefix}.", keep_vars=True).items()
            return
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, tensor in own:
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, tensor
        for name, child in module.named_children():
            yield from collect(child, f"{prefix}.{name}" if prefix else name)

    return dict(collect(model, ""))
