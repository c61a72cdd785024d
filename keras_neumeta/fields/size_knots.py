"""Piecewise linear curves over the size."""

import numpy as np
from keras import ops

from keras_neumeta.fields.interpolation import is_static

MAX_DEPTHS = 5


class SizeKnots:
    """Where a size lies between a few ratios, for arrays of channels.

    The kept width of an array is that of its channel groups, on average. An
    array of fixed channels goes by all groups that change: what it holds or
    measures still belongs to a size. Where blocks can be left out, every
    ratio stands for a few numbers of blocks, the fewest first.

    Args:
        graph: `ChannelGraph` of the target.
        layouts: A `VariableLayout` per array.
        ratios: Rising ratios, the last one 1.
        depths: Whether numbers of blocks have knots of their own.
    """

    def __init__(self, graph, layouts, ratios, depths=True):
        self.ratios = np.array(ratios, "float32")
        self.full_sizes = np.array(graph.full_sizes, "float32")
        number = len(graph.blocks) + 1 if depths else 1
        # The number of blocks is the last of the sizes.
        self.depths = np.linspace(0.0, 1.0, min(number, MAX_DEPTHS))
        self.depths = self.depths.astype("float32")
        # Row m averages the kept widths of the groups of array m.
        self.shares = np.zeros((len(layouts), len(graph.full_sizes)), "float32")
        for row, layout in enumerate(layouts):
            groups = [
                piece.group
                for axis in layout.axes.values()
                for piece in axis.pieces
            ]
            if not groups or not all(graph.groups[g].morphable for g in groups):
                groups = [group.index for group in graph.morphable_groups]
            for group in groups:
                self.shares[row, group] += 1 / len(groups)

    def __len__(self):
        return len(self.ratios) * len(self.depths)

    def weights(self, sizes):
        """Weight of each knot in the linear interpolation at one size.

        Args:
            sizes: See `WeightField.generate`.

        Returns:
            Tensor `(arrays, knots)`; each row sums to 1.
        """
        if is_static(sizes):
            share = np.array(sizes, "float32") / self.full_sizes
            return ops.convert_to_tensor(self._weights(np, share, self.shares))
        full = ops.convert_to_tensor(self.full_sizes)
        share = ops.cast(sizes, "float32") / full
        return self._weights(ops, share, ops.convert_to_tensor(self.shares))

    def moves(self, sizes, fixed=()):
        """How far each knot moves where one size moves by 1.

        Those next to it move. At a size of a fixed ratio, those up to the next
        fixed ratios go along, less the farther they are: what one of a few
        sizes that every step measures tells of those that it seldom does.

        Args:
            sizes: See `WeightField.generate`.
            fixed: Rising ratios.

        Returns:
            Tensor `(arrays, knots)`.
        """
        weights = moves = self.weights(sizes)
        if is_static(sizes) and len(fixed):
            share = np.array(sizes, "float32") / self.full_sizes
            moves = self._weights(np, share, self.shares, np.array(fixed))
            moves = ops.convert_to_tensor(moves.astype("float32"))
        return moves / ops.sum(moves * weights, axis=1, keepdims=True)

    def _weights(self, xp, share, shares, fixed=None):
        # Not `matmul`: NumPy's warns of invalid values where there are none.
        kept = xp.sum(shares * share, axis=-1)
        if fixed is None:
            weights = _hats(xp, kept, self.ratios)
        else:
            near = _hats(xp, self.ratios, fixed)
            weights = (_hats(xp, kept, fixed)[:, None] * near).sum(axis=-1)
        if len(self.depths) == 1:
            return weights
        deep = _hats(xp, share[-1:], self.depths)
        both = weights[:, :, None] * deep[:, None, :]
        return xp.reshape(both, (-1, len(self)))


def _hats(xp, kept, knots):
    starts, gaps = knots[:-1], np.diff(knots)
    if xp is ops:
        starts, gaps = map(ops.convert_to_tensor, (starts, gaps))
    ones = xp.ones_like(kept)[:, None]
    if starts.shape[0] == 0:
        return ones
    place = xp.clip(kept, starts[0], 1.0)[:, None]
    # How far it is from each ratio but the last towards the next one.
    rise = (place - starts) / gaps
    left = xp.concatenate([ones, rise], axis=1)
    right = xp.concatenate([1.0 - rise, ones], axis=1)
    return xp.clip(xp.minimum(left, right), 0.0, 1.0)
