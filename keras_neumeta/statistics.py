"""Moving statistics (batch norm) as curves over the size."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.fields.interpolation import (
    bundles,
    group_matrices,
    is_static,
    reading,
    result_axes,
    spreading_matrix,
    transform_axis,
)
from keras_neumeta.fields.size_knots import SizeKnots
from keras_neumeta.serialization import register_serializable

# A variance that counts as none: that of Keras' batch norm.
EPSILON = 1e-3
# The share of one batch in a statistic, at most, unless its momentum is lower.
FASTEST = 0.1


@register_serializable
class StatisticsField(keras.layers.Layer):
    """Moving statistics of every size, measured while training.

    Each statistic of the target has an array `(knots, channels)`: its values
    at a few ratios (and, where blocks can be left out, at a few numbers of
    blocks for each), linear in between, with channels read at the positions
    of the weight field. After a step at some size, the change of the moving
    average is handed to the two knots around that size; that of a size which
    every step measures, to all knots as far as the next such sizes. A knot
    among random sizes has its turn once in many steps, and then takes several
    steps at once: else it would hold for long what was true of other weights.

    The mean of what a linear layer computes is no smooth curve. It follows
    from the layer's mean input, a further statistic, and the weights of the
    size; its curve holds only what this leaves (the borders of images). The
    curve of its variance holds the ratio to the sum of its squared weights.
    Both go by the kept width of the layer's inputs, on which they depend.
    Variances are kept as logarithms: where the training seldom draws a size,
    a curve could else fall to zero.

    Args:
        ratios: Rising ratios of the knots, the last one 1.
        stretch: As in the weight field.
        fixed: Rising ratios that every step measures.
        turns: In how many steps a knot has its turn, among random sizes.
    """

    def __init__(
        self,
        ratios=(0.25, 0.5, 0.75, 1.0),
        stretch=1.0,
        fixed=(),
        turns=1.0,
        **kwargs,
    ):
        kwargs.setdefault("dtype", "float32")
        kwargs.setdefault("trainable", False)
        super().__init__(**kwargs)
        self.ratios = tuple(ratios)
        self.stretch = stretch
        self.fixed = tuple(fixed)
        self.turns = float(turns)

    def attach(self, graph, values, weights):
        """Creates the knots, all with the target's own statistics.

        Args:
            graph: `ChannelGraph` of the target.
            values: The target's statistics, in the order of the layouts
                whose role is `"statistic"`.
            weights: The weights that these belong to.
        """
        self.graph = graph
        self.layouts = graph.statistics
        # Mean inputs are not measured yet: the curves of means hold all.
        values = [
            *values,
            *(np.zeros(each.layout.shape) for each in graph.normalized_sums),
        ]
        # Added to a variance, to have a logarithm of one that is zero.
        self.least = {
            number: EPSILON
            for number, layout in enumerate(self.layouts)
            if layout.minimum == 0.0
        }
        for each in graph.normalized_sums:
            self.least[each.variance] = each.epsilon
        for number, least in self.least.items():
            values[number] = np.log(values[number] + least)
        for each in graph.normalized_sums:
            kernel = ops.convert_to_tensor(
                np.asarray(weights[each.kernel], "float32")
            )
            spread = ops.convert_to_numpy(each.predict_variance(kernel))
            values[each.variance] = values[each.variance] - np.log(spread)
        # Statistics of the same channels are one array: fewer, larger
        # operations in each step.
        self.bundles = bundles(self.layouts)
        self.knots = []
        self.paces = [
            max(min(self.turns * rate, FASTEST), rate) / rate
            for rate in (1.0 - layout.momentum for layout in self.layouts)
        ]
        places = list(self.layouts)
        for each in graph.normalized_sums:
            places[each.mean] = places[each.variance] = each.layout
        self.size_knots = SizeKnots(graph, places, self.ratios)
        for number, bundle in enumerate(self.bundles):
            value = np.stack([np.asarray(values[i], "float32") for i in bundle])
            value = np.broadcast_to(value, (len(self.size_knots), *value.shape))
            variable = measured_variable(self, value.copy(), f"knots_{number}")
            self.knots.append(variable)
        self.built = True

    def generate(self, sizes, weights, offsets=None):
        """Statistics of one size; see `WeightField.generate`.

        Args:
            sizes, offsets: As there.
            weights: What it returned for these.

        Returns:
            List of tensors in the order of the layouts.
        """
        values = self._read(sizes, offsets)
        spreads = {}
        for each, kernel, inputs in self._sums(values, weights):
            mean = each.predict_mean(kernel, inputs)
            values[each.mean] = values[each.mean] + mean
            spreads[each.variance] = each.predict_variance(kernel)
        for number, least in self.least.items():
            variance = ops.exp(values[number]) * spreads.get(number, 1.0)
            values[number] = ops.maximum(variance - least, 0.0)
        return values

    def _sums(self, values, weights):
        """Each sum, its kernel, and its mean input among `values`."""
        sums = self.graph.normalized_sums
        inputs = values[len(values) - len(sums) :]
        for each, value in zip(sums, inputs, strict=True):
            kernel = ops.convert_to_tensor(weights[each.kernel])
            yield each, ops.stop_gradient(kernel), value

    def _read(self, sizes, offsets):
        def read(number, group, noise=None):
            return reading(
                number, group.num_channels, noise, stretch=self.stretch
            )

        matrices = group_matrices(self.graph, sizes, read, offsets)
        hats = self.size_knots.weights(sizes)
        values = [None] * len(self.layouts)
        for number, bundle in enumerate(self.bundles):
            knots = ops.convert_to_tensor(self.knots[number])
            hat = ops.take(hats, bundle, axis=0)
            value = ops.einsum("bk,kb...->b...", hat, knots)
            layout = self.layouts[bundle[0]]
            results = result_axes(self.graph, layout, sizes)
            for n, axis in layout.axes.items():
                value = transform_axis(value, n + 1, axis, matrices, results[n])
            for index, part in zip(bundle, ops.unstack(value, len(bundle))):
                values[index] = part
        return values

    def update(self, sizes, weights, before, after, offsets=None):
        """Hands the change of the statistics at one size to the knots.

        Args:
            sizes, weights, offsets: As in `generate`.
            before, after: Lists of tensors: the statistics as generated,
                and after a training step at that size.
        """

        def make(number, group, noise=None):
            return spreading_matrix(
                number, group.num_channels, noise, self.stretch
            )

        spread = group_matrices(self.graph, sizes, make, offsets)
        matrices = {index: pair[0] for index, pair in spread.items()}
        reached = {index: pair[1] for index, pair in spread.items()}
        # The curve moves by exactly the change at this size.
        moves = self.size_knots.moves(sizes, self.fixed)
        changes = []
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            new = ops.cast(new, "float32")
            if number in self.least:
                least = self.least[number]
                old, new = ops.log(old + least), ops.log(new + least)
            pace = 1.0 if is_static(sizes) else self.paces[number]
            changes.append(_finite(ops.stop_gradient(pace * (new - old))))
        # What follows from the mean inputs and the weights is not left to
        # the curves.
        for each, kernel, inputs in self._sums(changes, weights):
            mean = each.predict_mean(kernel, inputs)
            changes[each.mean] = changes[each.mean] - mean
        for number, bundle in enumerate(self.bundles):
            change = ops.stack([changes[index] for index in bundle])
            layout = self.layouts[bundle[0]]
            sources = layout.axes
            if is_static(sizes):
                sources = self.graph.axes_at(layout, sizes)
            for n, axis in layout.axes.items():
                change = transform_axis(
                    change, n + 1, sources[n], matrices, axis
                )
                change = self._mask(change, n + 1, axis, reached)
            move = ops.transpose(ops.take(moves, bundle, axis=0))
            move = ops.reshape(move, move.shape + (1,) * len(layout.shape))
            knots = self.knots[number]
            knots.assign(knots + move * change[None])

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

    def get_config(self):
        return {
            **super().get_config(),
            "ratios": self.ratios,
            "stretch": self.stretch,
            "fixed": self.fixed,
            "turns": self.turns,
        }


def measured_variable(layer, value, name):
    """A variable of a layer for what training measures.

    Each replica measures its part of the batch; outside of a step their mean
    is read. `add_weight` cannot say so.
    """
    with keras.name_scope(layer.name):
        return keras.Variable(
            value,
            dtype="float32",
            trainable=False,
            synchronization="on_read",
            aggregation="mean",
            name=name,
        )


def _finite(change):
    """What overflows in float16 changes no statistic, as it does no weight."""
    return ops.where(ops.isfinite(change), change, ops.zeros_like(change))
