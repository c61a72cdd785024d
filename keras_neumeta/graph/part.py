"""The part of an array that belongs to smaller sizes."""

import numpy as np
from keras import ops


class Part:
    """The part of an array of full shape that belongs to smaller sizes.

    Args:
        layout: `VariableLayout` of the array.
        sizes: Channels per group.
    """

    def __init__(self, layout, sizes):
        self.kept = list(layout.slices(sizes))
        # Where each place of the full axis lies on the small one, or behind.
        self.places = []
        for number, kept in self.kept:
            places = np.full(layout.shape[number], len(kept))
            places[kept] = np.arange(len(kept))
            self.places.append((number, places))

    def crop(self, value):
        for number, kept in self.kept:
            if kept[-1] == len(kept) - 1:
                before = (slice(None),) * number
                value = value[(*before, slice(len(kept)))]
            else:
                value = ops.take(value, kept, axis=number)
        return value

    def pad(self, value):
        """The array of full shape, zero outside the part."""
        for number, places in self.places:
            padding = [[0, 0]] * len(value.shape)
            padding[number] = [0, 1]
            value = ops.take(ops.pad(value, padding), places, axis=number)
        return value
