"""A package on BentoML, one worker: PACKAGE=... bentoml serve service:Service --port PORT."""

import base64
import os
import sys
from pathlib import Path
from typing import Any

import bentoml

sys.path.insert(0, str(Path(__file__).parent.parent))

from model import Model


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Service:
    """Two methods."""

    def __init__(self) -> None:
        self.model = Model(os.environ["PACKAGE"])

    @bentoml.api
    async def predict(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Answer records."""
        return {"predictions": self.model.predict(self.model.read_records(records))}

    @bentoml.api
    async def predict_bytes(self, pixels: str) -> dict[str, Any]:
        """Answer raw pixels, in base64."""
        return {"predictions": self.model.predict(self.model.read_raw(base64.b64decode(pixels)))}
