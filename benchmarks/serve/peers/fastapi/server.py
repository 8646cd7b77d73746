"""A package on FastAPI and uvicorn: python server.py PACKAGE PORT."""

import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

sys.path.insert(0, str(Path(__file__).parent.parent))

from model import Model

app = FastAPI()
model = Model(sys.argv[1])


@app.get("/health")
async def health() -> dict[str, bool]:
    """Say that it is ready."""
    return {"ready": True}


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    """Answer records, or raw pixels."""
    if request.headers["content-type"] == "application/octet-stream":
        tensor = model.read_raw(await request.body())
    else:
        tensor = model.read_records(await request.json())
    return {"predictions": model.predict(tensor)}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="warning")
