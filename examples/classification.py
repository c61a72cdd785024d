"""One network, every size of itself, on a set of labelled images.

Trains a ResNet or a LeNet (or loads one), then its weight manifold, on which
every width morphs; compares the morphed sizes with plain channel cutting and
with the floor. Writes a table, a plot, the hypermodel and the smallest
network.

    python examples/classification.py --dataset cifar10 --model resnet20
    python examples/classification.py --dataset imagenet2012 --model resnet18
    python examples/classification.py --dataset photos/ --image-size 128
    KERAS_BACKEND=jax python examples/classification.py --quick
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import common
import datasets
import keras
import rivals

import keras_neumeta as nm

MODELS = (
    "lenet",
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet18",
)


def parse_arguments(arguments=None):
    parser = common.parser_of(__doc__, "classification")
    datasets.add_labelled(parser, "cifar10")
    parser.add_argument(
        "--model", choices=MODELS, help="(default: resnet20; quick: resnet8)"
    )
    parser.add_argument(
        "--shortcut",
        choices=("conv", "pad"),
        default="conv",
        help="of the CIFAR ResNets (default: %(default)s; `--base` with\n"
        "published .npz weights: pad)",
    )
    parser.add_argument(
        "--widths",
        type=common.whole(1),
        nargs="+",
        help="channels of the stages",
    )
    rivals.add_option(parser)
    return common.parse(
        parser,
        arguments,
        lambda given: {
            "model": "resnet20",
            "base_epochs": 30,
            "epochs": 90,
            "batch_size": 128,
            "learning_rate": 1e-3 if given.model == "lenet" else 0.1,
        },
        {
            "model": "resnet8",
            "base_epochs": 1,
            "epochs": 1,
            "batch_size": 64,
            "limit": 512,
            "ratios": (1.0, 0.5, 0.25),
        },
    )


def make_model(options, data):
    more = {} if options.widths is None else {"widths": tuple(options.widths)}
    shape, classes = data.input_shape, data.num_classes
    if options.model == "lenet":
        return nm.models.lenet(num_classes=classes, input_shape=shape, **more)
    if options.model == "resnet18":
        return nm.models.resnet18(classes, input_shape=shape, **more)
    return nm.models.cifar_resnet(
        int(options.model.removeprefix("resnet")),
        classes,
        shortcut=options.shortcut,
        input_shape=shape,
        **more,
    )


def main(arguments=None):
    options = parse_arguments(arguments)
    started = time.time()
    data = datasets.labelled(options)
    print(
        f"{data.name}: {data.num_classes} classes, {data.steps} batches of "
        f"{data.input_shape}; backend {keras.backend.backend()}"
    )
    sgd = options.model != "lenet"
    base = common.base_of(
        lambda: make_model(options, data), data, options, common.classifier, sgd
    )
    hyper = common.manifold_of(base, data, options, common.classifier, sgd)
    table = nm.sweep(hyper, data.test, ratios=options.ratios, cut=True)
    rivals.add_rows(table, base, data, options, common.classifier, sgd)
    common.write(table, hyper, data, options, "accuracy")
    print(f"Done in {time.time() - started:.0f} s.")
    return table


if __name__ == "__main__":
    main()
