"""Infer the anatomy of a model without an entry from its modules.

Its blocks are the members of the longest `ModuleList` of one class, and of every other list of that class, among those
that a run over text calls; of a vision-language model that is the text stack. A list of the same length beside one of
these holds another part of the same layers, as XLM's feed-forwards beside its attentions, and is a stack too. Encoder
and decoder are looked at separately. Every linear inside a block is a site. Which of them read the same input cannot be
seen, so each has its own; nor can a cross-attention, so a decoder's linears may read either side.
"""

import warnings
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from laconic.errors import StructureNotice, UserError
from laconic.formats import Format
from laconic.model.anatomy import Anatomy, Depth, OtherLinear, Stack, WordEmbedding, entries, find_entry
from laconic.model.site import InputTokens, guess_group
from laconic.model.stock import text_config
from laconic.model.usage import Usage, trace_usage

Listed = tuple[str, nn.ModuleList]
"""A list of modules, and its path from the whole model."""


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """The entry of a model's architecture, or the anatomy inferred from its modules with a `StructureNotice`.

    Raises:
        UserError: it has no entry, and its structure is not that of a transformer language model.
    """
    entry = find_entry(model.config.model_type)
    if entry is not None:
        return entry
    found = infer_anatomy(model)
    linears = " and ".join(
        f"{len(stack.other_linears)} linears in each block of {stack.blocks}" for stack in found.stacks
    )
    warnings.warn(
        f"The architecture '{model.config.model_type}' has no entry in laconic.model.anatomy; found by structure: "
        f"{linears}, each taken to have an input of its own{_left(model)}.",
        StructureNotice,
        stacklevel=1,
    )
    return found


def _left(model: PreTrainedModel) -> str:
    idle, apart = [path for path, _ in uncalled_stacks(model)], leftover_lists(model)
    said = f"; the linears in {' and '.join(apart)} are in no block, and the target head names them" if apart else ""
    return said + (f"; {' and '.join(idle)} are not called by text, and stay as they are" if idle else "")


def infer_anatomy(model: PreTrainedModel) -> Anatomy:
    """Infer the anatomy of a model from its modules.

    Raises:
        UserError: there is no list of equal blocks with linears inside, no word embedding, or an encoder or decoder
            that is no transformers model.
    """
    model_type = model.config.model_type
    stacks, tables = tuple(_stacks(model)), tuple(_tables(model))
    if not stacks or not tables:
        known = ", ".join(sorted(name for anatomy in entries() for name in anatomy.model_types))
        raise UserError(f"The architecture '{model_type}' has no entry in laconic.model.anatomy; known are {known}.")
    return Anatomy(model_types=(model_type,), stacks=stacks, embeddings=tables)


def _stacks(model: PreTrainedModel) -> Iterator[Stack]:
    for part, reads in _parts(model):
        lists = _called_lists(model, part)
        taken = _taken(lists)
        for path, blocks in taken:
            is_whole = not any(_lie_beside(path, blocks, *other) for other in taken)
            within = "" if is_whole else path.rpartition(".")[2]
            plain = tuple(
                OtherLinear(path=linear, group=guess_group(f"{within}.{linear}")) for linear in _linears(blocks)
            )
            # Which of the configuration's numbers is that of the encoder, and which of the decoder, cannot be seen; nor
            # can one list be shortened without those that hold the rest of its layers.
            depth = Depth() if is_whole and not model.config.is_encoder_decoder else None
            yield Stack(blocks=path, other_linears=plain, reads=reads, depth=depth)


def leftover_lists(model: PreTrainedModel) -> list[str]:
    """Paths of the module lists that a run over text calls and that are not taken for blocks."""
    lists = [lists for part, _ in _parts(model) for lists in [_called_lists(model, part)]]
    taken = {path for one in lists for path, _ in _taken(one)}
    return [path for one in lists for path, _ in one if path not in taken]


def _called_lists(model: PreTrainedModel, part: nn.Module) -> list[Listed]:
    prefix = _prefix(model, part)
    return _of_text(model, [(f"{prefix}{name}", blocks) for name, blocks in _lists(part) if _linears(blocks)])


def _taken(lists: list[Listed]) -> list[Listed]:
    """The lists that are stacks: the longest, the others of its class, and those beside one of them."""
    if not lists:
        return []
    _, longest = max(lists, key=lambda listed: len(listed[1]))
    alike = [(path, blocks) for path, blocks in lists if _kinds(blocks) & _kinds(longest)]
    return [listed for listed in lists if listed in alike or any(_lie_beside(*listed, *other) for other in alike)]


def _lie_beside(path: str, blocks: nn.ModuleList, other_path: str, other: nn.ModuleList) -> bool:
    """Whether two lists hold parts of the same layers: one module has them both, and they are as long."""
    beside = path != other_path and path.rpartition(".")[0] == other_path.rpartition(".")[0]
    return beside and len(blocks) == len(other) and not _kinds(blocks) & _kinds(other)


def uncalled_stacks(model: PreTrainedModel) -> list[tuple[str, int]]:
    """Lists of blocks that no run over text calls, as a vision tower: (path, number of blocks)."""
    usage = trace_usage(model)
    lists = [(path, blocks) for path, blocks in _lists(model) if _linears(blocks)]
    return [] if usage is None else [(path, len(blocks)) for path, blocks in lists if _is_idle(usage, path, blocks)]


def _of_text(model: PreTrainedModel, lists: list[Listed]) -> list[Listed]:
    """The lists that a run over text calls; where it cannot be run, those of the text configuration."""
    usage = trace_usage(model)
    if usage is not None:
        return [(path, blocks) for path, blocks in lists if not _is_idle(usage, path, blocks)]
    text = type(text_config(model.config))
    inside = [(path, blocks) for path, blocks in lists if type(_configuration_of(model, path)) is text]
    return inside or lists


def _configuration_of(model: PreTrainedModel, path: str) -> PreTrainedConfig:
    """Of the part of the model that the module at `path` lies in: a tower of images has its own."""
    while path:
        path = path.rpartition(".")[0]
        config = vars(model.get_submodule(path)).get("config")
        if isinstance(config, PreTrainedConfig):
            return config
    return model.config


def _is_idle(usage: Usage, path: str, blocks: nn.ModuleList) -> bool:
    """Whether no linear of the list is called, or otherwise computed with."""
    every = (f"{path}.{number}.{linear}" for number in range(len(blocks)) for linear in _linears(blocks))
    return not any(linear in usage.matrices - usage.uncalled for linear in every)


def _kinds(blocks: nn.ModuleList) -> set[type[nn.Module]]:
    return {type(block) for block in blocks}


def _parts(model: PreTrainedModel) -> list[tuple[PreTrainedModel, InputTokens]]:
    """The parts that are looked at separately; none of an encoder-decoder whose halves are no models, as FSMT."""
    if not model.config.is_encoder_decoder:
        return [(model, InputTokens.SOURCE)]
    halves = ((model.get_encoder(), InputTokens.SOURCE), (model.get_decoder(), InputTokens.EITHER))
    found = [(half, reads) for half, reads in halves if isinstance(half, PreTrainedModel)]
    return found if len(found) == len(halves) else []


def _prefix(model: nn.Module, part: nn.Module) -> str:
    """The prefix of paths below `part`, from the whole model."""
    name = next(name for name, module in model.named_modules() if module is part)
    return f"{name}." if name else ""


def _lists(part: nn.Module) -> list[Listed]:
    """Lists of blocks, without those that lie inside another.

    They are modules of one class, or of several that are all blocks of transformers: some layers may be attentions, and
    others state spaces.
    """
    outermost: list[Listed] = []
    for name, module in part.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module) or not _are_blocks(module):
            continue
        inside = any(name.startswith(f"{other}.") for other, _ in outermost)
        if not inside and not isinstance(module[0], nn.ModuleList):
            outermost.append((name, module))
    return outermost


def _are_blocks(modules: nn.ModuleList) -> bool:
    return len(_kinds(modules)) == 1 or all(isinstance(module, GradientCheckpointingLayer) for module in modules)


def _linears(blocks: nn.ModuleList) -> list[str]:
    """Paths of the linears, and of the formats that stand where one stood, in any of the blocks; one that is a block
    itself has none."""
    paths: dict[str, None] = {}
    for block in blocks:
        formats = tuple(f"{name}." for name, module in block.named_modules() if isinstance(module, Format))
        for name, module in block.named_modules():
            if name and isinstance(module, (Format, nn.Linear, Conv1D)) and not name.startswith(formats):
                paths[name] = None
    return list(paths)


def _tables(model: PreTrainedModel) -> Iterator[WordEmbedding]:
    """The word embeddings: those that each part looks its tokens up in, and the one that they are copies of."""
    called: dict[str, tuple[nn.Module, InputTokens]] = {}
    for part, reads in _parts(model):
        embedding = _words(part)
        if embedding is not None:
            inside = next(name for name, module in part.named_modules(remove_duplicate=False) if module is embedding)
            called[_prefix(model, part) + inside] = (
                embedding,
                InputTokens.TARGET if reads is InputTokens.EITHER else reads,
            )
    whole = _words(model)
    name = None if whole is None else _prefix(model, whole).rstrip(".")
    if name is not None and name not in called and any(_same(whole, module) for module, _ in called.values()):
        yield WordEmbedding(name, is_called=False)
    for path, (_, reads) in called.items():
        yield WordEmbedding(path, reads)


def _words(part: PreTrainedModel) -> nn.Module | None:
    try:
        embedding = part.get_input_embeddings()
    except NotImplementedError:
        # transformers' way to say that there is none.
        return None
    return embedding if isinstance(embedding, (nn.Embedding, Format)) else None


def _same(one: nn.Module | None, other: nn.Module) -> bool:
    # The embeddings of a compressed model are one format, those of a plain one share their weights.
    tied = isinstance(one, nn.Embedding) and isinstance(other, nn.Embedding) and one.weight is other.weight
    return one is other or tied
