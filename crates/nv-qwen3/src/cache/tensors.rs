//! One layer's keys and values as candle tensors, on any device.

use candle_core::{DType, Tensor};

use super::Step;
use crate::error::Result;
use crate::ops::candle;

/// Keys and values, `[batch, num_kv_heads, capacity, head_dim]` each, written in place.
#[derive(Debug)]
pub(super) struct Tensors {
    k: Tensor,
    v: Tensor,
}

impl Tensors {
    /// No room yet, for keys like `like`, `[num_tokens, num_kv_heads, head_dim]`, rounded to `dtype`.
    pub(super) fn new(dtype: DType, batch: usize, like: &Tensor) -> Result<Self> {
        let (_, num_kv_heads, head_dim) = like.dims3()?;
        let empty = Tensor::zeros((batch, num_kv_heads, 0, head_dim), dtype, like.device())?;
        Ok(Self { k: empty.clone(), v: empty })
    }

    /// Stores the step's keys and values and attends its queries. Shapes and dtypes as for
    /// [`AttentionCache::attend`](super::AttentionCache::attend).
    pub(super) fn attend(
        &mut self,
        step: Step,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        let Step { batch, seq_len, start_pos } = step;
        let (num_tokens, num_heads, head_dim) = q.dims3()?;
        let num_kv_heads = k.dim(1)?;
        // [num_tokens, num_kv_heads, head_dim] -> [batch, num_kv_heads, seq_len, head_dim]
        let by_head = |x: &Tensor| -> Result<Tensor> {
            let x =
                x.to_dtype(self.k.dtype())?.reshape((batch, seq_len, num_kv_heads, head_dim))?;
            Ok(x.transpose(1, 2)?.contiguous()?)
        };
        let (k, v) = (by_head(k)?, by_head(v)?);
        self.make_room(step)?;
        self.k.slice_set(&k, 2, start_pos)?;
        self.v.slice_set(&v, 2, start_pos)?;

        let attended = candle::causal_attention(
            &q.reshape((batch, seq_len, num_heads, head_dim))?,
            &self.k.narrow(2, 0, step.kv_len())?,
            &self.v.narrow(2, 0, step.kv_len())?,
        )?; // [batch, seq_len, num_heads, head_dim]
        Ok(attended.reshape((num_tokens, num_heads * head_dim))?)
    }

    /// Makes room for the step, at least twice what there was, so that appending costs amortised constant time.
    fn make_room(&mut self, step: Step) -> Result<()> {
        let capacity = self.k.dim(2)?;
        if step.kv_len() <= capacity {
            return Ok(());
        }
        let grow = |old: &Tensor| -> Result<Tensor> {
            let (batch, num_kv_heads, _, head_dim) = old.dims4()?;
            let shape = (batch, num_kv_heads, step.kv_len().max(2 * capacity), head_dim);
            let new = Tensor::zeros(shape, old.dtype(), old.device())?;
            if step.start_pos > 0 {
                new.slice_set(&old.narrow(2, 0, step.start_pos)?.contiguous()?, 2, 0)?;
            }
            Ok(new)
        };
        (self.k, self.v) = (grow(&self.k)?, grow(&self.v)?);
        Ok(())
    }
}
