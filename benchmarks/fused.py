"""Batch norm of images by TensorFlow's fused kernel.

Keras computes batch norm of single operations, which take 40 % of a step of a
ResNet20 on a CPU. The fused kernel gives the same numbers in a quarter of the
time. It serves all methods of a benchmark alike.
"""

import math

import tensorflow as tf
from keras import layers, ops

_plain = layers.BatchNormalization.call


def use_fused_batch_norm():
    """Lets every `BatchNormalization` of this process train so."""
    layers.BatchNormalization.call = _call


def _call(self, inputs, training=None, mask=None):
    fits = len(inputs.shape) == 4 and self.axis in (-1, 3) and mask is None
    if not (fits and training and self.trainable) or self.renorm:
        return _plain(self, inputs, training=training, mask=mask)
    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        inputs,
        ops.convert_to_tensor(self.gamma),
        ops.convert_to_tensor(self.beta),
        epsilon=self.epsilon,
    )
    # The kernel's variance is that of the population; Keras keeps the sample's.
    count = tf.size(inputs) / math.prod(inputs.shape[3:])
    count = tf.cast(count, variance.dtype)
    variance = variance * (count - 1.0) / count
    for moving, value in (
        (self.moving_mean, mean),
        (self.moving_variance, variance),
    ):
        moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
    return outputs
