"""The engines that are compared: what they are, what they need, and a process of each to talk to."""

import contextlib
import functools
import json
import os
import queue
import subprocess
import threading
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RUST = HERE / "rust"

PRECISIONS = ("bf16", "f32", "q8", "q4")
# Those whose weights are quantised; the engine's presets have the same names.
QUANTIZED = ("q8", "q4")
# Folders that `nv quantize` writes, and its presets.
PRESETS = {"nv-q8": "q8", "nv-q4": "q4"}
# What gguf_file.py writes; llama.cpp's quantiser makes all other types.
UNQUANTIZED_GGUF = ("bf16", "f32", "f16")


@dataclass(frozen=True)
class Engine:
    name: str
    # A script here, or a binary of the crate in `rust`.
    worker: str
    # Packages whose versions say what it is.
    packages: tuple[str, ...]
    # What it loads for each precision that it is compared in: the folder of the checkpoint, that of a preset which `nv quantize`
    # wrote, or a GGUF file of a type.
    models: dict[str, str]
    # How it computes, for each precision, as the page says it.
    computes: dict[str, str]
    rustflags: str = ""

    @property
    def is_python(self) -> bool:
        return self.worker.endswith(".py")


ENGINES = [
    Engine(
        "nano-vllm-rs",
        "nano_vllm_rs",
        ("nano-vllm-rs",),
        {"bf16": "checkpoint", "f32": "checkpoint", "q8": "nv-q8", "q4": "nv-q4"},
        {
            "bf16": "Weights bfloat16, mapped. Inputs of linear layers, keys and values are rounded to bfloat16; the rest is float32.",
            "f32": "Weights bfloat16, mapped, and widened to float32 in registers; all else is float32.",
            "q8": "What `nv quantize --to q8` writes, mapped; inputs of linear layers rounded to 8 bits; keys and values bfloat16.",
            "q4": "What `nv quantize --to q4` writes, mapped; inputs of linear layers rounded to 8 bits; keys and values bfloat16.",
        },
    ),
    Engine(
        "transformers",
        "transformers_worker.py",
        ("transformers", "torch"),
        {"bf16": "checkpoint", "f32": "checkpoint"},
        {
            "bf16": "`generate`, eager, SDPA attention. All tensors bfloat16.",
            "f32": "`generate`, eager, SDPA attention. All tensors float32.",
        },
    ),
    Engine(
        "llama.cpp",
        "llama_cpp_worker.py",
        ("llama-cpp-python",),
        {"bf16": "bf16", "f32": "f32", "q8": "Q8_0", "q4": "Q4_0"},
        {
            "bf16": "GGUF with BF16 matrices, mapped; keys and values float16, its default; activations float32, rounded to bfloat16 for products.",
            "f32": "GGUF with F32 matrices, mapped; keys and values float32, which its flash attention rounds to float16.",
            "q8": "GGUF of type Q8_0; inputs of linear layers rounded to 8 bits; keys and values float16, its default.",
            "q4": "GGUF of type Q4_0; inputs of linear layers rounded to 8 bits; keys and values float16, its default.",
        },
    ),
    Engine(
        "llama.cpp Q4_K_M",
        "llama_cpp_worker.py",
        ("llama-cpp-python",),
        {"q4": "Q4_K_M"},
        {"q4": "GGUF of type Q4_K_M; inputs of linear layers rounded to 8 bits; keys and values float16, its default."},
    ),
    Engine(
        "openvino-genai",
        "openvino_worker.py",
        ("openvino-genai", "openvino"),
        {"bf16": "f16", "f32": "f16", "q8": "Q8_0", "q4": "Q4_0"},
        {
            "bf16": "GGUF with F16 matrices, the only unquantised type that it reads; inference precision, keys and values bfloat16.",
            "f32": "GGUF with F16 matrices, the only unquantised type that it reads; inference precision, keys and values float32.",
            "q8": "The same file as llama.cpp's; inputs of linear layers rounded to 8 bits; inference precision, keys and values bfloat16 where the processor has that, else float32 and float16.",
            "q4": "The same file as llama.cpp's Q4_0; inputs of linear layers rounded to 8 bits; inference precision, keys and values bfloat16 where the processor has that, else float32 and float16.",
        },
    ),
    Engine(
        "candle-transformers",
        "candle",
        ("candle-transformers",),
        {"bf16": "checkpoint", "f32": "checkpoint"},
        {
            "bf16": "All tensors bfloat16; products and attention widen both sides to float32 and narrow the result.",
            "f32": "All tensors float32.",
        },
        # As candle's own configuration of Cargo has it.
        "-C target-cpu=native",
    ),
]


class EngineError(Exception):
    """An engine that can't be built, doesn't start, doesn't answer in time, or says that it failed."""


@dataclass(frozen=True)
class Place:
    """Where everything is that isn't the repository."""

    venv: Path
    work: Path
    threads: int

    @property
    def python(self) -> Path:
        return self.venv / "bin/python"

    def environment(self) -> dict[str, str]:
        threads = str(self.threads)
        return os.environ | {
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
        }

    def target(self, engine: Engine) -> Path:
        """Binaries with other flags have another folder, or Cargo would build all anew each time."""
        return self.work / ("target-native" if engine.rustflags else "target")

    def command(self, engine: Engine) -> list[str]:
        if engine.is_python:
            return [str(self.python), str(HERE / engine.worker)]
        return [str(self.target(engine) / "release" / engine.worker)]


def run(command: list, **options) -> None:
    """Runs `command` to its end; what it prints is for the user to see."""
    try:
        subprocess.run([str(part) for part in command], check=True, **options)
    except (OSError, subprocess.CalledProcessError) as error:
        raise EngineError(f"{command[0]}: {error}") from error


def make_environment(place: Place, engines: list[Engine]) -> None:
    """A virtual environment with what requirements.txt pins, but for other engines' packages; what can't be installed is missing."""
    if not place.python.exists():
        run(["python3", "-m", "venv", place.venv])
    install = [place.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = {package for engine in engines for package in engine.packages}
    others = {package for engine in ENGINES for package in engine.packages} - wanted
    lines = [line for line in (HERE / "requirements.txt").read_text().splitlines() if "==" in line and not line.startswith("#")]
    pinned = [line for line in lines if line.partition("==")[0] not in others]
    try:
        run([*install, *pinned])
    except EngineError as error:
        print(f"{error}\ninstalling one package after the other", flush=True)
        for line in pinned:
            try:
                run([*install, line])
            except EngineError as error:
                print(error, flush=True)


def build(engine: Engine, place: Place) -> None:
    environment = place.environment() | {"CARGO_TARGET_DIR": str(place.target(engine))}
    if engine.rustflags:
        environment["RUSTFLAGS"] = engine.rustflags
    build = ["cargo", "build", "--release", "--locked"]
    run([*build, "--bin", engine.worker, "--features", engine.worker], cwd=RUST, env=environment)


def model(engine: Engine, precision: str, config: Path, place: Place) -> Path:
    """The path to what `engine` loads, which is made unless it is there."""
    checkpoint = random_checkpoint(config, place)
    kind = engine.models[precision]
    return checkpoint if kind == "checkpoint" else converted(checkpoint, kind, checkpoint.parent, place)


def random_checkpoint(config: Path, place: Place) -> Path:
    """The path to a checkpoint with random weights, which is made unless it is there."""
    checkpoint = place.work / "models" / config.stem / "checkpoint"
    if not checkpoint.exists():
        synth = [command_of_workspace("xtask"), "synth"]
        run([*synth, "--config", config, "--seed", "0", "--out", checkpoint], cwd=ROOT)
    return checkpoint


def converted(checkpoint: Path, kind: str, folder: Path, place: Place) -> Path:
    """The path to `checkpoint` as `kind` in `folder`, which is made unless it is there."""
    if preset := PRESETS.get(kind):
        path = folder / kind
        if not path.exists():
            run([command_of_workspace("nv"), "quantize", checkpoint, "--to", preset, "--out", path, "--threads", place.threads])
        return path
    path = folder / f"{kind}.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        if kind in UNQUANTIZED_GGUF:
            make = [HERE / "gguf_file.py", checkpoint, kind, part]
        else:
            # From the same values as all others have.
            make = [HERE / "gguf_quantize.py", converted(checkpoint, "bf16", folder, place), kind, part]
        run([place.python, *make], env=place.environment())
        part.rename(path)
    return path


def weights(path: Path, checkpoint: Path, place: Place) -> dict:
    """What weights.py says of the quantised model at `path`, which was made from `checkpoint`."""
    command = [place.python, HERE / "weights.py", path, checkpoint]
    output = subprocess.run(command, capture_output=True, text=True, env=place.environment())
    if output.returncode != 0:
        lines = output.stderr.strip().splitlines() or ["it said nothing"]
        raise EngineError(f"weights.py {path}: ended with status {output.returncode}: {lines[-1]}")
    return json.loads(output.stdout)


@functools.cache
def command_of_workspace(name: str) -> Path:
    """The command `name` of the engine's own workspace. All of it is selected, as the checks do, so that nothing is built twice."""
    build = ["cargo", "build", "--release", "--workspace", "--bin", name, "--message-format", "json-render-diagnostics"]
    output = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if output.returncode != 0:
        raise EngineError(f"cargo build --bin {name}: ended with status {output.returncode}")
    built = [artifact["executable"] for artifact in map(json.loads, output.stdout.splitlines()) if artifact.get("executable")]
    return Path(built[-1])


def versions(engine: Engine, place: Place) -> dict[str, str]:
    if engine.is_python:
        script = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
        output = subprocess.run([place.python, "-c", script, *engine.packages], capture_output=True, text=True)
        return json.loads(output.stdout) if output.returncode == 0 else {}
    packages = tomllib.loads((RUST / "Cargo.lock").read_text())["package"]
    return {package["name"]: package["version"] for package in packages if package["name"] in engine.packages}


class Process:
    """An engine in a process of its own, and the most memory that it was seen to have to itself."""

    # How long to wait for a line before memory is looked at again.
    INTERVAL = 0.05

    def __init__(self, engine: Engine, precision: str, place: Place):
        logs = place.work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{engine.name.replace(' ', '-')}-{precision}.log"
        self.peak = 0
        start = time.perf_counter()
        with self.log.open("w") as log:
            try:
                self.process = subprocess.Popen(
                    place.command(engine),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=place.environment(),
                )
            except OSError as error:
                raise EngineError(str(error)) from error
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()
        self.answer(timeout=300)
        self.start_seconds = time.perf_counter() - start

    def read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def ask(self, timeout: float, **ask) -> dict:
        try:
            self.process.stdin.write(json.dumps(ask) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise self.ended() from error
        return self.answer(timeout)

    def answer(self, timeout: float) -> dict:
        deadline = time.perf_counter() + timeout
        while time.perf_counter() < deadline:
            try:
                line = self.lines.get(timeout=self.INTERVAL)
            except queue.Empty:
                self.peak = max(self.peak, self.memory()["private"])
                continue
            if line is None:
                raise self.ended()
            answer = json.loads(line)
            if "error" in answer:
                raise EngineError(answer["error"])
            return answer
        self.close()
        raise EngineError(f"stopped after {timeout:.0f} s without an answer")

    def ended(self) -> EngineError:
        status = self.process.wait()
        lines = self.log.read_text().strip().splitlines() or ["it said nothing"]
        return EngineError(f"ended with status {status}: {lines[-1]}")

    def memory(self) -> dict[str, int]:
        """Resident bytes: `private`, that are no file's, with what was swapped out; `mapped`, that are files'."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return {"private": 0, "mapped": 0}
        kib = {name: int(rest.split()[0]) for name, _, rest in (l.partition(":") for l in status.splitlines()) if rest.endswith(" kB")}
        sums = {"private": ("RssAnon", "VmSwap"), "mapped": ("RssFile", "RssShmem")}
        return {name: 1024 * sum(kib.get(part, 0) for part in parts) for name, parts in sums.items()}

    def close(self) -> None:
        # What could not be sent is given up.
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
