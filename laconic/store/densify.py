"""Convert compressed layers to plain linears, so that the stock class of transformers can hold the model.

A compressed layer may need a bias that the original layer does not have. Some configurations have a switch for it: with
`mlp_bias`, the down projection of a Llama has a bias. The switch is then turned on, and other layers that get a bias
from it have zeros there.
"""

import copy
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError
from laconic.formats import Dense, Format
from laconic.model import LanguageModel
from laconic.model.enumeration import copy_ties
from laconic.model.head_size import find_attentions, resize_heads, shrink_obstacle, zero_padding_maps
from laconic.model.prunable_group import PrunableGroup, prunable_groups
from laconic.model.stock import build_empty, build_stock
from laconic.model.task import check_pretrained
from laconic.model.width import EMPTY, empty_linear, keep_parts, resize_linear
from laconic.store.expert_layers import densify_experts
from laconic.store.shapes import MAPPED, changed_shapes
from laconic.store.structure import outermost_formats


def materialize(model: PreTrainedModel) -> PreTrainedModel:
    """A dense copy of a compressed model in its stock class. It computes the same function and loads without laconic.

    Each format is replaced by its dense matrix. Heads and channels that were removed are restored with zeros.

    Args:
        model: a compressed model; it is not changed.

    Returns:
        The copy; its `save_pretrained` writes a plain checkpoint.

    Raises:
        UserError: `model` is not a transformers model, or has a layer that its stock class cannot hold.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from laconic.formats import LowRank
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9))
        >>> model.pooler.dense = LowRank(8, 8, rank=2, bias=True)
        >>> materialize(model).pooler.dense
        Linear(in_features=8, out_features=8, bias=True)
    """
    dense = copy.deepcopy(check_pretrained(model, or_named=False))
    densify(dense)
    detach_quantizer(dense)
    return dense


def detach_quantizer(model: PreTrainedModel) -> None:
    """Remove the quantizer of laconic from `model`, so that transformers treats it as a plain model."""
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(name, None)
    vars(model.config).pop("quantization_config", None)


def densify(model: PreTrainedModel) -> None:
    """Replace formats and layers of experts by dense modules, and restore the shapes of the stock class, in place.

    Raises:
        UserError: a layer has a shape or a bias that the stock class cannot have.
    """
    formats = {paths[0]: (format, paths) for format, paths in outermost_formats(model).items()}
    plain = enable_biases(model, [name for name, (format, _) in formats.items() if format.bias is not None])
    for format, paths in formats.values():
        layers = [_dense_layer(plain, path, format) for path in paths]
        for path, layer in zip(paths, layers, strict=True):
            layer.weight = layers[0].weight
            model.set_submodule(path, layer.train(model.training))
    densify_experts(model, plain)
    _restore_widths(model, plain)
    _restore_ties(model, plain)


def enable_biases(model: PreTrainedModel, layers: Collection[str]) -> PreTrainedModel:
    """Turn on the switches of the configuration that give some layers a bias.

    Other linears that get a bias from the same switch have zeros there.

    Args:
        model: the model; it and its configuration are changed in place.
        layers: paths of the layers that need a bias. A layer for which there is no switch stays without one.

    Returns:
        The stock model of the changed configuration, without weights.
    """
    plain = build_stock(model)
    missing = {path for path in layers if not _has_bias(plain, path)}
    for part, name in _bias_switches(model.config) if missing else ():
        config = copy.deepcopy(model.config)
        _toggle(config, part, name)
        toggled = build_empty(type(model), config)
        added = _added_biases(plain, toggled)
        if added is not None and added & missing:
            _toggle(model.config, part, name)
            plain, missing = toggled, missing - added
            for path in added:
                _add_zero_bias(model.get_submodule(path))
    return plain


def dense_to_linears(model: PreTrainedModel) -> None:
    """Replace each `Dense` format by a plain linear if the stock class can hold it, in place."""
    dense = {paths[0]: (part, paths) for part, paths in outermost_formats(model).items() if isinstance(part, Dense)}
    if not dense:
        return
    plain = enable_biases(model, [name for name, (part, _) in dense.items() if part.bias is not None])
    for name, (part, paths) in dense.items():
        like = plain.get_submodule(name)
        if not isinstance(like, (nn.Linear, Conv1D)) or (part.bias is None) != (like.bias is None):
            continue
        linear = resize_linear(like, part.linear.weight.detach(), None if part.bias is None else part.bias.detach())
        linear.requires_grad_(part.linear.weight.requires_grad)
        for path in paths:
            model.set_submodule(path, linear.train(part.training))


def _bias_switches(config: PreTrainedConfig) -> Iterable[tuple[str, str]]:
    """Every boolean of the configuration with the word bias in its name.

    Yields pairs: the attribute that holds the text part of the configuration ("" for the configuration itself), and
    the name of the boolean.
    """
    text = config.get_text_config()
    parts = {"": config} | {name: part for name, part in vars(config).items() if part is text}
    for path, part in parts.items():
        for name, value in vars(part).items():
            if isinstance(value, bool) and "bias" in name.split("_"):
                yield path, name


def _toggle(config: PreTrainedConfig, part: str, name: str) -> None:
    holder = getattr(config, part) if part else config
    setattr(holder, name, not getattr(holder, name))


def _added_biases(plain: PreTrainedModel, toggled: PreTrainedModel) -> set[str] | None:
    """Paths of the linears that have a bias only in `toggled`; None if the two models differ in anything else."""
    before, after = ({name: p.shape for name, p in model.named_parameters()} for model in (plain, toggled))
    if any(after.get(name) != shape for name, shape in before.items()):
        return None
    paths = {name.rpartition(".")[0] for name in after.keys() - before.keys()}
    return paths if all(_has_bias(toggled, path) for path in paths) else None


def _has_bias(plain: PreTrainedModel, path: str) -> bool:
    module = plain.get_submodule(path)
    return isinstance(module, (nn.Linear, Conv1D)) and module.bias is not None


def _add_zero_bias(module: nn.Module) -> None:
    """Add a bias of zeros to a plain linear without one. Formats are not changed, as they store if they have a bias."""
    if isinstance(module, nn.Linear) and module.bias is None:
        module.bias = nn.Parameter(torch.zeros_like(module.weight[:, 0]), requires_grad=module.weight.requires_grad)


def _restore_widths(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Restore the head size, the number of heads and the number of channels of `plain` by adding zeros."""
    if changed_shapes(model, plain):
        lm, full = LanguageModel.of(model), LanguageModel.of(plain)
        if shrink_obstacle(lm) is None:
            for attention, other in zip(find_attentions(lm), find_attentions(full), strict=True):
                if attention.size != other.size:
                    resize_heads(lm, attention, zero_padding_maps(attention, other.size))
        whole = {group.name: group for group in prunable_groups(full, split_keys=False)}
        for group in prunable_groups(lm):
            if group.is_split:
                _add_parts(lm, group, whole[group.name].heads)
        for group in prunable_groups(lm, split_keys=False):
            _add_parts(lm, group, whole[group.name].count)
    changed = changed_shapes(model, plain)
    for name, entry in changed.items():
        if entry["kind"] == MAPPED:
            replacement = "linear map" if entry["matrix"] else "bias"
            raise UserError(
                f"The norm '{name}' is followed by a {replacement} in place of dropped blocks, which no stock model "
                "can hold; shorten with replace: nothing for one that can."
            )
    for name in changed:
        raise UserError(f"The layer '{name}' has a shape that its class cannot give it, so no stock model can hold it.")


def _add_parts(lm: LanguageModel, group: PrunableGroup, count: int) -> None:
    if group.count < count:
        keep_parts(lm, group, [*range(group.count), *[EMPTY] * (count - group.count)])


@torch.no_grad()
def _dense_layer(plain: PreTrainedModel, path: str, format: Format) -> nn.Module:
    """A copy of the module at `path` in the stock model, with the matrix and the bias of `format`."""
    module, dense, bias = plain.get_submodule(path), format.dense().detach(), format.bias
    if isinstance(module, (nn.Linear, Conv1D)):
        if bias is not None and module.bias is None:
            raise UserError(
                f"The layer '{path}' has a bias and its class has none there, so no stock model can hold it."
            )
        # The linear that the format replaced may have had another shape than in the stock class.
        module = empty_linear(module, format.shape)
    module = module.to_empty(device=dense.device)
    if isinstance(module, nn.Embedding):
        # Gemma's embedding has a scale in a non-persistent buffer, which `_init_weights` sets.
        plain._init_weights(module)
        weight = (dense.T.double() / _embedding_scale(module)).to(dense.dtype)
    else:
        weight = dense.T if isinstance(module, Conv1D) else dense
    module.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone())
    elif isinstance(module, (nn.Linear, Conv1D)) and module.bias is not None:
        # A dropped layer has no bias, but the stock class has one.
        module.bias.zero_()
    return module


def _embedding_scale(module: nn.Embedding) -> Tensor:
    """The factor by which a word embedding multiplies its rows (BART's √width), measured on a table of ones."""
    module.double().weight.fill_(1)
    return module(torch.zeros(1, dtype=torch.long, device=module.weight.device))[0, 0]


def _restore_ties(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Tie the weights of `model` as its class does, or set `tie_word_embeddings` to False in its configuration."""
    declared = plain.all_tied_weights_keys
    broken = {t for t, s in declared.items() if model.get_parameter(t) is not model.get_parameter(s)}
    if broken and _can_untie(model.config):
        model.config.tie_word_embeddings = False
        # The flag is for all ties of a model, so the remaining ties are broken as well, by copying.
        for target in declared.keys() - broken:
            parent, _, name = target.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Parameter(model.get_parameter(target).detach().clone()))
        broken = set(declared)
    # In T5 the flag has another meaning. Both tensors are saved, and transformers ties them only if they are equal.
    copy_ties(model, plain, lambda target, _: target not in broken)


def _can_untie(config: PreTrainedConfig) -> bool:
    """Whether a saved configuration with `tie_word_embeddings: false` differs in nothing else when it is read."""
    untied = {**config.to_dict(), "tie_word_embeddings": False}
    return type(config).from_dict(untied).to_dict() == untied
