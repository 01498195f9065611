"""OpenVINO GenAI: `LLMPipeline` over its paged attention, from a GGUF file with quantised or float16 weights.

It reads no other unquantised GGUF. Its CPU plugin computes in bfloat16 only where the processor does.
"""

import numpy as np
import openvino
import openvino_genai

from worker import Worker, serve


class Tell(openvino_genai.StreamerBase):
    def __init__(self, token):
        super().__init__()
        self.token = token

    def write(self, _):
        self.token()
        return openvino_genai.StreamingStatus.RUNNING

    def end(self):
        pass


class OpenVino(Worker):
    def load(self, model, dtype, threads, max_tokens, max_requests):
        found = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if dtype == "bf16" and "BF16" not in found:
            raise RuntimeError(f"it computes in bfloat16 where the processor does, and has {', '.join(found)} here")
        if dtype in ("bf16", "f32"):
            precision = kept = dtype
        else:
            # Quantised weights. Beside them bfloat16 was seen to be faster than float32, and float16 slower. Keys and values
            # have 16 bits either way, as the other engines' have.
            precision, kept = ("bf16", "bf16") if "BF16" in found else ("f32", "f16")
        scheduler = openvino_genai.SchedulerConfig()
        # Nothing that was computed for one measurement serves another.
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = max_tokens
        scheduler.max_num_seqs = max_requests
        self.pipeline = openvino_genai.LLMPipeline(
            model,
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_PRECISION_HINT=precision,
            # Else it rounds keys and values to 8 bits.
            KV_CACHE_PRECISION=kept,
            INFERENCE_NUM_THREADS=threads,
        )

    def generate(self, prompts, max_tokens, token):
        input_ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(input_ids), openvino.Tensor(np.ones_like(input_ids))
        )
        config = openvino_genai.GenerationConfig(max_new_tokens=max_tokens, ignore_eos=True, do_sample=False)
        # It streams single texts only.
        streamer = [Tell(token)] if len(prompts) == 1 else []
        token_ids = self.pipeline.generate(inputs, config, *streamer).tokens
        token()
        return token_ids


serve(OpenVino())
