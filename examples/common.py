"""What the examples share: options, arrays of data, training, results."""

import argparse
import contextlib
import importlib.util
import json
import pathlib
import shutil
import sys
import time

import keras
import numpy as np

import keras_neumeta as nm
from keras_neumeta.graph.channel_graph import is_graph

if importlib.util.find_spec("matplotlib") is None:
    # Before hours of training rather than after them.
    sys.exit("The examples draw their results: pip install matplotlib")

RATIOS = (1.0, 0.75, 0.5, 0.375, 0.25)
PROGRESS = ".training_progress"  # below the folder for the results
# Where the package of a module has another name.
PACKAGES = {"cv2": "opencv-python", "PIL": "pillow", "sklearn": "scikit-learn"}


def whole(least):
    """The `type` of an option that takes whole numbers."""

    def read(text):
        if text.lstrip("+-").isdecimal() and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}. Received: {text}"
        )

    return read


def positive(text):
    """The `type` of an option that takes positive numbers."""
    with contextlib.suppress(ValueError):
        if 0.0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(
        f"must be a positive number. Received: {text}"
    )


def parser_of(description, output):
    """A parser with the options that all examples have."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--base",
        type=pathlib.Path,
        help="a trained network (.keras) to start from, instead of training",
    )
    add("--base-epochs", type=whole(0), help="epochs of the network itself")
    add("--epochs", type=whole(0), help="epochs of the manifold")
    add("--batch-size", type=whole(1))
    add("--learning-rate", type=positive)
    add("--ratios", type=float, nargs="+", help="kept widths to compare")
    add("--limit", type=whole(1), help="number of training images to use")
    add("--seed", type=whole(0), default=0)
    add(
        "--quick",
        action="store_true",
        help="little data, a small network, one epoch: to see that all runs",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the last epoch of a run with the same options that\n"
        "was cut off",
    )
    add(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("outputs") / output,
        help="folder for the results (default: %(default)s)",
    )
    return parser


def parse(parser, arguments, defaults, quick):
    """The options, with defaults for those that were not given.

    Args:
        parser: From `parser_of`.
        arguments: List of words, or `None` for those of the command line.
        defaults: Dict from option to value, or a function of the options
            that were given, for such a dict.
        quick: Dict of what differs with `--quick`.
    """
    options = parser.parse_args(arguments)
    if callable(defaults):
        defaults = defaults(options)
    if options.quick:
        defaults = {**defaults, **quick}
    for name, value in {"ratios": RATIOS, **defaults}.items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    if any(not 0.0 < ratio <= 1.0 for ratio in options.ratios):
        parser.error("--ratios must be above 0, and at most 1")
    options.ratios = sorted(set(options.ratios), reverse=True)
    keras.utils.set_random_seed(options.seed)
    make_folder(options.output)
    options.seconds = {}
    if options.resume:
        check_resumed(options)
    return options


def make_folder(path):
    """Makes the folder for the results, or ends the program."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"--output must be a folder to write to: {error}")


def settings_of(options):
    """What the result depends on, as for JSON."""
    elsewhere = ("output", "resume", "seconds")
    return {
        name: str(value) if isinstance(value, pathlib.Path) else value
        for name, value in vars(options).items()
        if name not in elsewhere
    }


def started_with(options):
    """What the stages of a run share: `--compare` only adds some."""
    settings = settings_of(options)
    settings.pop("compare", None)
    return {**settings, "backend": keras.backend.backend()}


def check_resumed(options):
    """Ends the program if the run to go on with had other options."""
    path = options.output / PROGRESS / "options.json"
    if not path.exists():
        print(f"--resume: no run was cut off in '{options.output}'. A new one.")
        return
    before = json.loads(path.read_text())
    now = json.loads(json.dumps(started_with(options)))  # Tuples as lists.
    differing = [
        f"{name.replace('_', '-')} was {before.get(name)}, is {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differing:
        sys.exit(
            f"--resume: the run in '{options.output}' had other options: "
            f"{'; '.join(differing)}. Give the same, another --output, or "
            "leave out --resume to start anew."
        )


def first_line(error):
    """What an error says, on one line."""
    return (str(error).strip().splitlines() or [""])[0][:400]


class NoData(SystemExit):
    """A data set cannot be had: the program ends, and says what to do."""

    def __init__(self, name, source, error, remedy=None):
        remedy = remedy or (
            "Set TFDS_DATA_DIR to a folder that holds it, connect to a "
            "network, or give another --dataset."
        )
        if isinstance(error, ImportError):
            package = (error.name or source).partition(".")[0]
            package = PACKAGES.get(package, package)
            remedy = f"Install it: pip install {package}"
        super().__init__(
            f"Data set '{name}' cannot be had through {source} "
            f"({type(error).__name__}: {first_line(error)}). {remedy}"
        )


def load_arrays(name, splits=("train", "test")):
    """Images in 0..1 and integer labels, from tensorflow-datasets.

    Args:
        name: Name of the data set.
        splits: Its parts, such as `"train[:1000]"`.

    Returns:
        A pair `(x, y)` of arrays for each part.

    Raises:
        NoData: If it cannot be had, which ends the program.
    """
    try:
        import tensorflow_datasets as tfds

        data = tfds.as_numpy(
            tfds.load(
                name, split=list(splits), batch_size=-1, as_supervised=True
            )
        )
    except Exception as error:
        raise NoData(name, "tensorflow-datasets", error) from error
    return [(x.astype("float32") / 255.0, y.astype("int32")) for x, y in data]


def classifier():
    """What `compile` takes beside the optimizer, to tell classes apart."""
    return {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
    }


def train_on_arrays(model, title, data, epochs, test=None, batch_size=128):
    """Compiles and trains a classifier with Adam.

    Args:
        model: `keras.Model`.
        title: What is trained, to be printed.
        data, test: Images and labels, as from `load_arrays`.
        epochs, batch_size: As for `model.fit`.

    Returns:
        The seconds that it took.
    """
    announce(title, epochs)
    steps = -(-len(data[0]) // batch_size) * epochs
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(keras.optimizers.Adam(schedule), **classifier())
    start = time.time()
    model.fit(
        *data,
        batch_size=batch_size,
        epochs=epochs,
        validation_data=test,
        verbose=verbosity(),
    )
    return time.time() - start


def announce(title, epochs):
    print(f"\n== {title}: {epochs} {'epoch' if epochs == 1 else 'epochs'}")


def verbosity():
    """A progress bar on a terminal, a line per epoch elsewhere."""
    return 1 if sys.stdout.isatty() else 2


def optimizer_of(options, steps, sgd=False):
    """Adam or SGD, its learning rate warmed up and then along a cosine."""
    warm_up = min(steps // 20, 500)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warm_up else options.learning_rate,
        max(steps - warm_up, 1),
        warmup_target=options.learning_rate if warm_up else None,
        warmup_steps=warm_up,
    )
    if sgd:
        return keras.optimizers.SGD(
            rate, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
    return keras.optimizers.Adam(rate)


def train(model, title, data, epochs, options, compiled, sgd=False):
    """Compiles and trains; keeps the seconds in `options.seconds[title]`.

    Args:
        model: `keras.Model`.
        title: What is trained, to be printed.
        data: `datasets.Data`.
        epochs: Number of epochs; at 0 the model is only compiled.
        options: From `parse`.
        compiled: Function that makes the other arguments of `compile`: each
            model needs metrics of its own.
        sgd: Whether to use SGD rather than Adam.
    """
    steps = data.steps * epochs
    # To compile a step takes longer than to run the few of `--quick`.
    eagerly = options.quick and keras.backend.backend() == "tensorflow"
    model.compile(
        optimizer_of(options, steps, sgd), **compiled(), run_eagerly=eagerly
    )
    # Untrained models are saved too, and loaded with all of their optimizer.
    model.optimizer.build(model.trainable_variables)
    if not epochs:
        return
    progress = options.output / PROGRESS
    begun = progress / "options.json"
    if not options.seconds and not (options.resume and begun.exists()):
        shutil.rmtree(progress, ignore_errors=True)
        progress.mkdir(parents=True)
        begun.write_text(json.dumps(started_with(options)) + "\n")
    announce(title, epochs)
    stage = "".join(c if c.isalnum() else "-" for c in title)
    clock = progress / f"{stage}.seconds"  # of the runs before this one too
    start = time.time() - (float(clock.read_text()) if clock.exists() else 0)
    model.fit(
        data.train,
        epochs=epochs,
        validation_data=data.test,
        shuffle=False,  # The data set shuffles itself.
        verbose=verbosity(),
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_: clock.write_text(
                    str(time.time() - start)
                )
            ),
            # What is done stays, for `--resume` goes through all stages.
            keras.callbacks.BackupAndRestore(
                progress / stage,
                double_checkpoint=True,
                delete_checkpoint=False,
            ),
        ],
    )
    options.seconds[title] = round(time.time() - start, 1)


def base_of(make, data, options, compiled, sgd=False, check=None):
    """The full-size network: trained here, or read from `--base`.

    Args:
        make: Function that builds it.
        data, options, compiled, sgd: As for `train`.
        check: Function that raises a `ValueError` for networks that will not
            do.
    """
    try:
        model = make() if options.base is None else load_base(make, options)
        if check is not None:
            check(model)
    except ValueError as error:
        sys.exit(f"No network for these options: {first_line(error)}")
    if options.base is None:
        train(
            model,
            model.name,
            data,
            options.base_epochs,
            options,
            compiled,
            sgd,
        )
        model.save(options.output / "base.keras")
    else:
        check_shapes(model, data, options)
        model.compile("sgd", **compiled())
    nm.trace(model).summary()
    return model


def load_base(make, options):
    path = options.base
    if not path.is_file():
        sys.exit(f"--base '{path}' does not exist.")
    # Weights alone, which go into the network of the other options.
    model = make() if path.suffix == ".npz" else None
    try:
        if model is None:
            model = keras.saving.load_model(path, compile=False)
        else:
            nm.models.resnet.load_weights(model, path)
    except Exception as error:
        sys.exit(f"--base '{path}' cannot be loaded: {first_line(error)}")
    if not is_graph(model):
        sys.exit(
            f"--base '{path}' must hold a Sequential or functional network, "
            f"not a {type(model).__name__}. Give the network that a "
            "hypermodel began with (base.keras), or a morphed one."
        )
    return model


def check_shapes(model, data, options):
    """Ends the program unless a network goes with the data."""
    for what, shape, needed in (
        ("takes images", model.input_shape, data.input_shape),
        ("gives outputs", model.output_shape, data.output_shape),
    ):
        if tuple(shape)[1:] != needed:
            sys.exit(
                f"--base '{options.base}' {what} of shape {tuple(shape)[1:]}; "
                f"'{data.name}' needs {needed}. Give a network of this kind, "
                "or leave out --base to train one."
            )


def sampler_of(options, **more):
    """The default sampler, down to the smallest size that is compared."""
    smallest = min(0.25, *options.ratios)
    return nm.Sandwich(smallest, seed=options.seed, **more)


def manifold_of(
    model,
    data,
    options,
    compiled,
    sgd=False,
    title="weight manifold, every width at once",
    **more,
):
    """The hypermodel of a network, trained.

    Args:
        model, data, options, compiled, sgd: As for `train`.
        title: What is trained, to be printed.
        more: Further arguments of `ManifoldHyperModel`.
    """
    # Fewer networks in quick mode, for compiling them takes longest there.
    few = {"num_fixed": 2, "bands": 1} if options.quick else {}
    more.setdefault("sampler", sampler_of(options, **few))
    hyper = nm.ManifoldHyperModel(model, seed=options.seed, **more)
    train(hyper, title, data, options.epochs, options, compiled, sgd)
    return hyper


def outputs(model, x):
    """What a model computes of one batch, as an array, or a list of them."""
    return keras.tree.map_structure(
        keras.ops.convert_to_numpy, model(x, training=False)
    )


def write(table, hyper, data, options, metric, plot=None):
    """Writes table, plot, hypermodel and smallest network; checks the last.

    Args:
        table: `keras_neumeta.Sweep`.
        hyper: The trained `keras_neumeta.ManifoldHyperModel`.
        data, options: As for `train`.
        metric: Name of the metric to plot.
        plot: Function that draws it. Default: `table.plot`.
    """
    print(f"\n== {data.name} test set\n{table}\n")
    folder = options.output
    hyper.save(folder / "hyper.keras")
    (plot or table.plot)(folder / "sizes.png", metric=metric)
    # In depth too, where it has one.
    smallest = {"ratio": min(options.ratios), "depth": hyper.min_depth}
    small = hyper.morph(**smallest)
    small.save(folder / "smallest.keras")
    x = data.examples(8)[0]
    expected = outputs(small, x)
    for path, morphed in (
        ("hyper.keras", lambda model: model.morph(**smallest)),
        ("smallest.keras", lambda model: model),
    ):
        reloaded = morphed(keras.saving.load_model(folder / path))
        np.testing.assert_allclose(
            outputs(reloaded, x), expected, rtol=1e-4, atol=1e-4
        )
    table.save(
        folder / "result.json",
        **settings_of(options),
        resume=options.resume,
        seconds=options.seconds,
        field_parameters=hyper.field.count_params(),
    )
    print(f"Reloaded, outputs equal: {folder / 'hyper.keras'}, smallest.keras")
    print(f"Table: {folder / 'result.json'}\nPlot: {folder / 'sizes.png'}")


def picture(path, rows, columns):
    """Draws a grid of images.

    Args:
        path: File to write.
        rows: Dict from the title of a row to its images, arrays `(height,
            width, channels)` in 0..1.
        columns: Number of columns.
    """
    from matplotlib.figure import Figure

    height, width = next(iter(rows.values()))[0].shape[:2]
    figure = Figure(
        (1.0 + 1.5 * columns, 1.55 * height / width * len(rows)),
        layout="constrained",
    )
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (title, pictures) in zip(grid, rows.items()):
        for axes in line:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.axis("off")
        for axes, image in zip(line, pictures):
            axes.imshow(
                np.clip(image, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1
            )
        line[0].axis("on")
        line[0].spines[:].set_visible(False)
        line[0].set_ylabel(title, fontsize=9)
    figure.savefig(path, dpi=120)
    print(f"Picture: {path}")
