"""One network, every size of itself, on handwritten digits.

Trains a LeNet with three convolutions, then its weight manifold, on which
every width morphs; compares the morphed sizes with plain channel cutting, with
a quarter-size network trained by itself for as many steps, and with the floor.
Writes a table, a plot, the hypermodel and a SavedModel of the quarter-size
network, which it reloads and checks.

    python examples/mnist_lenet.py
    python examples/mnist_lenet.py --dataset digits --field implicit
    KERAS_BACKEND=jax python examples/mnist_lenet.py --epochs 5
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import common
import keras
import numpy as np

import keras_neumeta as nm


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--dataset",
        choices=("auto", "mnist", "fashion_mnist", "digits"),
        default="auto",
        help="auto: MNIST, or the digits that scikit-learn ships where MNIST "
        "cannot be had (default: %(default)s)",
    )
    parser.add_argument(
        "--base-epochs",
        type=common.whole(0),
        help="epochs of the network itself (default: 1; digits: 30)",
    )
    parser.add_argument(
        "--epochs",
        type=common.whole(0),
        help="epochs of the manifold (default: 4; digits: 40)",
    )
    parser.add_argument(
        "--field",
        choices=("anchored", "implicit"),
        default="anchored",
        help="the weight field (default: %(default)s)",
    )
    parser.add_argument("--seed", type=common.whole(0), default=0)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="little data, one epoch: to see that everything runs",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("outputs/mnist_lenet"),
        help="folder for the results (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def load_data(name):
    """Images in [0, 1] of shape (n, 28, 28, 1), integer labels; train, test.

    Returns:
        `(name of the data set, (x, y), (x_test, y_test))`.
    """
    if name != "digits":
        wanted = "mnist" if name == "auto" else name
        try:
            return wanted, *common.load_arrays(wanted)
        except common.NoData as error:
            if name != "auto":
                sys.exit(f"{error} One that is always there: --dataset digits.")
            print(
                f"{error}\nUsing the 1,797 real digits that scikit-learn ships "
                "instead."
            )
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise common.NoData("digits", "scikit-learn", error) from error

    digits = load_digits()
    images = digits.images.astype("float32")[..., None] / 16.0
    images = keras.ops.convert_to_numpy(
        keras.ops.image.resize(images, (28, 28))
    )
    labels = digits.target.astype("int32")
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1437], order[1437:]
    return (
        "digits",
        (images[train], labels[train]),
        (images[test], labels[test]),
    )


def check_saved_model(model, path, x):
    """Exports, reloads in plain TensorFlow and compares the outputs."""
    try:
        import tensorflow as tf
    except ImportError:
        print("No SavedModel: Keras needs TensorFlow installed to write one.")
        return None

    nm.export(model, path)
    reloaded = tf.saved_model.load(str(path))
    outputs = np.asarray(reloaded.serve(x))
    expected = keras.ops.convert_to_numpy(model(x))
    difference = float(np.abs(outputs - expected).max())
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    print(
        f"SavedModel of the quarter-size network: {path}\n"
        f"  reloaded in plain TensorFlow, outputs equal (largest difference "
        f"{difference:.1e})"
    )
    return difference


def main(arguments=None):
    options = parse_arguments(arguments)
    started = time.time()
    keras.utils.set_random_seed(options.seed)
    common.make_folder(options.output)
    name, data, test = load_data(options.dataset)
    small_data = name == "digits"
    base_epochs, epochs = (30, 40) if small_data else (1, 4)
    if options.quick:
        data = tuple(part[:1024] for part in data)
        test = tuple(part[:512] for part in test)
        base_epochs, epochs = 1, 1
    if options.base_epochs is not None:
        base_epochs = options.base_epochs
    if options.epochs is not None:
        epochs = options.epochs
    print(
        f"{name}: {len(data[0]):,} training and {len(test[0]):,} test images; "
        f"backend {keras.backend.backend()}"
    )

    model = nm.models.lenet()
    nm.trace(model).summary()
    train = common.train_on_arrays
    seconds = {"base": train(model, "LeNet", data, base_epochs, test)}

    hyper = nm.ManifoldHyperModel(model, options.field, seed=options.seed)
    print(
        f"\nChannels ordered by {hyper.field.channel_order}: total variation "
        f"{nm.total_variation(model):,.0f} -> "
        f"{nm.total_variation(hyper.target):,.0f}"
    )
    seconds["manifold"] = train(
        hyper, "Its weight manifold, every width at once", data, epochs, test
    )

    quarter = nm.models.lenet((8, 16, 32))
    seconds["individual"] = train(
        quarter,
        "A quarter-size LeNet by itself, as many steps",
        data,
        base_epochs + epochs,
        test,
    )

    table = nm.sweep(hyper, *test, common.RATIOS, cut=True, batch_size=500)
    table.add("individual", 0.25, quarter, *test, batch_size=500, verbose=0)
    print(f"\n== {name} test set\n{table}\n")
    table.plot(options.output / "sizes.png", metric="accuracy")
    hyper_path = options.output / "hyper.keras"
    hyper.save(hyper_path)
    small = hyper.morph(ratio=0.25)
    small.save(options.output / "quarter.keras")
    check_saved_model(small, options.output / "saved_model", test[0][:32])
    reloaded = keras.saving.load_model(hyper_path).morph(ratio=0.25)
    np.testing.assert_allclose(
        reloaded.predict(test[0][:32], verbose=0),
        small.predict(test[0][:32], verbose=0),
        rtol=1e-5,
        atol=1e-5,
    )
    print(f"Hypermodel: {hyper_path}\n  reloaded and morphed: outputs equal")
    table.save(
        options.output / "result.json",
        dataset=name,
        base_epochs=base_epochs,
        epochs=epochs,
        field=options.field,
        seed=options.seed,
        quick=options.quick,
        field_parameters=hyper.field.count_params(),
        seconds={key: round(value, 1) for key, value in seconds.items()},
    )
    print(f"Plot: {options.output / 'sizes.png'}")
    print(f"Table: {options.output / 'result.json'}")
    print(f"Done in {time.time() - started:.0f} s.")
    return table


if __name__ == "__main__":
    main()
