"""Keys and values of a batch whose rows come and go, kept in one slab per layer so that little is copied."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

# Decode steps between two moves of the whole slab: a move copies it once, free columns cost memory.
_FREE_COLUMNS = 64


class _WindowLayer(DynamicLayer):
    """A cache layer that views a slab, its last column free: the one new token is written there and nothing moves."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self._keys_and_new, self._values_and_new = keys, values
        self.keys, self.values = keys[:, :, :-1], values[:, :, :-1]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self._keys_and_new[:, :, -1:] = key_states
        self._values_and_new[:, :, -1:] = value_states
        return self._keys_and_new, self._values_and_new


class KVSlab:
    """Rows 0..num_rows-1 of every layer's slab [rows, heads, columns, head size], each right-aligned at `_end`.

    What stands left of a row's own tokens is finite and arbitrary: the caller masks it.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self._end = 0  # one past the newest column
        self._slabs: list[Tensor] = []  # keys and values of layer 0, of layer 1, ...

    def window(self, longest: int) -> Cache:
        """The cache of all rows for one decode step, `longest` columns wide; the step's new token joins it."""
        if self._end == self._slabs[0].shape[2]:
            self._move(self.num_rows, longest, longest)
        views = [slab[: self.num_rows, :, self._end - longest : self._end + 1] for slab in self._slabs]
        self._end += 1
        return Cache(layers=[_WindowLayer(keys, values) for keys, values in list(pairwise(views))[::2]])

    def add(self, prefilled: DynamicCache, longest: int) -> None:
        """Append the rows of a right-aligned cache; `longest` is the length of the longest old row, 0 without rows."""
        states = [tensor for layer in prefilled.layers for tensor in (layer.keys, layer.values)]
        num_new, heads, width, size = states[0].shape
        if not self._slabs:
            self._slabs = [tensor.new_zeros(0, heads, 0, size) for tensor in states]
        num_rows = self.num_rows + num_new
        if num_rows > self._slabs[0].shape[0] or width > self._end:
            self._move(num_rows, longest, max(longest, width))
        for slab, tensor in zip(self._slabs, states, strict=True):
            slab[self.num_rows : num_rows, :, self._end - width : self._end] = tensor
        self.num_rows = num_rows

    def remove(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        self.num_rows -= 1
        if row != self.num_rows:
            for slab in self._slabs:
                slab[row] = slab[self.num_rows]

    def clear(self) -> None:
        """Drop all rows and the memory."""
        self.num_rows = self._end = 0
        self._slabs = []

    def _move(self, num_rows: int, longest: int, width: int) -> None:
        """Take slabs for `num_rows` rows that end at column `width`; keep the old rows' last `longest` columns."""
        capacity = max(self._slabs[0].shape[0], 1 << (num_rows - 1).bit_length())
        for index, old in enumerate(self._slabs):
            new = old.new_zeros(capacity, old.shape[1], width + _FREE_COLUMNS, old.shape[3])
            rows = slice(0, self.num_rows)
            new[rows, :, width - longest : width] = old[rows, :, self._end - longest : self._end]
            self._slabs[index] = new
        self._end = width
