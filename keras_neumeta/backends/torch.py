"""PyTorch: backward on the loss."""

import keras
import torch


class GradientStep:
    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.zero_grad()
        loss, y_pred = self.manifold_loss(x, y, sample_weight)
        self.optimizer.scale_loss(loss).backward()
        variables = self.trainable_variables
        gradients = [v.value.grad for v in variables]
        with torch.no_grad():
            self.optimizer.apply(gradients, variables)
        return self.step_logs(x, y, y_pred, sample_weight)


def gradients(model, loss, x, y):
    """Gradients of `loss(y, outputs)` for the trainable variables."""
    variables = [v.value for v in model.trainable_variables]
    return torch.autograd.grad(
        loss(y, model(x, training=False)),
        variables,
        allow_unused=True,
        materialize_grads=True,
    )


def open_shapes(inputs):
    """The `dynamic_shapes` of `torch.export` that leave open what inputs do.

    Args:
        inputs: Nested structure of `keras.KerasTensor`.
    """

    def axes(x):
        return {
            number: torch.export.Dim.DYNAMIC
            for number, size in enumerate(x.shape)
            if size is None
        }

    return [(keras.tree.map_structure(axes, inputs),)]
