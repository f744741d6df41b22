"""Sums over windows, with the same rounding for any number of processes."""

import math
from collections.abc import Callable

import torch

from . import processes
from .processes import Shares


# On the CPU. Sums on an accelerator are rounded differently with another number of processes, but need less memory.
CHUNKS = 8


def shares_of_sum(windows: int, device: torch.device) -> Shares:
    """Return shares of windows whose sums are computed on a device."""
    return Shares(windows, CHUNKS if device.type == "cpu" else processes.count())


def running_sums(on_cpu: bool, count: int = 1) -> int:
    """Return the largest number of sums that a process keeps for one `WindowSum` while it adds windows.

    Args:
        on_cpu: Whether they are computed on the CPU.
        count: Number of processes.
    """
    return 1 + (math.ceil(math.log2(math.ceil(CHUNKS / count))) if on_cpu else 0)


def most_sums(on_cpu: bool, count: int = 1) -> int:
    """Return the largest number of sums that a process keeps, with the one it gets from another when it finishes."""
    return max(running_sums(on_cpu, count), min(count, 2))


class WindowSum:
    """A sum over windows in chunks, whose sums are added along a binary tree.

    The tree depends on the number of windows alone. A process has its part of the tree: while it adds up its chunks
    the current one and at most one sum per level.

    Args:
        shares: Chunks by process.
        zeros: Returns a tensor of zeros with the shape of the sum.

    Attributes:
        current: Sum of the current chunk, to add windows to in place.

    Example:
        >>> total = WindowSum(shares, lambda: torch.zeros(features, features))
        >>> for _, chunk in shares.own_chunks:
        ...     total.start()
        ...     for window in windows[chunk]:
        ...         total.current.add_(gram_of(window))
        >>> gram = total.finish()
    """

    def __init__(self, shares: Shares, zeros: Callable[[], torch.Tensor]):
        self.shares, self._zeros = shares, zeros
        # Numbers of sums on every level of the tree.
        self._levels = [len(shares.chunks)]
        while self._levels[-1] > 1:
            self._levels.append((self._levels[-1] + 1) // 2)
        self._sums: dict[tuple[int, int], torch.Tensor] = {}
        self._chunks = iter([index for index, _ in shares.own_chunks])
        self._chunk: int | None = None
        self.current: torch.Tensor | None = None

    def start(self) -> None:
        """Start the next chunk of this process."""
        self._end_chunk()
        self._chunk, self.current = next(self._chunks), self._zeros()

    def finish(self, at: int | None = None) -> torch.Tensor | None:
        """Return the sum over all windows.

        Args:
            at: Index of the process that gets it, the others get `None`. All get it if `None`.
        """
        self._end_chunk()
        for level, size in enumerate(self._levels[:-1]):
            for left in range(0, size - 1, 2):
                target, source = self._owner(level, left), self._owner(level, left + 1)
                if source == target:
                    continue
                if processes.rank() == source:
                    processes.send(self._sums.pop((level, left + 1)), target)
                elif processes.rank() == target:
                    mine = self._sums.pop((level, left))
                    self._keep(level + 1, left // 2, mine.add_(processes.receive(mine, source)))
        found = self._sums.pop((len(self._levels) - 1, 0), None)
        first = self._owner(0, 0)
        if at is None:
            return processes.broadcast_tensor(self._zeros() if found is None else found, first)
        if at != first and processes.rank() == first:
            processes.send(found, at)
        elif at != first and processes.rank() == at:
            return processes.receive(self._zeros(), first)
        return found if processes.rank() == at else None

    def _end_chunk(self) -> None:
        if self._chunk is not None:
            self._keep(0, self._chunk, self.current)
            self._chunk = self.current = None

    def _keep(self, level: int, index: int, found: torch.Tensor) -> None:
        """Keep a sum, added to the one beside it if that is here."""
        last = index == self._levels[level] - 1
        if level + 1 == len(self._levels):
            self._sums[level, index] = found
        elif last and index % 2 == 0:
            self._keep(level + 1, index // 2, found)
        elif (level, index ^ 1) in self._sums:
            beside = self._sums.pop((level, index ^ 1))
            self._keep(level + 1, index // 2, beside.add_(found) if index % 2 else found.add_(beside))
        else:
            self._sums[level, index] = found

    def _owner(self, level: int, index: int) -> int:
        return self.shares.owner(index << level)
