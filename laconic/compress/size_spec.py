"""The fields of a step that set its size, and checks that several allocators share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from laconic.allocate import Currency
from laconic.calibrate import GradientStatistic, InputStatistic, Statistic
from laconic.calibrate.passes import USUAL, Workload
from laconic.errors import UserError, must_be
from laconic.methods import Method


@dataclass(frozen=True, kw_only=True)
class SizeSpec:
    """The fields of `Compress` that set the size.

    Args:
        method: the method, with or without a size of its own.
        keep: fraction to keep of all targeted matrices, or a fraction for each group; None if the method has a size.
        currency: what `keep` counts.
        error: allowed KL divergence, in nats per prediction.
        workload: the forward pass that is timed.
        sequential: the layers are solved in order, on inputs with the errors of earlier layers.
    """

    method: Method
    keep: float | Mapping[str, float] | None
    currency: Currency
    error: float | None
    workload: Workload
    sequential: bool


def check_size(size_spec: SizeSpec) -> None:
    """Raise UserError unless the size is given exactly once: by `keep`, or by the method."""
    name = size_spec.method.name
    if size_spec.keep is None and not size_spec.method.has_size:
        raise UserError(
            f"The method '{name}' needs a size: give keep, or a size of its own like rank, sparsity or bits."
        )
    if size_spec.keep is not None and size_spec.method.has_size:
        raise UserError(f"The method '{name}' says its own size, so keep must be left out; got {size_spec.keep}.")


def check_unused(size_spec: SizeSpec) -> None:
    """Raise UserError if an error, a currency or a workload is given although the allocator does not use it."""
    if size_spec.error is not None:
        raise must_be("error", "left out unless allocate is threshold", size_spec.error)
    if size_spec.currency != "bytes":
        raise must_be("currency", "left out unless allocate is spectrum", size_spec.currency)
    check_workload(size_spec)


def check_workload(size_spec: SizeSpec) -> None:
    """Raise UserError if a workload is given although nothing is timed."""
    if size_spec.workload != USUAL:
        raise must_be(
            "workload", "left out unless time counts: currency latency, or allocate threshold", size_spec.workload
        )


def uses_inputs(methods: Iterable[Method]) -> bool:
    """Return whether any of the methods needs input statistics, which depend on earlier layers."""
    return any(issubclass(kind, InputStatistic) for method in methods for kind in method.required_statistics)


def check_sequential(sequential: bool, anchored: bool, refresh: int | None, methods: Sequence[Method]) -> None:
    """Raise UserError if `sequential` has no effect, because no method uses input statistics.

    Args:
        sequential: the field of `Compress`.
        anchored: likewise; anchored calibration always uses the inputs.
        refresh: likewise; it also gives `sequential` an effect.
        methods: the methods of the step.
    """
    if sequential and not anchored and refresh is None and methods and not uses_inputs(methods):
        named = ", ".join(dict.fromkeys(f"'{method.name}'" for method in methods))
        raise UserError(f"sequential must be left out, because {named} looks at no inputs; anchored has a use for it.")


def check_refresh(refresh: int | None, sequential: bool, needs: frozenset[type[Statistic]]) -> None:
    """Raise UserError if `refresh` is given without sequential solving, or if `needs` has no gradient statistic."""
    if refresh is None:
        return
    if not sequential:
        raise UserError("refresh must be left out, or come with sequential or anchored, which have stages.")
    if not any(issubclass(kind, GradientStatistic) for kind in needs):
        raise must_be("refresh", "left out where no gradients are asked for", refresh)
