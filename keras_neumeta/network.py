"""Runs plain networks with weights that are given, not their own."""

from keras_neumeta.graph import finalize, resize


class Network:
    """A network of one size, called with weights from outside.

    Not a layer: its own variables are neither trained nor saved nor read.

    Args:
        model: Plain model, from `keras_neumeta.graph.resize`.
        graph: `ChannelGraph` of the target.
        sizes: The sizes of `model`.
    """

    def __init__(self, model, graph, sizes):
        self.model = model
        self.roles = [layout.role for layout in graph.layouts]
        for variable, layout in zip(
            model.variables, graph.layouts, strict=True
        ):
            if tuple(variable.shape) != layout.shape_at(sizes):
                raise ValueError(
                    f"The network of sizes {sizes} has '{variable.path}' of "
                    f"shape {tuple(variable.shape)}, but the channel graph "
                    f"expects {layout.shape_at(sizes)}. Does a layer rule "
                    "name the argument that counts its channels "
                    "(`call.resize`)?"
                )
        place = {id(v): n for n, v in enumerate(model.variables)}
        self.trainable = [place[id(v)] for v in model.trainable_variables]
        self.others = [place[id(v)] for v in model.non_trainable_variables]

    def merge(self, weights, statistics, states):
        """Values in the order of `model.variables`."""
        sources = {
            "weight": iter(weights),
            "statistic": iter(statistics),
            "state": iter(states),
        }
        return [next(sources[role]) for role in self.roles]

    def __call__(self, weights, statistics, states, inputs, training):
        """Runs the network.

        Args:
            weights, statistics, states: Tensors by role, in the order of
                the layouts.
            inputs: Inputs of the model.
            training: Whether to run in training mode.

        Returns:
            `(outputs, new statistics, new states, losses)`.
        """
        values = self.merge(weights, statistics, states)
        outputs, others, losses = self.model.stateless_call(
            [values[n] for n in self.trainable],
            [values[n] for n in self.others],
            inputs,
            training=training,
            return_losses=True,
        )
        for n, value in zip(self.others, others, strict=True):
            values[n] = value
        by_role = {"weight": [], "statistic": [], "state": []}
        for role, value in zip(self.roles, values):
            by_role[role].append(value)
        return outputs, by_role["statistic"], by_role["state"], losses


class Networks:
    """The networks that compute the sizes of one target.

    Sizes known beforehand have a network of exactly that size; all others
    are computed by the full network with weights that are zero outside.

    Args:
        graph: `ChannelGraph` of the target.
    """

    def __init__(self, graph):
        self.graph = graph
        self.full = Network(graph.model, graph, graph.full_sizes)
        self._smaller = {}

    def prepare(self, sizes):
        """Builds the network of a size; not possible in a compiled step."""
        if sizes != self.graph.full_sizes and sizes not in self._smaller:
            model = resize(self.graph, sizes)
            self._smaller[sizes] = Network(model, self.graph, sizes)

    def set_states(self, values):
        """Gives all networks the states that layers derive others from.

        Args:
            values: Arrays of the states, in the order of the layouts.
        """
        for network in (self.full, *self._smaller.values()):
            states = iter(values)
            for variable, role in zip(network.model.variables, network.roles):
                if role == "state":
                    variable.assign(next(states))
            finalize(network.model)

    def at(self, sizes):
        """The `Network` for sizes as given to `WeightField.generate`."""
        if not isinstance(sizes, tuple) or sizes == self.graph.full_sizes:
            return self.full
        if sizes not in self._smaller:
            raise ValueError(
                f"No network was prepared for sizes {sizes}. A sampler must "
                "name the ratios that it returns as Python floats in "
                "`static_ratios`, and return tensors for all others."
            )
        return self._smaller[sizes]
