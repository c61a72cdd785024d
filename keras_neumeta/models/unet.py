"""A U-Net with a ResNet18 as encoder, for segmentation.

Source: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for
Biomedical Image Segmentation" (MICCAI 2015).
"""

import keras
from keras import layers

from keras_neumeta.models.resnet import load_weights, resnet18_features


def unet(
    num_classes,
    input_shape,
    widths=(64, 128, 256, 512),
    decoder_widths=(256, 128, 64, 32, 16),
    weights=None,
    name="unet",
):
    """ResNet18 down to 1/32 of the resolution, and up again with skips.

    Args:
        num_classes: Number of logits per pixel.
        input_shape: Height, width and channels (RGB in 0..1), of any height
            and width; an unknown one (`None`) must be a multiple of 32.
        widths: Channels of the four stages of the encoder.
        decoder_widths: Channels of the five stages of the decoder, from the
            lowest resolution to the full one.
        weights: Path of an `.npz` file with weights of all layers, named as
            in `resnet18`. Default: random.
        name: Name of the model.

    Returns:
        A functional `keras.Model` with logits `(batch, height, width,
        num_classes)` as output.

    Raises:
        ValueError: If `widths` are not four, `decoder_widths` not five, or
            `weights` do not fit.

    Example:

    ```python
    model = keras_neumeta.models.unet(21, (256, 256, 3))
    ```
    """
    if len(decoder_widths) != 5:
        raise ValueError(
            "Argument `decoder_widths` must hold the channels of five stages. "
            f"Received: decoder_widths={decoder_widths}"
        )
    inputs = keras.Input(input_shape)
    *skips, x = resnet18_features(inputs, widths)
    # At full resolution there is nothing to skip from.
    skips = [None, *skips]
    for stage, width in enumerate(decoder_widths, 1):
        like = skips.pop()
        x = _up(x, inputs if like is None else like, f"up{stage}")
        if like is not None:
            x = layers.Concatenate(name=f"up{stage}_concat")([x, like])
        for number in (1, 2):
            x = layers.Conv2D(
                width,
                3,
                padding="same",
                use_bias=False,
                kernel_initializer="he_normal",
                name=f"up{stage}_conv{number}",
            )(x)
            x = layers.BatchNormalization(
                momentum=0.9, epsilon=1e-5, name=f"up{stage}_bn{number}"
            )(x)
            x = layers.ReLU(name=f"up{stage}_relu{number}")(x)
    outputs = layers.Conv2D(num_classes, 1, name="classes")(x)
    model = keras.Model(inputs, outputs, name=name)
    if weights is not None:
        load_weights(model, weights)
    return model


def _up(x, like, name):
    """Twice the resolution, cut where that of the skip was odd."""
    x = layers.UpSampling2D(name=name)(x)
    odd = [
        0 if size is None else x.shape[axis] - size
        for axis, size in enumerate(like.shape[1:3], 1)
    ]
    if any(odd):
        x = layers.Cropping2D(
            [(0, number) for number in odd], name=f"{name}_crop"
        )(x)
    return x
