"""JAX, from one place, for the workers that train on it.

A driver uses no device of it, as what holds a TPU keeps it from others; TensorFlow imports JAX where it is, and touches none.
"""

from typing import Any

from lepton_ray.core.extras import require

jax: Any = require("jax", "train.framework 'jax'")
jax.config.update("jax_default_matmul_precision", "highest")  # float32 is float32: TPUs and GPUs round it by default
multihost: Any = require("jax.experimental.multihost_utils", "train.framework 'jax'")
