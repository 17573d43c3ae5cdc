"""A service as people write it, for serving.py: FastAPI, PyTorch in inference mode, threads, one image for each call.

Example:
  python benchmarks/serving_baseline.py RUN POOL THREADS
"""

from __future__ import annotations

import json
import socket
import sys

from carnet.machine import wait_briefly

# As `carnet` does before it imports PyTorch.
wait_briefly()

import anyio.to_thread  # noqa: E402
import torch  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI, Request  # noqa: E402
from fastapi.concurrency import run_in_threadpool  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402

import carnet  # noqa: E402


def main() -> None:
    run, pool, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = carnet.load(run, device="cpu")
    app = FastAPI()

    def classify(content: bytes) -> JSONResponse:
        try:
            # Its network computes in inference mode, channels last, as for `carnet predict RUN`.
            return JSONResponse({"results": [{"predictions": model.predict(content).to_json()}]})
        except carnet.CarnetError as error:
            return JSONResponse({"error": str(error)}, 422)

    async def predict(request: Request) -> JSONResponse:
        anyio.to_thread.current_default_thread_limiter().total_tokens = int(pool)
        return await run_in_threadpool(classify, await request.body())

    app.add_api_route("/v1/predict", predict, methods=["POST"], response_model=None)
    # With the protocol, as uvicorn's own sockets have it; otherwise every answer takes 40 ms longer.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(2048)
        print(json.dumps({"url": f"http://127.0.0.1:{listening.getsockname()[1]}/"}), flush=True)
        config = uvicorn.Config(app, http="h11", loop="asyncio", access_log=False, log_level="warning")
        uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main()
