"""transformers on PyTorch's CPU backend: `generate`, with the attention that it takes by default (SDPA)."""

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.models.qwen3 import Qwen3ForCausalLM

from worker import Worker, serve


class Tell(StoppingCriteria):
    """Never stops; tells of each token, since it is asked after each."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores, **_):
        self.token()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Transformers(Worker):
    def load(self, model, dtype, threads, max_tokens, max_requests):
        torch.set_num_threads(threads)
        dtypes = {"f32": torch.float32, "bf16": torch.bfloat16}
        self.model = Qwen3ForCausalLM.from_pretrained(model, dtype=dtypes[dtype])
        self.model.eval()
        # No token ends a text.
        self.model.generation_config.eos_token_id = None

    def generate(self, prompts, max_tokens, token):
        input_ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                max_new_tokens=max_tokens,
                stopping_criteria=StoppingCriteriaList([Tell(token)]),
            )
        return output[:, input_ids.shape[1] :].tolist()


serve(Transformers())
