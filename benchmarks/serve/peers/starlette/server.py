"""A package on Starlette, orjson and uvicorn, as few steps as this framework has: python server.py PACKAGE PORT."""

import sys
from pathlib import Path

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).parent.parent))

from model import Model

model = Model(sys.argv[1])


async def health(request: Request) -> Response:
    """Say that it is ready."""
    return Response()


async def predict(request: Request) -> Response:
    """Answer records, or raw pixels."""
    body = await request.body()
    if request.headers["content-type"] == "application/octet-stream":
        tensor = model.read_raw(body)
    else:
        tensor = model.read_records(orjson.loads(body))
    return Response(orjson.dumps({"predictions": model.predict(tensor)}), media_type="application/json")


app = Starlette(routes=[Route("/health", health), Route("/predict", predict, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="warning")
