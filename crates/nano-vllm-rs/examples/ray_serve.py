"""Replicas of `nv serve` as a Ray Serve deployment, on all machines of a Ray cluster.

    pip install "ray[serve]"
    serve run ray_serve:app model=Qwen/Qwen3-0.6B num_replicas=4

Each replica is a process of `nv` on a free port of its machine's loopback; Ray spreads requests over them, starts those anew
that die, and lets those finish that it takes away. `nv` must be in each machine's PATH, or be named with nv=PATH.
"""

import asyncio
import http
import subprocess

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

# Headers that belong to one connection, not to what goes through it.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade", "te", "trailer"}


def passed_on(headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}


@serve.deployment
class NvServe:
    def __init__(self, nv: str, options: list[str]):
        self.process = subprocess.Popen([nv, "serve", "--port", "0", *options], stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"{nv} ended with {self.process.wait()}; its log says why")
        self.address = line.strip().removeprefix("listening on ")
        self.session = None

    def client(self) -> aiohttp.ClientSession:
        # It belongs to the event loop that requests run in, which there is none of in __init__.
        if self.session is None:
            no_limit = aiohttp.TCPConnector(limit=0)
            self.session = aiohttp.ClientSession(
                self.address, connector=no_limit, timeout=aiohttp.ClientTimeout(), auto_decompress=False
            )
        return self.session

    async def __call__(self, request: Request) -> Response:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        asked = self.client().request(
            request.method, path, headers=passed_on(request.headers), data=await request.body()
        )
        try:
            answer = await asked
        except aiohttp.ClientConnectionError as error:
            message = f"the replica does not answer: {error}"
            body = {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
            return JSONResponse(body, http.HTTPStatus.BAD_GATEWAY)
        return StreamingResponse(self.chunks(answer), answer.status, passed_on(answer.headers))

    async def chunks(self, answer: aiohttp.ClientResponse):
        # Left in the middle, it closes the connection, and `nv` ends the request.
        try:
            async for chunk in answer.content.iter_any():
                yield chunk
        finally:
            answer.close()

    async def check_health(self) -> None:
        """Ray asks this again and again, and starts a replica anew if it fails."""
        async with self.client().get("/health", timeout=aiohttp.ClientTimeout(5)) as answer:
            answer.raise_for_status()

    async def __del__(self) -> None:
        """Ray calls this when no request is under way any more."""
        if self.session is not None:
            await self.session.close()
        self.process.terminate()
        await asyncio.to_thread(self.process.wait)


def app(args: dict[str, str]) -> serve.Application:
    """`nv` and `num_replicas` as above, `model`, and any option of `nv serve` by its name, such as max_num_seqs=32."""
    args = dict(args)
    nv, num_replicas = args.pop("nv", "nv"), int(args.pop("num_replicas", 1))
    model = [args.pop("model")] if "model" in args else []
    options = [f"--{name.replace('_', '-')}={value}" for name, value in args.items()]
    # `nv` has its own queue, and says itself when it is full.
    deployment = NvServe.options(num_replicas=num_replicas, max_ongoing_requests=1000, graceful_shutdown_timeout_s=600)
    return deployment.bind(nv, model + options)
