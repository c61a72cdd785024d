"""A LeNet of three convolutions.

After LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to
Document Recognition" (1998).
"""

import keras
from keras import layers


def lenet(
    widths=(32, 64, 128), num_classes=10, input_shape=(28, 28, 1), name="lenet"
):
    """Three convolutions, pooling in between, and a dense layer.

    Args:
        widths: Channels of the three convolutions.
        num_classes: Number of logits.
        input_shape: Height, width and channels.
        name: Name of the model.

    Returns:
        A Sequential `keras.Model` with logits as output.

    Raises:
        ValueError: If `widths` are not three.

    Example:

    ```python
    model = keras_neumeta.models.lenet()
    ```
    """
    if len(widths) != 3:
        raise ValueError(
            "Argument `widths` must hold the channels of three convolutions. "
            f"Received: widths={widths}"
        )
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(widths[0], 3, activation="relu", name="conv1"),
            layers.MaxPooling2D(name="pool1"),
            layers.Conv2D(widths[1], 3, activation="relu", name="conv2"),
            layers.MaxPooling2D(name="pool2"),
            layers.Conv2D(widths[2], 3, activation="relu", name="conv3"),
            layers.Flatten(name="flatten"),
            layers.Dense(num_classes, name="classes"),
        ],
        name=name,
    )
