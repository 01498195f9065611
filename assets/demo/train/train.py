#!/usr/bin/env python3
"""Train the demo checkpoint: a small Qwen3 base model on the King James Bible.

    apt-get install bible-kjv          # the text, and the `bible` command that prints it
    python train.py --out DIR

Four steps, one function each: read the text, train the tokenizer, train the model, write the
folder as Hugging Face publishes a Qwen3 checkpoint (bf16 weights, transformers-4 config keys).
The README beside the checkpoint has the commands that made it.
The held-out loss is measured on the written files, so it is that of the bf16-rounded weights.
"""

import argparse
import json
import math
import os
import random
import subprocess
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

# Qwen3's added tokens, in its order. The first 14 are "special": skipped when text is decoded.
ADDED_TOKENS = """
<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|>
<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|>
<|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|>
<|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <tool_response> </tool_response>
<think> </think>
""".split()
NUM_SPECIAL = 14
ENDOFTEXT = ADDED_TOKENS[0]

# Qwen's pre-tokenizer, character for character.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

MAX_POSITIONS = 1024
PROMPTS = ["In the beginning", "And the LORD said unto Moses", "Blessed are"]


# ------------------------------------------------------------------------------------ the text


def read_chapters():
    """The whole Bible as a list of chapters, each a list of verses, in the book's order.

    A chapter becomes one document, a verse one line, without numbers and headings.
    """
    command = ["bible", "-f", "gen1:1-rev22:21"]
    out = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    chapters = {}
    for line in out.stdout.splitlines():
        reference, verse = line.split(" ", 1)  # "1Sa17:4 And there went out a champion ..."
        chapters.setdefault(reference.split(":")[0], []).append(" ".join(verse.split()))
    assert len(chapters) == 1189, f"expected 1189 chapters, found {len(chapters)}"
    return list(chapters.values())


def split_chapters(chapters):
    """Every 25th chapter is held out: 48 of 1189, spread over all books, Genesis 13 the first."""
    held_out = [c for i, c in enumerate(chapters) if i % 25 == 12]
    return [c for i, c in enumerate(chapters) if i % 25 != 12], held_out


# ------------------------------------------------------------------------------- the tokenizer


def train_tokenizer(chapters, vocab_size):
    """Byte-level BPE shaped as Qwen's; the added tokens take the last ids, as there."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.normalizer = normalizers.NFC()
    byte_level = dict(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(**byte_level)]
    )
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel(**byte_level)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(("\n".join(verses) for verses in chapters), trainer)
    plain = dict(normalized=False)
    tokenizer.add_special_tokens([AddedToken(t, **plain) for t in ADDED_TOKENS[:NUM_SPECIAL]])
    tokenizer.add_tokens([AddedToken(t, **plain) for t in ADDED_TOKENS[NUM_SPECIAL:]])
    assert tokenizer.get_vocab_size() == vocab_size
    return tokenizer


def tokenizer_json(tokenizer):
    value = json.loads(tokenizer.to_str())
    value["decoder"] = value["post_processor"]  # Qwen's flags, which decoders.ByteLevel() does not take
    return value


def tokenizer_config(tokenizer):
    decoder = {
        str(tokenizer.token_to_id(t)): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": i < NUM_SPECIAL,
        }
        for i, t in enumerate(ADDED_TOKENS)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": ADDED_TOKENS[1:NUM_SPECIAL],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": ENDOFTEXT,
        "errors": "replace",
        "model_max_length": MAX_POSITIONS,
        "pad_token": ENDOFTEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


# ----------------------------------------------------------------------------------- the model


def model_config(vocab_size, endoftext):
    """Key for key Qwen3-0.6B's config.json, in transformers 4's spelling."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": endoftext,
        "eos_token_id": endoftext,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 480,
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": 6,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab_size,
    }


def generation_config(endoftext):
    return {
        "bos_token_id": endoftext,
        "do_sample": True,
        "eos_token_id": endoftext,
        "pad_token_id": endoftext,
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.95,
        "transformers_version": "4.51.0",
    }


def windows(chapters, tokenizer, length, rng):
    """Endless training sequences of `length + 1` ids: chapters in a new order every epoch.

    A sequence begins where a verse begins, so that a prompt typed as the start of a sentence
    looks like what the model has seen; what is left of the last verse is dropped.
    """
    endoftext = tokenizer.token_to_id(ENDOFTEXT)
    encoded = []  # verse by verse: no pre-token goes on after a line break
    for verses in chapters:
        encoded.append([tokenizer.encode(verse + "\n").ids for verse in verses[:-1]])
        encoded[-1].append(tokenizer.encode(verses[-1]).ids + [endoftext])
    ids = []
    while True:
        for chapter in rng.sample(encoded, len(encoded)):
            for verse in chapter:
                ids += verse
                if len(ids) > length:
                    yield ids[: length + 1]
                    ids = []


def learning_rate(step, progress, args):
    """Linear warm-up, then a cosine that reaches nothing at progress 1."""
    return args.lr * min(1.0, (step + 1) / args.warmup) * 0.5 * (1.0 + math.cos(math.pi * progress))


def train_model(args, config, tokenizer, train, held_out):
    torch.manual_seed(args.seed)
    model = Qwen3ForCausalLM(Qwen3Config(**config)).train()
    if args.init:
        model.load_state_dict(load_file(args.init / "model.safetensors"), strict=False)
        model.tie_weights()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    data = windows(train, tokenizer, args.seq_len, random.Random(args.seed))
    start, seen_loss, step, progress = time.time(), [], 0, 0.0
    while progress < 1.0 and step != args.stop_after:
        batch = torch.tensor([next(data) for _ in range(args.batch)])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress, args)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen_loss.append(loss.item())
        step += 1
        elapsed = time.time() - start
        progress = max(0.0, (step - args.warmup) / (args.steps - args.warmup), elapsed / 60 / args.minutes)
        if step % args.log_every == 0:
            mean = sum(seen_loss[-args.log_every :]) / args.log_every
            print(f"step {step} loss {mean:.4f} nats/token, {elapsed:.0f} s", flush=True)
        if step % args.save_every == 0 or progress >= 1.0 or step == args.stop_after:
            save_weights(model, args.out)
            report(args.out, tokenizer, held_out)
    print(f"trained {step} steps in {elapsed:.0f} s")


def save_weights(model, out):
    """bf16, without lm_head.weight (it is the embedding), replaced in one step for who maps it."""
    state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    del state["lm_head.weight"]
    save_file(state, out / "model.safetensors.part", metadata={"format": "pt"})
    os.replace(out / "model.safetensors.part", out / "model.safetensors")


# ------------------------------------------------------------------------------ the evaluation


@torch.no_grad()
def bits_per_byte(model, tokenizer, chapters):
    """Each chapter after <|endoftext|>, with at least 512 tokens of context once it is that long."""
    endoftext = tokenizer.token_to_id(ENDOFTEXT)
    nats = num_bytes = 0
    half = MAX_POSITIONS // 2
    for text in map("\n".join, chapters):
        ids = torch.tensor([endoftext] + tokenizer.encode(text).ids)
        num_bytes += len(text.encode())
        for begin in range(0, len(ids) - 1, half):  # scores the targets begin + 1 ..= begin + half
            targets = ids[begin + 1 : begin + half + 1]
            context = ids[max(0, begin - half) : begin + len(targets)]
            logits = model(input_ids=context[None], use_cache=False).logits[0]
            nats += F.cross_entropy(logits[-len(targets) :], targets, reduction="sum").item()
    return nats / math.log(2) / num_bytes


@torch.no_grad()
def report(out, tokenizer, held_out):
    """Loads the written folder in float32, prints its held-out loss and greedy continuations."""
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    print(f"held out: {bits_per_byte(model, tokenizer, held_out):.4f} bits per byte")
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        full = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=100)
        print(f"  {tokenizer.decode(full[0].tolist(), skip_special_tokens=False)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--vocab-size", type=int, default=2048, help="with the 26 added tokens")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--stop-after", type=int, help="stop at this step, short of the schedule's end")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the schedule by then at the latest")
    parser.add_argument("--init", type=Path, help="folder of a checkpoint to start from")
    parser.add_argument("--batch", type=int, default=4, help="sequences in a step")
    parser.add_argument("--seq-len", type=int, default=MAX_POSITIONS, help="tokens in a sequence")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=150, help="steps of linear warm-up")
    parser.add_argument("--weight-decay", type=float, default=0.3, help="on matrices alone")
    parser.add_argument("--seed", type=int, default=1611)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)

    train, held_out = split_chapters(read_chapters())
    tokenizer = train_tokenizer(train, args.vocab_size)
    endoftext = tokenizer.token_to_id(ENDOFTEXT)
    config = model_config(args.vocab_size, endoftext)
    for name, value in [
        ("tokenizer.json", tokenizer_json(tokenizer)),
        ("config.json", config),
        ("generation_config.json", generation_config(endoftext)),
        ("tokenizer_config.json", tokenizer_config(tokenizer)),
    ]:
        (args.out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    train_bytes = sum(len("\n".join(c).encode()) for c in train)
    num_tokens = sum(len(tokenizer.encode("\n".join(c)).ids) + 1 for c in train)
    print(f"{len(train)} chapters: {train_bytes} bytes, {num_tokens} tokens; {len(held_out)} chapters held out")
    print(f"{args.steps * args.batch * args.seq_len / num_tokens:.1f} epochs", flush=True)
    train_model(args, config, tokenizer, train, held_out)


if __name__ == "__main__":
    main()
