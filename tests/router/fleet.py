"""Replicas of `nv serve` and a router before them, as processes of their own on loopback, and clients that keep them busy.

Knows nothing of what is asserted.
"""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

# How long anything may take.
PATIENCE = 30

# Long enough that a router's cache tree tells them apart, and several blocks of the KV cache.
PREFIXES = [
    "In the beginning God created the heaven and the earth, and the earth was without form, and void; " * 3,
    "These are the generations of the sons of Noah, Shem, Ham, and Japheth: and unto them were sons born; " * 3,
]


def wait(what: str, is_so, patience: float = PATIENCE) -> None:
    start = time.monotonic()
    while not is_so():
        if time.monotonic() - start > patience:
            raise TimeoutError(what)
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address + path, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Replica:
    """`nv serve` with the demo checkpoint; started anew it has the same address."""

    def __init__(self, program: str):
        self.program = program
        self.port = 0
        self.start()

    def start(self) -> None:
        options = ["--port", str(self.port), "--threads", "1", "--kv-cache-memory", "64MiB"]
        command = [self.program, "serve", *options, "--log-level", "error"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.address = self.process.stdout.readline().strip().removeprefix("listening on ")
        self.port = int(self.address.rsplit(":", 1)[1])

    def metric(self, name: str) -> float:
        _, page = get(self.address, "/metrics")
        return float(re.search(rf"^vllm:{name}{{.*}} (.*)$", page, re.MULTILINE)[1])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Waits for its end; returns its exit code."""
        self.process.stdout.close()
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.end()


class Router:
    """vLLM's router, which sends requests that begin alike to the same replica."""

    def __init__(self, replicas: list[Replica]):
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        # A replica is asked every second whether it is ready, and believed at once.
        patience = ["--health-check-interval-secs", "1", "--health-check-timeout-secs", "1"]
        patience += ["--health-failure-threshold", "1", "--health-success-threshold", "1"]
        ports = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
        urls = [replica.address for replica in replicas]
        command = [sys.executable, "-m", "vllm_router.launch_router", "--policy", "cache_aware"]
        command += ["--health-check-endpoint", "/ready", "--worker-startup-check-interval", "1"]
        command += [*patience, *ports, "--worker-urls", *urls, "--log-level", "warning"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait("the router is not ready", lambda: self.healthy() == sorted(urls))

    def healthy(self) -> list[str]:
        """The replicas that it sends requests to."""
        try:
            status, text = get(self.address, "/workers")
        except OSError:
            return []
        workers = json.loads(text)["workers"] if status == 200 else []
        return sorted(worker["url"] for worker in workers if worker["is_healthy"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)


@dataclass
class Answer:
    """What came of a request."""

    prefix: int
    stream: bool
    start: float
    end: float = 0
    text: str = ""
    # What went wrong, if anything did.
    error: str | None = None

    def was_under_way(self, moment: float) -> bool:
        return self.start <= moment <= self.end


def post(address: str, body: dict) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """Asks for completions; the answer is still to be read."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=PATIENCE)
    body = json.dumps({"ignore_eos": True, **body})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    return connection, connection.getresponse()


def ask(address: str, prefix: int, ending: str, stream: bool, max_tokens: int, **fields) -> Answer:
    """Has a prefix and its ending continued."""
    answer = Answer(prefix, stream, time.monotonic())
    body = {"prompt": PREFIXES[prefix] + ending, "max_tokens": max_tokens, "stream": stream, **fields}
    try:
        connection, response = post(address, body)
        with contextlib.closing(connection):
            text = response.read().decode()
        if response.status != 200:
            answer.error = f"{response.status}: {text}"
        elif not stream:
            answer.text = json.loads(text)["choices"][0]["text"]
        else:
            *chunks, last = [line[6:] for line in text.splitlines() if line.startswith("data: ")] or [""]
            if last != "[DONE]" or '"error"' in text:
                answer.error = f"the stream breaks off: {text[-300:]!r}"
            answer.text = "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks if "choices" in chunk)
    except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
        answer.error = repr(error)
    answer.end = time.monotonic()
    return answer


def leave(address: str, prefix: int, max_tokens: int) -> None:
    """Asks for a stream and goes away after its first token."""
    connection, response = post(address, {"prompt": PREFIXES[prefix], "max_tokens": max_tokens, "stream": True})
    response.readline()
    response.close()
    connection.close()


@dataclass
class Load:
    """Clients that ask one thing after the other, each with a prefix of its own, every second time for a stream."""

    address: str
    num_clients: int = 8
    max_tokens: int = 48
    answers: list[Answer] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self.is_over = threading.Event()
        self.threads = [threading.Thread(target=self.client, args=(index,)) for index in range(self.num_clients)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.is_over.set()
        for thread in self.threads:
            thread.join()

    def client(self, index: int) -> None:
        turn = 0
        while not self.is_over.is_set():
            ending = f"and in the year {100 * index + turn}"
            stream = (index // 2 + turn) % 2 == 0
            self.answers.append(ask(self.address, index % 2, ending, stream, self.max_tokens))
            turn += 1

    def wait_for(self, num_answers: int) -> None:
        """Waits until so many more have come."""
        expected = len(self.answers) + num_answers
        wait(f"only {len(self.answers)} answers", lambda: len(self.answers) >= expected)
