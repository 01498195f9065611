//! Where keys and values live between calls: the trait that the graph sees, and the contiguous cache.
//!
//! Knows nothing of layers' weights; a paged cache implements the same trait elsewhere.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::ops;

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
    layers: Vec<Option<KeyValue>>,
    /// Positions that every layer holds.
    len: usize,
    /// Batch rows of the cached sequence and tokens a row of the step under way.
    batch: usize,
    seq_len: usize,
}

/// Keys and values of one layer: `[batch, num_kv_heads, capacity, head_dim]` each, written in place.
#[derive(Debug, Clone)]
struct KeyValue {
    k: Tensor,
    v: Tensor,
}

impl DenseCache {
    /// An empty cache for `num_layers` layers that rounds keys and values to `dtype`.
    pub(crate) fn new(num_layers: usize, dtype: DType) -> Self {
        Self { dtype, layers: vec![None; num_layers], len: 0, batch: 0, seq_len: 0 }
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
                self.layers.fill(None);
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
        let (batch, seq_len) = (self.batch, self.seq_len);
        let (num_tokens, num_heads, head_dim) = q.dims3()?;
        let num_kv_heads = k.dim(1)?;
        let kv_len = self.len + seq_len;

        // [num_tokens, num_kv_heads, head_dim] -> [batch, num_kv_heads, seq_len, head_dim]
        let by_head = |x: &Tensor| -> candle_core::Result<Tensor> {
            x.to_dtype(self.dtype)?
                .reshape((batch, seq_len, num_kv_heads, head_dim))?
                .transpose(1, 2)?
                .contiguous()
        };
        let (k, v) = (by_head(k)?, by_head(v)?);
        let layer = KeyValue::with_room(self.layers[layer_idx].as_ref(), self.len, kv_len, &k)?;
        layer.k.slice_set(&k, 2, self.len)?;
        layer.v.slice_set(&v, 2, self.len)?;

        let attended = ops::causal_attention(
            &q.reshape((batch, seq_len, num_heads, head_dim))?,
            &layer.k.narrow(2, 0, kv_len)?,
            &layer.v.narrow(2, 0, kv_len)?,
        )?; // [batch, seq_len, num_heads, head_dim]
        self.layers[layer_idx] = Some(layer);
        Ok(attended.reshape((num_tokens, num_heads * head_dim))?)
    }
}

impl KeyValue {
    /// `current` itself, or a copy of its first `len` positions with at least `needed` of room, at least
    /// doubled so that appending costs amortised constant time. `like` gives shape, dtype and device.
    fn with_room(
        current: Option<&Self>,
        len: usize,
        needed: usize,
        like: &Tensor,
    ) -> candle_core::Result<Self> {
        let capacity = match current {
            Some(kv) => kv.k.dim(2)?,
            None => 0,
        };
        if let Some(kv) = current
            && needed <= capacity
        {
            return Ok(kv.clone());
        }
        let (batch, num_kv_heads, _, head_dim) = like.dims4()?;
        let shape = (batch, num_kv_heads, needed.max(2 * capacity), head_dim);
        let grow = |old: Option<&Tensor>| -> candle_core::Result<Tensor> {
            let new = Tensor::zeros(shape, like.dtype(), like.device())?;
            if let Some(old) = old
                && len > 0
            {
                new.slice_set(&old.narrow(2, 0, len)?.contiguous()?, 2, 0)?;
            }
            Ok(new)
        };
        Ok(Self { k: grow(current.map(|kv| &kv.k))?, v: grow(current.map(|kv| &kv.v))? })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn step(
        cache: &mut DenseCache,
        batch: usize,
        seq_len: usize,
        start_pos: usize,
    ) -> Result<Tensor> {
        cache.begin(batch, seq_len, start_pos)?;
        let values: Vec<f32> = (0..batch * seq_len * 2)
            .map(|i| ((i / 2 % seq_len + start_pos) as f32).sin())
            .collect();
        let x = Tensor::from_vec(values, (batch * seq_len, 1, 2), &Device::Cpu)?;
        let attended = cache.attend(0, &x, &x, &x)?;
        cache.commit();
        Ok(attended)
    }

    #[test]
    fn a_step_must_continue_the_sequence_or_start_over() {
        let mut cache = DenseCache::new(1, DType::F32);
        let check = |cache: &mut DenseCache, (batch, seq_len, start_pos), expected: &str| {
            let error = step(cache, batch, seq_len, start_pos).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
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

    #[test]
    fn growth_keeps_what_is_cached() {
        let whole = step(&mut DenseCache::new(1, DType::F32), 2, 40, 0).unwrap();
        let whole = whole.reshape((2, 40, 2)).unwrap();
        let mut cache = DenseCache::new(1, DType::F32);
        for start_pos in 0..40 {
            let one = step(&mut cache, 2, 1, start_pos).unwrap();
            let same = whole.narrow(1, start_pos, 1).unwrap().squeeze(1).unwrap();
            let difference = (one - same).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-6, "position {start_pos}");
        }
    }

    #[test]
    fn a_step_that_was_not_committed_leaves_no_trace() {
        let mut cache = DenseCache::new(1, DType::F32);
        step(&mut cache, 1, 3, 0).unwrap();
        cache.begin(1, 2, 3).unwrap();
        let junk = Tensor::full(9f32, (2, 1, 2), &Device::Cpu).unwrap();
        cache.attend(0, &junk, &junk, &junk).unwrap();

        let again = step(&mut cache, 1, 2, 3).unwrap().to_vec2::<f32>().unwrap();
        let mut clean = DenseCache::new(1, DType::F32);
        step(&mut clean, 1, 3, 0).unwrap();
        assert_eq!(again, step(&mut clean, 1, 2, 3).unwrap().to_vec2::<f32>().unwrap());
    }
}
