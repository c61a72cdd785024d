"""Moving statistics (batch norm) as curves over the size."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.fields.interpolation import (
    group_sizes,
    interpolation_matrix,
    result_axes,
    spreading_matrix,
    transform_axis,
)
from keras_neumeta.serialization import register_serializable


@register_serializable
class StatisticsField(keras.layers.Layer):
    """Moving statistics of every size, measured while training.

    Each statistic of the target has an array `(num_knots, channels)`: its
    values at evenly spaced ratios, linear in between, with channels read at
    the positions of the weight field. After a step at some size, the change
    of the moving average is handed to the two knots around that size.

    Args:
        min_ratio: Ratio of the first knot; the last one is at 1.
        num_knots: Number of knots.
        stretch: As in the weight field.
    """

    def __init__(self, min_ratio=0.25, num_knots=8, stretch=1.0, **kwargs):
        kwargs.setdefault("dtype", "float32")
        kwargs.setdefault("trainable", False)
        super().__init__(**kwargs)
        self.min_ratio = min_ratio
        self.num_knots = 1 if min_ratio >= 1.0 else num_knots
        self.stretch = stretch

    def attach(self, graph, values):
        """Creates the knots, all with the target's own statistics.

        Args:
            graph: `ChannelGraph` of the target.
            values: The target's statistics, in the order of the layouts
                whose role is `"statistic"`.
        """
        self.graph = graph
        self.layouts = [x for x in graph.layouts if x.role == "statistic"]
        self.knots = []
        for layout, value in zip(self.layouts, values, strict=True):
            variable = self.add_weight(
                shape=(self.num_knots, *layout.shape),
                initializer="zeros",
                trainable=False,
                name=layout.path.replace("/", "_"),
            )
            variable.assign(
                np.broadcast_to(
                    np.asarray(value, "float32"), tuple(variable.shape)
                )
            )
            self.knots.append(variable)
        self.built = True

    def generate(self, sizes):
        """Statistics of one size; see `WeightField.generate`."""
        numbers = group_sizes(self.graph, sizes)
        matrices = {
            group.index: interpolation_matrix(
                numbers[group.index],
                group.num_channels,
                stretch=self.stretch,
            )
            for group in self.graph.groups
        }
        values = []
        for layout, knots in zip(self.layouts, self.knots):
            hat = self._hat(layout, numbers)
            value = ops.tensordot(hat, ops.convert_to_tensor(knots), axes=1)
            results = result_axes(layout, sizes)
            for number, axis in layout.axes.items():
                value = transform_axis(
                    value, number, axis, matrices, results[number]
                )
            values.append(value)
        return values

    def update(self, sizes, before, after):
        """Hands the change of the statistics at one size to the knots.

        Args:
            sizes: As in `generate`.
            before, after: Lists of tensors: the statistics as generated,
                and after a training step at that size.
        """
        numbers = group_sizes(self.graph, sizes)
        matrices, reached = {}, {}
        for group in self.graph.groups:
            matrices[group.index], reached[group.index] = spreading_matrix(
                numbers[group.index], group.num_channels, self.stretch
            )
        for layout, knots, old, new in zip(
            self.layouts, self.knots, before, after
        ):
            change = ops.stop_gradient(
                ops.cast(new, "float32") - ops.cast(old, "float32")
            )
            axes = result_axes(layout, sizes)
            for number, axis in axes.items():
                change = transform_axis(
                    change, number, axis, matrices, layout.axes[number]
                )
                change = self._mask(
                    change, number, layout.axes[number], reached
                )
            hat = self._hat(layout, numbers)
            hat = hat / ops.sum(ops.square(hat))
            shape = (-1,) + (1,) * len(layout.shape)
            knots.assign(knots + ops.reshape(hat, shape) * change[None])

    def _mask(self, change, number, axis, reached):
        """Leaves control points alone that this size does not read."""
        if self.stretch == 1.0 or all(
            reached[piece.group] is None for piece in axis.pieces
        ):
            return change
        parts = []
        for piece in axis.pieces:
            part = reached[piece.group]
            if part is None:
                part = ops.ones((piece.num_channels,))
            parts.append(ops.tile(part, piece.blocks))
        mask = ops.concatenate(parts)
        if axis.inverse is not None:
            mask = ops.take(mask, axis.inverse)
        shape = [1] * len(change.shape)
        shape[number] = -1
        return change * ops.reshape(mask, shape)

    def _hat(self, layout, numbers):
        """Weight of each knot for the statistic's own kept width."""
        groups = [
            self.graph.groups[piece.group]
            for axis in layout.axes.values()
            for piece in axis.pieces
            if self.graph.groups[piece.group].morphable
        ]
        if self.num_knots == 1 or not groups:
            hat = np.zeros(self.num_knots, "float32")
            hat[-1] = 1.0
            return ops.convert_to_tensor(hat)
        kept = sum(
            ops.cast(numbers[group.index], "float32") / group.num_channels
            for group in groups
        ) / len(groups)
        place = (kept - self.min_ratio) / (1.0 - self.min_ratio)
        place = ops.clip(place, 0.0, 1.0) * (self.num_knots - 1)
        distance = ops.abs(place - ops.arange(self.num_knots, dtype="float32"))
        return ops.maximum(1.0 - distance, 0.0)

    def get_config(self):
        return {
            **super().get_config(),
            "min_ratio": self.min_ratio,
            "num_knots": self.num_knots,
            "stretch": self.stretch,
        }
