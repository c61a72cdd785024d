"""Brings a weight field near its target's weights, before any training."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.backends import num_replicas
from keras_neumeta.fields.interpolation import interpolate_weights
from keras_neumeta.graph import sizes_at, with_depth

RATE = 3e-3


def imitate(field, values, steps, seed):
    """Fits what a field generates to its target's interpolated weights.

    Each step fits the full size, with probability one half, or a random width
    of all groups (and number of blocks): the target's weights, read at evenly
    spaced positions between its channels. That is a good start where
    neighbouring channels are alike.

    Args:
        field: An attached `WeightField`.
        values: The target's weights, as for `WeightField.attach`.
        steps: Number of steps of Adam.
        seed: Of the drawn sizes.
    """
    if not steps or not field.trainable_variables:
        return
    model = _Imitation(field, values, seed)
    rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
    model.compile(keras.optimizers.Adam(rate, name="imitation_adam"))
    # The rows are counted, never read: one per replica and step.
    batch = num_replicas()
    rows = np.zeros((steps * batch, 1), "float32")
    model.fit(rows, batch_size=batch, shuffle=False, verbose=0)


class _Imitation(keras.Model):
    """Its loss is the distance of a field's weights from interpolated ones."""

    def __init__(self, field, values, seed):
        super().__init__(name="imitation", dtype="float32")
        self.field = field
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.values = [np.asarray(v, "float32") for v in values]
        # Vectors are small and near constant at times.
        self.variances = [
            float(value.var()) or 1.0
            if layout.summed
            else max(float(value.var()), 1e-4)
            for layout, value in zip(field.layouts, self.values, strict=True)
        ]
        self.built = True

    def call(self, rows):
        sizes = self._draw_sizes(self.field.graph)
        wanted = interpolate_weights(
            self.field.graph, self.field.layouts, self.values, sizes
        )
        distances = [
            ops.mean(ops.square(made - value)) / variance
            for made, value, variance in zip(
                self.field.generate(sizes), wanted, self.variances, strict=True
            )
        ]
        self.add_loss(sum(distances) / len(distances))
        return rows

    def _draw_sizes(self, graph):
        draws = keras.random.uniform(
            (3,), dtype="float32", seed=self.seed_generator
        )
        full = draws[0] < 0.5
        sizes = sizes_at(graph, ops.where(full, 1.0, draws[1]))
        if graph.blocks:
            number = len(graph.blocks)
            depth = ops.floor(draws[2] * (number + 1))
            depth = ops.cast(ops.where(full, float(number), depth), "int32")
            sizes = with_depth(graph, sizes, depth)
        return sizes
