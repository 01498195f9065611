//! What a step has to read and to compute, and how fast a machine could do that at best. Pure arithmetic.

use nano_vllm_rs::model::Qwen3Config;
use nano_vllm_rs::qwen3::{LoadedMatrix, Role};

use super::limits::Limits;

/// What the steps of one model are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Costs {
    /// Weights of the matrices in all layers.
    layer_weights: u64,
    /// Weights of `lm_head`, tied or not.
    head_weights: u64,
    /// Of both.
    weight_bytes: u64,
    /// Keys and values of one token in all layers.
    kv_bytes_a_token: u64,
    /// Multiplications and additions of one query token with one key token, in all layers: scores, and values.
    operations_a_pair: u64,
}

/// What one step reads from memory, and its multiplications and additions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) bytes: u64,
    pub(crate) operations: u64,
}

/// The least time that a step can take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    pub(crate) seconds: f64,
    pub(crate) limit: Limit,
}

/// What keeps a step from taking less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Bandwidth,
    Arithmetic,
}

impl Costs {
    /// Of a model of `config` with `matrices`.
    pub(crate) fn new(
        config: &Qwen3Config,
        matrices: &[LoadedMatrix],
        bytes_a_kv_element: usize,
    ) -> Self {
        let (of_layers, others): (Vec<_>, Vec<_>) =
            matrices.iter().partition(|matrix| matches!(matrix.spec.role, Role::Projection(_)));
        // The embedding of a tied model is the head, too; elsewhere a step reads a row a token.
        let head = others.iter().max_by_key(|matrix| matrix.spec.role == Role::Head);
        let multiplied = || of_layers.iter().chain(head);
        let num_weights = |matrix: &&LoadedMatrix| matrix.spec.num_elements() as u64;
        Self {
            layer_weights: of_layers.iter().map(num_weights).sum(),
            head_weights: head.map_or(0, num_weights),
            weight_bytes: multiplied().map(|matrix| matrix.num_bytes as u64).sum(),
            kv_bytes_a_token: config.kv_cache_bytes_per_token(bytes_a_kv_element) as u64,
            operations_a_pair: (config.num_hidden_layers * 4 * config.q_size()) as u64,
        }
    }

    /// A prompt of `num_tokens`, up to the logits after its last.
    pub(crate) fn prefill(&self, num_tokens: usize) -> Work {
        self.prefill_from(0, num_tokens)
    }

    /// A prompt of `num_tokens`, up to the logits after its last, of which `num_cached_tokens` are there.
    pub(crate) fn prefill_from(&self, num_cached_tokens: usize, num_tokens: usize) -> Work {
        let (num_cached_tokens, num_tokens) = (num_cached_tokens as u64, num_tokens as u64);
        let num_new_tokens = num_tokens - num_cached_tokens;
        let pairs = |num_tokens| num_tokens * (num_tokens + 1) / 2;
        Work {
            bytes: self.weight_bytes() + num_tokens * self.kv_bytes_a_token,
            operations: 2 * (self.layer_weights * num_new_tokens + self.head_weights)
                + self.operations_a_pair * (pairs(num_tokens) - pairs(num_cached_tokens)),
        }
    }

    /// One more token, with logits, for each of `num_sequences` that hold `context` tokens.
    pub(crate) fn decode(&self, num_sequences: usize, context: usize) -> Work {
        self.decode_steps(1, num_sequences, num_sequences * (context + 1))
    }

    /// Steps of `num_tokens` tokens together, with logits, which attend to `num_attended` tokens together.
    pub(crate) fn decode_steps(
        &self,
        num_steps: usize,
        num_tokens: usize,
        num_attended: usize,
    ) -> Work {
        let [num_steps, num_tokens, num_attended] =
            [num_steps, num_tokens, num_attended].map(|number| number as u64);
        Work {
            bytes: num_steps * self.weight_bytes() + num_attended * self.kv_bytes_a_token,
            operations: 2 * (self.layer_weights + self.head_weights) * num_tokens
                + self.operations_a_pair * num_attended,
        }
    }

    /// Bytes of the matrices that every step reads.
    pub(crate) fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes that the keys and values of `num_tokens` take.
    pub(crate) fn kv_bytes(&self, num_tokens: usize) -> u64 {
        num_tokens as u64 * self.kv_bytes_a_token
    }
}

impl Work {
    /// The larger of the time to read and the time to compute, which at best overlap.
    pub(crate) fn floor(self, limits: Limits) -> Floor {
        let reading = self.bytes as f64 / limits.read_bandwidth;
        let computing = self.operations as f64 / limits.product_peak;
        if reading > computing {
            Floor { seconds: reading, limit: Limit::Bandwidth }
        } else {
            Floor { seconds: computing, limit: Limit::Arithmetic }
        }
    }
}

impl Limit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bandwidth => "bandwidth",
            Self::Arithmetic => "arithmetic",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use nano_vllm_rs::kernels::Format;
    use nano_vllm_rs::qwen3::tensor_specs;

    use super::*;

    /// A model of the config `json` in bfloat16.
    pub(crate) fn costs_of(json: &str) -> Costs {
        let config = serde_json::from_str(json).unwrap();
        let matrices: Vec<_> = tensor_specs(&config)
            .into_iter()
            .filter(|spec| spec.role.is_matrix())
            .map(|spec| {
                let num_bytes = 2 * spec.num_elements();
                LoadedMatrix { spec, format: Format::Bf16, num_bytes }
            })
            .collect();
        Costs::new(&config, &matrices, 2)
    }

    /// Qwen3-0.6B in bfloat16.
    fn costs() -> Costs {
        let config = r#"{"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
            "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}"#;
        costs_of(config)
    }

    // A layer: q and o 1024 x 2048, k and v 1024 x 1024, three of 1024 x 3072: 15,728,640 weights; 28 of them:
    // 440,401,920. The head: 151,936 x 1024 = 155,582,464. Keys and values: 28 x 2 x 1024 x 2 = 114,688 bytes a token.
    // Attention: 28 x 2 x 2 x 2048 = 229,376 operations a pair.

    #[test]
    fn decoding_reads_the_weights_once_and_each_sequence_its_context() {
        let alone = Work { bytes: 1_191_968_768 + 129 * 114_688, operations: 1_221_558_272 };
        assert_eq!(costs().decode(1, 128), alone);
        let sixteen =
            Work { bytes: 1_191_968_768 + 16 * 129 * 114_688, operations: 16 * alone.operations };
        assert_eq!(costs().decode(16, 128), sixteen);
    }

    #[test]
    fn a_prompt_attends_causally_and_has_one_row_of_logits() {
        // 3 tokens: 1 + 2 + 3 pairs.
        let expected = Work {
            bytes: 1_191_968_768 + 3 * 114_688,
            operations: 3 * 880_803_840 + 311_164_928 + 6 * 229_376,
        };
        assert_eq!(costs().prefill(3), expected);
        // One more: the products of its own, and 4 pairs.
        let expected = Work {
            bytes: 1_191_968_768 + 4 * 114_688,
            operations: 880_803_840 + 311_164_928 + 4 * 229_376,
        };
        assert_eq!(costs().prefill_from(3, 4), expected);
    }

    #[test]
    fn the_floor_is_the_larger_of_reading_and_computing() {
        let check = |work: Work, read_bandwidth, product_peak, seconds: f64, limit| {
            let floor = work.floor(Limits { read_bandwidth, product_peak });
            assert!((floor.seconds / seconds - 1.0).abs() < 1e-12, "{floor:?}");
            assert_eq!(floor.limit, limit);
        };
        let work = Work { bytes: 360, operations: 4600 };
        check(work, 36.0, 920.0, 10.0, Limit::Bandwidth);
        check(work, 36.0, 230.0, 20.0, Limit::Arithmetic);
        // 512 tokens on a machine of 36 GB/s and 460 GFLOP/s: 0.980 s of products, 0.066 s of attention.
        let floor =
            costs().prefill(512).floor(Limits { read_bandwidth: 36e9, product_peak: 460e9 });
        assert!((floor.seconds - 1.0465).abs() < 1e-4, "{floor:?}");
    }
}
