//! Where keys and values live between calls: the trait that the graph sees, and the contiguous cache.
//!
//! Knows nothing of layers' weights; a paged cache implements the same trait elsewhere.

mod buffers;
mod tensors;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::ops::Ops;
use buffers::Buffers;
use tensors::Tensors;

/// Storage of keys and values, and attention over them, for the batch of tokens that one call computes.
pub trait AttentionCache {
    /// Stores this step's `k` and `v` of layer `layer_idx` and attends `q` over all that its sequence holds.
    ///
    /// Shapes: `q` `[num_tokens, num_heads, head_dim]`, `k` and `v` `[num_tokens, num_kv_heads, head_dim]`;
    /// returns `[num_tokens, num_heads * head_dim]`. Dtypes: float32 in and out.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn attend(&mut self, layer_idx: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor>;
}

/// One sequence a batch row, all of one length, each layer's keys and values contiguous.
///
/// Packed tokens are `batch` rows of `seq_len` tokens, row after row.
#[derive(Debug)]
pub(crate) struct DenseCache {
    /// What keys and values are rounded to.
    dtype: DType,
    layers: Vec<Option<KeyValues>>,
    /// Positions that every layer holds.
    len: usize,
    /// Batch rows of the cached sequence and tokens a row of the step under way.
    batch: usize,
    seq_len: usize,
    ops: Ops,
}

/// Keys and values of one layer.
#[derive(Debug)]
enum KeyValues {
    Buffers(Buffers),
    Tensors(Tensors),
}

/// The tokens of one step: `batch` rows of `seq_len`, after `start_pos` positions of each.
#[derive(Debug, Clone, Copy)]
struct Step {
    batch: usize,
    seq_len: usize,
    start_pos: usize,
}

impl Step {
    /// The positions of a row once the step is stored.
    fn kv_len(self) -> usize {
        self.start_pos + self.seq_len
    }
}

impl DenseCache {
    /// An empty cache for `num_layers` layers that rounds keys and values to `dtype`, where `ops` compute.
    pub(crate) fn new(num_layers: usize, dtype: DType, ops: Ops) -> Self {
        let layers = (0..num_layers).map(|_| None).collect();
        Self { dtype, layers, len: 0, batch: 0, seq_len: 0, ops }
    }

    /// What keys and values are rounded to.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Prepares for a step of `batch` rows of `seq_len` tokens at `start_pos`.
    ///
    /// # Errors
    /// [`Error::StartPos`] or [`Error::BatchSize`] if the step doesn't continue what is cached.
    pub(crate) fn begin(&mut self, batch: usize, seq_len: usize, start_pos: usize) -> Result<()> {
        if start_pos == 0 {
            self.len = 0;
            // Another batch size can't reuse the buffers.
            if batch != self.batch {
                self.layers.fill_with(|| None);
            }
        } else if start_pos != self.len {
            return Err(Error::StartPos { expected: self.len, found: start_pos });
        } else if batch != self.batch {
            return Err(Error::BatchSize { expected: self.batch, found: batch });
        }
        (self.batch, self.seq_len) = (batch, seq_len);
        Ok(())
    }

    /// Makes the step's tokens part of the sequence. A step that failed half-way is simply not committed:
    /// its rows are written again by the next one.
    pub(crate) fn commit(&mut self) {
        self.len += self.seq_len;
    }
}

impl AttentionCache for DenseCache {
    fn attend(&mut self, layer_idx: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let step = Step { batch: self.batch, seq_len: self.seq_len, start_pos: self.len };
        let (_, num_kv_heads, head_dim) = k.dims3()?;
        let layer = &mut self.layers[layer_idx];
        let layer = match layer {
            Some(layer) => layer,
            None => layer.insert(match &self.ops {
                Ops::Kernels(cpu, _) if kernels_attend(head_dim) => KeyValues::Buffers(
                    Buffers::new(self.dtype, num_kv_heads, head_dim, cpu.clone()),
                ),
                _ => KeyValues::Tensors(Tensors::new(self.dtype, step.batch, k)?),
            }),
        };
        match layer {
            KeyValues::Buffers(buffers) => buffers.attend(step, q, k, v),
            KeyValues::Tensors(tensors) => tensors.attend(step, q, k, v),
        }
    }
}

/// Whether the kernels attend heads of this size; else candle does.
pub(crate) fn kernels_attend(head_dim: usize) -> bool {
    head_dim.is_multiple_of(16)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use nv_kernels::Precision;

    use super::*;
    use crate::ops::Cpu;

    const HEAD_DIM: usize = 16;

    /// Caches of one layer: in the kernels' buffers, and in tensors.
    fn caches() -> [DenseCache; 2] {
        let kernels = Ops::Kernels(Cpu::new(2).unwrap(), Precision::F32);
        [kernels, Ops::Candle(Device::Cpu)].map(|ops| DenseCache::new(1, DType::F32, ops))
    }

    fn step(
        cache: &mut DenseCache,
        batch: usize,
        seq_len: usize,
        start_pos: usize,
    ) -> Result<Tensor> {
        cache.begin(batch, seq_len, start_pos)?;
        let values: Vec<f32> = (0..batch * seq_len * HEAD_DIM)
            .map(|i| ((i / HEAD_DIM % seq_len + start_pos + i % HEAD_DIM) as f32).sin())
            .collect();
        let x = Tensor::from_vec(values, (batch * seq_len, 1, HEAD_DIM), &Device::Cpu)?;
        let attended = cache.attend(0, &x, &x, &x)?;
        cache.commit();
        Ok(attended)
    }

    #[test]
    fn a_step_must_continue_the_sequence_or_start_over() {
        let check = |cache: &mut DenseCache, (batch, seq_len, start_pos), expected: &str| {
            let error = step(cache, batch, seq_len, start_pos).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        for mut cache in caches() {
            check(
                &mut cache,
                (1, 1, 3),
                "start_pos: the cache holds 0 positions, so 0 continues it and 0 starts over; found 3",
            );
            step(&mut cache, 2, 4, 0).unwrap();
            check(
                &mut cache,
                (2, 1, 5),
                "start_pos: the cache holds 4 positions, so 4 continues it and 0 starts over; found 5",
            );
            check(
                &mut cache,
                (1, 1, 4),
                "input_ids: the cached sequence has batch size 2, found 1; start over with start_pos 0",
            );
            step(&mut cache, 2, 1, 4).unwrap();
            step(&mut cache, 1, 1, 0).unwrap();
            assert_eq!(cache.len, 1);
        }
    }

    #[test]
    fn growth_keeps_what_is_cached_and_both_kinds_agree() {
        const LEN: usize = 150;
        let [_, mut tensors] = caches();
        let whole = step(&mut tensors, 2, LEN, 0).unwrap().reshape((2, LEN, HEAD_DIM)).unwrap();
        for mut cache in caches() {
            for start_pos in 0..LEN {
                let one = step(&mut cache, 2, 1, start_pos).unwrap();
                let same = whole.narrow(1, start_pos, 1).unwrap().squeeze(1).unwrap();
                let difference = (one - same).unwrap().abs().unwrap().max_all().unwrap();
                assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "position {start_pos}");
            }
        }
    }

    #[test]
    fn growth_after_a_prompt_of_any_length_keeps_it() {
        for prompt_len in 1..150 {
            let [mut kernels, mut tensors] = caches().map(|mut cache| {
                step(&mut cache, 1, prompt_len, 0).unwrap();
                cache
            });
            // The last of these steps is past what the first had room for.
            for (seq_len, start_pos) in [(1, prompt_len), (prompt_len + 64, prompt_len + 1)] {
                let [a, b] = [&mut kernels, &mut tensors]
                    .map(|cache| step(cache, 1, seq_len, start_pos).unwrap());
                let difference = (a - b).unwrap().abs().unwrap().max_all().unwrap();
                let difference = difference.to_scalar::<f32>().unwrap();
                assert!(difference < 1e-5, "a prompt of {prompt_len}: {difference}");
            }
        }
    }

    #[test]
    fn a_step_that_was_not_committed_leaves_no_trace() {
        for (mut cache, mut clean) in caches().into_iter().zip(caches()) {
            step(&mut cache, 1, 3, 0).unwrap();
            cache.begin(1, 2, 3).unwrap();
            let junk = Tensor::full(9f32, (2, 1, HEAD_DIM), &Device::Cpu).unwrap();
            cache.attend(0, &junk, &junk, &junk).unwrap();

            let again = step(&mut cache, 1, 2, 3).unwrap().to_vec2::<f32>().unwrap();
            step(&mut clean, 1, 3, 0).unwrap();
            assert_eq!(again, step(&mut clean, 1, 2, 3).unwrap().to_vec2::<f32>().unwrap());
        }
    }
}
