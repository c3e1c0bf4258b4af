"""Remove experts of a mixture.

A class of transformers has the same number of experts in every block, which its configuration gives. So experts are
removed from all blocks at once: rows of the router, matrices of the experts, and the attributes and keys of the
configuration that count them.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from laconic.errors import UserError, reason_of
from laconic.formats import ExpertLayer
from laconic.model.enumeration import is_below
from laconic.model.lm import LanguageModel
from laconic.model.mixture import (
    COUNT_KEYS,
    PER_TOKEN_ATTRIBUTES,
    PER_TOKEN_KEYS,
    Mixture,
    experts_paths,
    find_mixtures,
    first_number,
)
from laconic.model.stock import MODEL_ERRORS, build_stock, differences, modules_by_path, text_config
from laconic.model.usage import trace_usage

COUNT_ATTRIBUTES = (*COUNT_KEYS, "out_features")
"""The attributes that count them in the modules of a mixture."""


def count_kept(mixture: Mixture, keep: float) -> int:
    """Return the number of experts that stay: the nearest to a fraction of them, the same in each group.

    Args:
        mixture: the experts.
        keep: the fraction, in (0, 1].
    """
    each = mixture.count // mixture.groups
    return mixture.groups * max(min(mixture.fewest_per_group, each), int(keep * each + 0.5))


def count_per_token(mixture: Mixture, kept: int) -> int:
    """Return the number of experts that read a token if `kept` of them stay: at most as many as can be selected."""
    return min(mixture.per_token, mixture.groups_per_token * (kept // mixture.groups))


def describe_kept(mixture: Mixture, keep: float) -> str | None:
    """Say how many experts stay, if that is not the nearest number to the fraction, or if fewer read a token.

    Args:
        mixture: the experts before the removal.
        keep: the fraction of the experts that stays.

    Returns:
        One sentence; None if there is nothing to say.
    """
    count, kept, each = mixture.count, count_kept(mixture, keep), mixture.count // mixture.groups
    asked, per_token = int(keep * count + 0.5), count_per_token(mixture, kept)
    reason = ""
    if kept > asked and kept == mixture.groups * min(mixture.fewest_per_group, each):
        groups = f"each of its {mixture.groups} groups" if mixture.groups > 1 else "them"
        scored = f"its router scores {groups} by the {mixture.fewest_per_group} best experts"
        reason = ", because " + (scored if mixture.fewest_per_group > 1 else "at least one must stay")
    elif kept != asked:
        reason = f", because each of its {mixture.groups} groups keeps the same number"
    fewer = ""
    if per_token < mixture.per_token:
        fewer = f"; {per_token} expert{'s' if per_token > 1 else ''} in place of {mixture.per_token} read a token"
    if not (reason or fewer):
        return None
    return f"narrow:experts={keep:g} keeps {kept} of {count} experts of each block{reason}{fewer}."


def check_removable(lm: LanguageModel, keep: float) -> None:
    """Check that experts can be removed.

    Args:
        lm: the model.
        keep: the fraction of the experts that stays.

    Raises:
        UserError: the model has no experts, they are compressed already, or its class cannot be built with fewer.
    """
    model_type, mixtures = lm.model.config.model_type, find_mixtures(lm.model)
    paths = experts_paths(lm.model)
    if not paths:
        has_experts = (first_number([vars(text_config(lm.model.config))], COUNT_KEYS) or 0) > 1
        reason = "computes its experts by code of its own, from which none can be removed"
        raise UserError(f"This '{model_type}' {reason if has_experts else 'has no experts'}; leave out experts.")
    if unknown := sorted(set(paths) - {mixture.path for mixture in mixtures}):
        raise UserError(f"The router of '{unknown[0]}' is not known, so no expert can be removed; leave out experts.")
    for mixture in mixtures:
        if isinstance(mixture.experts, ExpertLayer):
            raise UserError(f"The experts '{mixture.path}' are compressed already; remove experts before that.")
        # A table of the experts of each token would name experts that are gone.
        if any(not tensor.is_floating_point() for tensor in (*mixture.router.parameters(), *mixture.router.buffers())):
            raise UserError(f"The router of '{mixture.path}' selects experts by a table, so none can be removed.")
    counts = sorted({mixture.count for mixture in mixtures})
    if len(counts) > 1:
        raise UserError(
            f"The blocks of this '{model_type}' have different numbers of experts ({', '.join(map(str, counts))}), so "
            "the same number cannot stay in all of them; leave out experts."
        )
    _check_buildable(lm, keep)


def can_lose_experts(lm: LanguageModel) -> bool:
    """Whether half of the experts of a model can be removed."""
    try:
        check_removable(lm, 0.5)
    except UserError:
        return False
    return True


def _check_buildable(lm: LanguageModel, keep: float) -> None:
    """Raise UserError if the class of the model would not build its experts and routers with fewer experts."""
    trial = lm.to_meta()
    mixtures = find_mixtures(trial.model)
    keep_experts(trial, {mixture.path: range(count_kept(mixture, keep)) for mixture in mixtures})
    try:
        stock = modules_by_path(build_stock(trial.model))
    except MODEL_ERRORS as error:
        raise UserError(
            f"The class '{type(lm.model).__name__}' cannot be built with fewer experts ({reason_of(error)}); leave out "
            "experts."
        ) from error
    parts = {id(part) for mixture in mixtures for part in mixture.parts}
    actual = {path: module for path, module in modules_by_path(trial.model).items() if id(module) in parts}
    for difference in differences(actual, {path: stock[path] for path in actual if path in stock}):
        raise UserError(
            f"Experts cannot be removed from '{lm.model.config.model_type}', because its class would build another "
            f"model: {difference}; leave out experts."
        )
    if trace_usage(lm.model) is not None and trace_usage(trial.model) is None:
        raise UserError(
            f"The class '{type(lm.model).__name__}' cannot be run with {count_kept(mixtures[0], keep)} experts in a "
            "block; leave out experts."
        )
    for mixture in find_mixtures(trial.model):
        if mixture.per_token > mixture.count:
            raise UserError(
                f"The router of '{mixture.path}' sends each token to {mixture.per_token} experts, whatever its "
                f"configuration says, and {mixture.count} would stay; keep at least {mixture.per_token} with a larger "
                "experts."
            )


@torch.no_grad()
def keep_experts(lm: LanguageModel, kept: Mapping[str, Sequence[int]]) -> None:
    """Keep some experts of every block, in place, with their rows of the router.

    A token is then read by at most as many experts as the router can select.

    Args:
        lm: the model, which has equally many experts in all blocks.
        kept: the numbers of the experts that stay, ascending, by `Mixture.path`; equally many in every block.
    """
    mixtures = find_mixtures(lm.model)
    blocks = [path for _, found in lm.stacks() for path, _ in found]
    for mixture in mixtures:
        block = next((path for path in blocks if is_below(mixture.path, path)), mixture.path)
        chosen = torch.as_tensor(list(kept[mixture.path]), device=lm.device)
        with lm.on_loan(block):
            for part in mixture.parts:
                _select_experts(part, mixture.count, chosen)
            lm.write_back(block)
    first = mixtures[0]
    count = len(kept[first.path])
    per_token = count_per_token(first, count)
    for part in (part for mixture in mixtures for part in mixture.parts):
        _set_counts(part, COUNT_ATTRIBUTES, first.count, count)
        _set_counts(part, PER_TOKEN_ATTRIBUTES, first.per_token, per_token)
    models = [part for part in lm.model.modules() if isinstance(part, PreTrainedModel)]
    for holder in (*models, *{id(part.config): part.config for part in models}.values()):
        _set_counts(holder, COUNT_KEYS, first.count, count)
        _set_counts(holder, PER_TOKEN_KEYS, first.per_token, per_token)


def _select_experts(module: nn.Module, count: int, chosen: Int[Tensor, " kept"]) -> None:
    """Select experts in the tensors of the module itself that have a dimension of `count`."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if count in parameter.shape:
            selected = parameter.index_select(parameter.shape.index(count), chosen)
            module.register_parameter(name, nn.Parameter(selected, requires_grad=parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if count in buffer.shape:
            persistent = name not in module._non_persistent_buffers_set
            module.register_buffer(name, buffer.index_select(buffer.shape.index(count), chosen), persistent)


def _set_counts(holder: object, names: Sequence[str], before: int, now: int) -> None:
    for name in names:
        if vars(holder).get(name) == before:
            setattr(holder, name, now)
