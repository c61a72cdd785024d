"""`WeightField`: the contract of all weight fields."""

import keras


class WeightField(keras.layers.Layer):
    """Continuous function from the coordinates of a size to its weights.

    A field is attached to one target network, after which `generate` gives
    the target's weights at any size. Fields differ in how they hold the
    function: control points, a network over coordinates, both.

    Subclasses implement `attach` (create all variables, call
    `super().attach` first) and `generate`.

    Attributes:
        graph: The `ChannelGraph` that the field is attached to, or `None`.
        layouts: The `VariableLayout`s of the weights that it generates.
        extrapolates: Whether it can generate sizes above the full one.
        channel_order: The order of the channels that suits the field: `"path"`
            (neighbours are alike) or `"importance"` (the largest first).
        stretch: Exponent of the positions at which smaller sizes read the
            channels (1 for relative positions), for the statistics.
        ratio_power: Power of the ratio by which the loss of a smaller size
            counts. The hypermodel sets it.
    """

    stretch = 1.0
    ratio_power = 0.0
    # Whether sizes above the full one can be generated: an extrapolation.
    extrapolates = False
    # How the channels are ordered first: "path" or "importance".
    channel_order = "path"

    def __init__(self, **kwargs):
        # Weights are generated in full precision; the target's own layers
        # cast them to their compute type.
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.graph = None
        self.layouts = None

    def attach(self, graph, values):
        """Binds the field to a target and creates its variables.

        Args:
            graph: `ChannelGraph` of the target.
            values: List of arrays, the target's weights at full size, in
                the order of the layouts whose role is `"weight"`.

        Raises:
            ValueError: If the field already belongs to another target.
        """
        if self.graph is not None:
            raise ValueError(
                f"Field '{self.name}' is already attached to model "
                f"'{self.graph.model.name}'. A field holds the weights of one "
                "target: create a new one for this model."
            )
        self.graph = graph
        self.layouts = [x for x in graph.layouts if x.role == "weight"]
        # No shape to build from: everything that is needed is known here.
        self.built = True

    def imitate(self, values):
        """Brings the field near its target's weights, once, before training.

        Nothing by default, for fields that begin there.

        Args:
            values: As for `attach`.
        """

    def generate(self, sizes, offsets=None):
        """The weights of one size.

        Args:
            sizes: Channels per group. A tuple of integers gives weights of
                exactly that size. An int32 tensor `(num_groups,)`, which may
                change from step to step inside a compiled function, gives
                weights of the target's full shapes, in which the first
                channels of each group hold the smaller network and all
                others are zero.
            offsets: `None`, or a list with a float tensor
                `(num_channels,)` per group: coordinate noise, in channels of
                the sampled size.

        Returns:
            List of float32 tensors, in the order of `self.layouts`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `generate`."
        )
