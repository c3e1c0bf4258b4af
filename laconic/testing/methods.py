"""Checks for a method: its parameters, and the size, values and predicted loss of its results."""

import json
from collections.abc import Callable
from dataclasses import fields

import torch

from laconic.calibrate import GradCovariance, InputCovariance, LayerStats, Statistic
from laconic.errors import UserError
from laconic.methods import Method
from laconic.methods.base import LOSS_STATISTICS
from laconic.methods.registry import has_methods, to_config
from laconic.numerics.moments import quadratic_loss
from laconic.testing.formats import expect
from laconic.testing.matrices import MATRICES, Matrix, random_matrix
from laconic.typed import construct

SHAPE = (24, 40)


def check_method(method: Method) -> None:
    """Check that a method satisfies the requirements of `laconic.methods.Method`.

    It calls every function of `METHOD_CHECKS`; their docstrings state the requirements. The matrices are small, so that
    low-rank methods need `multiple=1`.

    Args:
        method: a method without a size.

    Raises:
        AssertionError: a requirement is not met.

    Example:
        >>> from laconic.methods import Magnitude
        >>> check_method(Magnitude())
    """
    for check in METHOD_CHECKS:
        check(method)


def _matrices(method: Method) -> list[Matrix]:
    """`MATRICES`, with the statistics that the method defines itself."""
    return [matrix.with_kinds(method.required_statistics) for matrix in MATRICES]


def _matrix(method: Method) -> Matrix:
    """One random matrix with the statistics of the method."""
    return random_matrix("random", SHAPE).with_kinds(method.required_statistics)


def check_names(method: Method) -> None:
    """It has a name in lower case, a family, a paper and a docstring."""
    expect(bool(method.name) and method.name == method.name.lower(), f"the name {method.name!r} is not in lower case")
    for part in ("family", "paper"):
        expect(bool(getattr(method, part)), f"'{method.name}' has no {part}")
    expect(bool((type(method).__doc__ or "").strip()), f"'{method.name}' has no docstring")


def check_parameters(method: Method) -> None:
    """It is a frozen dataclass, and all parameters are keyword-only and have defaults."""
    kind = type(method)
    # Python lets no other dataclass derive from a frozen one.
    expect("__dataclass_fields__" in vars(kind), f"{kind.__name__} is no frozen dataclass")
    expect(all(field.kw_only for field in fields(kind)), f"{kind.__name__} takes parameters without their names")
    expect(kind().name == method.name, f"{kind.__name__} cannot be made without parameters")


def check_recipe_entry(method: Method) -> None:
    """Its configuration in a recipe, written as JSON and read again, gives an equal method."""
    ((name, parameters),) = to_config(method).items()
    parts = {
        key: getattr(method, key) if has_methods(getattr(method, key)) else value
        for key, value in json.loads(json.dumps(parameters)).items()
    }
    expect(construct(type(method), parts, name) == method, f"{parameters} is read as another '{name}'")


def check_size(method: Method) -> None:
    """The result has at most the requested bytes (or the smallest possible size), the dtype of the matrix, no NaN."""
    for matrix in _matrices(method):
        shape, dtype = matrix.weight.shape, matrix.weight.dtype
        for keep in (0.7, 0.3):
            sized = method.with_keep(keep, (shape[0], shape[1]), dtype)
            result = sized.compress(matrix.weight, matrix.stats)
            where = f"'{method.name}' at keep {keep} ({matrix.name})"
            expect(result.shape == tuple(shape), f"{where} gives the shape {result.shape}")
            smallest = sized == method.with_keep(1e-6, (shape[0], shape[1]), dtype)
            expect(result.nbytes() <= keep * matrix.weight.nbytes or smallest, f"{where} takes {result.nbytes()} bytes")
            dense = result.dense()
            expect(dense.dtype == dtype, f"{where} gives {dense.dtype}")
            expect(bool(torch.isfinite(dense).all()), f"{where} gives NaN or infinity")


def check_result_forward(method: Method) -> None:
    """`forward` of the result multiplies by its `dense()`."""
    matrix = _matrix(method)
    result = method.with_keep(0.5, SHAPE).compress(matrix.weight, matrix.stats)
    x = torch.randn(5, SHAPE[1], generator=torch.Generator().manual_seed(0))
    expect(torch.allclose(result(x), x @ result.dense().T, atol=1e-5), f"'{method.name}' multiplies by another matrix")


def check_meta_format(method: Method) -> None:
    """`meta_format` is the format of the result, on the meta device."""
    matrix = _matrix(method)
    for keep in (0.7, 0.4):
        sized = method.with_keep(keep, SHAPE)
        made, form = sized.compress(matrix.weight, matrix.stats), sized.meta_format(SHAPE)
        where = f"meta_format of '{method.name}' at keep {keep}"
        expect({tensor.device.type for tensor in form.parameters()} == {"meta"}, f"{where} is not on the meta device")
        for name, predicted, actual in (
            ("kind", form.kind, made.kind),
            ("spec", form.spec(), made.spec()),
            ("bytes", form.nbytes(), made.nbytes()),
            ("zeros", form.support is None, made.support is None),
        ):
            expect(predicted == actual, f"{where} has another {name}: {predicted} in place of {actual}")
        expect(method.meta_format(SHAPE).kind == form.kind, f"{where} is of another kind where no size is set")


def check_determinism(method: Method) -> None:
    """The same matrix twice gives the same result, to the last bit."""
    matrix = _matrix(method)
    first, second = (method.with_keep(0.5, SHAPE).compress(matrix.weight, matrix.stats).dense() for _ in range(2))
    expect(torch.equal(first, second), f"'{method.name}' gives two results for one matrix")


def check_needs(method: Method) -> None:
    """It reads no other statistics than `required_statistics`, and in `candidates` those of the predicted loss."""
    matrix = _matrix(method)

    def only(kinds: frozenset[type[Statistic]]) -> LayerStats:
        return LayerStats(statistic for statistic in matrix.stats if type(statistic) in kinds)

    needed = method.required_statistics
    try:
        method.with_keep(0.5, SHAPE).compress(matrix.weight, only(needed))
        method.candidates(matrix.weight, only(needed | LOSS_STATISTICS))
    except UserError as error:
        raise AssertionError(f"'{method.name}' fails with the statistics that it needs: {error}") from error


def check_weight_unchanged(method: Method) -> None:
    """The input matrix does not change."""
    matrix = _matrix(method)
    before = matrix.weight.clone()
    method.with_keep(0.5, SHAPE).compress(matrix.weight, matrix.stats)
    expect(torch.equal(matrix.weight, before), f"'{method.name}' changes the matrix that it is given")


def check_candidates(method: Method) -> None:
    """The candidates are the dense matrix and smaller ones, each with its true size and loss ½ tr(F E C E^T)."""
    for matrix in _matrices(method):
        offered = method.candidates(matrix.weight, matrix.stats)
        where = f"candidates of '{method.name}' ({matrix.name})"
        dense = [candidate for candidate in offered.all if candidate.method is None]
        expect(len(dense) == 1, f"{where} hold the dense matrix {len(dense)} times")
        expect((dense[0].loss, dense[0].nbytes) == (0, matrix.weight.nbytes), f"{where}: the dense one is {dense[0]}")
        for candidate in offered.all[:-1:5]:
            expect(candidate.method is not None, f"{where} do not end with the dense matrix")
            assert candidate.method is not None
            result = candidate.method.compress(matrix.weight, matrix.stats)
            error = matrix.weight.double() - result.dense().double()
            truth = quadratic_loss(error, matrix.stats[GradCovariance].matrix, matrix.stats[InputCovariance].matrix)
            # Half-precision factors add a rounding error that the prediction leaves out.
            slack = 5e-2 if matrix.weight.dtype == torch.float16 else 1e-3
            expect(
                result.nbytes() == candidate.nbytes < dense[0].nbytes,
                f"{where}: {candidate.nbytes} bytes are predicted, and the result has {result.nbytes()}",
            )
            expect(
                abs(candidate.loss - float(truth)) <= max(slack * abs(float(truth)), 1e-6),
                f"{where}: a loss of {candidate.loss} is predicted, and it is {float(truth)}",
            )


def check_loss_order(method: Method) -> None:
    """The last candidate loses nothing, the first something, and the one before the last no more than the first."""
    matrix = _matrix(method)
    losses = [candidate.loss for candidate in method.candidates(matrix.weight, matrix.stats).all]
    expect(losses[-1] == 0 < losses[0], f"the losses of '{method.name}' do not end at 0: {losses}")
    expect(len(losses) == 2 or losses[-2] < losses[0], f"the losses of '{method.name}' do not fall: {losses}")


METHOD_CHECKS: tuple[Callable[[Method], None], ...] = (
    check_names,
    check_parameters,
    check_recipe_entry,
    check_weight_unchanged,
    check_needs,
    check_size,
    check_determinism,
    check_result_forward,
    check_meta_format,
    check_candidates,
    check_loss_order,
)
"""The functions that `check_method` calls, in this order; a test can be parametrized over them."""
