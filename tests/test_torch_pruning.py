"""Group importance against Torch-Pruning, on the same weights.

For development only: needs `pip install torch-pruning`.
"""

import keras
import numpy as np
import pytest
from keras import ops

import keras_neumeta as nm

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
import torch
import torch_pruning as tp
from torch import nn

# It makes plain torch modules itself, whatever backend Keras runs on, and
# reads NumPy arrays of Keras: one backend says all.
pytestmark = pytest.mark.tensorflow


def array(variable):
    return ops.convert_to_numpy(variable)


def converted(layer):
    """The torch module with the weights of a Keras layer."""
    values = [torch.tensor(array(v)) for v in layer.weights]
    if isinstance(layer, keras.layers.Conv2D):
        module = nn.Conv2d(
            values[0].shape[2],
            values[0].shape[3],
            layer.kernel_size,
            layer.strides,
            padding=layer.kernel_size[0] // 2,
            bias=layer.use_bias,
        )
        module.weight.data = values[0].permute(3, 2, 0, 1).contiguous()
    elif isinstance(layer, keras.layers.Dense):
        module = nn.Linear(*values[0].shape)
        module.weight.data = values[0].T.contiguous()
    else:
        module = nn.BatchNorm2d(len(values[0]))
        module.weight.data = values[0]
    if getattr(module, "bias", None) is not None:
        module.bias.data = values[1]
    return module


def modules(model):
    return nn.ModuleDict(
        {x.name: converted(x) for x in model.layers if x.weights}
    )


class ResNet(nn.Module):
    """`cifar_resnet`, module for module."""

    def __init__(self, model):
        super().__init__()
        self.parts = modules(model)

    def forward(self, x):
        parts = self.parts
        x = torch.relu(parts["stem_bn"](parts["stem_conv"](x)))
        for stage in (1, 2, 3):
            name = f"stage{stage}_block0"
            y = torch.relu(parts[f"{name}_bn1"](parts[f"{name}_conv1"](x)))
            y = parts[f"{name}_bn2"](parts[f"{name}_conv2"](y))
            if f"{name}_shortcut" in parts:
                strides = parts[f"{name}_conv1"].stride
                x = torch.max_pool2d(x, 1, strides)
                x = parts[f"{name}_shortcut"](x)
                x = parts[f"{name}_shortcut_bn"](x)
            x = torch.relu(x + y)
        return parts["head_dense"](x.mean((2, 3)))


class LeNet(nn.Module):
    """`lenet`, whose last layer reads channels last in Keras."""

    def __init__(self, model):
        super().__init__()
        self.parts = modules(model)
        for name in ("conv1", "conv2", "conv3"):
            self.parts[name].padding = (0, 0)
        channels = self.parts["conv3"].out_channels
        weight = self.parts["classes"].weight.data
        side = int((weight.shape[1] / channels) ** 0.5)
        weight = weight.reshape(-1, side, side, channels).permute(0, 3, 1, 2)
        self.parts["classes"].weight.data = weight.flatten(1).contiguous()

    def forward(self, x):
        x = torch.relu(self.parts["conv1"](x))
        x = torch.max_pool2d(x, 2)
        x = torch.relu(self.parts["conv2"](x))
        x = torch.max_pool2d(x, 2)
        x = torch.relu(self.parts["conv3"](x))
        return self.parts["classes"](x.flatten(1))


@pytest.mark.parametrize("criterion, power", [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("kind", ["resnet", "lenet"])
def test_same_importance_and_same_channels(kind, criterion, power):
    keras.utils.set_random_seed(0)
    if kind == "resnet":
        model, shape = nm.models.cifar_resnet(8), (1, 3, 32, 32)
    else:
        model, shape = nm.models.lenet(), (1, 1, 28, 28)
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.normal(size=variable.shape))
    other = (ResNet if kind == "resnet" else LeNet)(model).eval()
    dependencies = tp.DependencyGraph().build_dependency(
        other, torch.zeros(shape)
    )
    scorer = tp.importance.GroupMagnitudeImportance(
        p=power, group_reduction="sum", normalizer=None, bias=True
    )
    importance = nm.channel_importance(model, criterion)
    keep = nm.largest_channels(model, 0.5, importance=importance)
    groups = nm.trace(model).morphable_groups
    assert len(groups) >= 3
    for group in groups:
        (name, *_) = [m for m in group.makers if "bn" not in m]
        module = other.parts[name]
        theirs = scorer(
            dependencies.get_pruning_group(
                module,
                tp.prune_conv_out_channels,
                list(range(group.num_channels)),
            )
        ).numpy()
        np.testing.assert_allclose(importance[group.name], theirs, rtol=1e-4)
        half = np.sort(np.argsort(-theirs)[: group.num_channels // 2])
        np.testing.assert_array_equal(keep[group.name], half)
