"""`sweep`: one row per size, with what it costs and what it gains."""

import json
import os
import tempfile

import keras
import numpy as np
from keras import ops

from keras_neumeta import text
from keras_neumeta.figures import new_figure
from keras_neumeta.graph import finalize, trace
from keras_neumeta.provenance import provenance
from keras_neumeta.pruning import cut as cut_channels
from keras_neumeta.pruning import largest_channels

RATIOS = (1.0, 0.75, 0.5, 0.375, 0.25)


class Sweep:
    """Table of sizes. Prints as text; `plot` draws it, `save` writes JSON.

    Attributes:
        rows: List of dicts with `method` (`"morph"`, `"cut"`, `"floor"`, or
            what `add` was given), `ratio`, `parameters`, `macs` (multiply-
            accumulates of one example), `bytes` (of the `.keras` file) and
            the metrics by name.
        metrics: Names of the metrics.
    """

    def __init__(self, metrics=()):
        self.rows = []
        self.metrics = list(metrics)

    def add(self, method, ratio, model, x, y=None, **evaluate):
        """Evaluates a compiled model and appends its row.

        Args:
            method: Name of how the model was made.
            ratio: Its kept width, or `None`.
            model: Compiled `keras.Model` that `trace` can read.
            x, y: As for `model.evaluate`.
            evaluate: Further arguments of `model.evaluate`.
        """
        results = model.evaluate(x, y, return_dict=True, **evaluate)
        graph = trace(model)
        row = {
            "method": method,
            "ratio": ratio,
            "parameters": graph.count_params(),
            "macs": graph.count_macs(),
            "bytes": _file_size(model),
            **{name: float(value) for name, value in results.items()},
        }
        for name in results:
            if name not in self.metrics:
                self.metrics.append(name)
        self.rows.append(row)

    def __str__(self):
        header = ["method", "ratio", "parameters", "MACs", "file"]
        lines = [header + self.metrics]
        full = max((row["parameters"] for row in self.rows), default=1)
        for row in self.rows:
            share = 100 * row["parameters"] / full
            ratio = row["ratio"]
            lines.append(
                [
                    row["method"],
                    "-" if ratio is None else f"{ratio:g}",
                    f"{row['parameters']:,} ({share:.1f} %)",
                    f"{row['macs']:,}",
                    f"{row['bytes'] / 1024:,.0f} kB",
                    *(
                        f"{row[m]:.4f}" if m in row else "-"
                        for m in self.metrics
                    ),
                ]
            )
        return text.table(lines)

    def save(self, path, **more):
        """Writes the rows and where they come from, as JSON.

        Beside the rows stand the command, the date, the machine and the
        versions.

        Args:
            path: File to write.
            more: Further entries, such as the seed.
        """
        result = {**more, **provenance(), "rows": self.rows}
        with open(path, "w") as file:
            json.dump(result, file, indent=2)
            file.write("\n")

    def plot(self, path=None, metric=None):
        """Draws a metric against the parameters, one line per method.

        Args:
            path: File to write (`.png`, `.svg`, ...). Default: none.
            metric: Name of the metric. Default: the first that is not the
                loss.

        Returns:
            The `matplotlib` figure.
        """
        figure = new_figure("`Sweep.plot`", (6.4, 4.2))
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

        if metric is None:
            others = [name for name in self.metrics if name != "loss"]
            metric = (others or self.metrics)[0]
        if metric not in self.metrics:
            raise ValueError(
                f"Argument `metric` must be one of {self.metrics}. "
                f"Received: metric={metric!r}"
            )
        # Accuracies crowd near 1: their errors, on a log scale, do not.
        as_error = "accuracy" in metric

        def height(row):
            return max(1.0 - row[metric], 1e-4) if as_error else row[metric]

        axes = figure.add_subplot()
        for method in dict.fromkeys(row["method"] for row in self.rows):
            rows = [row for row in self.rows if row["method"] == method]
            rows.sort(key=lambda row: row["parameters"])
            if method == "floor":
                axes.axhline(
                    height(rows[0]), color="0.6", ls=":", label="floor"
                )
                continue
            axes.plot(
                [row["parameters"] for row in rows],
                [height(row) for row in rows],
                marker="o",
                label=method,
            )
            for row in rows if method == "morph" else ():
                axes.annotate(
                    f"{row['ratio']:g}",
                    (row["parameters"], height(row)),
                    xytext=(0, -12 if as_error else 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("parameters")
        axes.set_ylabel(f"1 - {metric}" if as_error else metric)
        if as_error:
            axes.set_yscale("log")
            axes.margins(y=0.12)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def sweep(
    hyper,
    x,
    y=None,
    ratios=RATIOS,
    *,
    cut=False,
    batch_size=None,
    verbose=0,
    **morph,
):
    """Morphs a hypermodel to several sizes and evaluates each.

    The *floor* is the full network with all that can morph set to zero: what
    remains without it. A result means something only above it. With a
    `depth`, floor and cutting are those of the network of so many blocks.

    Args:
        hyper: Compiled `ManifoldHyperModel`.
        x, y: Test data, as for `evaluate` (arrays, or a dataset).
        ratios: Kept widths.
        cut: Whether to compare with plain channel cutting of the full-size
            network (the largest L1 norms are kept, no training).
        batch_size: As for `evaluate`.
        verbose: As for `evaluate`.
        morph: Further arguments of `hyper.morph`.

    Returns:
        A `Sweep`.

    Raises:
        ValueError: If the hypermodel is not compiled.

    Example:

    ```python
    table = keras_neumeta.sweep(hyper, x, y, ratios=[1.0, 0.5, 0.25])
    print(table)
    ```
    """
    if not hyper.compiled:
        raise ValueError(
            "Argument `hyper` must be compiled, so that the sizes can be "
            "evaluated. Call `hyper.compile(optimizer, loss, metrics=...)`."
        )
    table = Sweep()
    for method, ratio, model in networks_of(hyper, ratios, cut=cut, **morph):
        compile_like(model, hyper)
        table.add(
            method, ratio, model, x, y, batch_size=batch_size, verbose=verbose
        )
    return table


def networks_of(hyper, ratios=RATIOS, *, cut=False, **morph):
    """The networks that `sweep` compares, to measure what no metric can.

    Args:
        hyper, ratios, cut, morph: As for `sweep`.

    Yields:
        Tuples `(method, ratio, model)` with the method `"morph"`, `"cut"` or
        `"floor"`, whose ratio is `None`; the models are not compiled.

    Example:

    ```python
    for method, ratio, model in keras_neumeta.networks_of(hyper, [1.0, 0.5]):
        print(method, ratio, model.count_params())
    ```
    """
    for ratio in ratios:
        yield "morph", ratio, hyper.morph(ratio, **morph)
    full = hyper.morph(1.0, depth=morph.get("depth"))
    if cut:
        for ratio in ratios:
            keep = largest_channels(
                full, ratio, hyper.morphed_layers, morph.get("divisor", 1)
            )
            yield "cut", ratio, cut_channels(full, keep)
    _silence(full, hyper.graph)
    yield "floor", None, full


def _silence(model, graph):
    """Sets every weight of a morphable channel to zero."""
    for variable, place in zip(model.variables, graph.places(model)):
        layout = graph.layouts[place]
        if layout.role != "weight":
            continue
        value = np.array(ops.convert_to_numpy(variable))
        for number, axis in layout.axes.items():
            morphable = np.array(
                [graph.groups[group].morphable for group in axis.groups]
            )
            value[(slice(None),) * number + (morphable,)] = 0.0
        variable.assign(value)


def _file_size(model):
    """Bytes of the `.keras` file, without the state of an optimizer."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    finalize(copy)
    copy.optimizer, copy.compiled = None, False
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        copy.save(path)
        return os.path.getsize(path)


def compile_like(model, other):
    """Compiles a model for evaluation, with another one's loss and metrics."""

    def copy(value):
        # Losses have no state to share; metrics do.
        if isinstance(value, keras.Metric):
            return type(value).from_config(value.get_config())
        return value

    config = other._compile_config.config
    model.compile(
        loss=config["loss"],
        loss_weights=config["loss_weights"],
        metrics=keras.tree.map_structure(copy, config["metrics"]),
        weighted_metrics=keras.tree.map_structure(
            copy, config["weighted_metrics"]
        ),
        run_eagerly=config["run_eagerly"],
    )
