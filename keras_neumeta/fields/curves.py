"""Values of the network's vectors as curves over the size."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.fields.interpolation import (
    group_matrices,
    interpolation_matrix,
    is_static,
    result_axes,
    transform_axis,
)


class SizeCurves(keras.layers.Layer):
    """What is added to biases, gamma and beta at each size.

    Every vector of the target has one further array of its shape for each of
    a few ratios, zero at the start, with values linear in between and nothing
    added at full size. The cheap, continuous relative of the private batch
    normalization of each switch in Slimmable Networks (Yu et al., ICLR 2019).

    Args:
        knots: Ratios in (0, 1), rising.
        interpolation, stretch: As for `AnchoredField`.
    """

    def __init__(self, knots, interpolation, stretch, **kwargs):
        super().__init__(**kwargs)
        self.ratios = np.array([*knots, 1.0], "float32")
        self.interpolation = interpolation
        self.stretch = stretch

    def attach(self, graph, layouts):
        """Creates the variables for the vectors among these layouts."""
        self.graph = graph
        self.layouts = layouts
        self.members = [
            index
            for index, layout in enumerate(layouts)
            if len(layout.shape) == 1 and layout.axes and layout.trainable
        ]
        # Row m averages the kept widths of the groups of vector m.
        self.shares = np.zeros(
            (len(self.members), len(graph.groups)), "float32"
        )
        self.values = []
        for row, index in enumerate(self.members):
            layout = layouts[index]
            groups = [p.group for p in layout.axes[0].pieces]
            if not all(graph.groups[g].morphable for g in groups):
                # A vector of fixed channels still belongs to a size.
                groups = [group.index for group in graph.morphable_groups]
            for group in groups:
                self.shares[row, group] += 1 / len(groups)
            self.values.append(
                self.add_weight(
                    shape=(len(self.ratios) - 1, *layout.shape),
                    initializer="zeros",
                    name=layout.path.replace("/", "_"),
                )
            )
        self.built = True

    def generate(self, sizes):
        """What is added at one size; see `WeightField.generate`.

        Returns:
            Dict from layout index to tensor.
        """
        hats = self._hats(sizes)
        matrices = group_matrices(
            self.graph,
            sizes,
            lambda number, group: interpolation_matrix(
                number,
                group.num_channels,
                None,
                self.interpolation,
                self.stretch,
            ),
        )
        result = {}
        for row, index in enumerate(self.members):
            layout = self.layouts[index]
            value = ops.tensordot(
                hats[row, :-1], ops.convert_to_tensor(self.values[row]), axes=1
            )
            axes = result_axes(self.graph, layout, sizes)
            result[index] = transform_axis(
                value, 0, layout.axes[0], matrices, axes[0]
            )
        return result

    def _hats(self, sizes):
        """Weights `(vectors, ratios)` of the linear interpolation."""
        full = np.array(self.graph.full_sizes, "float32")
        if is_static(sizes):
            kept = self.shares @ (np.array(sizes, "float32") / full)
            hats = _hats(np, kept, self.ratios[:-1], np.diff(self.ratios))
            return ops.convert_to_tensor(hats)
        kept = ops.matmul(
            ops.convert_to_tensor(self.shares),
            ops.cast(sizes, "float32") / ops.convert_to_tensor(full),
        )
        return _hats(
            ops,
            kept,
            ops.convert_to_tensor(self.ratios[:-1]),
            ops.convert_to_tensor(np.diff(self.ratios)),
        )


def _hats(xp, kept, starts, gaps):
    place = xp.clip(kept, starts[0], 1.0)[:, None]
    rise = (place - starts) / gaps
    ones = xp.ones_like(place)
    left = xp.concatenate([ones, rise], axis=1)
    right = xp.concatenate([1.0 - rise, ones], axis=1)
    return xp.clip(xp.minimum(left, right), 0.0, 1.0)
