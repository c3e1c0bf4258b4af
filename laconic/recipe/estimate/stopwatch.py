"""A `Track` that measures how long the blocks of a model take."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from laconic.progress import Item


class BlockTimer:
    """Measures the seconds of every item of work that belongs to one block.

    An item belongs to a block if it is its path, or a tuple with its path.

    Args:
        counts: the blocks by path, and how many blocks each stands for.

    Example:
        >>> timer = BlockTimer({"h.0": 3})
        >>> for path in timer(["embedding", "h.0"], "Reading"):
        ...     pass
        >>> timer.further >= 0
        True
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts: Mapping[str, float] = counts
        self._is_running = False
        self.further = 0.0
        """The seconds of the blocks that are not measured, of which a measured one stands for each."""
        self.blocks = 0.0
        """The seconds of all blocks, measured or not."""
        self.left = 1.0
        """The fraction of the blocks that was not dropped."""

    def keep(self, fraction: float) -> None:
        """Count fewer blocks from now on, of which each kind keeps at least the measured one."""
        self.left *= fraction
        self._counts = {path: max(1.0, fraction * count) for path, count in self._counts.items()}

    def __call__(self, items: Sequence[Item], what: str, work: Sequence[float] | None = None) -> Iterable[Item]:
        return self._measure(items)

    def _measure(self, items: Sequence[Item]) -> Iterator[Item]:
        for item in items:
            path = block_in(item, self._counts)
            count = 0 if path is None else self._counts[path]
            # The time of work within the work on a block is counted already.
            is_outermost, start = not self._is_running, time.perf_counter()
            self._is_running = True
            try:
                yield item
            finally:
                self._is_running = not is_outermost
            if is_outermost and count:
                seconds = time.perf_counter() - start
                self.further += (count - 1) * seconds
                self.blocks += count * seconds


def block_in(item: object, blocks: Collection[str]) -> str | None:
    """The path of the block that an item of work belongs to; None if it belongs to none.

    Args:
        item: the item: a path, or a tuple with a path.
        blocks: the paths of the blocks.
    """
    parts = item if isinstance(item, tuple) else (item,)
    return next((part for part in parts if isinstance(part, str) and part in blocks), None)
