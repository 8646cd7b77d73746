"""TensorFlow, from one place; imported only where Keras is on it."""

from typing import Any

from lepton_ray.core.extras import require
from lepton_ray.engine.keras import quiet  # Keras first: what both read from the environment is set before

with quiet():
    tf: Any = require("tensorflow", "train.framework 'keras'")

tf.get_logger().setLevel("ERROR")
