"""Layer rules: how each kind of layer carries channels.

A rule is a function of one `LayerCall`. It says which axes of the layer's
weights hold which channels (`call.weight`, `call.statistic`), which argument
of the layer's config counts them (`call.resize`), which channels are the same
(`call.tie`) or can never change (`call.freeze`), how a layer that mixes
channels leaves out the absent ones (`call.masked`), and returns the output
with its channels (`call.output`). A layer without a rule freezes what it
touches.

Each module holds the rules of one kind of layer; importing them fills the
registry.
"""

from keras_neumeta.graph.rules import (
    attention as attention,
)
from keras_neumeta.graph.rules import (
    channelwise as channelwise,
)
from keras_neumeta.graph.rules import (
    kernels as kernels,
)
from keras_neumeta.graph.rules import (
    merging as merging,
)
from keras_neumeta.graph.rules import (
    normalization as normalization,
)
from keras_neumeta.graph.rules import (
    operations as operations,
)
from keras_neumeta.graph.rules import (
    positions as positions,
)
from keras_neumeta.graph.rules import (
    recurrent as recurrent,
)
from keras_neumeta.graph.rules import (
    shapes as shapes,
)
from keras_neumeta.graph.rules import (
    wrappers as wrappers,
)
from keras_neumeta.graph.rules.registry import find_rule as find_rule
from keras_neumeta.graph.rules.registry import (
    register_elementwise as register_elementwise,
)
from keras_neumeta.graph.rules.registry import register_rule as register_rule
