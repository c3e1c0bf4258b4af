"""Choose the fastest kernel for products with a matrix of codes, and keep the kernels that a layer has called.

The choice is measured once for each shape and kept in a file.

The file belongs to one processor, its instructions, the number of threads and the version of torch. Kernels run in
turn, round by round, so that a load on the machine affects all of them equally. With few rows the caches are
overwritten before each run, as other layers do in a model. The time of a kernel is its fastest run.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

from laconic.cache import machine_file, read_measurements, write_measurements
from laconic.formats.kernels import DECODED, DENSE, DTYPES, DenseKernel, Kernel, KernelFamily, working_kernels
from laconic.system import processor, short_numbers

SMALL = 2**16
"""With fewer weights, the call takes longer than the product."""
ROWS = (1, 4, 16, 64, 256, 1024)
"""Numbers of rows that are measured; others use the next larger one, or the last."""
FEW_ROWS = 64
"""With at most this many rows, reading the matrix takes much of the time."""
CACHES = 2**26
"""Bytes that are written before each run with few rows."""
ROUNDS, MIN_ROUNDS, MAX_SECONDS = 15, 3, 1.5
"""Largest and smallest number of rounds, and the seconds after which no further round begins."""
DROP_FACTOR = 1.5
"""A kernel this many times slower than the fastest is dropped after two rounds."""
TIME_TOLERANCE = 1.05
"""Relative uncertainty of the fastest of several times."""
_DECODING: ContextVar[bool] = ContextVar("laconic-decoding", default=False)
"""Whether every product decodes its matrix."""


class Choice(NamedTuple):
    """The name of the fastest kernel, and how many times faster than a dense layer it is."""

    kernel: str
    speedup: float


class ProductShape(NamedTuple):
    """Sizes of a product: `rows` of inputs times a matrix (out, in)."""

    rows: int
    out_features: int
    in_features: int
    dtype: torch.dtype


def autotune(family: KernelFamily[Any], rows: int, shape: tuple[int, int], dtype: torch.dtype) -> Choice:
    """The fastest kernel for a product on this machine with the present number of threads, measured at the first call.

    Args:
        family: the kernels for this kind of matrix.
        rows: rows of the input.
        shape: (out, in) of the matrix.
        dtype: dtype of the input.

    Example:
        Small matrices are not measured.

        >>> from laconic.formats.int8 import INT8
        >>> autotune(INT8, rows=1, shape=(8, 8), dtype=torch.float32)
        Choice(kernel='dense', speedup=1.0)
    """
    if shape[0] * shape[1] < SMALL:
        return Choice(family.small, 1.0)
    depends_on = machine()
    choices = _kernel_choices(machine_file("kernels", depends_on))
    return choices.lookup(family, ProductShape(measured_rows(rows), *shape, dtype), depends_on)


def measured_rows(rows: int) -> int:
    """The number of rows that is measured in place of `rows`: the next of ROWS, or the last.

    Example:
        >>> measured_rows(5), measured_rows(5000)
        (16, 1024)
    """
    return ROWS[min(bisect_left(ROWS, rows), len(ROWS) - 1)]


def machine() -> dict[str, Any]:
    """The properties of this machine that the times of kernels depend on."""
    return {
        "processor": processor(),
        "instructions": " ".join((torch.backends.cpu.get_cpu_capability(), *short_numbers())),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


class KernelChoices:
    """Choices by product, kept in a file. If it cannot be written, the next process measures again.

    Args:
        file: its path; it may not exist yet.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._choices: dict[str, Choice] = {}

    def lookup(self, family: KernelFamily[Any], product: ProductShape, depends_on: Mapping[str, Any]) -> Choice:
        """The choice for a product, measured now if it is not known.

        Args:
            family: the kernels.
            product: the product.
            depends_on: the machine, written into the file.
        """
        sizes, dtype = "x".join(map(str, product[:3])), str(product.dtype).removeprefix("torch.")
        key = f"{family.name} {sizes} {dtype}"
        if key not in self._choices:
            # Another process may have measured it meanwhile.
            self._choices = _read(self._file) | self._choices
        if key not in self._choices or self._choices[key].kernel not in family.makers:
            self._choices[key] = choose_kernel(family, product)
            stored = {name: choice._asdict() for name, choice in sorted(self._choices.items())}
            write_measurements(self._file, "kernels", stored, depends_on)
        return self._choices[key]


@torch.inference_mode()
def choose_kernel(family: KernelFamily[Any], product: ProductShape) -> Choice:
    """The fastest kernel that computes correct sums; of those within 5 % the first of the family."""
    times = time_kernels(family, product)
    dense = times[DENSE]
    times = {name: seconds for name, seconds in times.items() if name in family.makers}
    least = min(times.values())
    name = next(name for name in times if times[name] <= TIME_TOLERANCE * least)
    return Choice(name, round(dense / times[name], 2))


@torch.inference_mode()
def time_kernels(family: KernelFamily[Any], product: ProductShape) -> dict[str, float]:
    """Seconds of every kernel that computes correct sums, by name, and of a dense layer."""
    generator = torch.Generator().manual_seed(0)
    shape = (product.out_features, product.in_features)
    matrix = family.example(shape, generator)
    x = torch.rand(product.rows, product.in_features, generator=generator).to(product.dtype)
    x[0, 1:] = 1
    kernels = working_kernels(family, matrix, x)
    if DENSE not in kernels:
        # The reference for the speedup; it cannot be chosen.
        kernels[DENSE] = DenseKernel(family.dense(matrix, product.dtype))
    return least_seconds(kernels, x, x.new_zeros(shape[0]), family.makers)


def least_seconds(kernels: Mapping[str, Kernel], x: Tensor, bias: Tensor, choices: Collection[str]) -> dict[str, float]:
    """The fastest run of each kernel, in seconds.

    Args:
        kernels: the kernels by name, run in turn.
        x: the inputs.
        bias: the bias.
        choices: names that can be chosen; a kernel much slower than the fastest of them is dropped after two rounds.
    """
    cache_filler = torch.zeros(CACHES // 4 if len(x) <= FEW_ROWS else 0)
    times = dict.fromkeys(kernels, float("inf"))
    # The time of one thread leaves out what other programs take; several threads wait for the slowest.
    clock = thread_time if torch.get_num_threads() == 1 else perf_counter
    start = perf_counter()
    for number in range(ROUNDS):
        least = min(times[name] for name in choices if name in times)
        for name, kernel in kernels.items():
            if number < 2 or name in (DECODED, DENSE) or times[name] <= DROP_FACTOR * least:
                cache_filler.add_(1)
                run_start = clock()
                kernel(x, bias)
                times[name] = min(times[name], clock() - run_start)
        if number >= MIN_ROUNDS and perf_counter() - start > MAX_SECONDS:
            break
    return times


@cache
def _kernel_choices(file: Path) -> KernelChoices:
    return KernelChoices(file)


def _read(file: Path) -> dict[str, Choice]:
    try:
        stored = read_measurements(file, "kernels")
        return {key: Choice(str(entry["kernel"]), float(entry["speedup"])) for key, entry in stored.items()}
    except (ValueError, TypeError, KeyError):
        return {}


@contextmanager
def without_kernels() -> Iterator[None]:
    """Within the context every product decodes its matrix, as making a kernel takes longer than one product.

    Example:
        >>> with without_kernels():
        ...     can_use_kernels(torch.ones(1, 1), torch.float32, None)
        False
    """
    token = _DECODING.set(True)
    try:
        yield
    finally:
        _DECODING.reset(token)


def can_use_kernels(x: Tensor, dtype: torch.dtype, bias: Tensor | None) -> bool:
    """Whether kernels can compute a product. Otherwise the matrix is decoded for it.

    They cannot if gradients are needed, on a GPU, in compiled or traced code, and within `without_kernels`.

    Args:
        x: the inputs.
        dtype: the dtype of the layer.
        bias: its bias.
    """
    if _DECODING.get() or (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))):
        return False
    is_supported = x.is_cpu and x.dtype == dtype and x.dtype in DTYPES and x.numel() > 0
    return is_supported and not torch.compiler.is_compiling() and not is_tracing()


class KernelCache:
    """The kernels that one layer has called. They are made again if the tensors of the layer change."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[int, torch.dtype, int], str] = {}
        self._kernels: dict[tuple[str, torch.dtype], Kernel] = {}
        self._versions: tuple[object, ...] = ()

    def __deepcopy__(self, memo: object) -> "KernelCache":
        return KernelCache()

    def __reduce__(self) -> tuple[Callable[[], "KernelCache"], tuple[()]]:
        # Matrices that a library packed cannot be pickled.
        return KernelCache, ()

    @property
    def nbytes(self) -> int:
        """Bytes that the kernels keep."""
        return sum(kernel.nbytes for kernel in self._kernels.values())

    @property
    def names(self) -> dict[int, str]:
        """The kernels that were called, by the number of rows that they were measured for."""
        return {rows: name for (rows, _, _), name in sorted(self._chosen.items(), key=lambda item: item[0][0])}

    def choose(self, rows: int, dtype: torch.dtype, measure: Callable[[int, torch.dtype], Choice | None]) -> str:
        """The name of the kernel for a product.

        Args:
            rows: rows of the input.
            dtype: dtype of the input.
            measure: returns the choice for rows and a dtype, None to decode the matrix without a measurement; called
                once for each of them and each number of threads.
        """
        key = (measured_rows(rows), dtype, torch.get_num_threads())
        if key not in self._chosen:
            choice = measure(rows, dtype)
            self._chosen[key] = DECODED if choice is None else choice.kernel
        return self._chosen[key]

    def kernel(self, tensors: Sequence[Tensor], name: str, dtype: torch.dtype, make: Callable[[], Kernel]) -> Kernel:
        """The kernel of a name.

        Args:
            tensors: the tensors that it is made from.
            name: its name.
            dtype: dtype of the input.
            make: makes the kernel.
        """
        versions = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
        if versions != self._versions:
            self._kernels, self._versions = {}, versions
        if (name, dtype) not in self._kernels:
            self._kernels[name, dtype] = make()
        return self._kernels[name, dtype]
