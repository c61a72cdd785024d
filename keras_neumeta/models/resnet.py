"""Residual networks for small images (CIFAR) and large ones (ImageNet).

Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition"
(CVPR 2016), sections 4.1 and 4.2.
"""

import keras
import numpy as np
from keras import layers, ops

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


def cifar_resnet(
    depth=20,
    num_classes=10,
    widths=(16, 32, 64),
    shortcut="conv",
    input_shape=(32, 32, 3),
    weights=None,
    name=None,
):
    """ResNet20, 32, 44, 56, ... of three stages.

    Args:
        depth: Number of layers, `6 n + 2` for `n` blocks a stage.
        num_classes: Number of logits.
        widths: Channels of the three stages.
        shortcut: Where the resolution halves: `"conv"` (a strided 1 x 1
            convolution, option B) or `"pad"` (every second position, padded
            with zero channels, option A, no parameters).
        input_shape: Height, width and channels (RGB in 0..1).
        weights: Path of an `.npz` file with pretrained weights in the names
            `stem.conv.kernel`, `stage1.block0.bn1.gamma`, ... Default: random.
        name: Name of the model. Default: `resnet20` and so on.

    Returns:
        A functional `keras.Model` with logits as output.

    Raises:
        ValueError: If `depth` is not `6 n + 2`, `widths` are not three (for
            `shortcut="pad"` ascending), `shortcut` is unknown, or `weights`
            do not fit.

    Example:

    ```python
    model = keras_neumeta.models.cifar_resnet(20)
    ```
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(
            "Argument `depth` must be 6 n + 2: 8, 14, 20, 32, 44, 56, ... "
            f"Received: depth={depth}"
        )
    if shortcut not in ("conv", "pad"):
        raise ValueError(
            "Argument `shortcut` must be 'conv' or 'pad'. "
            f"Received: shortcut={shortcut!r}"
        )
    if len(widths) != 3:
        raise ValueError(
            "Argument `widths` must hold the channels of three stages. "
            f"Received: widths={widths}"
        )
    if shortcut == "pad" and list(widths) != sorted(widths):
        raise ValueError(
            "Argument `widths` must not fall from stage to stage with "
            "`shortcut='pad'`, which only adds channels: use 'conv'. "
            f"Received: widths={widths}"
        )
    inputs = keras.Input(input_shape)
    x = _normalized(inputs)
    x = _conv_norm(x, widths[0], 3, 1, "stem_conv", "stem_bn")
    x = layers.ReLU(name="stem_relu")(x)
    for stage, width in enumerate(widths, 1):
        for block in range(blocks):
            strides = 2 if stage > 1 and block == 0 else 1
            x = _block(
                x, width, strides, shortcut, f"stage{stage}_block{block}"
            )
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    outputs = layers.Dense(num_classes, name="head_dense")(x)
    model = keras.Model(inputs, outputs, name=name or f"resnet{depth}")
    if weights is not None:
        load_weights(model, weights)
    return model


def resnet18(
    num_classes=1000,
    widths=(64, 128, 256, 512),
    input_shape=(224, 224, 3),
    weights=None,
    name="resnet18",
):
    """ResNet18 for ImageNet: a 7 x 7 stem and four stages of two blocks.

    Args:
        num_classes: Number of logits.
        widths: Channels of the four stages; the stem has those of the first.
        input_shape: Height, width and channels (RGB in 0..1).
        weights: Path of an `.npz` file with pretrained weights in the names
            `stem.conv.kernel`, `stage1.block0.bn1.gamma`,
            `stage2.block0.shortcut.kernel`, `stage2.block0.shortcut.bn.gamma`,
            `head.dense.bias`, ... Default: random.
        name: Name of the model.

    Returns:
        A functional `keras.Model` with logits as output.

    Raises:
        ValueError: If `widths` are not four, or `weights` do not fit.

    Example:

    ```python
    model = keras_neumeta.models.resnet18()
    ```
    """
    inputs = keras.Input(input_shape)
    x = resnet18_features(inputs, widths)[-1]
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    outputs = layers.Dense(num_classes, name="head_dense")(x)
    model = keras.Model(inputs, outputs, name=name)
    if weights is not None:
        load_weights(model, weights)
    return model


def resnet18_features(inputs, widths):
    """The feature maps of ResNet18, at each of its five resolutions.

    Args:
        inputs: Images `(batch, height, width, channels)` (RGB in 0..1).
        widths: Channels of the four stages.

    Returns:
        List of the outputs of the stem, before its pooling, and of the four
        stages: at 1/2, 1/4, 1/8, 1/16 and 1/32 of the height and width,
        rounded up.

    Raises:
        ValueError: If `widths` are not four.
    """
    if len(widths) != 4:
        raise ValueError(
            "Argument `widths` must hold the channels of four stages. "
            f"Received: widths={widths}"
        )
    x = _normalized(inputs)
    x = _conv_norm(x, widths[0], 7, 2, "stem_conv", "stem_bn")
    x = layers.ReLU(name="stem_relu")(x)
    features = [x]
    # Zeros are neutral here: the maximum is over values that are not negative.
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    for stage, width in enumerate(widths, 1):
        for block in range(2):
            strides = 2 if stage > 1 and block == 0 else 1
            x = _block(x, width, strides, "conv", f"stage{stage}_block{block}")
        features.append(x)
    return features


def _normalized(x):
    """RGB images minus the mean, by the deviation, of natural images."""
    if x.shape[-1] != len(MEAN):
        return x
    return layers.Rescaling(
        scale=[1 / s for s in DEVIATION],
        offset=[-m / s for m, s in zip(MEAN, DEVIATION)],
        name="normalize",
    )(x)


def _conv_norm(x, filters, kernel, strides, conv, norm):
    # As the published networks: "same" would start one position later.
    padded = kernel > 1 and strides > 1
    if padded:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{conv}_pad")(x)
    x = layers.Conv2D(
        filters,
        kernel,
        strides,
        padding="valid" if padded else "same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=conv,
    )(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=norm)(x)


def _block(x, width, strides, shortcut, name):
    y = _conv_norm(x, width, 3, strides, f"{name}_conv1", f"{name}_bn1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = _conv_norm(y, width, 3, 1, f"{name}_conv2", f"{name}_bn2")
    if strides > 1 or x.shape[-1] != width:
        # Not by the convolution: oneDNN, on CPUs, gets the gradient of one of
        # few channels wrong, or never ends (uxlfoundation/oneDNN, 6035).
        x = layers.MaxPooling2D(1, strides, name=f"{name}_shortcut_stride")(x)
        x = (
            _conv_norm(
                x, width, 1, 1, f"{name}_shortcut", f"{name}_shortcut_bn"
            )
            if shortcut == "conv"
            else _padded(x, width)
        )
    x = layers.Add(name=f"{name}_add")([y, x])
    return layers.ReLU(name=f"{name}_relu2")(x)


def _padded(x, width):
    missing = width - x.shape[-1]
    before = missing // 2
    return ops.pad(x, [[0, 0], [0, 0], [0, 0], [before, missing - before]])


def load_weights(model, path):
    """Gives a model the arrays of an `.npz` file, by layer name.

    Args:
        model: Model whose layers are named as the arrays, without the name
            of the variable and with `_` for each dot.
        path: Path of the file.

    Raises:
        ValueError: If an array is missing, too many, or of another shape;
            the model is left as it was.
    """
    arrays = dict(np.load(path))
    given = {
        f"{layer.name}.{variable.name}": variable
        for layer in model.layers
        for variable in layer.variables
    }
    # Layers cannot have dots in their names on PyTorch.
    arrays = {
        layer.replace(".", "_") + dot + variable: value
        for key, value in arrays.items()
        for layer, dot, variable in [key.rpartition(".")]
    }
    if set(arrays) != set(given):
        raise ValueError(
            f"Argument `weights`: '{path}' does not fit '{model.name}'. "
            f"Missing: {sorted(set(given) - set(arrays))[:5]}, unknown: "
            f"{sorted(set(arrays) - set(given))[:5]}"
        )
    for key, variable in given.items():
        if arrays[key].shape != tuple(variable.shape):
            raise ValueError(
                f"Argument `weights`: '{key}' of '{path}' has shape "
                f"{arrays[key].shape}; expected {tuple(variable.shape)}."
            )
    for key, variable in given.items():
        variable.assign(arrays[key])
