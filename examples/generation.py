"""One variational autoencoder, every size of itself, on images.

Trains a variational autoencoder, then its weight manifold, on which every
hidden width morphs and the latent code stays; compares the morphed sizes with
plain channel cutting and with the floor: squared error of the reconstructions
and negative evidence lower bound. Writes a table, a plot, the hypermodel, the
smallest network, and a picture of reconstructions and samples of each size.

    python examples/generation.py --dataset mnist
    python examples/generation.py --dataset faces_64x64.npz
    python examples/generation.py --dataset celeb_a --image-size 64
    python examples/generation.py --dataset mnist --quick
"""

import itertools
import math
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import common
import datasets
import keras
import numpy as np
import rivals

import keras_neumeta as nm
from keras_neumeta.models.vae import kl_divergence

# Of a value, for images in colour: that of the models' `kl_weight`.
DEVIATION = 0.1


def parse_arguments(arguments=None):
    parser = common.parser_of(__doc__, "generation")
    parser.add_argument(
        "--dataset",
        default="mnist",
        help=f"{', '.join(datasets.IMAGES)},\nan .npz file with images x, or "
        "a folder of images (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        choices=("dense", "conv"),
        help="and its loss, with --base too: dense, cross-entropy; conv,\n"
        "squared error (default: dense for MNIST, conv for others)",
    )
    parser.add_argument(
        "--widths",
        type=common.whole(1),
        nargs="+",
        help="of the hidden layers",
    )
    parser.add_argument(
        "--latent", type=common.whole(1), help="dimensions of the code"
    )
    parser.add_argument(
        "--image-size",
        type=common.whole(1),
        help="height and width to resize to",
    )

    rivals.add_option(parser)

    def defaults(given):
        dense = given.dataset in datasets.NOT_MIRRORED
        return {
            "model": "dense" if dense else "conv",
            "base_epochs": 10 if dense else 60,
            "epochs": 30 if dense else 180,
            "batch_size": 128 if dense else 64,
            "learning_rate": 1e-3,
        }

    return common.parse(
        parser,
        arguments,
        defaults,
        {
            "base_epochs": 3,
            "epochs": 3,
            "batch_size": 32,
            "limit": 512,
            "ratios": (1.0, 0.5, 0.25),
        },
    )


def make_model(options, data):
    more = {"input_shape": data.input_shape, "seed": options.seed}
    if options.latent is not None:
        more["latent"] = options.latent
    if options.widths is not None:
        more["widths"] = tuple(options.widths)
    elif options.quick:
        more["widths"] = (128, 64) if options.model == "dense" else (16, 32, 64)
    make = (
        nm.models.dense_vae if options.model == "dense" else nm.models.conv_vae
    )
    return make(**more)


def reconstruction_loss(options):
    """The loss that goes with the model, and its share of the bound.

    Returns:
        A Keras loss, and a function of images and reconstructions, arrays
        `(n, height, width, channels)`, to nats `(n,)`.
    """
    if options.model == "dense":

        def bernoulli(x, y):
            y = np.clip(y, 1e-7, 1 - 1e-7)
            nats = -x * np.log(y) - (1 - x) * np.log(1 - y)
            return nats.sum(axis=(1, 2, 3))

        return keras.losses.BinaryCrossentropy(), bernoulli

    def normal(x, y):
        nats = np.square((x - y) / DEVIATION) / 2
        nats = nats + math.log(DEVIATION * math.sqrt(2 * math.pi))
        return nats.sum(axis=(1, 2, 3))

    return keras.losses.MeanSquaredError(), normal


def negative_bound(model, test, nats, seed):
    """Negative evidence lower bound per image, in nats: one draw each."""
    encoder, decoder = nm.models.split_vae(model)
    random = np.random.default_rng(seed)
    total, number = 0.0, 0
    for x, _ in test.as_numpy_iterator():
        mean, log_variance = common.outputs(encoder, x)
        noise = random.normal(size=mean.shape)
        code = (mean + np.exp(log_variance / 2) * noise).astype("float32")
        y = common.outputs(decoder, code)
        divergence = kl_divergence(mean, log_variance)
        divergence = keras.ops.convert_to_numpy(divergence)
        total += float((nats(x, y) + divergence).sum())
        number += len(x)
    return total / number


def draw(path, models, x, seed):
    """Reconstructions and samples of each size.

    Args:
        path: File to write.
        models: Dict from ratio to model.
        x: Test images `(n, height, width, channels)`.
        seed: Seed of the codes, the same for all sizes.
    """
    rows = {"image": x}
    for ratio, model in models.items():
        rows[f"width {ratio:g}"] = common.outputs(model, x)
    for ratio, model in models.items():
        _, decoder = nm.models.split_vae(model)
        shape = (len(x), decoder.input_shape[-1])
        code = np.random.default_rng(seed).normal(size=shape)
        images = common.outputs(decoder, code.astype("float32"))
        rows[f"sample {ratio:g}"] = images
    common.picture(path, rows, len(x))


def main(arguments=None):
    options = parse_arguments(arguments)
    started = time.time()
    data = datasets.images(
        options.dataset,
        options.batch_size,
        options.image_size,
        options.limit,
        options.seed,
    )
    print(
        f"{data.name}: {data.steps} batches of {data.input_shape}; backend "
        f"{keras.backend.backend()}"
    )
    loss, nats = reconstruction_loss(options)

    def compiled():
        return {"loss": loss, "metrics": ["mse"]}

    base = common.base_of(
        lambda: make_model(options, data),
        data,
        options,
        compiled,
        check=nm.models.split_vae,
    )
    # An image says more than the largest size's blurred copy of it.
    hyper = common.manifold_of(base, data, options, compiled, distillation=0.0)
    table = nm.Sweep()
    morphed = {}
    networks = itertools.chain(
        nm.networks_of(hyper, options.ratios, cut=True),
        rivals.rivals_of(base, data, options, compiled),
    )
    for method, ratio, model in networks:
        model.compile(**compiled(), run_eagerly=hyper.run_eagerly)
        table.add(method, ratio, model, data.test, verbose=0)
        bound = negative_bound(model, data.test, nats, options.seed)
        table.rows[-1]["negative_elbo"] = bound
        if method == "morph":
            morphed[ratio] = model
    table.metrics.append("negative_elbo")
    common.write(table, hyper, data, options, "negative_elbo")
    images, _ = data.examples(8)
    draw(options.output / "images.png", morphed, images, options.seed)
    print(f"Done in {time.time() - started:.0f} s.")
    return table


if __name__ == "__main__":
    main()
