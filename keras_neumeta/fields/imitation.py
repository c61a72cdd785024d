"""Brings a weight field near its target's weights, before any training."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.fields.interpolation import interpolate_weights
from keras_neumeta.graph import sizes_at

RATE = 3e-3


def imitate(field, values, steps, seed=None):
    """Fits what a field generates to its target's interpolated weights.

    Every second step fits the full size, the others one whose ratio is drawn
    anew: the target's own weights at positions as far apart as its channels
    are more. Neighbouring channels that are alike make these a good start,
    and the field one function of the size instead of one function per size.

    Args:
        field: An attached `WeightField`.
        values: The target's weights, as for `WeightField.attach`.
        steps: Number of steps of Adam.
        seed: Of the drawn ratios.
    """
    distribution = keras.distribution.distribution()
    batch = 1
    if distribution is not None:
        batch = int(np.prod(distribution.device_mesh.shape))
    model = _Imitation(field, values, seed)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(RATE, steps)
        )
    )
    # The rows are counted, never read.
    rows = np.zeros((steps * batch, 1), "float32")
    model.fit(rows, batch_size=batch, shuffle=False, verbose=0)


class _Imitation(keras.Model):
    """Its loss is the distance of a field's weights from interpolated ones."""

    def __init__(self, field, values, seed):
        super().__init__(name="imitation", dtype="float32")
        self.field = field
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.values = [np.asarray(v, "float32") for v in values]
        # A constant (a bias at zero) has no variance to compare with.
        self.variances = [max(float(v.var()), 1e-4) for v in self.values]
        self.built = True

    def call(self, rows):
        graph = self.field.graph
        draw, ratio = ops.unstack(
            keras.random.uniform((2,), seed=self.seed_generator), num=2
        )
        sizes = sizes_at(graph, ops.where(draw < 0.5, 1.0, ratio))
        wanted = interpolate_weights(
            graph, self.field.layouts, self.values, sizes
        )
        distances = [
            ops.mean(ops.square(made - value)) / variance
            for made, value, variance in zip(
                self.field.generate(sizes), wanted, self.variances, strict=True
            )
        ]
        self.add_loss(sum(distances) / len(distances))
        return rows
