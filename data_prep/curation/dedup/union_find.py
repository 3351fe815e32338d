"""Disjoint sets of the numbers below n, joined many pairs at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


class DisjointSets:
    """Sets named by their smallest number; 8 bytes a number."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int64)

    def find(self, numbers: Int64) -> Int64:
        """The smallest number of the set of each."""
        roots = self._parent[numbers]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[numbers] = roots
                return roots
            roots = above

    def join(self, left: Int64, right: Int64) -> None:
        """Make one set of the sets of `left[i]` and `right[i]`, for every i."""
        while len(left):
            left, right = self.find(left), self.find(right)
            apart = left != right
            left, right = left[apart], right[apart]
            # Roots only ever point to smaller ones, so no circle can arise; of several links of
            # one root the smallest is made, and the next round makes the others.
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))

    def members(self) -> tuple[Int64, Int64]:
        """The numbers in sets of two and more, rising, and the smallest number of their sets."""
        roots = self.find(np.arange(len(self._parent)))
        joined = roots != np.arange(len(roots))
        joined[roots[joined]] = True
        numbers = np.flatnonzero(joined)
        return numbers, roots[numbers]
