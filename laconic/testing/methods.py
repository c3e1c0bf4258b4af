"""Checks for a method: its parameters, and the size, values and predicted loss of its results."""

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass

import torch

from laconic.calibrate import GradCovariance, InputCovariance
from laconic.methods import Method
from laconic.methods.registry import to_config
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


def names_itself(method: Method) -> None:
    """It has a name in lower case, a family, a paper and a docstring."""
    expect(bool(method.name) and method.name == method.name.lower(), f"the name {method.name!r} is not in lower case")
    for part in ("family", "paper"):
        expect(bool(getattr(method, part)), f"'{method.name}' has no {part}")
    expect(bool((type(method).__doc__ or "").strip()), f"'{method.name}' has no docstring")


def has_defaults(method: Method) -> None:
    """It is a frozen dataclass, and all parameters are keyword-only and have defaults."""
    kind = type(method)
    expect(is_dataclass(kind) and kind.__dataclass_params__.frozen, f"{kind.__name__} is no frozen dataclass")  # type: ignore[attr-defined]
    expect(all(field.kw_only for field in fields(kind)), f"{kind.__name__} takes parameters without their names")
    expect(kind().name == method.name, f"{kind.__name__} cannot be made without parameters")


def is_a_line_of_a_recipe(method: Method) -> None:
    """Its configuration in a recipe, written as JSON and read again, gives an equal method."""
    ((name, parameters),) = to_config(method).items()
    parts = {
        key: getattr(method, key) if isinstance(getattr(method, key), Method) else value
        for key, value in json.loads(json.dumps(parameters)).items()
    }
    expect(construct(type(method), parts, name) == method, f"{parameters} is read as another '{name}'")


def keeps_its_size(method: Method) -> None:
    """The result has at most the requested bytes (or the smallest possible size), the dtype of the matrix, no NaN."""
    for matrix in MATRICES:
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


def multiplies_by_its_dense_matrix(method: Method) -> None:
    """`forward` of the result multiplies by its `dense()`."""
    matrix = random_matrix("forward", SHAPE)
    result = method.with_keep(0.5, SHAPE).compress(matrix.weight, matrix.stats)
    x = torch.randn(5, SHAPE[1], generator=torch.Generator().manual_seed(0))
    expect(torch.allclose(result(x), x @ result.dense().T, atol=1e-5), f"'{method.name}' multiplies by another matrix")


def foretells_its_format(method: Method) -> None:
    """`meta_format` is the format of the result, on the meta device."""
    matrix = random_matrix("format", SHAPE)
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


def is_deterministic(method: Method) -> None:
    """The same matrix twice gives the same result, to the last bit."""
    matrix = random_matrix("twice", SHAPE)
    first, second = (method.with_keep(0.5, SHAPE).compress(matrix.weight, matrix.stats).dense() for _ in range(2))
    expect(torch.equal(first, second), f"'{method.name}' gives two results for one matrix")


def leaves_its_input_alone(method: Method) -> None:
    """The input matrix does not change."""
    matrix = random_matrix("untouched", SHAPE)
    before = matrix.weight.clone()
    method.with_keep(0.5, SHAPE).compress(matrix.weight, matrix.stats)
    expect(torch.equal(matrix.weight, before), f"'{method.name}' changes the matrix that it is given")


def predicts_its_loss(method: Method, matrices: tuple[Matrix, ...] = MATRICES) -> None:
    """The candidates are the dense matrix and smaller ones, each with its true size and loss ½ tr(F E C E^T)."""
    for matrix in matrices:
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


def loses_less_with_more_bytes(method: Method) -> None:
    """The last candidate loses nothing, the first something, and the one before the last no more than the first."""
    matrix = random_matrix("falling", SHAPE)
    losses = [candidate.loss for candidate in method.candidates(matrix.weight, matrix.stats).all]
    expect(losses[-1] == 0 < losses[0], f"the losses of '{method.name}' do not end at 0: {losses}")
    expect(len(losses) == 2 or losses[-2] < losses[0], f"the losses of '{method.name}' do not fall: {losses}")


METHOD_CHECKS: tuple[Callable[[Method], None], ...] = (
    names_itself,
    has_defaults,
    is_a_line_of_a_recipe,
    leaves_its_input_alone,
    keeps_its_size,
    is_deterministic,
    multiplies_by_its_dense_matrix,
    foretells_its_format,
    predicts_its_loss,
    loses_less_with_more_bytes,
)
"""The functions that `check_method` calls, in this order; a test can be parametrized over them."""
