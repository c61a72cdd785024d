"""TensorFlow: a gradient tape."""

import keras
import tensorflow as tf


def num_replicas():
    """Number of devices that share a batch."""
    return tf.distribute.get_strategy().num_replicas_in_sync


class GradientStep:
    @property
    def replica_share(self):
        """What Keras multiplies the losses of one replica by."""
        return 1.0 / num_replicas()

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss, y_pred = self.manifold_loss(x, y, sample_weight)
            scaled = self.optimizer.scale_loss(loss * self.replica_share)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, variables)
        self.optimizer.apply_gradients(zip(gradients, variables))
        return self.step_logs(x, y, y_pred, sample_weight)


def gradients(model, loss, x, y):
    """Gradients of `loss(y, outputs)` for the trainable variables."""
    with tf.GradientTape() as tape:
        value = loss(y, model(x, training=False))
    return tape.gradient(
        value,
        [v.value for v in model.trainable_variables],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
