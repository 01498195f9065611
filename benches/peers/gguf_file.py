"""A checkpoint as a GGUF file: the same values under llama.cpp's names, in bfloat16 as they are stored, float32 or float16.

    python gguf_file.py CHECKPOINT bf16|f32|f16 OUT

Token ids go in and come out, so the vocabulary is made up: a token a byte, and a numbered one for every other id. It
stands there since OpenVINO GenAI builds a tokenizer from it before it loads the model.
"""

import json
import mmap
import sys
from pathlib import Path

import gguf
import numpy as np

# Half of the step between the smallest float16s.
F16_ROUNDING = 2.0**-25

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write(checkpoint: Path, dtype: str, out: Path) -> None:
    """Writes `out` from the folder `checkpoint`: matrices in `dtype`, "bf16", "f32" or "f16", and vectors in float32.

    float16 has all values of bfloat16 between its smallest normal number and its largest. Smaller ones are rounded, by no
    more than float32 rounds in a sum of such; larger ones are an error.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "qwen3")
    add_config(writer, config, dtype)
    add_vocabulary(writer, config["vocab_size"], config["eos_token_id"])
    for name, tensor in tensors(checkpoint / "model.safetensors"):
        if dtype == "bf16" and tensor.ndim == 2:
            writer.add_tensor(gguf_name(name), tensor.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
            continue
        # The upper half of a float32 is the bfloat16.
        values = (tensor.astype(np.uint32) << 16).view(np.float32)
        if dtype == "f16" and tensor.ndim == 2:
            wide, values = values, values.astype(np.float16)
            lost = np.max(np.abs(values - wide))
            if not lost <= F16_ROUNDING:
                raise ValueError(f"{name}: expected values that float16 has, found one that is {lost} off")
        writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_config(writer: gguf.GGUFWriter, config: dict, dtype: str) -> None:
    types = gguf.LlamaFileType
    file_types = {"bf16": types.MOSTLY_BF16, "f32": types.ALL_F32, "f16": types.MOSTLY_F16}
    writer.add_name("random weights")
    writer.add_file_type(file_types[dtype])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def add_vocabulary(writer: gguf.GGUFWriter, vocab_size: int, eos_token_id: int) -> None:
    # GPT-2's letters for bytes: the printable ones stand for themselves.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    numbered = [f"<{token_id}>" for token_id in range(len(letters), vocab_size)]
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list((letters + numbered)[:vocab_size])
    writer.add_token_types(([normal] * len(letters) + [control] * len(numbered))[:vocab_size])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(eos_token_id)
    writer.add_add_bos_token(False)


def gguf_name(name: str) -> str:
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{LAYER_NAMES[module]}.{kind}"


def tensors(path: Path):
    """Names and bits, uint16, of what a safetensors file of bfloat16 holds."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(data[:8], "little")
    for name, info in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        if info["dtype"] != "BF16":
            raise ValueError(f"{path}: {name}: expected dtype BF16, found {info['dtype']}")
        begin, end = info["data_offsets"]
        bits = np.frombuffer(data, np.uint16, (end - begin) // 2, start + begin)
        yield name, bits.reshape(info["shape"])


if __name__ == "__main__":
    _, checkpoint, dtype, out = sys.argv
    write(Path(checkpoint), dtype, Path(out))
