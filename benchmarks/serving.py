"""Measure `carnet serve` under load on this machine, against a service as people write it, in one run.

The other service (serving_baseline.py) is FastAPI with the run's network in PyTorch: `inference_mode`, a pool of
threads (FastAPI's 40, or one for each core), one image for each call, with the same decoding and the same server
(uvicorn, h11). Both get the same photos
from clients that each wait for an answer before they ask again. The two take turns; clients and service share the
cores, and the processor time of each is counted. With --soak, clients send photos and broken requests for minutes, and
the memory of the service is watched. All traffic stays on the loopback address. Needs fastapi.

Examples:
  python benchmarks/serving.py RUN PHOTOS
  python benchmarks/serving.py RUN PHOTOS --soak 5
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from environment import write_result

from carnet.data.folder import images_in

CLIENTS = (1, 8, 64)
MOST_SECONDS = 900
"""No load lasts longer than this."""
LOST, PATIENCE = -1, 90
"""The status of a request without an answer, and the seconds after which that is so."""
Request = tuple[str, str, bytes]
"""Path, content type, body."""


@dataclass
class Load:
    """What clients saw.

    Attributes:
        milliseconds: of each answer with status 200.
        statuses: number of answers by status; 0: the connection failed; LOST: no answer came.
    """

    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        p50, p95, p99 = np.percentile(self.milliseconds, (50, 95, 99)).tolist()
        return {
            "requests_per_second": len(self.milliseconds) / self.seconds,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "statuses": {str(status): number for status, number in sorted(self.statuses.items())},
        }


async def client(port: int, requests: Callable[[], Request], until: float, load: Load) -> None:
    """Ask one thing after the other on one connection until a time; a closed connection is opened again."""
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    while (started := time.perf_counter()) < until:
        path, kind, body = requests()
        try:
            if writer is None or writer.is_closing():
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert reader is not None
            lines = f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {len(body)}"
            writer.write("\r\n".join((*lines, "", "")).encode() + body)
            async with asyncio.timeout(PATIENCE):
                answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                status = int(answer.split()[1])
                length = answer.partition("content-length: ")[2].partition("\r")[0]
                await (reader.readexactly(int(length)) if length else reader.read())
            if "connection: close" in answer or not length:
                writer.close()
        except TimeoutError:
            status = LOST
            if writer is not None:
                writer.close()
        except (OSError, asyncio.IncompleteReadError):
            status = 0
            if writer is not None:
                writer.close()
        load.statuses[status] += 1
        if status == 200:
            load.milliseconds.append(1000 * (time.perf_counter() - started))
        elif status in (0, 503):
            await asyncio.sleep(0.05)
    if writer is not None:
        writer.close()


def put_load(port: int, requests: Callable[[], Request], num_clients: int, seconds: float) -> Load:
    """Let clients ask for some seconds."""
    load = Load()

    async def all_clients() -> None:
        started = time.perf_counter()
        until = started + min(seconds, MOST_SECONDS)
        await asyncio.gather(*(client(port, requests, until, load) for _ in range(num_clients)))
        load.seconds = time.perf_counter() - started

    asyncio.run(all_clients())
    return load


@contextmanager
def service(command: Sequence[str]) -> Iterator[tuple[psutil.Process, int]]:
    """Start a service that prints a JSON document with its address, and stop it at the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            text = ""
            while not text.rstrip().endswith("}"):
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"it ended: {' '.join(command)}")
                text += line
            yield psutil.Process(process.pid), int(json.loads(text)["url"].rstrip("/").rpartition(":")[2])
        finally:
            process.terminate()


def photos_of(folder: Path, number: int) -> list[bytes]:
    """Return the content of some photos, drawn with a fixed seed."""
    paths = sorted(images_in(folder))
    return [path.read_bytes() for path in random.Random(0).sample(paths, min(number, len(paths)))]


def good_requests(photos: Sequence[bytes]) -> Callable[[], Request]:
    """Return what gives one photo after the other."""
    turns = itertools.cycle(photos)
    return lambda: ("/v1/predict", "image/jpeg", next(turns))


def mixed_requests(photos: Sequence[bytes]) -> Callable[[], Request]:
    """Return what gives photos, several in a form, heat maps, and a third of broken requests."""
    draw = random.Random(1)

    def form(*contents: bytes) -> bytes:
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        return b"".join(head + content + b"\r\n" for content in contents) + b"--b--\r\n"

    def next_request() -> Request:
        photo = draw.choice(photos)
        path, kind, body = "/v1/predict", "image/jpeg", photo
        match draw.randrange(12):
            case 0:
                body = draw.randbytes(draw.randrange(1, 20_000))
            case 1:
                body = photo[: draw.randrange(1, len(photo))]
            case 2:
                path = "/v1/predict?top_k=x"
            case 3:
                kind = "application/json"
            case 4:
                kind, body = (
                    "multipart/form-data; boundary=b",
                    form(photo, b"no image", photo)[: draw.choice((50, None))],
                )
            case 5:
                path = "/v1/explain"
        return path, kind, body

    return next_request


def measure(
    services: Mapping[str, Sequence[str]], photos: Sequence[bytes], seconds: float, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yield the result of each service and number of clients, in turns, each in a process started for it."""
    for turn in range(rounds):
        for num_clients in CLIENTS:
            for name, command in services.items():
                with service(command) as (process, port):
                    put_load(port, good_requests(photos), num_clients, 2)
                    before, own = sum(process.cpu_times()[:2]), time.process_time()
                    load = put_load(port, good_requests(photos), num_clients, seconds)
                    result = {
                        **{"service": name, "clients": num_clients, "round": turn},
                        **load.to_json(),
                        "service_cpu_seconds": sum(process.cpu_times()[:2]) - before,
                        "client_cpu_seconds": time.process_time() - own,
                    }
                print({key: round(value, 2) if isinstance(value, float) else value for key, value in result.items()})
                yield result


def soak(command: Sequence[str], photos: Sequence[bytes], minutes: float) -> dict[str, Any]:
    """Let 64 clients send photos and broken requests, and return the statuses, and the memory at each half minute."""
    memory, statuses = [], Counter[int]()
    with service(command) as (process, port):
        requests = mixed_requests(photos)
        for _ in range(round(2 * minutes)):
            load = put_load(port, requests, 64, 30)
            statuses += load.statuses
            memory.append(process.memory_info().rss)
            print(f"{memory[-1] / 2**20:.0f} MiB, {dict(statuses)}", flush=True)
    if bad := {status: number for status, number in statuses.items() if status in (LOST, 0, 500)}:
        raise SystemExit(f"lost or failed: {bad}")
    return {
        "minutes": minutes,
        "requests": sum(statuses.values()),
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "memory_bytes_each_half_minute": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run with an exported model.onnx in it")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--number", type=int, default=200, help="of photos")
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0, help="minutes of photos and broken requests")
    parser.add_argument("--name", default="serving", help="of the result's file")
    options = parser.parse_args()
    photos = photos_of(options.photos, options.number)
    python, here = sys.executable, Path(__file__).parent
    ours = [python, "-m", "carnet", "serve", str(options.run / "model.onnx"), "--port", "0", "--json"]
    services = {"carnet serve": ours}
    for pool, threads in ((40, 1), (2, 1), (2, 2)):
        command = [python, str(here / "serving_baseline.py"), str(options.run), str(pool), str(threads)]
        services[f"FastAPI and PyTorch, pool of {pool}, {threads} compute threads"] = command
    numbers: dict[str, Any] = {
        "photos": {"number": len(photos), "mean_bytes": statistics.mean(map(len, photos))},
        "results": list(measure(services, photos, options.seconds, options.rounds)),
    }
    if options.soak:
        numbers["soak"] = soak(ours, photos, options.soak)
    extra = f" --soak {options.soak:g}" if options.soak else ""
    write_result(options.name, f"python benchmarks/serving.py RUN PHOTOS{extra}", numbers)


if __name__ == "__main__":
    main()
