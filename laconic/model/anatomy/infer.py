"""Infer the anatomy of a model without an entry from its modules.

The blocks are the members of the longest `ModuleList` whose members have one class, and of all other lists of that
class. Only lists that a run over text calls are considered; in a vision-language model these are in the text stack. A
list of the same length beside one of these is a stack too, as it holds another part of the same layers: XLM has one
list of attentions and one of feed-forwards. Encoder and decoder are examined separately.

Every linear inside a block is a site. The modules do not show which linears read the same input, so each has its own
input; nor which linears belong to a cross-attention, so the linears of a decoder may read the tokens of either side.
"""

import warnings
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from laconic.errors import StructureNotice, UserError
from laconic.formats import ExpertStack, Format
from laconic.formats.expert_layer import is_experts
from laconic.model.anatomy import (
    Anatomy,
    Depth,
    Experts,
    OtherLinear,
    Stack,
    WordEmbedding,
    find_entry,
    list_architectures,
)
from laconic.model.anatomy.text_stack import find_text_anatomy
from laconic.model.site import InputTokens, guess_group
from laconic.model.stock import text_config
from laconic.model.usage import Usage, trace_usage

ListAt = tuple[str, nn.ModuleList]
"""The path of a list of modules from the whole model, and the list."""


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a model: its entry, that of the text model in it, or one inferred from its modules.

    The last two give a `StructureNotice`.

    Raises:
        UserError: it has no entry, and its structure is not that of a transformer language model.
    """
    entry = find_entry(model.config.model_type)
    if entry is not None:
        return entry
    text_anatomy = find_text_anatomy(model)
    if text_anatomy is not None:
        stacks = " and ".join(stack.blocks for stack in text_anatomy.stacks)
        warnings.warn(
            f"The text stack of '{model.config.model_type}', {stacks}, is that of "
            f"'{text_config(model.config).model_type}'{_describe_leftovers(model)}.",
            StructureNotice,
            stacklevel=1,
        )
        return text_anatomy
    found = infer_anatomy(model)
    linears = " and ".join(
        f"{len(stack.other_linears)} linears in each block of {stack.blocks}" for stack in found.stacks
    )
    warnings.warn(
        f"The architecture '{model.config.model_type}' has no entry in laconic.model.anatomy; found by structure: "
        f"{linears}, each assumed to have its own input{_describe_leftovers(model)}.",
        StructureNotice,
        stacklevel=1,
    )
    return found


def _describe_leftovers(model: PreTrainedModel) -> str:
    leftover, uncalled = leftover_lists(model), [path for path, _ in uncalled_stacks(model)]
    clauses = ""
    if leftover:
        clauses += f"; the linears in {' and '.join(leftover)} are in no block; the target head selects them"
    if uncalled:
        clauses += f"; {' and '.join(uncalled)} are not called for text, and are not compressed"
    return clauses


def infer_anatomy(model: PreTrainedModel) -> Anatomy:
    """Infer the anatomy of a model from its modules.

    Raises:
        UserError: there is no list of equal blocks with linears inside, no word embedding, or an encoder or decoder
            that is not a model of transformers.
    """
    model_type = model.config.model_type
    stacks, tables = tuple(_stacks(model)), tuple(_word_embeddings(model))
    if not stacks or not tables:
        missing = "word embedding" if stacks else "list of equal blocks with linears"
        if not _parts(model):
            missing = "encoder and decoder of the class PreTrainedModel"
        raise UserError(
            f"The architecture '{model_type}' has no entry in laconic.model.anatomy, and no {missing} from which one "
            f"could be inferred; add an entry, or use an architecture that has one; known are {list_architectures()}."
        )
    return Anatomy(model_types=(model_type,), stacks=stacks, embeddings=tables)


def _stacks(model: PreTrainedModel) -> Iterator[Stack]:
    for part, reads in _parts(model):
        lists = _stack_lists(_called_lists(model, part))
        for path, blocks in lists:
            is_whole = not any(_lie_beside(path, blocks, *other) for other in lists)
            prefix = "" if is_whole else path.rpartition(".")[2]
            linears = tuple(
                OtherLinear(path=linear, group=guess_group(f"{prefix}.{linear}")) for linear in _linears(blocks)
            )
            # The modules do not show which number of the configuration belongs to the encoder or the decoder. Nor can
            # one list be shortened without the lists that hold other parts of its layers.
            depth = Depth() if is_whole and not model.config.is_encoder_decoder else None
            experts = tuple(Experts(module=module) for module in _experts(blocks))
            yield Stack(blocks=path, other_linears=linears, experts=experts, reads=reads, depth=depth)


def leftover_lists(model: PreTrainedModel) -> list[str]:
    """Paths of the module lists that a run over text calls and that are not stacks."""
    by_part = [_called_lists(model, part) for part, _ in _parts(model)]
    stacks = {path for lists in by_part for path, _ in _stack_lists(lists)}
    return [path for lists in by_part for path, _ in lists if path not in stacks]


def _called_lists(model: PreTrainedModel, part: nn.Module) -> list[ListAt]:
    """The lists with linears in `part` that a run over text calls.

    If the class cannot be run, these are the lists of the text configuration.
    """
    prefix, usage = _prefix(model, part), trace_usage(model)
    lists = [(f"{prefix}{name}", blocks) for name, blocks in _lists(part) if _linears(blocks)]
    if usage is not None:
        return [(path, blocks) for path, blocks in lists if not _is_idle(usage, path, blocks)]
    text = type(text_config(model.config))
    return [(path, blocks) for path, blocks in lists if type(_nearest_config(model, path)) is text] or lists


def _stack_lists(lists: list[ListAt]) -> list[ListAt]:
    """The lists that are stacks: the longest, the others of its class, and the lists beside one of them."""
    if not lists:
        return []
    _, longest = max(lists, key=lambda entry: len(entry[1]))
    alike = [(path, blocks) for path, blocks in lists if _classes(blocks) & _classes(longest)]
    return [entry for entry in lists if entry in alike or any(_lie_beside(*entry, *other) for other in alike)]


def _lie_beside(path: str, blocks: nn.ModuleList, other_path: str, other: nn.ModuleList) -> bool:
    """Whether two lists hold parts of the same layers: they have the same length and the same parent module."""
    are_siblings = path != other_path and path.rpartition(".")[0] == other_path.rpartition(".")[0]
    return are_siblings and len(blocks) == len(other) and not _classes(blocks) & _classes(other)


def uncalled_stacks(model: PreTrainedModel) -> list[tuple[str, int]]:
    """Lists of blocks that no run over text calls, such as a vision tower: (path, number of blocks)."""
    usage = trace_usage(model)
    lists = [(path, blocks) for path, blocks in _lists(model) if _linears(blocks)]
    return [] if usage is None else [(path, len(blocks)) for path, blocks in lists if _is_idle(usage, path, blocks)]


def _nearest_config(model: PreTrainedModel, path: str) -> PreTrainedConfig:
    """The configuration of the innermost part of the model around `path`; a vision tower has its own."""
    while path:
        path = path.rpartition(".")[0]
        config = vars(model.get_submodule(path)).get("config")
        if isinstance(config, PreTrainedConfig):
            return config
    return model.config


def _is_idle(usage: Usage, path: str, blocks: nn.ModuleList) -> bool:
    """Whether no linear of the list is called or otherwise used."""
    paths = (f"{path}.{number}.{linear}" for number in range(len(blocks)) for linear in _linears(blocks))
    return not any(linear in usage.matrices - usage.uncalled for linear in paths)


def _classes(blocks: nn.ModuleList) -> set[type[nn.Module]]:
    return {type(block) for block in blocks}


def _parts(model: PreTrainedModel) -> list[tuple[PreTrainedModel, InputTokens]]:
    """The parts that are examined separately; none for an encoder-decoder whose halves are no models, such as FSMT."""
    if not model.config.is_encoder_decoder:
        return [(model, InputTokens.SOURCE)]
    halves = ((model.get_encoder(), InputTokens.SOURCE), (model.get_decoder(), InputTokens.EITHER))
    parts = [(half, reads) for half, reads in halves if isinstance(half, PreTrainedModel)]
    return parts if len(parts) == len(halves) else []


def _prefix(model: nn.Module, part: nn.Module) -> str:
    """The prefix that makes a path inside `part` a path from the whole model."""
    name = next(name for name, module in model.named_modules() if module is part)
    return f"{name}." if name else ""


def _lists(part: nn.Module) -> list[ListAt]:
    """Lists of blocks that lie inside no other list of blocks.

    The members of a list have one class, or several classes that are all blocks of transformers: some layers of a model
    may be attentions, and others state spaces.
    """
    outermost: list[ListAt] = []
    for name, module in part.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        if len(_classes(module)) > 1 and not all(isinstance(block, GradientCheckpointingLayer) for block in module):
            continue
        inside = any(name.startswith(f"{other}.") for other, _ in outermost)
        if not inside and not isinstance(module[0], nn.ModuleList):
            outermost.append((name, module))
    return outermost


def _linears(blocks: nn.ModuleList) -> list[str]:
    """Paths of the linears, and of the formats that replaced one, in any of the blocks; a block itself is left out."""
    paths: dict[str, None] = {}
    for block in blocks:
        formats = tuple(
            f"{name}." for name, module in block.named_modules() if isinstance(module, (Format, ExpertStack))
        )
        for name, module in block.named_modules():
            if name and isinstance(module, (Format, nn.Linear, Conv1D)) and not name.startswith(formats):
                paths[name] = None
    return list(paths)


def _experts(blocks: nn.ModuleList) -> list[str]:
    """Paths of the modules of experts in any of the blocks."""
    paths = (name for block in blocks for name, module in block.named_modules() if is_experts(module))
    return list(dict.fromkeys(paths))


def _word_embeddings(model: PreTrainedModel) -> Iterator[WordEmbedding]:
    """The word embeddings that the parts call, after the embedding that they share their weights with, if any."""
    called: dict[str, tuple[nn.Module, InputTokens]] = {}
    for part, reads in _parts(model):
        embedding = _input_embedding(part)
        if embedding is not None:
            name = next(name for name, module in part.named_modules(remove_duplicate=False) if module is embedding)
            tokens = InputTokens.TARGET if reads is InputTokens.EITHER else reads
            called[_prefix(model, part) + name] = (embedding, tokens)
    whole = _input_embedding(model)
    name = None if whole is None else _prefix(model, whole).rstrip(".")
    if name is not None and name not in called and any(_are_same(whole, module) for module, _ in called.values()):
        yield WordEmbedding(name, is_called=False)
    for path, (_, reads) in called.items():
        yield WordEmbedding(path, reads)


def _input_embedding(part: PreTrainedModel) -> nn.Module | None:
    try:
        embedding = part.get_input_embeddings()
    except NotImplementedError:
        # transformers raises this for a model without an input embedding.
        return None
    return embedding if isinstance(embedding, (nn.Embedding, Format)) else None


def _are_same(embedding: nn.Module | None, other: nn.Module) -> bool:
    # Tied embeddings of a compressed model are one format; in a plain model they share their weights.
    if isinstance(embedding, nn.Embedding) and isinstance(other, nn.Embedding) and embedding.weight is other.weight:
        return True
    return embedding is other
