"""What a ``node_config`` may hold: JSON Schemas made from the clouds' own models, for Ray passes it on unread.

``python -m lepton_ray.launch.allowed`` writes them again where the clouds' libraries are installed; each file says from which
versions it was made.
"""

import json
from functools import cache
from importlib import resources
from typing import Any

PROVIDERS = ("aws", "gcp_compute", "gcp_tpu", "azure")


@cache
def schema_of(provider: str) -> dict[str, Any]:
    """Return the JSON Schema of a provider's ``node_config``; the name is one of ``PROVIDERS``."""
    text = (resources.files(__name__) / f"{provider}.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
