"""One network, every number of residual blocks and every width of itself.

Trains a small ResNet, then its weight manifold, on which the blocks whose
shortcut is the identity can be left out, at every width; compares each number
of blocks at each width with the trained network, its blocks left out without
further training. Writes a table, a plot, the hypermodel and the smallest
network.

    python examples/depth.py
    python examples/depth.py --dataset cifar10 --layers 20
    python examples/depth.py --quick
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import common
import datasets

import keras_neumeta as nm
from keras_neumeta.targets import check_depth

UNTRAINED = "not trained for it"


def parse_arguments(arguments=None):
    parser = common.parser_of(__doc__, "depth")
    datasets.add_labelled(parser, "mnist")
    parser.add_argument(
        "--layers",
        type=common.whole(1),
        help="6 n + 2 for n blocks a stage (default: 20)",
    )
    parser.add_argument(
        "--widths", type=common.whole(1), nargs=3, help="channels of the stages"
    )
    parser.add_argument(
        "--min-depth",
        type=common.whole(0),
        default=0,
        help="least number of the blocks that can be left out to keep\n"
        "(default: %(default)s)",
    )
    return common.parse(
        parser,
        arguments,
        {
            "layers": 20,
            "widths": (8, 16, 32),
            "base_epochs": 1,
            "epochs": 4,
            "batch_size": 128,
            "learning_rate": 0.1,
            "ratios": (1.0, 0.75, 0.5, 0.25),
        },
        {
            "layers": 14,
            "widths": (4, 4, 8),
            "base_epochs": 1,
            "epochs": 1,
            "batch_size": 64,
            "limit": 256,
            "ratios": (1.0, 0.5),
        },
    )


def add_rows(table, hyper, data, ratios, title):
    """A row for every number of blocks at every width."""
    for depth in range(len(hyper.graph.blocks), hyper.min_depth - 1, -1):
        print(f"Testing {depth} {title}: width " + ", ".join(map(str, ratios)))
        for ratio in ratios:
            model = hyper.morph(ratio, depth=depth)
            model.compile(**common.classifier())
            table.add(f"{depth} {title}", ratio, model, data.test, verbose=0)


def draw(path, metric, table):
    """A line for each number of blocks, one for the untrained of all."""
    from matplotlib import colormaps

    figure = table.plot(metric=metric)
    axes = figure.axes[0]
    axes.get_legend().remove()
    untrained = []
    for line in list(axes.lines):
        depth, _, title = line.get_label().partition(" ")
        if UNTRAINED in title:
            untrained.append(line.get_xydata()[0])
            line.remove()
        else:
            line.depth = int(depth)
    most = max(line.depth for line in axes.lines)
    for line in axes.lines:
        line.set_color(colormaps["viridis"](line.depth / max(most, 1)))
    axes.plot(*zip(*untrained), ":", color="0.5", marker="x", label=UNTRAINED)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=150)
    return figure


def main(arguments=None):
    options = parse_arguments(arguments)
    started = time.time()
    data = datasets.labelled(options)

    def make():
        return nm.models.cifar_resnet(
            options.layers,
            data.num_classes,
            widths=tuple(options.widths),
            input_shape=data.input_shape,
        )

    base = common.base_of(
        make,
        data,
        options,
        common.classifier,
        sgd=True,
        check=lambda model: check_depth(
            nm.trace(model, blocks=True), options.min_depth
        ),
    )
    before = nm.ManifoldHyperModel(
        base, min_depth=options.min_depth, smooth=False
    )
    hyper = common.manifold_of(
        base,
        data,
        options,
        common.classifier,
        sgd=True,
        min_depth=options.min_depth,
    )
    table = nm.Sweep()
    add_rows(table, hyper, data, options.ratios, "blocks")
    add_rows(table, before, data, [1.0], f"blocks, {UNTRAINED}")
    common.write(
        table,
        hyper,
        data,
        options,
        "accuracy",
        lambda path, metric: draw(path, metric, table),
    )
    print(f"Done in {time.time() - started:.0f} s.")
    return table


if __name__ == "__main__":
    main()
