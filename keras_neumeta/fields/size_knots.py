"""Piecewise linear curves over the size."""

import numpy as np
from keras import ops

from keras_neumeta.fields.interpolation import is_static


class SizeKnots:
    """Where a size lies between a few ratios, for arrays of channels.

    The kept width of an array is that of its channel groups, on average. An
    array of fixed channels goes by all groups that change: what it holds or
    measures still belongs to a size.

    Args:
        graph: `ChannelGraph` of the target.
        layouts: A `VariableLayout` per array.
        ratios: Rising ratios, the last one 1.
    """

    def __init__(self, graph, layouts, ratios):
        self.ratios = np.array(ratios, "float32")
        self.full_sizes = np.array(graph.full_sizes, "float32")
        # Row m averages the kept widths of the groups of array m.
        self.shares = np.zeros((len(layouts), len(graph.groups)), "float32")
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

    def weights(self, sizes):
        """Weight of each ratio in the linear interpolation at one size.

        Args:
            sizes: See `WeightField.generate`.

        Returns:
            Tensor `(arrays, ratios)`; each row sums to 1.
        """
        starts, gaps = self.ratios[:-1], np.diff(self.ratios)
        if is_static(sizes):
            kept = self.shares @ (np.array(sizes, "float32") / self.full_sizes)
            return ops.convert_to_tensor(_hats(np, kept, starts, gaps))
        full = ops.convert_to_tensor(self.full_sizes)
        kept = ops.matmul(
            ops.convert_to_tensor(self.shares),
            ops.cast(sizes, "float32") / full,
        )
        starts, gaps = map(ops.convert_to_tensor, (starts, gaps))
        return _hats(ops, kept, starts, gaps)


def _hats(xp, kept, starts, gaps):
    ones = xp.ones_like(kept)[:, None]
    if starts.shape[0] == 0:
        return ones
    place = xp.clip(kept, starts[0], 1.0)[:, None]
    # How far it is from each ratio but the last towards the next one.
    rise = (place - starts) / gaps
    left = xp.concatenate([ones, rise], axis=1)
    right = xp.concatenate([1.0 - rise, ones], axis=1)
    return xp.clip(xp.minimum(left, right), 0.0, 1.0)
