"""`AnchoredField`: control points anchored at the target's own weights."""

import numpy as np
from keras import ops

from keras_neumeta.fields.curves import SizeCurves
from keras_neumeta.fields.interpolation import (
    KERNELS,
    interpolate_weights,
    is_static,
)
from keras_neumeta.fields.size_knots import SizeKnots
from keras_neumeta.fields.weight_field import WeightField
from keras_neumeta.graph import Part
from keras_neumeta.graph.sizes import check_ratio
from keras_neumeta.serialization import register_serializable

# Corrections that are worth their room, as a share of the parameters.
MOST_CORRECTIONS = 0.1


def default_levels(graph, min_ratio):
    """The `levels` of a field that is trained down to a ratio.

    The smallest sizes get corrections of their own, if they are trained and
    small: what they need takes much from the largest ones.

    Args:
        graph: `ChannelGraph` of the target.
        min_ratio: The smallest ratio of the training.
    """
    if min_ratio > 0.25:
        return ()
    sizes = graph.sizes(0.25)
    number = sum(
        layout.count_params(sizes)
        for layout in graph.layouts
        if _is_corrected(layout, sizes)
    )
    most = MOST_CORRECTIONS * graph.count_params()
    return (0.25,) if number <= most else ()


def _is_corrected(layout, sizes):
    return (
        layout.role == "weight"
        and layout.trainable
        and any(layout.slices(sizes))
    )


@register_serializable
class AnchoredField(WeightField):
    """Learned control points, started at the target's own weights.

    Each weight of the target becomes an array of control points of the same
    shape. A smaller network reads them at its channels' positions: by default
    the leading ones, most important first, so that what is learned at one
    size holds at the next; or evenly spaced ones, interpolated. Sums over `n`
    of `N` input channels are multiplied by `N / n`, so that they keep their
    size. At full size the field is the target, exactly.

    The leading slice is that of Universally Slimmable Networks (Yu and Huang,
    ICCV 2019), the scaled sums and evenly spaced positions are those of
    Integral Neural Networks (Solodskikh et al., CVPR 2023).

    Args:
        interpolation: Between control points, `"linear"` or `"cubic"`; no
            matter where positions are whole numbers (`stretch=0`).
        stretch: Exponent `a` of the positions: channel `i` of `n` reads at
            `(i + 0.5) * (N / n) ** a - 0.5`. 0 reads the leading slice, of
            channels in the order of their importance; 1 keeps relative
            positions, of channels along a shortest path. Coordinate noise,
            averages over it and sizes above the full one need 1.
        scale: Exponent of the factor `N / n` of sums: 1 keeps their size, 0
            leaves them as they are.
        size_knots: Ratios in (0, 1) at which biases, gamma and beta have
            values of their own, linear in between. Default: none. Where
            blocks can be left out, they have such values at a few numbers of
            blocks.
        levels: Rising ratios in (0, 1) at which a network has corrections to
            the control points, as many as it has weights: a level at 0.25
            stores 1/16 more. They are linear in between, and zero from the
            square root of the last level on. What is learned at a level moves
            them in place of the control points, which serve the larger sizes,
            and as fast, whatever `ratio_power`. Needs `stretch=0`.

    Example:

    ```python
    field = keras_neumeta.AnchoredField(stretch=1.0, interpolation="cubic")
    hyper = keras_neumeta.ManifoldHyperModel(model, field=field)
    ```
    """

    def __init__(
        self,
        interpolation="linear",
        stretch=0.0,
        scale=1.0,
        size_knots=(),
        levels=(),
        **kwargs,
    ):
        super().__init__(**kwargs)
        if interpolation not in KERNELS:
            raise ValueError(
                f"Argument `interpolation` must be one of {list(KERNELS)}. "
                f"Received: interpolation={interpolation!r}"
            )
        if not 0.0 <= stretch <= 1.0:
            raise ValueError(
                "Argument `stretch` must be in [0, 1]: 0 reads the leading "
                f"slice, 1 relative positions. Received: stretch={stretch!r}"
            )
        if not 0.0 <= scale <= 1.0:
            raise ValueError(
                "Argument `scale` must be in [0, 1]: 1 keeps the size of sums "
                f"over channels. Received: scale={scale!r}"
            )
        self.interpolation = interpolation
        self.stretch = float(stretch)
        self.scale = float(scale)
        self.size_knots = _rising("size_knots", size_knots)
        self.levels = _rising("levels", levels)
        if self.levels and self.stretch:
            raise ValueError(
                "Argument `levels` needs `stretch=0`: levels share the leading "
                f"channels. Received: levels={levels!r}, stretch={stretch!r}"
            )
        self.size_curves = None

    def attach(self, graph, values):
        super().attach(graph, values)
        self.control_points = []
        for layout, value in zip(self.layouts, values, strict=True):
            value = np.asarray(value, "float32")
            variable = self.add_weight(
                shape=layout.shape,
                initializer="zeros",
                trainable=layout.trainable,
                name=layout.path.replace("/", "_"),
            )
            variable.assign(value)
            self.control_points.append(variable)
        self.size_levels = [self._attach_level(ratio) for ratio in self.levels]
        if self.levels:
            halfway = self.levels[-1] ** 0.5
            self.level_knots = SizeKnots(
                graph, self.layouts, [*self.levels, halfway, 1.0], depths=False
            )
        if self.size_knots or graph.blocks:
            self.size_curves = SizeCurves(
                self.size_knots,
                self.interpolation,
                self.stretch,
                dtype="float32",
                name="size_curves",
            )
            self.size_curves.attach(graph, self.layouts)

    def _attach_level(self, ratio):
        """Dict from layout index to the part of a level and its corrections."""
        sizes = self.graph.sizes(ratio)
        level = {}
        for index, layout in enumerate(self.layouts):
            if not _is_corrected(layout, sizes):
                continue
            part = Part(layout, sizes)
            corrections = self.add_weight(
                shape=layout.shape_at(sizes),
                initializer="zeros",
                # PyTorch allows no dot in the name of a parameter.
                name=f"{layout.path}_{ratio:g}".replace("/", "_").replace(
                    ".", "_"
                ),
            )
            level[index] = part, corrections
        return level

    def _points(self, sizes):
        """The control points of a size, of full shape."""
        shared = [ops.convert_to_tensor(v) for v in self.control_points]
        if not self.levels:
            return shared
        shares = self.level_knots.weights(sizes)
        points = list(shared)
        for number, level in enumerate(self.size_levels):
            # As fast as the shared ones, though the loss of small sizes
            # counts less.
            pace = self.levels[number] ** -self.ratio_power
            for index, (part, corrections) in level.items():
                own = _paced(corrections, pace)
                # A level follows the shared ones and does not move them.
                followed = part.crop(shared[index])
                own = own + (ops.stop_gradient(followed) - followed)
                share = shares[index, number]
                points[index] = points[index] + share * part.pad(own)
        return points

    def generate(self, sizes, offsets=None):
        full = self.graph.full_sizes
        if is_static(sizes) and sizes == full and offsets is None:
            return [ops.convert_to_tensor(v) for v in self.control_points]
        weights = interpolate_weights(
            self.graph,
            self.layouts,
            self._points(sizes),
            sizes,
            offsets,
            self.interpolation,
            self.stretch,
            self.scale,
        )
        if self.size_curves is not None:
            for index, value in self.size_curves.generate(sizes).items():
                weights[index] = weights[index] + value
        return weights

    @property
    def extrapolates(self):
        """Whether it reads above the full size: with a `stretch` above 0."""
        # Neighbours are alike only along a path.
        return self.stretch > 0.0

    @property
    def channel_order(self):
        """`"path"` with a `stretch` above 0, else `"importance"`."""
        return "path" if self.stretch else "importance"

    def get_config(self):
        return {
            **super().get_config(),
            "interpolation": self.interpolation,
            "stretch": self.stretch,
            "scale": self.scale,
            "size_knots": self.size_knots,
            "levels": self.levels,
        }


def _paced(points, pace):
    """The points, with a gradient that is some times as large."""
    points = ops.convert_to_tensor(points)
    fixed = ops.stop_gradient(points)
    return fixed + pace * (points - fixed)


def _rising(argument, ratios):
    checked = [check_ratio(ratio) for ratio in ratios]
    if checked != sorted(set(checked) - {1.0}):
        raise ValueError(
            f"Argument `{argument}` must hold rising ratios below 1. "
            f"Received: {argument}={ratios!r}"
        )
    return checked
