"""How far quantised models' predictions of a text are from those of the model in float32, as `nv eval` measures it.

    python divergence.py ASK

where ASK is JSON: `text`, `tokenizer` (a tokenizer.json), `context` (tokens a window), `threads`, `reference` (a GGUF file with F32
matrices) and `models`, each with `engine` ("llama.cpp" or "openvino-genai"), `model` (a GGUF file) and `precision` ("16 bits" or
"f32", of keys and values). Prints a line of JSON: the reference's perplexity, and for each model what `nv eval --json` says of it.

Windows don't overlap, and every token of one but its first is predicted. The reference is computed by llama.cpp, keys and values float32.
"""

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tokenizers


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    # What engines print is for the log.
    os.dup2(2, 1)
    ask = json.loads(sys.argv[1])
    tokenizer = tokenizers.Tokenizer.from_file(ask["tokenizer"])
    token_ids = tokenizer.encode(Path(ask["text"]).read_text(), add_special_tokens=False).ids
    context = ask["context"]
    windows = [token_ids[start : start + context] for start in range(0, len(token_ids), context)]
    windows = [window for window in windows if len(window) > 1]
    settings = {"context": context, "threads": ask["threads"]}
    reference = LlamaCpp(ask["reference"], "f32", **settings)
    expected = [reference.logits(window[:-1]) for window in windows]
    logprobs = (of_next(log_softmax(logits), window) for logits, window in zip(expected, windows))
    answer = {
        "num_predicted": sum(len(window) - 1 for window in windows),
        "reference": perplexity(logprobs),
        "models": [of_model(model, windows, expected, settings) for model in ask["models"]],
    }
    print(json.dumps(answer), file=answers, flush=True)


def of_model(ask: dict, windows: list[list[int]], expected: list[np.ndarray], settings: dict) -> dict:
    logprobs, divergences, agree = [], [], []
    try:
        model = ENGINES[ask["engine"]](ask["model"], ask["precision"], **settings)
        for window, of_reference in zip(windows, expected):
            p, q = log_softmax(of_reference), log_softmax(model.logits(window[:-1]))
            logprobs.append(of_next(q, window))
            divergences.append(np.sum(np.exp(p) * (p - q), axis=1))
            agree.append(p.argmax(axis=1) == q.argmax(axis=1))
    except Exception as error:
        lines = str(error).strip().splitlines() or ["it said nothing"]
        return {"error": f"{type(error).__name__}: {lines[-1]}"}
    divergences = np.concatenate(divergences)
    return {
        "perplexity": perplexity(logprobs),
        "kl_divergence": {
            "mean": float(divergences.mean()),
            "median": float(np.median(divergences)),
            "percentile_99": float(np.percentile(divergences, 99)),
        },
        "likeliest_token_agreement": float(np.concatenate(agree).mean()),
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def of_next(logprobs: np.ndarray, window: list[int]) -> np.ndarray:
    """Each row's log probability of the token that follows it."""
    return logprobs[np.arange(len(logprobs)), window[1:]]


def perplexity(logprobs: Iterable[np.ndarray]) -> float:
    return math.exp(-np.concatenate(list(logprobs)).mean())


class LlamaCpp:
    def __init__(self, model: str, precision: str, context: int, threads: int):
        import llama_cpp

        self.llama_cpp = llama_cpp
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError("llama_model_load_from_file failed; the log says why")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_outputs_max = context
        params.n_threads = params.n_threads_batch = threads
        if precision == "f32":
            # Else they are float16. Its flash attention rounds them to that, too.
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama_init_from_model failed; the log says why")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(context, 0, 1)

    def logits(self, token_ids: list[int]) -> np.ndarray:
        llama_cpp, batch = self.llama_cpp, self.batch
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        batch.n_tokens = len(token_ids)
        for i, token_id in enumerate(token_ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token_id, i, 1, True
            batch.seq_id[i][0] = 0
        status = llama_cpp.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}; the log says why")
        rows = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(rows, (len(token_ids), self.vocab_size)).copy()


class OpenVino:
    """The model that OpenVINO GenAI makes of the file: it leaves that to be read, and for itself computes the last token's logits alone."""

    def __init__(self, model: str, precision: str, context: int, threads: int):
        import openvino
        import openvino_genai

        core = openvino.Core()
        # As openvino_worker.py has it.
        is_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        computes, kept = ("f32", "f32") if precision == "f32" else ("bf16", "bf16") if is_bf16 else ("f32", "f16")
        properties = {
            "INFERENCE_PRECISION_HINT": computes,
            "KV_CACHE_PRECISION": kept,
            "INFERENCE_NUM_THREADS": threads,
        }
        with tempfile.TemporaryDirectory() as folder:
            # It writes beside the file.
            copy = shutil.copy(model, folder)
            openvino_genai.LLMPipeline(copy, "CPU", enable_save_ov_model=True)
            read = core.read_model(Path(folder) / "openvino_model.xml")
            self.inputs = {port.any_name for port in read.inputs}
            self.request = core.compile_model(read, "CPU", properties).create_infer_request()

    def logits(self, token_ids: list[int]) -> np.ndarray:
        ids = np.array([token_ids], np.int64)
        values = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.size, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self.request.reset_state()
        self.request.infer({name: values[name] for name in self.inputs})
        return self.request.get_tensor("logits").data[0].copy()


ENGINES = {"llama.cpp": LlamaCpp, "openvino-genai": OpenVino}


if __name__ == "__main__":
    main()
