"""Data parallelism over several processes that `torchrun` or `accelerate launch` started.

Each process runs a shard of the batches; their results are summed. Work for a single process, such as writing a folder
or timing, runs in `on_rank_zero`, while the others wait for its result. In a single process all these functions work
without communication.

A `UserError` in a `sync_errors` block of one process is raised in all processes, so that no process waits for one that
has failed. The others need not have come to the end of the block: every function that communicates begins with the same
exchange of errors, and raises the error there.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from laconic.errors import UserError, must_be, reason_of
from laconic.system import LAUNCHED, is_launched

JOIN_TIMEOUT = timedelta(minutes=5)
"""The timeout for forming the process group."""
WAIT_TIMEOUT = timedelta(hours=2)
"""The timeout while other processes wait for the first one. The death of a process is detected at once."""

# True inside `on_rank_zero`, where the process of rank 0 behaves as if it were alone.
_ALONE: ContextVar[bool] = ContextVar("laconic-alone", default=False)

Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class _AgreedError(UserError):
    """A `UserError` that all processes raise, because one of them failed."""


def world_size() -> int:
    """The number of processes in the group; 1 without a group, and inside `on_rank_zero`.

    >>> world_size(), rank(), is_rank_zero()
    (1, 0, True)
    """
    return 1 if _ALONE.get() or not (dist.is_available() and dist.is_initialized()) else dist.get_world_size()


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def local_world_size() -> int:
    """The number of processes of the group on this machine."""
    return min(world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", world_size())))


def is_rank_zero() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Within the block, the processes that a launcher started form a process group. An existing group is used as it is.

    Raises:
        UserError: the group cannot be formed.
    """
    if not (is_launched() and dist.is_available()) or dist.is_initialized():
        yield
        return
    _join()
    try:
        yield
        # A launcher kills the others when one process fails; wait until the first has printed the error.
        barrier()
    finally:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """The device of this process: with several processes, `cuda` becomes the GPU of the local rank.

    Args:
        device: the device that the user asked for.

    Raises:
        UserError: there are several processes, and `device` is neither `cpu` nor `cuda`.
    """
    if world_size() == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise must_be("device", "cpu or cuda for several processes, as each uses its own GPU", device)
    return f"cuda:{_local_rank()}"


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """The items of this process: `items[rank() :: world_size()]`. It is empty if `rank() >= len(items)`.

    Example:
        >>> shard([1, 2, 3])
        [1, 2, 3]
    """
    return items[rank() :: world_size()]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, bitwise equal in each of them. `tensor` may be overwritten.

    The order of the additions depends on the number of processes and the shape alone.
    """
    return _all_reduce(tensor, dist.ReduceOp.SUM)


def all_reduce_max(tensor: Tensor) -> Tensor:
    """The element-wise maximum of `tensor` over all processes; `tensor` may be overwritten."""
    return _all_reduce(tensor, dist.ReduceOp.MAX)


def all_gather(value: Result) -> list[Result]:
    """The value of each process, by rank.

    Args:
        value: the value of this process; it must be picklable.

    Example:
        >>> all_gather(3)
        [3]
    """
    return [value] if world_size() == 1 else _exchange(value)


def barrier() -> None:
    """Wait until every process has reached this call."""
    all_gather(None)


def all_true(condition: bool) -> bool:
    """Whether `condition` is true in every process."""
    return all(all_gather(condition))


def broadcast(value: Result) -> Result:
    """Broadcast the value of the first process to all processes; it must be picklable."""
    if world_size() == 1:
        return value
    _exchange(None)
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def broadcast_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Overwrite tensors in place by the values in the first process.

    Args:
        tensors: parameters and buffers of a model, by name.

    Raises:
        UserError: names, dtypes or shapes differ between processes.
    """
    if world_size() == 1:
        return
    shapes = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    if not all_true(broadcast(shapes) == shapes):
        raise _AgreedError(
            "The models of the processes have different shapes; start all processes with the same files and packages."
        )
    for tensor in tensors.values():
        if tensor.numel():
            _overwrite(tensor.detach())


@contextmanager
def sync_errors() -> Iterator[None]:
    """A UserError that one process raises in the block is raised in all processes, at the end of the block."""
    if world_size() == 1:
        yield
        return
    mistake: UserError | None = None
    try:
        yield
    except _AgreedError:
        raise
    except UserError as error:
        mistake = error
    _exchange(None, mistake)


def on_rank_zero(work: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function run in the first process only. All processes return its result, or raise its UserError.

    Inside the function the first process behaves as if it were alone. The others wait.

    Args:
        work: the function; its result must be picklable.

    >>> on_rank_zero(max)(2, 3)
    3
    """

    @wraps(work)
    def run_once(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        if world_size() == 1:
            return work(*arguments, **named)
        results: list[Result] = []
        with sync_errors():
            if is_rank_zero():
                with _alone():
                    results.append(work(*arguments, **named))
        return broadcast(results)[0]

    return run_once


@contextmanager
def _alone() -> Iterator[None]:
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _exchange(value: Result, mistake: UserError | None = None) -> list[Result]:
    """Gather the value of each process, by rank.

    Args:
        value: the value of this process; it must be picklable.
        mistake: the error that ends a `sync_errors` block of this process; None if there is none.

    Raises:
        UserError: a process has given an error. If several have, all raise that of the lowest rank.
    """
    found: list[tuple[str | None, Result]] = [(None, value)] * world_size()
    dist.all_gather_object(found, (mistake and str(mistake), value))
    sentence = next((other for other, _ in found if other is not None), None)
    if sentence is not None:
        raise _AgreedError(sentence) from mistake
    return [value for _, value in found]


def _join() -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        if _local_rank() < torch.cuda.device_count():
            torch.cuda.set_device(_local_rank())
    # Its functions have the group of the moment of import as a default argument. Imported later, by torch._dynamo, they
    # would keep the group and its threads alive until the interpreter ends, which can abort the process.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        store, own_rank, size = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=WAIT_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The processes that were started together do not find each other: {reason_of(error)}; start them by "
            f"torchrun or accelerate launch, or unset {', '.join(LAUNCHED)}."
        ) from error


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", rank()))


def _all_reduce(tensor: Tensor, operation: "dist.ReduceOp.RedOpType") -> Tensor:
    if world_size() == 1:
        return tensor
    _exchange(None)
    sent = tensor.to(_communication_device(tensor.device)).contiguous()
    dist.all_reduce(sent, operation)
    return sent.to(tensor.device)


def _overwrite(tensor: Tensor) -> None:
    # Tensors are sent as bytes, because no backend supports every dtype.
    sent = tensor.to(_communication_device(tensor.device)).contiguous()
    dist.broadcast(sent.view(-1).view(torch.uint8), src=0)
    if sent.data_ptr() != tensor.data_ptr():
        tensor.copy_(sent)


def _communication_device(device: torch.device) -> torch.device:
    """The device for communication: `device`, or the GPU if the existing group cannot send CPU tensors."""
    supported = dist.get_backend_config()
    return device if f"{device.type}:" in supported else torch.device("cuda" if device.type == "cpu" else "cpu")
