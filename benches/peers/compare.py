"""This engine and its peers on the same random Qwen3 and the same token ids, in one session and in turn.

    python3 benches/peers/compare.py --venv DIR

installs what requirements.txt pins into a virtual environment at DIR, builds the Rust engines, writes a checkpoint with
random weights and its quantised forms, runs everything and writes benches/COMPARISON.md, with all raw figures beside it in
COMPARISON.json. What quantising costs is measured on the demo checkpoint, which is trained.
`--quick` is a smoke test. Needs Linux, Python 3.11, Rust, and a C++ compiler for llama.cpp.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# Modules that import each other would leave a folder of compiled ones in the tree.
sys.dont_write_bytecode = True

import loss
import page
from engines import ENGINES, PRECISIONS, QUANTIZED, ROOT, Engine, EngineError, Place, Process
from engines import build, make_environment, model, random_checkpoint, versions, weights

PUBLISHED = ROOT / "crates/nv-config/tests/configs/Qwen3-0.6B.json"


# Tokens of a block of any engine's cache, or a multiple.
BLOCK = 32


@dataclass(frozen=True)
class Case:
    """Prompts of `num_input` random tokens, `num_requests` of them at once, each continued by `num_output`."""

    num_input: int
    num_output: int = 1
    num_requests: int = 1
    # In each round; what is short is repeated.
    repeats: int = 1

    @property
    def name(self) -> str:
        return f"{self.num_requests}x({self.num_input}+{self.num_output})"

    @property
    def num_tokens(self) -> int:
        """What engines are to have room for: whole blocks a request, as they hand it out."""
        return self.num_requests * -(-(self.num_input + self.num_output) // BLOCK) * BLOCK


CASES = [Case(128, 32, repeats=3), Case(512, repeats=3), Case(2048, 24), Case(4096, 24), Case(128, 64, num_requests=16)]
QUICK_CASES = [Case(64, 8), Case(128), Case(32, 8, num_requests=4)]

# What is computed untimed, when an engine has started and again before each case. At first engines set up what they left for
# later. And other engines have used the machine since this one's last case: in a virtual machine the first pass over weights
# after that was seen to take twice as long.
WARM_UP = Case(16, 2)
# What all engines are to continue alike.
AGREEMENT = Case(64, 16)

# How long nothing runs before a case: what another engine may still do after its answer is not this one's time.
PAUSE_SECONDS = 0.5


class Session:
    def __init__(self, args: argparse.Namespace, place: Place, config: Path):
        self.place = place
        self.config = config
        self.vocab_size = json.loads(config.read_text())["vocab_size"]
        self.cases = QUICK_CASES if args.quick else CASES
        self.limit = args.limit
        self.load = {
            "threads": place.threads,
            "max_tokens": max(case.num_tokens for case in [*self.cases, AGREEMENT]),
            "max_requests": max(case.num_requests for case in self.cases),
        }
        self.results = {precision: {} for precision in PRECISIONS}

    def prepare(self, engines: list[Engine], precisions: list[str]) -> None:
        """Builds what is to be run, and notes what can't be."""
        for engine in engines:
            try:
                if not engine.is_python:
                    build(engine, self.place)
                failed = None
            except EngineError as error:
                failed = str(error)
            for precision in (p for p in precisions if p in engine.models):
                result = {"error": failed, "setup": [], "cases": {}, "skipped": {}}
                self.results[precision][engine.name] = result
                if failed:
                    continue
                with self.noting(engine, precision):
                    path = model(engine, precision, self.config, self.place)
                    if precision in QUANTIZED:
                        result["weights"] = weights(path, random_checkpoint(self.config, self.place), self.place)

    def round(self, number: int, engines: list[Engine], precision: str) -> None:
        """Starts all engines, has them run all cases in turn, and ends them."""
        random_ids = random.Random(number)
        running = {}
        try:
            for engine in turned(engines, number):
                with self.noting(engine, precision):
                    running[engine.name] = self.start(engine, precision)
            turn = number
            for case in self.cases:
                for repeat in range(case.repeats):
                    prompts = self.prompts(case, random_ids)
                    turn += 1
                    for engine in turned([e for e in engines if e.name in running], turn):
                        if repeat and self.is_slow(engine, precision, case):
                            continue
                        with self.noting(engine, precision):
                            self.measure(running[engine.name], engine, precision, case, prompts)
                        if self.results[precision][engine.name]["error"]:
                            running.pop(engine.name).close()
            for name, process in running.items():
                self.results[precision][name]["setup"][-1]["peak"] = process.peak
        finally:
            for process in running.values():
                process.close()

    def start(self, engine: Engine, precision: str) -> Process:
        result = self.results[precision][engine.name]
        process = Process(engine, precision, self.place)
        try:
            path = model(engine, precision, self.config, self.place)
            fill_page_cache(path)
            loaded = process.ask(300, op="load", model=str(path), dtype=precision, **self.load)
            first = self.warm_up(process)
            setup = {
                "start_seconds": process.start_seconds,
                "load_seconds": loaded["seconds"],
                "first_token_seconds": loaded["seconds"] + first["first_token_seconds"],
                **process.memory(),
            }
            if "agreement" not in result:
                answer = self.generate(process, AGREEMENT, self.prompts(AGREEMENT, random.Random("agreement")))
                result["agreement"] = answer["token_ids"][0]
        except BaseException:
            process.close()
            raise
        result["setup"].append(setup)
        say(precision, engine, f"loaded in {setup['load_seconds']:.2f} s, {setup['private'] / 1e9:.2f} GB")
        return process

    def measure(self, process: Process, engine: Engine, precision: str, case: Case, prompts: list) -> None:
        result = self.results[precision][engine.name]
        if case.name in result["skipped"]:
            return
        expected = expected_seconds(result["cases"], case)
        if expected > self.limit:
            reason = f"it would take {expected:.0f} s or more by its shorter runs, and the limit is {self.limit:.0f} s"
            result["skipped"][case.name] = reason
            say(precision, engine, f"{case.name} left out: {reason}")
            return
        time.sleep(PAUSE_SECONDS)
        self.warm_up(process)
        answer = self.generate(process, case, prompts)
        sample = {key: answer[key] for key in ("seconds", "first_token_seconds")}
        result["cases"].setdefault(case.name, []).append(sample)
        say(precision, engine, f"{case.name} in {sample['seconds']:.2f} s")

    def is_slow(self, engine: Engine, precision: str, case: Case) -> bool:
        """Whether once a round is enough."""
        runs = self.results[precision][engine.name]["cases"].get(case.name, [])
        return bool(runs) and runs[-1]["seconds"] > self.limit / 6

    def warm_up(self, process: Process) -> dict:
        return self.generate(process, WARM_UP, self.prompts(WARM_UP, random.Random(0)))

    def generate(self, process: Process, case: Case, prompts: list) -> dict:
        # Far beyond what is expected: an engine that hangs ends there.
        timeout = 120 + 5 * self.limit
        answer = process.ask(timeout, op="generate", prompts=prompts, max_tokens=case.num_output)
        found = [len(token_ids) for token_ids in answer["token_ids"]]
        if found != [case.num_output] * case.num_requests:
            raise EngineError(f"{case.name}: expected {case.num_output} tokens a request, found {found}")
        return answer

    def prompts(self, case: Case, random_ids: random.Random) -> list[list[int]]:
        return [
            [random_ids.randrange(self.vocab_size) for _ in range(case.num_input)] for _ in range(case.num_requests)
        ]

    def noting(self, engine: Engine, precision: str) -> "Noting":
        return Noting(self.results[precision][engine.name], lambda text: say(precision, engine, text))


class Noting:
    """Takes an engine's error into its result, so that the others go on."""

    def __init__(self, result: dict, tell):
        self.result = result
        self.tell = tell

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, EngineError):
            self.result["error"] = str(error)
            self.tell(f"error: {error}")
            return True
        return False


def fill_page_cache(path: Path) -> None:
    """Reads a model's files, so that no engine waits for the disk in place of those that load them after it."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with file.open("rb") as data:
            while data.read(1 << 24):
                pass


def expected_seconds(samples: dict, case: Case) -> float:
    """What `case` takes at least if prompts cost as much a token as in the longest one yet, and steps as much as alone."""
    known = [(c, samples[c.name]) for c in (*CASES, *QUICK_CASES) if samples.get(c.name) and c.num_requests == 1]
    if not known:
        return 0.0
    longest, runs = max(known, key=lambda pair: pair[0].num_input)
    a_token = min(run["first_token_seconds"] for run in runs) / longest.num_input
    steps = [
        (run["seconds"] - run["first_token_seconds"]) / (c.num_output - 1) for c, runs in known if c.num_output > 1 for run in runs
    ]
    return case.num_requests * case.num_input * a_token + (case.num_output - 1) * min(steps, default=0.0)


def turned(engines: list, by: int) -> list:
    """`engines` in an order that begins with another one each time, so that none always follows the same state."""
    by %= len(engines) or 1
    return engines[by:] + engines[:by]


def say(precision: str, engine: Engine, text: str) -> None:
    print(f"{precision} {engine.name}: {text}", flush=True)


def output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def machine() -> dict:
    cpuinfo = Path("/proc/cpuinfo").read_text()
    fields = dict(map(str.strip, line.split(":", 1)) for line in cpuinfo.splitlines() if ":" in line)
    wanted = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kernel = os.uname()
    return {
        "cpu": f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})",
        "isa": [flag for flag in wanted if flag in fields["flags"].split()],
        "memory_bytes": memory,
        "system": f"{kernel.sysname} {kernel.release}",
    }


def physical_cores() -> int:
    """Of those that this process may use."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(tuple((topology / name).read_text() for name in ("physical_package_id", "core_id")))
        except OSError:
            cores.add(cpu)
    return len(cores)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, metavar="DIR", help="virtual environment, made unless it is there; outside of the repository")
    parser.add_argument("--work", type=Path, metavar="DIR", default=ROOT / "target/peers", help="models, Rust engines and logs (target/peers)")
    parser.add_argument("--config", type=Path, metavar="FILE", default=PUBLISHED, help="config.json to make weights for (Qwen3-0.6B's)")
    parser.add_argument("--engines", metavar="NAME,NAME", help=f"only these of {', '.join(engine.name for engine in ENGINES)}")
    parser.add_argument("--precisions", metavar="NAME,NAME", help=f"only these of {', '.join(PRECISIONS)}")
    parser.add_argument("--rounds", type=int, metavar="N", default=3, help="rounds at most (3)")
    parser.add_argument("--minutes", type=float, metavar="N", default=25, help="no round begins that would end later (25); the first always does")
    parser.add_argument("--limit", type=float, metavar="SECONDS", default=60, help="leave out what would take longer at once (60)")
    parser.add_argument("--threads", type=int, metavar="N", default=physical_cores(), help="of each engine (the number of physical cores)")
    parser.add_argument("--quick", action="store_true", help="short prompts and one round")
    parser.add_argument("--out", type=Path, metavar="FILE", default=ROOT / "benches/COMPARISON.md", help="page to write, beside which its figures go as .json")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="source", help="write the page again from these figures, and measure nothing")
    args = parser.parse_args()
    if args.source is None and args.venv is None:
        parser.error("--venv: expected a folder to make a virtual environment in")
    if args.venv and ROOT in (args.venv.resolve(), *args.venv.resolve().parents):
        parser.error(f"--venv: expected a folder outside of {ROOT}")
    if args.out.suffix == ".json":
        parser.error(f"--out: expected the page's name, found {args.out}, which is where its figures go")
    names = [engine.name for engine in ENGINES]
    args.engines = chosen(parser, "--engines", args.engines, names)
    args.precisions = chosen(parser, "--precisions", args.precisions, list(PRECISIONS))
    return args


def chosen(parser: argparse.ArgumentParser, option: str, value: str | None, known: list[str]) -> list[str]:
    names = value.split(",") if value else known
    for name in names:
        if name not in known:
            parser.error(f"{option}: expected some of {', '.join(known)}, found {name}")
    return [name for name in known if name in names]


def measure(args: argparse.Namespace) -> dict:
    place = Place(args.venv.resolve(), args.work.resolve(), args.threads)
    config = args.config.resolve()
    engines = [engine for engine in ENGINES if engine.name in args.engines]
    make_environment(place, engines)
    session = Session(args, place, config)
    session.prepare(engines, args.precisions)
    # First what takes a minute, so that an error costs no more.
    losses = loss.measure(engines, args.precisions, place) if set(args.precisions) & set(QUANTIZED) else None
    start = time.perf_counter()
    rounds, longest = 0, 0.0
    for number in range(1 if args.quick else args.rounds):
        began = time.perf_counter()
        if number and began - start + longest > 60 * args.minutes:
            print(f"{number} rounds are done, and another would end after more than {args.minutes:.0f} minutes", flush=True)
            break
        for precision in args.precisions:
            results = session.results[precision]
            ready = [engine for engine in engines if engine.name in results and not results[engine.name]["error"]]
            session.round(number, ready, precision)
        longest = max(longest, time.perf_counter() - began)
        rounds += 1
    return {
        "machine": machine(),
        "threads": args.threads,
        "commit": output_of("git", "describe", "--always", "--dirty"),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
        "quick": args.quick,
        "limit_seconds": args.limit,
        "config": json.loads(config.read_text()) | {"name": config.stem},
        "versions": {engine.name: versions(engine, place) for engine in engines},
        "computes": {engine.name: engine.computes for engine in engines},
        "cases": [vars(case) | {"name": case.name} for case in session.cases],
        "results": {precision: session.results[precision] for precision in args.precisions},
        **({"loss": losses} if losses else {}),
    }


def main() -> None:
    args = parse()
    if args.source is None:
        figures = measure(args)
        args.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    else:
        figures = json.loads(args.source.read_text())
    args.out.write_text(page.render(figures))
    print(args.out)


if __name__ == "__main__":
    main()
