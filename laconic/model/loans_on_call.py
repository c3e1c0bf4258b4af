"""Lend the parts of a streamed model when they are called."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from laconic.formats import PackedEmbedding
from laconic.model.anatomy import Anatomy
from laconic.model.enumeration import find_stacks, is_below
from laconic.model.forward import replacing_forward
from laconic.model.loans import Loans
from laconic.model.loans_stored import StoredTensors

Forward = Callable[..., Any]
"""The forward pass of a module."""


def find_parts(model: PreTrainedModel, anatomy: Anatomy, loans: Loans | None) -> list[str]:
    """Find the blocks of a streamed model, and the modules outside the blocks that have tensors on disk.

    Args:
        model: the model.
        anatomy: its anatomy.
        loans: its loans; None for a model in memory.

    Returns:
        Their paths; none for a model in memory.
    """
    if loans is None:
        return []
    on_disk = loans.stored.placeholders.keys()
    blocks = [path for _, found in find_stacks(model, anatomy) for path, _ in found]
    outside = [
        name
        for name, module in model.named_modules()
        if not any(is_below(name, path) for path in blocks)
        and any(id(tensor) in on_disk for tensor in _read_by(module))
    ]
    return [*blocks, *outside]


def _read_by(module: nn.Module) -> Iterator[Tensor | None]:
    """The tensors that a module reads by itself; a word embedding of codes reads those of its matrix."""
    for part in (module, module.coded) if isinstance(module, PackedEmbedding) else (module,):
        yield from (*part._parameters.values(), *part._buffers.values())


@contextmanager
def lend_on_call(model: PreTrainedModel, anatomy: Anatomy, loans: Loans | None, keep: bool) -> Iterator[None]:
    """A context in which each part has its weights while it runs.

    `forward` of each part is replaced, and no hook is used: a stand-in that later replaces `forward` needs no weights.
    Of a word embedding, only the rows of the tokens are read. Without gradients, a head multiplies by some rows of its
    matrix at a time. Neither keeps weights.

    Args:
        model: a streamed model.
        anatomy: its anatomy.
        loans: its loans; None for a model in memory, for which nothing is done.
        keep: a part keeps its weights after its first call, until the end of the context.
    """
    with ExitStack() as kept, ExitStack() as replaced:
        for path in find_parts(model, anatomy, loans):
            assert loans is not None
            module = model.get_submodule(path)
            run = _lending(module, partial(loans.lend, model, (path,)), kept if keep else None)
            if type(module) is nn.Embedding and module.max_norm is None:
                run = _looking_up(module, loans.stored, run)
            elif type(module) is nn.Linear:
                run = _multiplying(module, loans.stored, run)
            replaced.enter_context(replacing_forward(module, run))
        yield


def _lending(module: nn.Module, lend: Callable[[], AbstractContextManager[None]], kept: ExitStack | None) -> Forward:
    """The forward pass of a module, with its weights on loan for the time of the call, or until `kept` is closed."""
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        if kept is None:
            with lend():
                return forward(*args, **kwargs)
        kept.enter_context(lend())
        vars(module)["forward"] = forward
        return forward(*args, **kwargs)

    return run


def _looking_up(embedding: nn.Embedding, stored: StoredTensors, otherwise: Forward) -> Forward:
    """The forward pass of an embedding of which only some rows are read; `otherwise` if they cannot be."""

    def run(input: Tensor) -> Tensor:
        tokens, places = input.unique(return_inverse=True)
        is_known = len(tokens) > 0 and tokens[0] >= 0 and tokens[-1] < embedding.num_embeddings
        if not is_known or not stored.is_plain(embedding.weight):
            return otherwise(input)
        return functional.embedding(places, stored.read_rows(embedding.weight, tokens))

    return run


def _multiplying(linear: nn.Linear, stored: StoredTensors, otherwise: Forward) -> Forward:
    """The forward pass of a linear whose matrix is read in chunks; `otherwise` for gradients, or if it cannot be."""

    def run(input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not stored.is_plain(linear.weight):
            return otherwise(input)
        # Outputs are written into one tensor: small ones between the chunks would keep memory from being used again.
        output, start = input.new_empty(*input.shape[:-1], linear.out_features), 0
        for rows in stored.read_chunks(linear.weight):
            output[..., start : start + len(rows)] = functional.linear(input, rows.to(input.device))
            start += len(rows)
        return output if linear.bias is None else output + torch.cat(list(stored.read_chunks(linear.bias))).to(output)

    return run
