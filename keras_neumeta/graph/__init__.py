"""Channel graph: which channels belong together, and networks of any size."""

from keras_neumeta.graph.channel_graph import ChannelGraph as ChannelGraph
from keras_neumeta.graph.channel_graph import layer_patterns as layer_patterns
from keras_neumeta.graph.channel_graph import own_classes as own_classes
from keras_neumeta.graph.channel_graph import trace as trace
from keras_neumeta.graph.layout import ChannelGroup as ChannelGroup
from keras_neumeta.graph.layout import VariableLayout as VariableLayout
from keras_neumeta.graph.moments import with_inputs as with_inputs
from keras_neumeta.graph.part import Part as Part
from keras_neumeta.graph.resize import assign as assign
from keras_neumeta.graph.resize import call_once as call_once
from keras_neumeta.graph.resize import finalize as finalize
from keras_neumeta.graph.resize import resize as resize
from keras_neumeta.graph.rules import (
    register_elementwise as register_elementwise,
)
from keras_neumeta.graph.rules import register_rule as register_rule
from keras_neumeta.graph.sizes import sizes_at as sizes_at
from keras_neumeta.graph.sizes import with_depth as with_depth
