"""A sample of the tokens that enter a layer, which depends only on the texts.

Every token has a key that is hashed from the ids of its sequence and its position, and the sample holds the tokens with
the smallest keys. So it is the same for any batch size, padding and number of processes.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from laconic import processes

# Odd numbers with about as many zeros as ones among their bits, so that products mix all bits of a number.
_ID, _POSITION, _SEQUENCE = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB


def token_keys(ids: Int[Tensor, "sequences tokens"], counted: Bool[Tensor, "sequences tokens"]) -> Int[Tensor, " kept"]:
    """The keys of the tokens that are no padding.

    Args:
        ids: token ids.
        counted: True at tokens, False at padding.

    Example:
        >>> ids, counted = torch.tensor([[5, 6, 0]]), torch.tensor([[True, True, False]])
        >>> torch.equal(token_keys(ids, counted), token_keys(ids[:, :2], counted[:, :2]))
        True
    """
    mixed = _mix_tokens(ids, counted)
    return _mix(mixed + mixed.sum(1, keepdim=True) * _SEQUENCE)[counted]


def sequence_digests(
    ids: Int[Tensor, "sequences tokens"], counted: Bool[Tensor, "sequences tokens"]
) -> Int[Tensor, " sequences"]:
    """A hash of each sequence without its padding; the arguments are those of `token_keys`.

    Example:
        >>> ids, counted = torch.tensor([[5, 6, 0], [5, 6, 7]]), torch.tensor([[True, True, False]] * 2)
        >>> len(sequence_digests(ids, counted).unique())
        1
    """
    return _mix_tokens(ids, counted).sum(1)


def _mix_tokens(
    ids: Int[Tensor, "sequences tokens"], counted: Bool[Tensor, "sequences tokens"]
) -> Int[Tensor, "sequences tokens"]:
    """A hash of the id and the position of each token; 0 at padding."""
    # Integer products wrap around, which is what a hash needs.
    return _mix((ids.long() + 1) * _ID + counted.cumsum(1) * _POSITION) * counted


def _mix(numbers: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    # A shift of a negative number brings in ones, which the masks remove.
    numbers = (numbers ^ ((numbers >> 29) & (2**35 - 1))) * _POSITION
    return numbers ^ ((numbers >> 32) & (2**32 - 1))


class Reservoir:
    """The rows with the smallest keys among all that were added.

    Args:
        size: the largest number of rows.

    Example:
        >>> reservoir = Reservoir(2)
        >>> reservoir.add(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([30, 10, 20]))
        >>> reservoir.rows.tolist()
        [[2.0], [3.0]]
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows = torch.empty(0, 0, device="cpu")
        self._keys = torch.empty(0, dtype=torch.long, device="cpu")

    def add(self, rows: Float[Tensor, "rows width"], keys: Int[Tensor, " rows"]) -> None:
        """Add rows with their keys."""
        if len(self._keys) == self.size:
            smaller = keys < self._keys[-1].to(keys.device)
            rows, keys = rows[smaller], keys[smaller]
        if len(self._keys):
            rows, keys = torch.cat([self.rows, rows]), torch.cat([self._keys, keys])
        self._keys, first = keys.sort(stable=True)
        self._keys, self.rows = self._keys[: self.size], rows[first[: self.size]]

    def gather(self) -> None:
        """Make this the sample of all processes, in each of them."""
        for rank, (rows, keys) in enumerate(processes.all_gather((self.rows.cpu(), self._keys.cpu()))):
            if rank != processes.rank() and len(keys):
                device = self.rows.device
                self.add(rows.to(device), keys.to(device))
