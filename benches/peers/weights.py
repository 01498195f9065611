"""What the weights of a model take, format by format: of a GGUF file, or of a folder that `nv quantize` wrote.

    python weights.py MODEL CHECKPOINT

prints JSON: how many weights CHECKPOINT has, which MODEL was made from, and MODEL's bytes in each format.
"""

import json
import math
import sys
from collections import Counter
from pathlib import Path

import gguf


def weights(model: Path, checkpoint: Path) -> dict:
    shapes = [info["shape"] for info in header(checkpoint).values()]
    num_bytes = of_folder(model) if model.is_dir() else of_gguf(model)
    return {"num_weights": sum(map(math.prod, shapes)), "bytes": dict(num_bytes.most_common())}


def of_gguf(path: Path) -> Counter:
    found = Counter()
    for tensor in gguf.GGUFReader(path).tensors:
        found[tensor.tensor_type.name] += int(tensor.n_bytes)
    return found


def of_folder(path: Path) -> Counter:
    config = json.loads((path / "config.json").read_text())
    formats = config["quantization_config"]["formats"]
    found = Counter()
    for name, info in header(path).items():
        begin, end = info["data_offsets"]
        # The matrix's own name is the last but one: `model.layers.0.self_attn.q_proj.weight`.
        found[formats.get(name.split(".")[-2], info["dtype"])] += end - begin
    return found


def header(folder: Path) -> dict:
    with (folder / "model.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return {name: info for name, info in json.loads(file.read(size)).items() if name != "__metadata__"}


if __name__ == "__main__":
    _, model, checkpoint = sys.argv
    print(json.dumps(weights(Path(model), Path(checkpoint))))
