"""The conversation of compare.py with an engine: a line of JSON asks, a line answers.

`rust/src/lib.rs` says the same in Rust. The clock starts when a request is read and is looked at when a token is there.
What engines print goes to stderr: stdout has the answers alone.
"""

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from typing import Callable


class Worker(ABC):
    @abstractmethod
    def load(self, model: str, dtype: str, threads: int, max_tokens: int, max_requests: int) -> None:
        """Loads `model`, a path to what this engine reads, to compute in `dtype`: "f32", "bf16", or the "q8" or "q4" that
        its weights are.

        At most `max_requests` prompts come at once, and they and what continues them have at most `max_tokens` tokens.
        """

    @abstractmethod
    def generate(self, prompts: list[list[int]], max_tokens: int, token: Callable[[], None]) -> list[list[int]]:
        """Continues all `prompts` greedily by `max_tokens` tokens each, whatever the tokens are.

        Calls `token` when a token is there: the first call counts.
        """


def serve(worker: Worker) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    say({"seconds": 0.0})
    for line in sys.stdin:
        start = time.perf_counter()
        try:
            say(answer(worker, json.loads(line), start))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - start})


def answer(worker: Worker, ask: dict, start: float) -> dict:
    match ask.pop("op"):
        case "load":
            worker.load(**ask)
            return {"seconds": time.perf_counter() - start}
        case "generate":
            times = []

            def token() -> None:
                if not times:
                    times.append(time.perf_counter() - start)

            token_ids = worker.generate(ask["prompts"], ask["max_tokens"], token)
            seconds = time.perf_counter() - start
            return {"seconds": seconds, "first_token_seconds": times[0], "token_ids": token_ids}
        case op:
            raise ValueError(f"op: expected load or generate, found {op}")
