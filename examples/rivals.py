"""What a manifold is to be compared with: the same sizes made otherwise.

A network trained by itself gets as many epochs as the base and the manifold
together.
"""

import common
import keras

import keras_neumeta as nm

NAMES = ("individual", "slimmable", "l1")


def add_option(parser):
    parser.add_argument(
        "--compare",
        nargs="+",
        choices=NAMES,
        default=[],
        help="train these too. individual: each size by itself; slimmable:\n"
        "a universally slimmable network; l1: the largest channels of the\n"
        "network trained by itself, no training after the cut",
    )


def rivals_of(base, data, options, compiled, sgd=False):
    """The networks of `--compare`, trained, one after the other.

    Args:
        base: The network that the manifold started from.
        data, options, compiled, sgd: As for `common.train`.

    Yields:
        Tuples `(method, ratio, model)`; the models are not compiled for
        their evaluation.
    """
    train = (data, options, compiled, sgd)
    sizes = options.ratios if "individual" in options.compare else []
    if "l1" in options.compare or 1.0 in sizes:
        full = _individual(base, 1.0, *train)
    for ratio in sizes:
        yield (
            "individual",
            ratio,
            full if ratio == 1.0 else _individual(base, ratio, *train),
        )
    if "l1" in options.compare:
        for ratio in options.ratios:
            yield "l1", ratio, nm.cut(full, ratio)
    if "slimmable" in options.compare:
        hyper = common.manifold_of(
            base,
            *train,
            title="slimmable, every width at once",
            field=nm.SlimmableField(),
            # As published: four widths a step, no labels for the smaller.
            sampler=common.sampler_of(
                options, num_fixed=2, num_random=2, bands=1
            ),
            distillation=1.0,
            ratio_power=0.0,
        )
        for ratio in options.ratios:
            yield "slimmable", ratio, hyper.morph(ratio)


def _individual(base, ratio, data, options, compiled, sgd):
    """A network of that size with new weights, trained by itself."""
    graph = nm.trace(base)
    keras.utils.set_random_seed(options.seed)
    model = keras.models.clone_model(nm.graph.resize(graph, graph.sizes(ratio)))
    epochs = options.base_epochs + options.epochs
    title = f"width {ratio:g} by itself"
    common.train(model, title, data, epochs, options, compiled, sgd)
    return model


def add_rows(table, base, data, options, compiled, sgd=False):
    """Adds the rows of `--compare` to a `keras_neumeta.Sweep`."""
    for method, ratio, model in rivals_of(base, data, options, compiled, sgd):
        model.compile(**compiled())
        table.add(method, ratio, model, data.test, verbose=0)
