"""Writes cases.json: the files of tokenizers, and the ids that transformers makes of texts with them.

    python3 generate.py     (needs transformers; cases.json names the versions it was made with)

All of them have the 256 bytes and a few merges. Where a case says `true`, the file holds those. Of long texts there is a hash.
"""

import json
import pathlib
import tempfile

import tokenizers
import transformers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

HERE = pathlib.Path(__file__).parent

BYTES = bytes_to_unicode()
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "m"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("1", "2"), ("Ã", "©"), ("#", "v")]
VOCAB = {BYTES[byte]: byte for byte in range(256)}
for left, right in MERGES:
    VOCAB[left + right] = len(VOCAB)

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def added(content, **flags):
    token = {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return token | flags


def tokenizer_json(*tokens):
    """A `tokenizer.json` without its model, with these tokens at the ids after the vocabulary."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": len(VOCAB) + index} | token for index, token in enumerate(tokens)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level, "decoder": byte_level,
        "model": True,
    }


def decoder(*tokens, first=len(VOCAB)):
    return {str(first + index): token for index, token in enumerate(tokens)}


END, TEXT_END, START = added("<|im_end|>"), added("<|endoftext|>"), added("<|im_start|>")
THINK = added("<think>", special=False)
QWEN_CLASS = {"tokenizer_class": "Qwen2Tokenizer"}
FAST_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
TEXTS = [
    "",
    "<|im_start|>the 12 the<|im_end|>\n",
    "a  <|im_end|>  b <|endoftext|> <think> x<think>y <|im_end|>s",
    "The  \n\n  the    theme's THE'S 'll 1234 \u00e9 e\u0301 <tool> \u4f60\u597d \U0001f600!!\r\n\t.",
    "<e\u0301> <\u00e9> [pad] <img> #v !#v",
]


def cases():
    yield "tokenizer.json alone", {"tokenizer.json": tokenizer_json(TEXT_END, START, END, THINK)}
    for name, its_class in [("Qwen's class", QWEN_CLASS), ("class of any", FAST_CLASS)]:
        listed = {"added_tokens_decoder": decoder(TEXT_END, START, END, THINK)}
        yield f"{name}: only listed in tokenizer_config.json", {
            "tokenizer.json": tokenizer_json(), "tokenizer_config.json": its_class | listed | {"eos_token": "<|im_end|>"}}
        flags = [END | {"lstrip": True, "rstrip": True}, THINK | {"single_word": True}, added("<e\u0301>", normalized=True, special=False),
                 added("<|endoftext|>", rstrip=True)]
        yield f"{name}: flags", {
            "tokenizer.json": tokenizer_json(), "tokenizer_config.json": its_class | {"added_tokens_decoder": decoder(*flags)}}
        yield f"{name}: other flags than tokenizer.json", {
            "tokenizer.json": tokenizer_json(END, THINK, TEXT_END),
            "tokenizer_config.json": its_class | {"added_tokens_decoder": decoder(END | {"lstrip": True}, THINK | {"special": True}, TEXT_END)}}
        yield f"{name}: an end that has flags", {
            "tokenizer.json": tokenizer_json(),
            "tokenizer_config.json": its_class | {"added_tokens_decoder": decoder(TEXT_END, END | {"lstrip": True, "special": False}), "eos_token": "<|im_end|>"}}
        yield f"{name}: some in either file", {
            "tokenizer.json": tokenizer_json(TEXT_END),
            "tokenizer_config.json": its_class | {"added_tokens_decoder": decoder(TEXT_END, START, END), "eos_token": "<|endoftext|>"}}
        yield f"{name}: ids with a gap", {
            "tokenizer.json": tokenizer_json(), "tokenizer_config.json": its_class | {"added_tokens_decoder": decoder(TEXT_END) | decoder(END, first=300)}}
        yield f"{name}: a token of the vocabulary", {
            "tokenizer.json": tokenizer_json(TEXT_END), "tokenizer_config.json": its_class | {"added_tokens_decoder": {"1": added("#v"), "9": TEXT_END}}}
        yield f"{name}: special_tokens_map.json and added_tokens.json", {
            "tokenizer.json": tokenizer_json(),
            "tokenizer_config.json": its_class,
            "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False},
                                        "pad_token": "[pad]"} | ({"additional_special_tokens": ["<img>"]} if its_class is QWEN_CLASS else {}),
            "added_tokens.json": {"<think>": len(VOCAB) + 1, "<|im_end|>": len(VOCAB), "<img>": len(VOCAB) + 2}}
        yield f"{name}: both maps, and tokenizer_config.json lists", {
            "tokenizer.json": tokenizer_json(),
            "tokenizer_config.json": its_class | {"added_tokens_decoder": decoder(TEXT_END)},
            "special_tokens_map.json": {"eos_token": "<|im_end|>"}, "added_tokens.json": {"<think>": len(VOCAB) + 1}}
        yield f"{name}: special tokens by name alone", {
            "tokenizer.json": tokenizer_json(TEXT_END),
            "tokenizer_config.json": its_class | {"eos_token": {"__type": "AddedToken"} | added("<|im_end|>", rstrip=True), "pad_token": "[pad]", "image_token": "<img>", "bos_token": None}}
        yield f"{name}: extra_special_tokens", {
            "tokenizer.json": tokenizer_json(TEXT_END, THINK),
            "tokenizer_config.json": its_class | {"extra_special_tokens": ["<img>", "<think>"], "additional_special_tokens": ["[pad]"]}}
        yield f"{name}: extra_special_tokens with names", {
            "tokenizer.json": tokenizer_json(TEXT_END),
            "tokenizer_config.json": its_class | {"extra_special_tokens": {"image_token": "<img>"}}}
        yield f"{name}: additional_special_tokens", {
            "tokenizer.json": tokenizer_json(TEXT_END),
            "tokenizer_config.json": its_class | {"additional_special_tokens": ["<img>", "<|im_end|>"]}}
        yield f"{name}: eos_token null", {
            "tokenizer.json": tokenizer_json(TEXT_END, END), "tokenizer_config.json": its_class | {"eos_token": None}}
    merges = ["#version: 0.2"] + [" ".join(merge) for merge in MERGES]
    listed = QWEN_CLASS | {"added_tokens_decoder": decoder(TEXT_END, START, END, THINK), "eos_token": "<|im_end|>"}
    files = {"vocab.json": True, "merges.txt": "\n".join(merges) + "\n"}
    yield "vocab.json and merges.txt", files | {"tokenizer_config.json": listed}
    yield "vocab.json and merges.txt alone", files
    yield "merges.txt without a version", files | {"merges.txt": "\n".join(merges[1:]), "tokenizer_config.json": listed}
    yield "merges.txt with carriage returns", files | {"merges.txt": "\r\n".join(merges) + "\r\n", "tokenizer_config.json": listed}
    yield "vocab.json with maps", files | {
        "special_tokens_map.json": {"eos_token": "<|im_end|>"}, "added_tokens.json": {"<|im_end|>": len(VOCAB) + 1, "<|endoftext|>": len(VOCAB)}}
    yield "vocab.json with prefix space", files | {"tokenizer_config.json": listed | {"add_prefix_space": True}}
    yield "vocab.json with bos", files | {"tokenizer_config.json": listed | {"add_bos_token": True, "bos_token": "<|im_start|>"}}
    yield "vocab.json with eos", files | {"tokenizer_config.json": listed | {"add_eos_token": True}}
    yield "tokenizer.json with bos", {"tokenizer.json": tokenizer_json(START), "tokenizer_config.json": QWEN_CLASS | {"add_bos_token": True, "bos_token": "<|im_start|>"}}


def fill(name, content):
    if content is True:
        return json.dumps(VOCAB)
    if isinstance(content, str):
        return content
    if content.get("model") is True:
        model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                 "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": VOCAB, "merges": [list(merge) for merge in MERGES]}
        content = content | {"model": model}
    return json.dumps(content)


def load(files):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
        for file, content in files.items():
            (folder / file).write_bytes(fill(file, content).encode())
        return AutoTokenizer.from_pretrained(folder)


def case(name, files):
    tokenizer = load(files)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    shown = [tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in ids]
    return {"name": name, "files": files, "eos_token_id": tokenizer.eos_token_id, "ids": ids, "shown": shown}


def long(tokenizer, unit, end):
    ids = tokenizer(unit * 1_000_000 + end)["input_ids"]
    digest = 0xCBF29CE484222325
    for token_id in ids:
        digest = (digest ^ token_id) * 0x100000001B3 % 2**64
    return {"unit": unit, "end": end, "num_ids": len(ids), "fnv1a": f"{digest:016x}"}


if __name__ == "__main__":
    of_files = load(dict(cases())["vocab.json and merges.txt"])
    runs = [(" ", "a"), (" ", "1"), ("\t", ""), ("\n", "a"), (" \n", "!"), ("th", ""), ("!", "1"), ("\u0301", "a")]
    result = {
        "made_with": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
        "vocab": VOCAB, "merges": MERGES, "texts": TEXTS, "cases": [case(name, files) for name, files in cases()],
        "long": [long(of_files, unit, end) for unit, end in runs],
    }
    # A line for each entry, and ASCII, so that no editor changes what isn't in normal form.
    fields = []
    for name, value in result.items():
        rows = ",\n".join(json.dumps(row) for row in value) if isinstance(value, list) else None
        fields.append(f"{json.dumps(name)}: " + (f"[\n{rows}\n]" if rows else json.dumps(value)))
    (HERE / "cases.json").write_text("{\n" + ",\n".join(fields) + "\n}\n")
