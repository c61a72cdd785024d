"""Runs plain networks with weights that are given, not their own."""

from keras import ops

from keras_neumeta.graph import Part, finalize, resize, with_inputs


class Network:
    """A network of one size, called with weights from outside.

    Not a layer: its own variables are neither trained nor saved nor read.

    Args:
        model: Plain model, from `keras_neumeta.graph.resize`.
        graph: `ChannelGraph` of the target.
        sizes: The sizes of `model`.
        presence: Where `model` is a masked one, its list of `(variable,
            Axis)`; see `keras_neumeta.graph.resize`.
        within: Whether it is given weights and statistics of the target's
            full shapes, of which it needs the part of its own sizes.
        moments: `InputMoments` that measure each batch of the training.
    """

    def __init__(
        self, model, graph, sizes, presence=(), within=False, moments=None
    ):
        self.model = model
        self.roles = [layout.role for layout in graph.layouts]
        extra = {id(variable) for variable, _ in presence}
        self.variables = [v for v in model.variables if id(v) not in extra]
        # The variables of blocks that are left out are missing.
        self.members = graph.places(model)
        layouts = [graph.layouts[index] for index in self.members]
        for variable, layout in zip(self.variables, layouts, strict=True):
            if tuple(variable.shape) != layout.shape_at(sizes):
                raise ValueError(
                    f"The network of sizes {sizes} has '{variable.path}' of "
                    f"shape {tuple(variable.shape)}, but the channel graph "
                    f"expects {layout.shape_at(sizes)}. Does a layer rule "
                    "name the argument that counts its channels "
                    "(`call.resize`)?"
                )
        order = [*self.variables, *(variable for variable, _ in presence)]
        place = {id(v): n for n, v in enumerate(order)}
        self.normalized_sums = [
            (number, each)
            for number, each in enumerate(graph.normalized_sums)
            if each.layout.exists_at(sizes)
        ]
        self._moments = moments
        self._runner = model
        watched = [each.layer for _, each in self.normalized_sums]
        if moments is not None:
            watched += moments.layers
        self._watched = list(dict.fromkeys(watched))
        if self._watched:
            self._runner = with_inputs(model, self._watched)
        variables = self._runner.trainable_variables
        self.trainable = [place[id(v)] for v in variables]
        variables = self._runner.non_trainable_variables
        self.others = [place[id(v)] for v in variables]
        self._axes = [axis for _, axis in presence]
        # Statistics of blocks that may be absent: place and block.
        self._gated = [
            (place, layout.block)
            for place, layout in enumerate(graph.statistics)
            if presence and layout.block is not None
        ]
        self._has_depth = bool(presence and graph.blocks)
        # Weights of such blocks: place among the variables, and block.
        self._silenced = [
            (place, layout.block)
            for place, layout in enumerate(layouts)
            if presence and layout.block is not None and layout.role == "weight"
        ]
        self._parts = self._mean_parts = None
        if within:
            self._parts = [Part(layout, sizes) for layout in layouts]
            self._mean_parts = [
                Part(each.layout, sizes) for _, each in self.normalized_sums
            ]

    def presence(self, sizes):
        """Which channels are present, where layers have to be told."""
        return [
            ops.cast(
                ops.convert_to_tensor(axis.channels, "int32")
                < ops.take(sizes, axis.groups.astype("int32")),
                "float32",
            )
            for axis in self._axes
        ]

    def merge(self, weights, statistics, states):
        """Values in the order of the layouts."""
        sources = {
            "weight": iter(weights),
            "statistic": iter(statistics),
            "state": iter(states),
        }
        return [next(sources[role]) for role in self.roles]

    def __call__(
        self, weights, statistics, states, inputs, training, sizes=None
    ):
        """Runs the network.

        Args:
            weights, statistics, states: Tensors by role, in the order of
                the layouts; behind the statistics, the mean inputs of the
                graph where they shall be measured.
            sizes: For a masked network, an int tensor of channels per group.
            inputs: Inputs of the model.
            training: Whether to run in training mode.

        Returns:
            `(outputs, new statistics, new states, losses)`.
        """
        merged = self.merge(weights, statistics, states)
        values = [merged[index] for index in self.members]
        if self._parts:
            values = [p.crop(v) for p, v in zip(self._parts, values)]
        # No loss of a regularizer, and nothing infinite in the gradient.
        for place, block in self._silenced:
            value = ops.convert_to_tensor(values[place])
            here = block < sizes[-1]
            values[place] = ops.where(here, value, ops.zeros_like(value))
        if self._axes:
            values += self.presence(sizes)
        outputs, others, losses = self._runner.stateless_call(
            [values[n] for n in self.trainable],
            [values[n] for n in self.others],
            inputs,
            training=training,
            return_losses=True,
        )
        means = statistics[self.roles.count("statistic") :]
        if self._watched:
            outputs, read = outputs
            read = dict(zip(self._watched, read, strict=True))
            if training and means:
                means = self._moved(means, read)
            if training and self._moments is not None:
                depth = sizes[-1] if self._has_depth else None
                self._moments.update(read, depth)
        for n, value in zip(self.others, others, strict=True):
            values[n] = value
        for n, (index, value) in enumerate(zip(self.members, values)):
            if self._parts and self.roles[index] == "statistic":
                value = self._parts[n].pad(value)
            merged[index] = value
        by_role = {"weight": [], "statistic": [], "state": []}
        for role, value in zip(self.roles, merged):
            by_role[role].append(value)
        new = [*by_role["statistic"], *means]
        for place, block in self._gated:
            if place < len(new):  # Mean inputs are not always given.
                here = block < sizes[-1]
                new[place] = ops.where(here, new[place], statistics[place])
        return outputs, new, by_role["state"], losses

    def _moved(self, means, read):
        """The moving means of the inputs, after a batch of these inputs."""
        moved = list(means)
        for n, (number, each) in enumerate(self.normalized_sums):
            new = each.measure(read[each.layer])
            if self._mean_parts:
                new = self._mean_parts[n].pad(new)
            kept = each.layout.momentum
            moved[number] = kept * means[number] + (1.0 - kept) * new
        return moved


class Networks:
    """The networks that compute the sizes of one target.

    Sizes known beforehand have a network of exactly that size; all others
    are computed at full size, or at a limit that they do not exceed, with
    weights that are zero outside: by a plain network or, where the target has
    layers that mix channels, by a masked one.

    Args:
        graph: `ChannelGraph` of the target.
    """

    def __init__(self, graph):
        self.graph = graph
        self.full = Network(graph.model, graph, graph.full_sizes)
        masked = self.full
        if graph.masks:
            model, presence = resize(graph, graph.full_sizes, masked=True)
            masked = Network(model, graph, graph.full_sizes, presence)
        self._smaller = {}
        self._within = {graph.full_sizes: masked}

    def prepare_within(self, sizes, moments=None):
        """Builds the network of a limit; not possible in a compiled step.

        Args:
            sizes: See above.
            moments: `InputMoments` that it shall measure, if any: all that it
                computes is of these sizes then, but for the blocks.
        """
        if sizes not in self._within:
            model, presence = resize(self.graph, sizes, masked=True)
            self._within[sizes] = Network(
                model, self.graph, sizes, presence, within=True, moments=moments
            )

    def prepare(self, sizes, moments=None):
        """Builds the network of a size; not possible in a compiled step.

        Args:
            sizes: See above.
            moments: `InputMoments` that it shall measure, if any.
        """
        if sizes == self.graph.full_sizes:
            if moments is not None:
                self.full = Network(
                    self.graph.model, self.graph, sizes, moments=moments
                )
        elif sizes not in self._smaller:
            self._smaller[sizes] = Network(
                resize(self.graph, sizes), self.graph, sizes, moments=moments
            )

    def set_states(self, values):
        """Gives all networks the states that layers derive others from.

        Args:
            values: Arrays of the states, in the order of the layouts.
        """
        roles = [layout.role for layout in self.graph.layouts]
        places = [index for index, role in enumerate(roles) if role == "state"]
        states = dict(zip(places, values, strict=True))
        for network in (
            self.full,
            *self._smaller.values(),
            *self._within.values(),
        ):
            for index, variable in zip(network.members, network.variables):
                if index in states:
                    variable.assign(states[index])
            finalize(network.model)

    def at(self, sizes, limit=None):
        """The `Network` for sizes as given to `WeightField.generate`.

        Args:
            sizes: Channels per group.
            limit: Where `sizes` is a tensor, a tuple of sizes that it does
                not exceed. Default: the full ones.
        """
        if not isinstance(sizes, tuple):
            limit = limit or self.graph.full_sizes
            if limit not in self._within:
                raise ValueError(
                    f"No network was prepared for sizes within {limit}. A "
                    "sampler must name the ratios that bound its random ones "
                    "in `limits`."
                )
            return self._within[limit]
        if sizes == self.graph.full_sizes:
            return self.full
        if sizes not in self._smaller:
            raise ValueError(
                f"No network was prepared for sizes {sizes}. A sampler must "
                "name the ratios that it returns as Python floats in "
                "`static_ratios`, and return tensors for all others."
            )
        return self._smaller[sizes]
