"""A GGUF file with its matrices quantised by llama.cpp, as its own `llama-quantize` does it.

    python gguf_quantize.py SOURCE TYPE OUT

It chooses a type for each matrix: more bits for some, and another one where rows are no multiple of the type's block.
"""

import os
import sys

import llama_cpp

NAMES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_0")
TYPES = {name: getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}") for name in NAMES}


def quantize(source: str, kind: str, out: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = TYPES[kind]
    params.nthread = int(os.environ["OMP_NUM_THREADS"])
    status = llama_cpp.llama_model_quantize(source.encode(), out.encode(), params)
    if status != 0:
        raise SystemExit(f"llama_model_quantize returned {status}; the log says why")


if __name__ == "__main__":
    _, source, kind, out = sys.argv
    quantize(source, kind, out)
