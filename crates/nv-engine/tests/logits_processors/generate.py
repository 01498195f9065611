"""Writes cases.json: logits, sampling parameters, and what transformers' logits processors make of them.

    python3 generate.py     (needs torch and transformers; cases.json names the versions it was made with)

The processors run in the order that vLLM documents for its sampler. Of each case are kept the scores before the
temperature ("processed") and the probabilities after top_p ("probabilities"); null is -inf. Transformers has no presence
and no frequency penalty; here they are OpenAI's formula, logits[i] -= count[i] * frequency + (count[i] > 0) * presence,
which the API reference of chat completions gave with the two parameters.
"""

import json
import pathlib
import random

import torch
import transformers
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCAB_SIZE = 32
EOS_TOKEN_IDS = [5, 11]
PROMPT = [3, 17, 3, 29, 8, 5]
OUTPUT = [17, 22, 22, 22, 31]


class OpenAiPenalties(LogitsProcessor):
    """Presence and frequency penalties, which transformers lacks."""

    def __init__(self, presence, frequency):
        self.presence, self.frequency = presence, frequency

    def __call__(self, input_ids, scores):
        counts = torch.bincount(input_ids[0, len(PROMPT):], minlength=VOCAB_SIZE)
        scores = scores - self.frequency * counts
        return scores - self.presence * (counts > 0)


def processors(params):
    get = params.get
    if (allowed := get("allowed_token_ids")) is not None:
        yield PrefixConstrainedLogitsProcessor(lambda batch, ids: allowed, num_beams=1)
    if banned := get("banned_token_ids"):
        yield SuppressTokensLogitsProcessor(banned)
    if least := get("min_tokens"):
        yield MinNewTokensLengthLogitsProcessor(len(PROMPT), least, EOS_TOKEN_IDS)
    if biases := get("logit_bias"):
        yield SequenceBiasLogitsProcessor([[[token], bias] for token, bias in biases])
    if penalty := get("repetition_penalty"):
        yield RepetitionPenaltyLogitsProcessor(penalty)
    if get("presence_penalty") or get("frequency_penalty"):
        yield OpenAiPenalties(get("presence_penalty", 0.0), get("frequency_penalty", 0.0))


def warpers(params):
    if temperature := params.get("temperature"):
        yield TemperatureLogitsWarper(temperature)
    if min_p := params.get("min_p"):
        yield MinPLogitsWarper(min_p)
    if top_k := params.get("top_k"):
        yield TopKLogitsWarper(top_k)
    if top_p := params.get("top_p"):
        yield TopPLogitsWarper(top_p)


def shortest(row):
    """The fewest digits that are read as the same float32."""
    return [float(str(value)) if value > float("-inf") else None for value in row.numpy()]


def case(params):
    seed = len(cases)
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3
    input_ids = torch.tensor([PROMPT + OUTPUT])
    scores = logits.clone()
    for processor in processors(params):
        scores = processor(input_ids, scores)
    processed = scores
    for warper in warpers(params):
        scores = warper(input_ids, scores)
    probabilities = torch.softmax(scores.double(), -1)
    return {
        "params": params,
        "logits": shortest(logits[0]),
        "processed": shortest(processed[0]),
        "probabilities": [round(p, 7) for p in probabilities[0].tolist()],
    }


rng = random.Random(0)
choices = {
    "allowed_token_ids": lambda: sorted(rng.sample(range(VOCAB_SIZE), rng.randint(8, 25))),
    "banned_token_ids": lambda: rng.sample(range(VOCAB_SIZE), rng.randint(1, 6)),
    "min_tokens": lambda: rng.choice([len(OUTPUT), len(OUTPUT) + 1]),
    "logit_bias": lambda: [
        [token, round(rng.uniform(-8, 8), 2)] for token in rng.sample(range(VOCAB_SIZE), 5)
    ],
    "repetition_penalty": lambda: rng.choice([0.7, 1.05, 1.3, 2.0]),
    "presence_penalty": lambda: rng.choice([-2.0, -0.6, 0.7, 2.0]),
    "frequency_penalty": lambda: rng.choice([-0.9, 0.3, 1.1, 2.0]),
    "temperature": lambda: rng.choice([0.3, 0.6, 1.5, 4.0]),
    "min_p": lambda: rng.choice([0.02, 0.1, 0.4, 1.0]),
    "top_k": lambda: rng.choice([1, 2, 7, 25]),
    "top_p": lambda: rng.choice([0.05, 0.5, 0.9, 0.99]),
}
cases = []
# Each alone, each of the values that it may have.
for name, choose in choices.items():
    seen = []
    for _ in range(12):
        value = choose()
        if value not in seen and len(seen) < 4:
            seen.append(value)
            cases.append(case({name: value}))
# Some together.
for _ in range(30):
    names = rng.sample(sorted(choices), rng.randint(2, len(choices)))
    cases.append(case({name: choices[name]() for name in names}))

made_with = {"torch": torch.__version__, "transformers": transformers.__version__}
head = {"made_with": made_with, "prompt": PROMPT, "output": OUTPUT, "eos_token_ids": EOS_TOKEN_IDS}
lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
path = pathlib.Path(__file__).with_name("cases.json")
path.write_text(json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
