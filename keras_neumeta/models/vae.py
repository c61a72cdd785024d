"""Variational autoencoders, dense and convolutional.

Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (ICLR 2014).
"""

import math

import keras
from keras import layers, ops

from keras_neumeta.serialization import register_serializable


@register_serializable
class Sampling(layers.Layer):
    """Draws a latent code, and adds the KL divergence to the loss.

    Training draws from the normal distribution N(mean, variance); inference
    gives the mean. The loss gets `kl_weight * KL(N(mean, variance) || N(0,
    1))`, summed over the latent dimensions, averaged over the batch.

    Nothing says that this layer acts on each channel alone, so `trace` keeps
    the number of latent dimensions: every size of a network reads and writes
    the same code.

    Args:
        kl_weight: Weight of the divergence beside the compiled loss.
        seed: Seed of the draws.

    Call arguments:
        inputs: `[mean, log_variance]`, each `(batch, latent)`.
        training: Whether to draw.

    Returns:
        The code, `(batch, latent)`.
    """

    def __init__(self, kl_weight=1.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.kl_weight = kl_weight
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, inputs, training=False):
        mean, log_variance = inputs
        self.add_loss(
            self.kl_weight * ops.mean(kl_divergence(mean, log_variance))
        )
        if not training:
            return mean
        noise = keras.random.normal(
            ops.shape(mean), dtype=self.compute_dtype, seed=self.seed_generator
        )
        return mean + ops.exp(0.5 * log_variance) * noise

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return {
            **super().get_config(),
            "kl_weight": self.kl_weight,
            "seed": self.seed,
        }


def kl_divergence(mean, log_variance):
    """KL(N(mean, variance) || N(0, 1)) of each example, in nats.

    Args:
        mean, log_variance: Tensors `(batch, latent)`.

    Returns:
        Float32 tensor `(batch,)`.
    """
    mean = ops.cast(mean, "float32")
    log_variance = ops.cast(log_variance, "float32")
    return 0.5 * ops.sum(
        ops.square(mean) + ops.exp(log_variance) - 1.0 - log_variance, axis=-1
    )


def dense_vae(
    widths=(512, 256),
    latent=16,
    input_shape=(28, 28, 1),
    kl_weight=None,
    seed=None,
    name="dense_vae",
):
    """A dense variational autoencoder, for MNIST.

    Train it with `keras.losses.BinaryCrossentropy()` between its output and
    its input: each pixel is the chance of a white one. With the default
    `kl_weight` the loss then is the negative evidence lower bound by the
    number of pixels.

    Args:
        widths: Units of the hidden layers of the encoder; those of the
            decoder are the same in reverse.
        latent: Number of latent dimensions, the same at every size.
        input_shape: Height, width and channels (in 0..1).
        kl_weight: Weight of the KL divergence beside the compiled loss.
            Default: 1 / number of pixels.
        seed: Seed of the latent draws.
        name: Name of the model.

    Returns:
        A functional `keras.Model` from images to images in 0..1. It holds a
        `Sampling`, so that its file loads where keras_neumeta is imported;
        those of its halves, which `split_vae` gives, load without.

    Example:

    ```python
    model = keras_neumeta.models.dense_vae()
    model.compile("adam", keras.losses.BinaryCrossentropy())
    model.fit(x, x)
    ```
    """
    pixels = math.prod(input_shape)
    if kl_weight is None:
        kl_weight = 1.0 / pixels
    inputs = keras.Input(input_shape)
    x = layers.Flatten(name="encoder_flatten")(inputs)
    for number, width in enumerate(widths, 1):
        x = layers.Dense(
            width, activation="relu", name=f"encoder_dense{number}"
        )(x)
    x = _latent(x, latent, kl_weight, seed)
    for number, width in enumerate(reversed(widths), 1):
        x = layers.Dense(
            width, activation="relu", name=f"decoder_dense{number}"
        )(x)
    x = layers.Dense(pixels, activation="sigmoid", name="decoder_pixels")(x)
    outputs = layers.Reshape(input_shape, name="decoder_image")(x)
    return keras.Model(inputs, outputs, name=name)


def conv_vae(
    widths=(32, 64, 128, 256),
    latent=64,
    input_shape=(64, 64, 3),
    kl_weight=None,
    seed=None,
    name="conv_vae",
):
    """A convolutional variational autoencoder, for faces.

    Train it with `keras.losses.MeanSquaredError()` between its output and its
    input: each value is the mean of a normal distribution. With the default
    `kl_weight` the loss then is the negative evidence lower bound for a
    deviation of 0.1, times 2 * 0.1^2 / number of values, up to a constant.

    Args:
        widths: Channels of the strided convolutions of the encoder; those of
            the decoder are the same in reverse.
        latent: Number of latent dimensions, the same at every size.
        input_shape: Height, width and channels (in 0..1); height and width
            multiples of `2 ** len(widths)`.
        kl_weight: Weight of the KL divergence beside the compiled loss.
            Default: `2 * deviation^2 / number of values` for the deviation
            0.1 of a value.
        seed: Seed of the latent draws.
        name: Name of the model.

    Returns:
        A functional `keras.Model` from images to images in 0..1. It holds a
        `Sampling`, so that its file loads where keras_neumeta is imported;
        those of its halves, which `split_vae` gives, load without.

    Raises:
        ValueError: If height or width cannot be halved for each of `widths`.

    Example:

    ```python
    model = keras_neumeta.models.conv_vae()
    model.compile("adam", keras.losses.MeanSquaredError())
    model.fit(x, x)
    ```
    """
    height, width, channels = input_shape
    halved = 2 ** len(widths)
    if height % halved or width % halved:
        raise ValueError(
            "Argument `input_shape` must have a height and a width that are "
            f"multiples of {halved}, since {len(widths)} convolutions halve "
            f"them. Received: input_shape={input_shape}"
        )
    if kl_weight is None:
        kl_weight = 2 * 0.1**2 / math.prod(input_shape)
    inputs = keras.Input(input_shape)
    x = inputs
    for number, filters in enumerate(widths, 1):
        x = layers.Conv2D(
            filters,
            4,
            2,
            padding="same",
            use_bias=False,
            name=f"encoder_conv{number}",
        )(x)
        x = _activated(x, f"encoder_bn{number}", f"encoder_relu{number}")
    shape = tuple(x.shape[1:])
    x = layers.Flatten(name="encoder_flatten")(x)
    x = _latent(x, latent, kl_weight, seed)
    x = layers.Dense(math.prod(shape), name="decoder_dense")(x)
    x = layers.Reshape(shape, name="decoder_map")(x)
    x = _activated(x, "decoder_bn0", "decoder_relu0")
    for number, filters in enumerate(reversed(widths[:-1]), 1):
        x = layers.Conv2DTranspose(
            filters,
            4,
            2,
            padding="same",
            use_bias=False,
            name=f"decoder_conv{number}",
        )(x)
        x = _activated(x, f"decoder_bn{number}", f"decoder_relu{number}")
    outputs = layers.Conv2DTranspose(
        channels,
        4,
        2,
        padding="same",
        activation="sigmoid",
        name="decoder_image",
    )(x)
    return keras.Model(inputs, outputs, name=name)


def split_vae(model):
    """The encoder and the decoder of a variational autoencoder.

    They share their layers with the model, but for its `Sampling`, which is
    in neither: both are of Keras' own layers.

    Args:
        model: Model of `dense_vae` or `conv_vae`, or a morphed size of one.

    Returns:
        The encoder, from images to `[mean, log_variance]`, and the decoder,
        from codes to images.

    Raises:
        ValueError: If the model is no such autoencoder.

    Example:

    ```python
    encoder, decoder = keras_neumeta.models.split_vae(hyper.morph(0.5))
    images = decoder(keras.random.normal((16, decoder.input_shape[-1])))
    ```
    """
    sampling = next(
        (layer for layer in model.layers if isinstance(layer, Sampling)), None
    )
    if sampling is None:
        raise ValueError(
            "Argument `model` must be a variational autoencoder of "
            "`dense_vae` or `conv_vae`, or a morphed size of one, with a "
            f"`Sampling` layer. Received: {model!r}"
        )
    encoder = keras.Model(model.inputs[0], sampling.input, name="encoder")
    decoder = keras.Model(sampling.output, model.outputs[0], name="decoder")
    return encoder, decoder


def _latent(x, latent, kl_weight, seed):
    mean = layers.Dense(latent, name="latent_mean")(x)
    # Starts at the variance 1 whatever the input, so that no exponential of
    # a large number is taken.
    log_variance = layers.Dense(
        latent, kernel_initializer="zeros", name="latent_log_variance"
    )(x)
    return Sampling(kl_weight, seed, name="latent")([mean, log_variance])


def _activated(x, norm, activation):
    x = layers.BatchNormalization(momentum=0.9, name=norm)(x)
    return layers.LeakyReLU(0.2, name=activation)(x)
