"""JAX: a pure function of all variables, under one stateless scope."""

import jax
import keras


def num_replicas():
    """Number of devices that share a batch."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.device_mesh.devices.size


class GradientStep:
    replica_share = 1.0

    def train_step(self, state, data):
        trainable, non_trainable, optimizer_variables, metrics = state
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

        def loss_function(trainable, non_trainable, metrics):
            variables = [*self.non_trainable_variables, *self.metrics_variables]
            mapping = [
                *zip(self.trainable_variables, trainable),
                *zip(variables, [*non_trainable, *metrics]),
            ]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                loss, y_pred = self.manifold_loss(x, y, sample_weight)
            updates = [scope.get_current_value(v) for v in variables]
            optimizer_mapping = zip(
                self.optimizer.variables, optimizer_variables
            )
            with keras.StatelessScope(state_mapping=list(optimizer_mapping)):
                scaled = self.optimizer.scale_loss(loss)
            split = len(self.non_trainable_variables)
            return scaled, (y_pred, updates[:split], updates[split:])

        (_, aux), gradients = jax.value_and_grad(loss_function, has_aux=True)(
            trainable, non_trainable, metrics
        )
        y_pred, non_trainable, metrics = aux
        trainable, optimizer_variables = self.optimizer.stateless_apply(
            optimizer_variables, gradients, trainable
        )
        mapping = list(zip(self.metrics_variables, metrics))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logs = self.step_logs(x, y, y_pred, sample_weight)
        metrics = [scope.get_current_value(v) for v in self.metrics_variables]
        return logs, (trainable, non_trainable, optimizer_variables, metrics)

    def fit(self, *args, **kwargs):
        history = super().fit(*args, **kwargs)
        # With `use_ema`, Keras leaves the weights and their averages in the
        # same buffers, which the next step would give away twice.
        for variable in self.trainable_variables:
            variable.assign(keras.ops.copy(variable))
        return history


def gradients(model, loss, x, y):
    """Gradients of `loss(y, outputs)` for the trainable variables."""
    others = [v.value for v in model.non_trainable_variables]

    def function(trainable):
        outputs, _ = model.stateless_call(trainable, others, x, training=False)
        return loss(y, outputs)

    return jax.grad(function)([v.value for v in model.trainable_variables])
