"""One network, every size of itself: neural metamorphosis for Keras 3."""

from keras_neumeta.calibration import calibrate as calibrate
from keras_neumeta.fields import AnchoredField as AnchoredField
from keras_neumeta.fields import ImplicitField as ImplicitField
from keras_neumeta.fields import WeightField as WeightField
from keras_neumeta.graph import ChannelGraph as ChannelGraph
from keras_neumeta.graph import ChannelGroup as ChannelGroup
from keras_neumeta.graph import register_elementwise as register_elementwise
from keras_neumeta.graph import register_rule as register_rule
from keras_neumeta.graph import trace as trace
from keras_neumeta.hypermodel import ManifoldHyperModel as ManifoldHyperModel
from keras_neumeta.pruning import cut as cut
from keras_neumeta.pruning import largest_channels as largest_channels
from keras_neumeta.samplers import Discrete as Discrete
from keras_neumeta.samplers import Independent as Independent
from keras_neumeta.samplers import Sandwich as Sandwich
from keras_neumeta.samplers import SizeSampler as SizeSampler
from keras_neumeta.samplers import Uniform as Uniform
from keras_neumeta.smoothing import fold_batch_norm as fold_batch_norm
from keras_neumeta.smoothing import smooth as smooth
from keras_neumeta.smoothing import total_variation as total_variation
from keras_neumeta.sweep import Sweep as Sweep
from keras_neumeta.sweep import sweep as sweep
from keras_neumeta.version import __version__ as __version__
