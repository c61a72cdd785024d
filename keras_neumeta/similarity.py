"""How alike networks of different sizes are: their features, their outputs.

Sources: Neural Metamorphosis (Yang and Wang, ECCV 2024), figure 9; the
papers at each function.
"""

import json
import math
import warnings

import keras
import numpy as np
from keras import ops

from keras_neumeta.batches import BATCH_SIZE, batches
from keras_neumeta.figures import new_figure
from keras_neumeta.graph import layer_patterns
from keras_neumeta.graph.channel_graph import is_graph
from keras_neumeta.graph.functional import function_of, single_calls
from keras_neumeta.graph.sizes import matching
from keras_neumeta.text import table

# The unbiased estimate divides by n - 3.
MIN_EXAMPLES = 4

_TITLES = {
    "CKA": "linear CKA",
    "KL divergence": "KL(row || column) in nats",
}


class Similarity:
    """Every pair of networks, compared. Prints as text; `plot` draws it.

    Attributes:
        measure: `"CKA"` (1: alike, 0: unrelated; symmetric) or
            `"KL divergence"` (0: alike; of the row from the column, in nats).
        labels: Names of the rows and columns, a list of `n` strings.
        matrix: Float array `(n, n)`.
    """

    def __init__(self, measure, labels, matrix):
        self.measure = measure
        self.labels = list(labels)
        self.matrix = np.asarray(matrix, "float64")

    def mean(self):
        """The mean over all pairs of different rows and columns."""
        number = len(self.labels)
        if number < 2:
            return float("nan")
        return float(self.matrix[~np.eye(number, dtype=bool)].mean())

    def select(self, labels):
        """The part with some of the rows and the same columns.

        Args:
            labels: A label, a pattern such as `"* conv3"`, or a list of
                these. The order of the rows stays.

        Returns:
            A `Similarity`.

        Raises:
            ValueError: If a label or pattern fits no row.
        """
        patterns = [labels] if isinstance(labels, str) else list(labels)
        chosen = set()
        for pattern in patterns:
            found = matching(self.labels, pattern)
            if not found:
                raise ValueError(
                    f"Argument `labels`: no row is called {pattern!r}. "
                    f"Rows: {self.labels}"
                )
            chosen.update(found)
        rows = [n for n, label in enumerate(self.labels) if label in chosen]
        return Similarity(
            self.measure,
            [self.labels[n] for n in rows],
            self.matrix[np.ix_(rows, rows)],
        )

    def __str__(self):
        lines = [[self.measure, *self.labels]]
        for label, row in zip(self.labels, self.matrix, strict=True):
            lines.append([label, *(f"{value:.4f}" for value in row)])
        return table(lines)

    def save(self, path, **more):
        """Writes the matrix as JSON, with further entries beside it.

        See `to_dict` for what is no finite number.

        Raises:
            ValueError: If a further entry is no finite number, which JSON
                cannot hold; nothing is written.
        """
        entries = {**more, **self.to_dict()}
        text = json.dumps(entries, indent=2, allow_nan=False)
        with open(path, "w") as file:
            file.write(text + "\n")

    def to_dict(self):
        """Measure, labels and matrix (lists of numbers), as for JSON.

        What is not a number is `None`, what is infinite `"Infinity"`, which
        `float` reads.
        """
        return {
            "measure": self.measure,
            "labels": self.labels,
            "matrix": [
                [_json_number(value) for value in row]
                for row in self.matrix.tolist()
            ],
        }

    def plot(self, path=None, axes=None, limits=None):
        """Draws the matrix as a heat map with its numbers; light is alike.

        Args:
            path: File to write (`.png`, `.svg`, ...). Default: none.
            axes: `matplotlib` axes to draw on. Default: those of a new
                figure, with a colour bar.
            limits: Lowest and highest value of the colours. Default: 0 to 1
                for the CKA, 0 to the largest value for the divergence.

        Returns:
            The `matplotlib` figure.
        """
        if axes is None:
            return plot_similarities({"": self}, path, limits)
        self._draw(axes, limits or _limits([self]))
        if path is not None:
            axes.figure.savefig(path, dpi=150)
        return axes.figure

    def _draw(self, axes, limits):
        alike_is_high = self.measure == "CKA"
        image = axes.imshow(
            np.ma.masked_invalid(self.matrix),
            vmin=limits[0],
            vmax=limits[1],
            cmap="viridis" if alike_is_high else "viridis_r",
        )
        places = range(len(self.labels))
        axes.set_xticks(places, self.labels, rotation=90)
        axes.set_yticks(places, self.labels)
        axes.tick_params(length=0, labelsize=8)
        for (row, column), value in np.ndenumerate(self.matrix):
            red, green, blue, _ = image.to_rgba(value)
            is_light = 0.3 * red + 0.6 * green + 0.1 * blue > 0.5
            axes.text(
                column,
                row,
                f"{value:.2f}" if alike_is_high else f"{value:.3f}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if is_light else "white",
            )
        return image


def plot_similarities(results, path=None, limits=None):
    """Draws several matrices side by side, in one range of colours.

    Source: Neural Metamorphosis (Yang and Wang, ECCV 2024), figure 9.

    Args:
        results: Dict from title to `Similarity`, all of the same measure.
        path: File to write (`.png`, `.svg`, ...). Default: none.
        limits: See `Similarity.plot`. Default: one range for all.

    Returns:
        The `matplotlib` figure.

    Raises:
        ValueError: If there is nothing to draw, or more than one measure.

    Example:

    ```python
    small = {"0.5": hyper.morph(0.5), "0.25": hyper.morph(0.25)}
    both = {**small, "1": model}
    keras_neumeta.plot_similarities(
        {
            "manifold": keras_neumeta.cka(small, x, "conv"),
            "with the model": keras_neumeta.cka(both, x, "conv"),
        },
        "cka.png",
    )
    ```
    """
    measures = {result.measure for result in results.values()}
    if len(measures) != 1:
        raise ValueError(
            "Argument `results` must hold results of one measure, at least "
            f"one. Received: {sorted(measures)}. Draw each measure by itself."
        )
    limits = limits or _limits(results.values())
    sizes = [len(result.labels) for result in results.values()]
    figure = new_figure(
        "`plot_similarities`",
        (0.5 * sum(sizes) + len(sizes) + 1, 0.5 * max(sizes) + 1.5),
    )
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    panels = figure.subplots(1, len(sizes), squeeze=False)[0]
    for axes, (title, result) in zip(panels, results.items()):
        image = result._draw(axes, limits)
        axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=list(panels), label=_TITLES[measures.pop()])
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _json_number(value):
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else "Infinity"


def _limits(results):
    """The range of colours that suits all results."""
    results = list(results)
    if results[0].measure == "CKA":
        return 0.0, 1.0
    values = np.concatenate([result.matrix.ravel() for result in results])
    values = values[np.isfinite(values)]
    return 0.0, float(values.max(initial=0.0)) or 1.0


def cka(models, data, layers=None, batch_size=BATCH_SIZE):
    """Linear CKA between the features of every two networks.

    With the features X and Y of two layers, the sums over the batches:

        CKA = sum HSIC(X, Y) / sqrt(sum HSIC(X, X) * sum HSIC(Y, Y))

    1 where the features are the same but for a rotation and a scale, near 0
    where they have nothing to do with each other (an unbiased estimate, so it
    may fall below 0), not a number where the features of a layer do not
    change. Widths may differ: the features of an example are flattened and
    only compared with those of other examples of the batch.

    HSIC is the unbiased estimate of a batch, so that the result does not
    depend on the size of the batches; each counts by its examples. Batches of
    fewer than 4 have no estimate and are left out.

    Sources: Nguyen, Raghu and Kornblith, "Do Wide and Deep Networks Learn the
    Same Things?" (ICLR 2021), equations 2 and 3; Song, Smola, Gretton, Bedo
    and Borgwardt, "Feature Selection via Dependence Maximization" (JMLR 2012),
    equation 5.

    Args:
        models: Dict from label to `keras.Model`, or a list of models, which
            go by their names, or by numbers where names repeat.
        data: Inputs (an array, or a list or dict of arrays, cut into
            batches), or an iterable of batches `x` or `(x, y, ...)`, such as
            a `tf.data.Dataset`. Read once, by all networks side by side.
        layers: Names of layers, or patterns such as `"stage*_add"`, of
            Sequential or functional models. Several layers give a row each,
            called `"label layer"`. Default: the outputs of the models.
        batch_size: Examples per batch where `data` is an array.

    Returns:
        A `Similarity`.

    Raises:
        TypeError, ValueError: If an argument cannot be used; the message
            says why.

    Example:

    ```python
    ratios = [1.0, 0.5, 0.25]
    models = dict(zip(ratios, hyper.morph(ratios)))
    print(keras_neumeta.cka({**models, "given": model}, x_test, "conv"))
    ```
    """
    models = _labelled(models)
    if layers is None:
        networks, labels = models, list(models)
    else:
        networks, labels = _features(models, layers)
    total, lengths = 0.0, []
    for x in batches("data", data, batch_size, _num_inputs(models)):
        features = [
            ops.stop_gradient(part)
            for label, network in networks.items()
            for part in _outputs(label, network, x, single=layers is None)
        ]
        length = features[0].shape[0]
        lengths.append(length)
        if length >= MIN_EXAMPLES:
            total = total + length * _hsic(features)
    if max(lengths, default=0) < MIN_EXAMPLES:
        raise ValueError(
            f"Argument `data` must hold at least one batch of {MIN_EXAMPLES} "
            f"or more examples. Received batches of: {lengths}. Give more "
            "examples, in larger batches."
        )
    own = np.sqrt(np.diagonal(total))
    with np.errstate(invalid="ignore"):
        return Similarity("CKA", labels, total / np.outer(own, own))


def kl_divergence(models, data, *, from_logits=False, batch_size=BATCH_SIZE):
    """KL divergence between the outputs of every two networks.

    The mean over the examples of

        KL(row || column) = sum over classes of p log(p / q)

    in nats, with the probabilities p of the row's network and q of the
    column's. Classes are on the last axis; a single output is the probability
    of one of two classes. Infinite where q is 0 and p is not, which logits
    avoid. Further axes, such as the pixels of a map, count as examples.

    Source: Kullback and Leibler, "On Information and Sufficiency" (1951).

    Args:
        models: Dict from label to `keras.Model` with one output, or a list
            of models, which go by their names, or by numbers where names
            repeat.
        data: As for `cka`.
        from_logits: Whether the outputs are logits rather than
            probabilities.
        batch_size: Examples per batch where `data` is an array.

    Returns:
        A `Similarity`.

    Raises:
        TypeError, ValueError: If an argument cannot be used, or if the
            outputs are not probabilities and `from_logits` is false.

    Example:

    ```python
    ratios = [1.0, 0.5, 0.25]
    models = dict(zip(ratios, hyper.morph(ratios)))
    print(keras_neumeta.kl_divergence(models, x_test, from_logits=True))
    ```
    """
    models = _labelled(models)
    total, number = 0.0, 0
    for x in batches("data", data, batch_size, _num_inputs(models)):
        outputs = {
            label: ops.cast(ops.stop_gradient(output), "float32")
            for label, model in models.items()
            for output in _outputs(label, model, x, single=True)
        }
        if not number:
            _check_outputs(outputs, from_logits)
        logs = ops.stack(
            [_log_probabilities(y, from_logits) for y in outputs.values()]
        )  # (models, examples, classes)
        total = total + _kl_sums(logs)
        number += logs.shape[1]
    if not number:
        raise ValueError(
            "Argument `data` must hold at least one batch of inputs. "
            "Received none."
        )
    # Rounding may end below the smallest divergence there is.
    matrix = np.maximum(total / number, 0.0)
    return Similarity("KL divergence", models, matrix)


def _hsic(features):
    """Unbiased HSIC with linear kernels of every two features of a batch.

    Args:
        features: List of `f` tensors `(n, ...)`.

    Returns:
        Float array `(f, f)`.
    """
    number = features[0].shape[0]
    kernels = [ops.reshape(_centred_kernel(x), (-1,)) for x in features]
    kernels = ops.convert_to_numpy(ops.stack(kernels))  # (f, n * n)
    # Squares of squares of features may lie beyond float32.
    kernels = kernels.astype("float64")
    return kernels @ kernels.T / (number * (number - 3))


def _centred_kernel(x):
    """Linear kernel without its diagonal, centred so that rows sum to 0.

    The inner product of two such kernels, over n (n - 3), is the unbiased
    HSIC: Szekely and Rizzo, "Partial Distance Correlation with Methods for
    Dissimilarities" (2014), definition 2.

    Args:
        x: Tensor `(n, ...)`, an example per row.

    Returns:
        Tensor `(n, n)`.
    """
    number = x.shape[0]
    x = ops.reshape(ops.cast(x, "float32"), (number, -1))
    # The kernel's own centring removes the mean too, but of larger numbers.
    mean = ops.mean(x, axis=0)
    centred = x - mean
    # What is left of a constant feature is rounding.
    centred = ops.where(
        ops.abs(centred) > 1e-5 * ops.abs(mean), centred, ops.zeros_like(x)
    )
    others = 1.0 - ops.eye(number, dtype="float32")
    kernel = ops.matmul(centred, ops.transpose(centred)) * others
    rows = ops.sum(kernel, axis=1, keepdims=True) / (number - 2)
    whole = ops.sum(kernel) / ((number - 1) * (number - 2))
    return (kernel - rows - ops.transpose(rows) + whole) * others


def _log_probabilities(outputs, from_logits):
    """Logarithms of the probabilities, `(examples, classes)`."""
    if outputs.shape[-1] == 1:
        rest = ops.zeros_like(outputs) if from_logits else 1.0 - outputs
        outputs = ops.concatenate([outputs, rest], axis=-1)
    outputs = ops.reshape(outputs, (-1, outputs.shape[-1]))
    if from_logits:
        return ops.log_softmax(outputs, axis=-1)
    return ops.log(outputs)


def _kl_sums(logs):
    """KL divergence of every two networks, summed over the examples.

    Args:
        logs: Tensor `(models, examples, classes)`.

    Returns:
        Float array `(models, models)`.
    """
    rows = []
    for number in range(logs.shape[0]):
        log = logs[number : number + 1]
        probability = ops.exp(log)
        # 0 log 0 is 0.
        ratio = ops.where(probability > 0.0, log - logs, ops.zeros_like(logs))
        rows.append(ops.sum(probability * ratio, axis=(1, 2)))
    return np.asarray(ops.convert_to_numpy(ops.stack(rows)), "float64")


def _check_outputs(outputs, from_logits):
    """Raises unless the outputs of all networks are such as was said."""
    shapes = {label: tuple(y.shape) for label, y in outputs.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(
            "Argument `models` must hold networks with outputs of one shape, "
            f"to compare them. Received the shapes: {shapes}"
        )
    for label, values in outputs.items():
        values = ops.convert_to_numpy(values)
        is_binary = values.shape[-1] == 1
        sums = values.sum(axis=-1)
        # Logits in 0..1 are common where there is but one.
        are_probabilities = (values >= 0).all() and (
            (values <= 1).all()
            if is_binary
            else np.allclose(sums, 1, atol=0.01)
        )
        if not from_logits and not are_probabilities:
            raise ValueError(
                f"The outputs of '{label}' are no probabilities, which are at "
                "least 0 and sum to 1 over the last axis. Received values in "
                f"{values.min():g}..{values.max():g} with sums in "
                f"{sums.min():g}..{sums.max():g}. If they are logits, set "
                "`from_logits=True`."
            )
        if from_logits and are_probabilities and not is_binary:
            warnings.warn(
                f"The outputs of '{label}' look like probabilities, though "
                "`from_logits` is true.",
                stacklevel=3,
            )


def _labelled(models):
    """The argument `models` as a dict from label to model."""
    if isinstance(models, dict):
        labels = [
            f"{label:g}" if isinstance(label, float) else str(label)
            for label in models
        ]
        models = list(models.values())
    elif isinstance(models, list | tuple):
        models = list(models)
        labels = [getattr(model, "name", "") for model in models]
        if len(set(labels)) < len(labels):
            labels = [str(number) for number in range(len(models))]
    else:
        raise TypeError(
            "Argument `models` must be a list of models, or a dict from label "
            f"to model. Received: {models!r}"
        )
    if not models:
        raise ValueError(
            "Argument `models` must hold at least one model. Received none."
        )
    if len(set(labels)) < len(labels):
        raise ValueError(
            "Argument `models` must have labels that differ as text. "
            f"Received: {labels}"
        )
    for label, model in zip(labels, models):
        if not isinstance(model, keras.Model):
            raise TypeError(
                f"Argument `models` must hold `keras.Model`s. Received for "
                f"'{label}': {model!r}"
            )
    return dict(zip(labels, models))


def _num_inputs(models):
    """Number of inputs of the networks, or `None` where no graph tells."""
    for model in models.values():
        if is_graph(model):
            return len(model.inputs)
    return None


def _layers_of(label, model, patterns):
    """The calls of the chosen layers of a model, in its own order."""
    if not is_graph(model):
        raise ValueError(
            f"Argument `layers` needs the graph of a model. '{label}' is no "
            "built Sequential or functional `keras.Model`, but a "
            f"{type(model).__name__}: morph a hypermodel first, or give "
            "models that output the features, without `layers`."
        )
    calls = single_calls(function_of(model))
    calls = {
        layer.name: calls[id(layer)]
        for layer in model.layers
        if id(layer) in calls
    }
    chosen = set()
    for pattern in patterns:
        found = matching(calls, pattern)
        if not found:
            raise ValueError(
                f"Argument `layers`: no layer of '{label}' is called "
                f"'{pattern}', once. Its layers: {list(calls)}"
            )
        chosen.update(found)
    return {name: call for name, call in calls.items() if name in chosen}


def _features(models, layers):
    """Models that compute the chosen features, and the labels of the rows."""
    patterns = layer_patterns(layers)
    if not patterns:
        raise ValueError(
            "Argument `layers` must name at least one layer. Received: "
            f"layers={layers!r}. Leave it out to compare the outputs."
        )
    calls = {
        label: _layers_of(label, model, patterns)
        for label, model in models.items()
    }
    networks = {
        label: keras.Model(
            function_of(model).input,
            [call.output_tensors[0] for call in calls[label].values()],
        )
        for label, model in models.items()
    }
    if all(len(names) == 1 for names in calls.values()):
        return networks, list(models)
    return networks, [
        f"{label} {name}" for label, names in calls.items() for name in names
    ]


def _outputs(label, network, x, single):
    """Flat list of the outputs of a network for a batch."""
    outputs = keras.tree.flatten(network(x, training=False))
    if single and len(outputs) != 1:
        raise ValueError(
            "Argument `models` must hold networks with one output. "
            f"'{label}' has {len(outputs)}. Choose one: "
            "`keras.Model(model.input, model.outputs[0])`."
        )
    return outputs
