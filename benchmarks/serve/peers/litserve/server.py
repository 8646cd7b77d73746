"""A package on LitServe, one worker: python server.py PACKAGE PORT."""

import base64
import sys
from pathlib import Path
from typing import Any

import litserve as ls
from fastapi import Request

sys.path.insert(0, str(Path(__file__).parent.parent))

from model import Model


class Api(ls.LitAPI):
    """The four hooks."""

    def setup(self, device: str) -> None:
        """Load the model, in the worker."""
        self.model = Model(sys.argv[1])

    def decode_request(self, request: Request) -> Any:
        """Take records, or raw pixels, which must be in JSON too."""
        if isinstance(request, list):
            return self.model.read_records(request)
        return self.model.read_raw(base64.b64decode(request["pixels"]))

    def predict(self, tensor: Any) -> list[dict[str, Any]]:
        """Run the model."""
        return self.model.predict(tensor)

    def encode_response(self, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        """Answer."""
        return {"predictions": predictions}


if __name__ == "__main__":
    server = ls.LitServer(Api(), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False, generate_client_file=False
    )
