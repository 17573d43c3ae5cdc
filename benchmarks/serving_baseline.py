"""A service as people write it, for serving.py: FastAPI, PyTorch in inference mode, threads, one image for each call.

Example:
  python benchmarks/serving_baseline.py RUN THREADS
"""

from __future__ import annotations

import json
import socket
import sys

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

import carnet


def main() -> None:
    run, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = carnet.load(run, device="cpu")
    app = FastAPI()

    def classify(content: bytes) -> dict[str, object]:
        # Its network computes in inference mode, channels last, as for `carnet predict RUN`.
        prediction = model.predict(content)
        return {"results": [{"predictions": prediction.to_json()}]}

    @app.post("/v1/predict")
    async def predict(request: Request) -> dict[str, object]:
        try:
            return await run_in_threadpool(classify, await request.body())
        except carnet.CarnetError as error:
            raise HTTPException(422, str(error)) from error

    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(json.dumps({"url": f"http://127.0.0.1:{listening.getsockname()[1]}/"}), flush=True)
        uvicorn.Server(uvicorn.Config(app, http="h11", access_log=False, log_level="warning")).run([listening])


if __name__ == "__main__":
    main()
