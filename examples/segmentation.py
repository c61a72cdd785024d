"""One U-Net, every size of itself, on images whose every pixel has a class.

Trains a U-Net with a ResNet18 as encoder, then its weight manifold, on which
every width morphs; compares the morphed sizes with plain channel cutting and
with the floor: mean intersection over union and F1, without void pixels.
Writes a table, a plot, the hypermodel, the smallest network, and a picture of
what each size predicts.

    python examples/segmentation.py --dataset camvid_120x160.npz
    python examples/segmentation.py --dataset voc2012 --image-size 256
    python examples/segmentation.py --dataset camvid_120x160.npz --quick
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import common
import datasets
import keras
import numpy as np
import rivals
from keras import ops

import keras_neumeta as nm

WIDTHS, DECODER_WIDTHS = (64, 128, 256, 512), (256, 128, 64, 32, 16)


@keras.saving.register_keras_serializable(package="examples")
class MeanF1(keras.metrics.MeanIoU):
    """The F1 score (Dice coefficient) of each class, and their mean."""

    def result(self):
        confusion = ops.cast(self.total_cm, "float32")
        there = ops.sum(confusion, axis=0) + ops.sum(confusion, axis=1)
        scores = ops.divide_no_nan(2.0 * ops.diagonal(confusion), there)
        # As for the mean IoU: classes that are nowhere do not count.
        num = ops.sum(ops.cast(there > 0, "float32"))
        return ops.divide_no_nan(ops.sum(scores), num)


def label(text):
    """The `type` of `--void`."""
    if text == "default":
        return text
    return None if text == "none" else int(text)


def parse_arguments(arguments=None):
    parser = common.parser_of(__doc__, "segmentation")
    parser.add_argument(
        "--dataset",
        default="voc2012",
        help="voc2012, or an .npz file with x_train, y_train, x_test and\n"
        "y_test, such as CamVid's (default: %(default)s)",
    )
    parser.add_argument(
        "--void",
        type=label,
        default="default",
        help="label that does not count, or none (default: 255; of a file: "
        "the\nlargest)",
    )
    parser.add_argument(
        "--folder", help="where VOC is kept (default: that of keras-cv)"
    )
    parser.add_argument(
        "--image-size",
        type=common.whole(1),
        help="of VOC, height and width (default: 256)",
    )
    parser.add_argument(
        "--width",
        type=common.positive,
        help="width of the full network, as a share of ResNet18's\n"
        "(default: 1; quick: 0.125)",
    )
    rivals.add_option(parser)
    return common.parse(
        parser,
        arguments,
        {
            "base_epochs": 30,
            "epochs": 90,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "width": 1.0,
        },
        {
            "base_epochs": 2,
            "epochs": 1,
            "batch_size": 8,
            "limit": 32,
            "width": 0.125,
            "ratios": (1.0, 0.5, 0.25),
        },
    )


def make_model(options, data):
    widths, decoder_widths = (
        [max(round(options.width * width), 8) for width in widths]
        for widths in (WIDTHS, DECODER_WIDTHS)
    )
    return nm.models.unet(
        data.num_classes, data.input_shape, widths, decoder_widths
    )


def draw(path, hyper, data, options, columns=4):
    """Some test images, the truth, and what each size predicts."""
    from matplotlib import colormaps

    x, truth = data.examples(columns)
    # VOC has 21 classes.
    colors = np.array(colormaps["tab20"].colors + colormaps["tab20b"].colors)

    def colored(labels):
        known = colors[np.maximum(labels, 0) % len(colors)]
        return np.where((labels == data.void)[..., None], 0.0, known)

    rows = {"image": x, "truth": colored(truth)}
    for ratio in options.ratios:
        logits = common.outputs(hyper.morph(ratio), x)
        rows[f"width {ratio:g}"] = colored(logits.argmax(-1))
    common.picture(path, rows, len(x))


def main(arguments=None):
    options = parse_arguments(arguments)
    started = time.time()
    data = datasets.segmentation(
        options.dataset,
        options.batch_size,
        options.image_size,
        options.void,
        options.limit,
        options.folder,
        options.seed,
    )
    print(
        f"{data.name}: {data.num_classes} classes, void is {data.void}, "
        f"{data.steps} batches of {data.input_shape}; backend "
        f"{keras.backend.backend()}"
    )
    metric = {
        "num_classes": data.num_classes,
        "ignore_class": data.void,
        "sparse_y_pred": False,
    }

    def compiled():
        return {
            "loss": keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, ignore_class=data.void
            ),
            "metrics": [
                keras.metrics.MeanIoU(**metric, name="miou"),
                MeanF1(**metric, name="f1"),
            ],
        }

    base = common.base_of(
        lambda: make_model(options, data), data, options, compiled
    )
    hyper = common.manifold_of(base, data, options, compiled)
    table = nm.sweep(hyper, data.test, ratios=options.ratios, cut=True)
    rivals.add_rows(table, base, data, options, compiled)
    common.write(table, hyper, data, options, "miou")
    draw(options.output / "predictions.png", hyper, data, options)
    print(f"Done in {time.time() - started:.0f} s.")
    return table


if __name__ == "__main__":
    main()
