"""The size of a step, checks of it before any work, and entries of the record about sizes and dense layers."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

import torch

from laconic.allocate import Currency, Plan, check_overhead
from laconic.allocate.uniform import CLOSE
from laconic.calibrate import GradientStatistic, InputStatistic, SequentialConfig, Statistic
from laconic.calibrate.block_pass import embedding_obstacle
from laconic.calibrate.passes import DEFAULT_WORKLOAD, Workload
from laconic.compress.fitted import fit_method, solved_shape, warn_of_other_blocks
from laconic.compress.shared_budget import split_budget
from laconic.compress.solve_groups import LayerSet, SolveGroup, methods_by_group
from laconic.compress.step import Step
from laconic.errors import Notice, UserError, must_be
from laconic.formats import PackedCodes, PackedEmbedding
from laconic.methods import AnyOf, Method
from laconic.methods.quantize.base import QuantizationMethod
from laconic.model import Group, LanguageModel, Site
from laconic.model.targets import MAX_DENSE_SHARE, Coverage

DENSE, REACHED = "dense", "reached"
"""Keys in the record of a step: dense parameters, and budgets that were not spent."""


class SizeSpec(Protocol):
    """The fields of `Compress` that set the size, as allocators read them.

    Args:
        method: the method, with or without a size of its own.
        keep: fraction to keep of all targeted matrices, or a fraction for each group; None if the method has a size.
        currency: the unit of `keep`.
        error: allowed KL divergence, in nats per prediction.
        workload: the forward pass that is timed.
        is_sequential: True if the layers are solved in order, on inputs with the errors of earlier layers.
    """

    @property
    def method(self) -> Method: ...
    @property
    def keep(self) -> float | Mapping[str, float] | None: ...
    @property
    def currency(self) -> Currency: ...
    @property
    def error(self) -> float | None: ...
    @property
    def workload(self) -> Workload: ...
    @property
    def is_sequential(self) -> bool: ...


def check_size(size_spec: SizeSpec) -> None:
    """Raise UserError unless the size is given exactly once: by `keep`, or by the method."""
    name = size_spec.method.name
    if size_spec.keep is None and not size_spec.method.has_size:
        raise UserError(
            f"The method '{name}' needs a size: give keep, or a parameter of the method like rank, sparsity or bits."
        )
    if size_spec.keep is not None and size_spec.method.has_size:
        raise keep_error(size_spec.method, size_spec.keep)


def check_overheads(
    method: Method, keep: float | Mapping[str, float], layer_sets: Sequence[LayerSet], dtype: torch.dtype
) -> None:
    """Raise UserError if what every size of the method takes, such as masks, uses up a budget.

    Args:
        method: the method.
        keep: the fraction of bytes to keep, or one fraction for each group.
        layer_sets: the targeted layers.
        dtype: the dtype that the model is stored in.
    """
    for budget in split_budget(keep, layer_sets):
        with budget.in_errors():
            check_overhead(method, budget.keep, dtype)


def keep_error(method: Method, keep: object) -> UserError:
    """Return the error for a `keep` beside a method that has a size of its own."""
    unset = method.without_size()
    names = [field.name for field in fields(method) if getattr(method, field.name) != getattr(unset, field.name)]
    size = f"set by {' and '.join(names)}" if names else "fixed"
    return UserError(f"keep does not apply to '{method.name}': its size is {size}. Leave keep out; got {keep}.")


def check_unused(size_spec: SizeSpec) -> None:
    """Raise UserError if an error, a currency or a workload is given although the allocator does not use it."""
    if size_spec.error is not None:
        raise must_be("error", "left out unless allocate is threshold", size_spec.error)
    if size_spec.currency != "bytes":
        raise must_be("currency", "left out unless allocate is spectrum", size_spec.currency)
    check_workload(size_spec)


def check_workload(size_spec: SizeSpec) -> None:
    """Raise UserError if a workload is given although nothing is timed."""
    if size_spec.workload != DEFAULT_WORKLOAD:
        raise must_be("workload", "left out unless currency is latency or allocate is threshold", size_spec.workload)


def uses_inputs(methods: Iterable[Method]) -> bool:
    """Return whether any of the methods needs input statistics, which depend on earlier layers."""
    return any(issubclass(kind, InputStatistic) for method in methods for kind in method.required_statistics)


def check_sequential(config: SequentialConfig, needs: frozenset[type[Statistic]], methods: Sequence[Method]) -> None:
    """Raise UserError if sequential calibration or its `refresh` would have no effect.

    Anchored calibration always has an effect. Otherwise a method must use input statistics, or `refresh` must be given.

    Args:
        config: the settings of sequential calibration.
        needs: the types of statistics that are collected.
        methods: the methods of the step.
    """
    if config.refresh is not None and not any(issubclass(kind, GradientStatistic) for kind in needs):
        raise must_be("refresh", "left out if no gradient statistics are collected", config.refresh)
    if not config.anchored and config.refresh is None and methods and not uses_inputs(methods):
        quoted = ", ".join(dict.fromkeys(f"'{method.name}'" for method in methods))
        raise UserError(f"sequential has no effect, because {quoted} uses no inputs; leave it out, or use anchored.")


def check_dense(coverage: Coverage, lm: LanguageModel, targets: Sequence[str]) -> None:
    """Raise UserError if more than `MAX_DENSE_SHARE` of the targeted parameters are in no layer that can be compressed.

    Args:
        coverage: the targeted parameters of the blocks.
        lm: the model, for the message.
        targets: the targets of the step, for the message.
    """
    if coverage.share > MAX_DENSE_SHARE:
        raise UserError(
            f"targets: {coverage.share:.1%} of the parameters that {', '.join(targets)} select in the blocks of "
            f"'{lm.model.config.model_type}' ({coverage.count:,d} of {coverage.total:,d}) are in no layer that can be "
            f"compressed and would stay dense: {coverage.named}; compress only the others with allow_dense: true "
            "(--allow-dense), or name other targets."
        )


def dense_share(coverage: Coverage) -> dict[str, Any]:
    """List the targeted parameters of the blocks that no step can compress, for the record of a step.

    The router of a mixture is such a parameter.

    Args:
        coverage: the targeted parameters of the blocks.

    Returns:
        `{"dense": {"parameters": 12288, "of": 13200, "share": 0.931, "names": ["mlp.experts.gate_up_proj"]}}`, or an
            empty dictionary if there are none.
    """
    if not coverage.dense:
        return {}
    return {
        DENSE: {
            "parameters": coverage.count,
            "of": coverage.total,
            "share": round(coverage.share, 4),
            "names": list(coverage.kinds),
        }
    }


def check_layers(layer_sets: Sequence[LayerSet], method: Method, plan: Plan | None) -> None:
    """Check that the method of each targeted layer can be applied to it.

    Args:
        layer_sets: the targeted layers.
        method: the method of the step.
        plan: the method of each group by name, in place of `method`.

    Raises:
        UserError: a layer is quantized already, its method would fill the zeros of earlier pruning, or its shape does
            not suit the method.
    """
    for site in _one_of_each_unit(site for layer_set in layer_sets for site in layer_set.sites):
        if isinstance(site.module, (PackedCodes, PackedEmbedding)):
            raise UserError(
                f"The layer '{site.unit}' is quantized already; put this step before the one that quantizes, "
                f"or choose other targets."
            )
    pairs = list(methods_by_group(layer_sets, method, plan))
    for site, chosen in ((site, chosen) for group, chosen in pairs for site in _one_of_each_unit(group.sites)):
        if chosen.fills_zeros and site.support is not None:
            raise UserError(
                f"The layer '{site.unit}' is pruned, and '{chosen.name}' would fill its zeros; "
                f"prune after '{chosen.name}', or choose other targets."
            )
        if site.is_lookup and not chosen.stores_lookups:
            raise UserError(
                f"The word embedding '{site.unit}' cannot be stored in blocks and a low-rank part; "
                f"leave out grid of the base of '{chosen.name}' there, or choose other targets."
            )
    for group, chosen in pairs:
        if error := fit_method(group, chosen).shape_error(solved_shape(group, chosen), f"'{group.name}'"):
            raise error
    _warn_of_group_size(pairs)
    warn_of_other_blocks(pairs)


def _one_of_each_unit(sites: Iterable[Site]) -> Iterable[Site]:
    """One layer of each stack of experts, which all have one format, and every other layer."""
    return {site.unit: site for site in sites}.values()


def _warn_of_group_size(pairs: Sequence[tuple[SolveGroup, Method]]) -> None:
    """Warn if a `group_size` that the user set is larger than the width of a matrix, so each row is one group."""
    too_large = [
        (group, method.group_size)
        for group, method in pairs
        if isinstance(method, QuantizationMethod) and isinstance(method.group_size, int)
        if method.group_size > group.shape[1] and method.group_size != type(method).group_size
    ]
    if too_large:
        group, columns = too_large[0]
        others = f" and of {len(too_large) - 1} other matrices" if len(too_large) > 1 else ""
        warnings.warn(
            f"group_size {columns} is more than the {group.shape[1]} columns of '{group.name}'{others}: "
            "each row is one group there.",
            Notice,
            stacklevel=2,
        )


def shortfall(
    keep: float | Mapping[str, float], layer_sets: Sequence[LayerSet], after: Mapping[str, int], dtype: torch.dtype
) -> dict[str, Any]:
    """List the budgets of which more than 1 % was left unspent, because the sizes of the method are too coarse.

    Args:
        keep: the fraction of bytes to keep, or one fraction for each group.
        layer_sets: the targeted layers.
        after: bytes of each layer after the step.
        dtype: the dtype that the model is stored in.

    Returns:
        `{"reached": [{"keep": 0.5, "kept": 0.26}]}` with one entry for each such budget, or an empty dictionary.
    """
    lines = []
    for budget in split_budget(keep, layer_sets):
        sites = [site for layer_set in budget.layer_sets for site in layer_set.sites]
        dense = sum(site.shape[0] * site.shape[1] for site in sites) * dtype.itemsize
        reached = sum(after[unit] for unit in dict.fromkeys(site.unit for site in sites)) / dense
        if reached < (1 - CLOSE) * budget.keep:
            lines.append({"keep": budget.keep, "kept": round(reached, 4)})
    return {REACHED: lines} if lines else {}


def whole_model_reason(
    size_spec: SizeSpec, allocate: str, anchored: bool, needs: Iterable[type[Statistic]], plans_first: bool
) -> str | None:
    """The reason why a step needs the whole model in memory, and a remedy, as clauses; None if one block suffices.

    Args:
        size_spec: the method, the size and the order of the step.
        allocate: how the budget is shared.
        anchored: whether each layer is fitted to the outputs of the original model.
        needs: the statistics that it collects.
        plans_first: whether its plan needs statistics.
    """
    if isinstance(size_spec.method, AnyOf):
        return f"method: {size_spec.method.name} compares copies of the whole model; choose one of its methods"
    if allocate in ("threshold", "global"):
        return f"allocate: {allocate} compares all matrices at once; choose uniform or spectrum"
    if size_spec.currency == "latency":
        return "currency: latency times the whole model; choose another currency"
    if anchored:
        return "anchored runs the original model beside the compressed one; leave out anchored"
    if size_spec.is_sequential and (plans_first or any(issubclass(kind, GradientStatistic) for kind in needs)):
        return "sequential collects the gradients of the whole model first; leave out sequential"
    return None


def embedding_reason(step: Step, lm: LanguageModel, in_order: bool) -> str | None:
    """The reason why a targeted embedding cannot be streamed, and a remedy, as clauses; None if it can.

    Both stacks of an encoder-decoder follow the embedding, and each runs block by block on its own.

    Args:
        step: the step.
        lm: the model before the step; its weights need not be loaded.
        in_order: whether later blocks are measured on inputs with the errors of earlier ones.
    """
    with_gradients = any(issubclass(kind, GradientStatistic) for kind in step.needs)
    if not (in_order or with_gradients) or len(list(lm.stacks())) < 2:
        return None
    name = next((site.name for site in step.sites(lm) if site.group is Group.EMBEDDING), None)
    return None if name is None else embedding_obstacle(name, with_gradients)
