#!/usr/bin/env python3
"""Write the reference logits of a checkpoint, as Hugging Face transformers computes them on the CPU.

    python reference.py --model DIR --tokens FILE.json --out FILE.safetensors
                        [--greedy M --greedy-prompt FILE.json]

Token files are JSON lists of ids. The output holds

    input_ids      int64 [n]         the ids of --tokens, run as one prompt of batch 1
    logits_f32     f32   [n, vocab]  the checkpoint loaded in float32
    logits_bf16    bf16  [n, vocab]  the checkpoint loaded in bfloat16, transformers' own rounding
    greedy_prompt  int64 [p]         the ids of --greedy-prompt
    greedy_ids     int64 [m]         the greedy continuation of it, in float32, m <= M:
                                     it ends with an end-of-sequence id of config.json, if one comes

and, as metadata, what is needed to make it again. Attention is transformers' eager implementation.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save
from transformers import AutoModelForCausalLM

ATTENTION = "eager"


def fail(message):
    sys.exit(f"reference.py: error: {message}")


def sha256(paths):
    """The SHA-256 of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def read_ids(path, vocab_size):
    try:
        ids = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        fail(f"cannot read token ids from {path}: {error}")
    if not isinstance(ids, list) or not ids or any(type(i) is not int for i in ids):
        fail(f"{path}: expected a JSON list of token ids with at least one id")
    if bad := [i for i in ids if not 0 <= i < vocab_size]:
        fail(f"{path}: token id {bad[0]} is outside the vocabulary of {vocab_size}")
    return torch.tensor(ids)


def load(directory, dtype):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=ATTENTION)
    return model.eval()


def logits(model, ids):
    return model(input_ids=ids[None], use_cache=False).logits[0].contiguous()


def greedy(model, prompt, num_tokens):
    """Argmax by argmax, the lowest id on a tie; no generation_config has a say in it."""
    ends = model.config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    out, cache, step = [], None, prompt[None]
    while len(out) < num_tokens and (not out or out[-1] not in ends):
        result = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        out.append(int(result.logits[0, -1].argmax()))
        step = torch.tensor([out[-1:]])
    return torch.tensor(out)


def write(path, tensors, metadata):
    """One safetensors file, the same bytes every time, never half of it under its own name."""
    data = save(tensors, metadata)
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header["__metadata__"] = metadata  # safetensors itself writes these keys in a random order
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    part = path.with_name(path.name + ".part")
    part.write_bytes(len(text).to_bytes(8, "little") + text + data[begin:])
    os.replace(part, path)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--tokens", type=Path, required=True, help="JSON list of token ids")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--greedy", type=int, metavar="M", help="also continue greedily by at most M tokens")
    parser.add_argument("--greedy-prompt", type=Path, metavar="FILE", help="JSON list of token ids to continue")
    args = parser.parse_args()
    if (args.greedy is None) != (args.greedy_prompt is None):
        parser.error("--greedy and --greedy-prompt need each other")
    if args.greedy is not None and args.greedy < 1:
        parser.error(f"--greedy {args.greedy}: expected at least 1")
    return args


@torch.no_grad()
def main():
    args = parse_args()
    transformers.utils.logging.disable_progress_bar()
    config = args.model / "config.json"
    weights = sorted(args.model.glob("*.safetensors"), key=lambda path: path.name)
    if not config.is_file() or not weights:
        fail(f"{args.model} is not a checkpoint folder: it needs config.json and *.safetensors")
    if not args.out.parent.is_dir():
        fail(f"{args.out.parent} is not a folder")

    model = load(args.model, torch.float32)
    ids = read_ids(args.tokens, model.config.vocab_size)
    num_positions = model.config.max_position_embeddings
    if len(ids) > num_positions:
        fail(f"{args.tokens}: {len(ids)} ids are more than the model's {num_positions} positions")
    tensors = {"input_ids": ids, "logits_f32": logits(model, ids)}
    command = "reference.py --model DIR --tokens FILE --out FILE"
    if args.greedy is not None:
        prompt = read_ids(args.greedy_prompt, model.config.vocab_size)
        if len(prompt) + args.greedy > num_positions:
            fail(f"{len(prompt)} + {args.greedy} ids are more than the model's {num_positions} positions")
        tensors["greedy_prompt"] = prompt
        tensors["greedy_ids"] = greedy(model, prompt, args.greedy)
        command += f" --greedy {args.greedy} --greedy-prompt FILE"
    del model
    tensors["logits_bf16"] = logits(load(args.model, torch.bfloat16), ids)
    assert tensors["logits_bf16"].dtype == torch.bfloat16

    metadata = {
        "attn_implementation": ATTENTION,
        "checkpoint_sha256": sha256(weights),  # the *.safetensors files, concatenated in name order
        "command": command,
        "config_sha256": sha256([config]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write(args.out, tensors, metadata)
    for name, tensor in sorted(tensors.items()):
        print(f"{name}: {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}")


if __name__ == "__main__":
    main()
