"""What quantising costs: how far the predictions of the demo's quantised forms are from the demo's own, in this engine and its peers.

Speed is measured over random weights, whose predictions say nothing. So this has the small trained model of `assets/demo` and its
held-out chapters. `divergence.py` does the arithmetic of `nv eval` for the peers, and the perplexity in float32, which both
measure, shows that they measure the same.
"""

import json
import subprocess
from pathlib import Path

from engines import HERE, PRESETS, QUANTIZED, ROOT, Engine, EngineError, Place
from engines import command_of_workspace, converted, weights

DEMO = ROOT / "assets/demo"
TEXT = DEMO / "held-out.txt"
CONTEXT = 512
# The perplexities of two engines that both compute in float32 differ by less: these many digits are equal.
AGREEMENT = 1e-4

# Formats of llama.cpp whose loss alone is measured: what its quantiser makes of as many bits as this engine's presets take, and of
# the sizes between.
BETWEEN = ("Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_K_S")

# What keys and values are kept in: what the speeds are measured with, and what leaves the loss to weights and inputs.
KEYS_AND_VALUES = ("16 bits", "f32")


def measure(engines: list[Engine], precisions: list[str], place: Place) -> dict:
    """The loss of every quantised form that one of `engines` loads for one of `precisions`, and of those of llama.cpp between them."""
    folder = place.work / "models/demo"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"engine": engine.name, "precision": precision, "model": engine.models[precision]}
        for precision in precisions
        for engine in engines
        if precision in QUANTIZED and precision in engine.models
    ]
    if any(engine.name == "llama.cpp" for engine in engines):
        rows += [{"engine": "llama.cpp", "precision": None, "model": kind} for kind in BETWEEN]
    for row in rows:
        print(f"loss: making {row['model']} of the demo", flush=True)
        try:
            path = converted(DEMO, row["model"], folder, place)
            row |= {"path": path, "weights": weights(path, DEMO, place)}
        except EngineError as error:
            row["error"] = str(error)
            print(f"loss: {row['engine']} {row['model']}: error: {error}", flush=True)
    ready = [row for row in rows if "error" not in row]
    ours = [row for row in ready if row["model"] in PRESETS]
    peers = [row for row in ready if row["model"] not in PRESETS]
    found = {"model": "assets/demo", "text": str(TEXT.relative_to(ROOT)), "context": CONTEXT}
    in_f32 = evaluate(DEMO, "f32", place)
    found |= {"num_predicted": in_f32["predicted_tokens"], "perplexity": {"nano-vllm-rs": in_f32["perplexity"]}}
    for row in ours:
        row["loss"] = {kept: of_ours(row["path"], kept, place) for kept in KEYS_AND_VALUES}
    if peers:
        found["perplexity"]["llama.cpp"] = measure_peers(peers, folder, in_f32, place)
    for row in rows:
        row.pop("path", None)
        for kept, loss in row.get("loss", {}).items():
            result = loss.get("error") or f"KL {loss['kl_divergence']['mean']:.5f}"
            print(f"loss: {row['engine']} {row['model']}, keys and values in {kept}: {result}", flush=True)
    return found | {"rows": rows}


def of_ours(path: Path, kept: str, place: Place) -> dict:
    report = evaluate(path, "f32" if kept == "f32" else "bf16", place, "--reference", DEMO)
    reference = report["reference"]
    return {
        "perplexity": report["perplexity"],
        "kl_divergence": reference["kl_divergence"],
        "likeliest_token_agreement": reference["likeliest_token_agreement"],
    }


def evaluate(model: Path, dtype: str, place: Place, *options) -> dict:
    command = [command_of_workspace("nv"), "eval", model, "--text", TEXT, "--context", CONTEXT, "--dtype", dtype]
    return answer_of([*command, "--threads", place.threads, "--json", *options], None)


def measure_peers(rows: list[dict], folder: Path, in_f32: dict, place: Place) -> float:
    """Adds the loss to each of `rows`; returns llama.cpp's perplexity in float32."""
    models = [
        {"engine": row["engine"].split()[0], "model": str(row["path"]), "precision": kept} for row in rows for kept in KEYS_AND_VALUES
    ]
    ask = {
        "text": str(TEXT),
        "tokenizer": str(DEMO / "tokenizer.json"),
        "context": CONTEXT,
        "threads": place.threads,
        "reference": str(converted(DEMO, "f32", folder, place)),
        "models": models,
    }
    answer = answer_of([place.python, HERE / "divergence.py", json.dumps(ask)], place.environment())
    expected, found = in_f32["perplexity"], answer["reference"]
    if answer["num_predicted"] != in_f32["predicted_tokens"] or abs(found / expected - 1) > AGREEMENT:
        raise EngineError(
            f"loss: expected llama.cpp to have a perplexity of {expected:.5f} over {in_f32['predicted_tokens']} tokens in float32, as nv eval, "
            f"found {found:.5f} over {answer['num_predicted']}"
        )
    losses = iter(answer["models"])
    for row in rows:
        row["loss"] = {kept: next(losses) for kept in KEYS_AND_VALUES}
    return found


def answer_of(command: list, environment: dict | None) -> dict:
    """The JSON that `command` prints."""
    output = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    if output.returncode != 0:
        lines = output.stderr.strip().splitlines() or ["it said nothing"]
        raise EngineError(f"{Path(command[0]).name} {Path(str(command[1])).name}: ended with status {output.returncode}: {lines[-1]}")
    return json.loads(output.stdout)
