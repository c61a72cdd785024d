"""PyTorch: backward on the loss; processes of `torch.distributed` share it."""

import keras
import torch
from torch import distributed


def num_replicas():
    """Number of devices that share a batch: each process has its own."""
    return 1


class GradientStep:
    replica_share = 1.0

    def make_train_function(self, force=False):
        if _several() and (force or self.train_function is None):
            # All processes draw the same sizes from here on.
            for variable in [*self.variables, *self.optimizer.variables]:
                distributed.broadcast(variable.value.detach(), 0)
        super().make_train_function(force)

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.zero_grad()
        loss, y_pred = self.manifold_loss(x, y, sample_weight)
        self.optimizer.scale_loss(loss).backward()
        variables = self.trainable_variables
        gradients = [v.value.grad for v in variables]
        with torch.no_grad():
            _average([g for g in gradients if g is not None])
            _average([v.value for v in self.statistics.knots])
            _average([v.value for m in self.moments for v in m.variables])
            self.optimizer.apply(gradients, variables)
            logs = self.step_logs(x, y, y_pred, sample_weight)
            # Or a callback might stop one process and let the others wait.
            _average([v for v in logs.values() if torch.is_tensor(v)])
        return logs


def _several():
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def _average(tensors):
    """Gives tensors their mean over all processes, in one message."""
    if not _several() or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts):
        tensor.copy_(part.reshape(tensor.shape))


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
