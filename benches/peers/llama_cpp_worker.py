"""llama.cpp by the C API that llama-cpp-python brings: one context, many sequences, the likeliest of each one's logits."""

import llama_cpp
import numpy as np

from worker import Worker, serve


class LlamaCpp(Worker):
    def load(self, model, dtype, threads, max_tokens, max_requests):
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise RuntimeError("llama_model_load_from_file failed; the log says why")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = max_tokens
        params.n_seq_max = max_requests
        params.n_outputs_max = max_requests
        # Sequences share the context: one has room for all tokens, or many for a part.
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = threads
        if dtype == "f32":
            # Else it keeps keys and values in float16; its flash attention, which it chooses itself, rounds them to that.
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            raise RuntimeError("llama_init_from_model failed; the log says why")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.batch = llama_cpp.llama_batch_init(max_tokens, 0, 1)

    def generate(self, prompts, max_tokens, token):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        rows = [(id, i, seq) for seq, prompt in enumerate(prompts) for i, id in enumerate(prompt)]
        ends = np.cumsum([len(prompt) for prompt in prompts]) - 1
        token_ids = [[] for _ in prompts]
        for step in range(max_tokens):
            self.decode(rows, set(ends.tolist()))
            for ids, end in zip(token_ids, ends.tolist()):
                ids.append(self.likeliest(end))
            token()
            rows = [(ids[-1], len(prompts[seq]) + step, seq) for seq, ids in enumerate(token_ids)]
            ends = np.arange(len(prompts))
        return token_ids

    def decode(self, rows, outputs):
        """Computes `rows`, each a token id, its position and its sequence; logits for those at `outputs`."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token_id, position, sequence) in enumerate(rows):
            batch.token[i] = token_id
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i in outputs
        status = llama_cpp.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}; the log says why")

    def likeliest(self, row):
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())


serve(LlamaCpp())
