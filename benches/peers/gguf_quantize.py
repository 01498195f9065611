"""A GGUF file with its matrices quantised by llama.cpp, as its own `llama-quantize` does it.

    python gguf_quantize.py SOURCE Q8_0|Q4_0|Q4_K_M OUT

It chooses a type for each matrix: more bits for some, and another one where rows are no multiple of the type's block.
"""

import os
import sys

import llama_cpp

TYPES = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


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
