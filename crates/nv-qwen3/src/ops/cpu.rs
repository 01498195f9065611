//! The CPU: kernels of one tier, a pool of threads, and the way between candle tensors and slices.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::{Device, Tensor};
use nv_kernels::{
    Kernels, KvLayout, KvMut, Linear, NormAndRotate, Pool, Precision, Scratch, Sequence,
};

use super::Angles;
use crate::elements::Elements;
use crate::error::{Error, Result};
use crate::weight::Weight;

/// The kernels and threads that models compute with on the CPU. Clones share them.
#[derive(Debug, Clone)]
pub struct Cpu {
    kernels: &'static Kernels,
    pool: Arc<Pool>,
    scratch: Arc<Mutex<Scratch>>,
}

impl Cpu {
    /// The best tier of the machine, or the one that `NV_ISA` names, on `threads` threads.
    ///
    /// # Errors
    /// [`Error::Kernels`](crate::Error::Kernels) if `NV_ISA` names no tier of this machine, or for a senseless number
    /// of threads.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_kernels(Kernels::best()?, threads)
    }

    /// `kernels` on `threads` threads.
    ///
    /// # Errors
    /// [`Error::Kernels`](crate::Error::Kernels) for a senseless number of threads.
    pub fn with_kernels(kernels: &'static Kernels, threads: usize) -> Result<Self> {
        let pool = Arc::new(Pool::new(threads)?);
        Ok(Self { kernels, pool, scratch: Arc::default() })
    }

    /// The one that models share unless they are given another: the best tier, a thread a physical core.
    ///
    /// # Errors
    /// [`Error::Kernels`](crate::Error::Kernels) if `NV_ISA` names no tier of this machine.
    pub fn shared() -> Result<Self> {
        static SHARED: OnceLock<Cpu> = OnceLock::new();
        if let Some(shared) = SHARED.get() {
            return Ok(shared.clone());
        }
        let cpu = Self::new(Pool::default_threads())?;
        Ok(SHARED.get_or_init(|| cpu).clone())
    }

    /// The same threads with kernels whose results are the same bits on every machine: see [`Kernels::portable`].
    #[must_use]
    pub fn portable(&self) -> Self {
        Self { kernels: self.kernels.portable(), ..self.clone() }
    }

    pub(super) fn shared_pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool)
    }

    /// The kernels.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Stores the keys and values of a batch's tokens and attends its queries over all that their sequences hold: what
    /// an [`AttentionCache`](crate::AttentionCache) of kernel blocks does for a layer, whose blocks are `kv`.
    ///
    /// Shapes: `q` `[num_tokens, num_heads, head_dim]`, `k` and `v` `[num_tokens, num_kv_heads, head_dim]`, packed as
    /// `sequences` say; returns `[num_tokens, num_heads * head_dim]`. Dtypes: f32; keys and values rounded to `kv`'s.
    ///
    /// # Errors
    /// [`Error::Shape`] if a tensor has not the shape that `layout` and `sequences` imply, [`Error::Candle`] if it is not
    /// contiguous f32 on the CPU.
    ///
    /// # Panics
    /// If a block id or the layout does not fit, or the sequences are not packed one after another.
    pub fn attend(
        &self,
        layout: &KvLayout,
        mut kv: KvMut<'_>,
        sequences: &[Sequence<'_>],
        [q, k, v]: [&Tensor; 3],
    ) -> Result<Tensor> {
        let &KvLayout { num_kv_heads, head_dim, .. } = layout;
        let num_tokens = sequences.iter().map(|sequence| sequence.num_tokens).sum();
        // The kernels see numbers, not shapes: these could be another number of heads, or of tokens.
        let groups = q.dims3()?.1 / num_kv_heads;
        let num_heads = num_kv_heads * groups.max(1);
        Error::check_shape("q", q, &[num_tokens, num_heads, head_dim])?;
        Error::check_shape("k", k, &[num_tokens, num_kv_heads, head_dim])?;
        Error::check_shape("v", v, &[num_tokens, num_kv_heads, head_dim])?;
        let (q, k, v) = (Elements::of(q)?, Elements::of(k)?, Elements::of(v)?);
        self.kernels.store_kv(&self.pool, layout, &mut kv, sequences, k.as_slice()?, v.as_slice()?);
        let mut attended = Vec::new();
        self.kernels.attention(&self.pool, layout, &kv, sequences, q.as_slice()?, &mut attended);
        Ok(Tensor::from_vec(attended, (num_tokens, num_heads * head_dim), &Device::Cpu)?)
    }

    pub(super) fn embed(&self, table: &Weight, ids: &[u32]) -> Result<Tensor> {
        let table = table.bytes()?;
        let table = table.matrix();
        let size = table.in_features();
        let mut out = Vec::new();
        self.kernels.embed(&self.pool, table, ids, &mut out);
        Ok(Tensor::from_vec(out, (ids.len(), size), &Device::Cpu)?)
    }

    pub(super) fn linear(
        &self,
        x: &Tensor,
        precision: Precision,
        weights: &[&Weight],
    ) -> Result<Vec<Tensor>> {
        let num_tokens = x.dim(0)?;
        let x = Elements::of(x)?;
        let weights = weights.iter().map(|weight| weight.bytes()).collect::<Result<Vec<_>>>()?;
        let weights: Vec<_> = weights.iter().map(|weight| weight.matrix()).collect();
        let mut outs = vec![Vec::new(); weights.len()];
        let mut outputs: Vec<Linear<'_>> =
            weights.iter().zip(&mut outs).map(|(&weight, out)| Linear { weight, out }).collect();
        self.kernels.linear(
            &self.pool,
            x.as_slice()?,
            precision,
            &mut self.scratch(),
            &mut outputs,
        );
        weights
            .iter()
            .zip(outs)
            .map(|(weight, out)| {
                Ok(Tensor::from_vec(out, (num_tokens, weight.out_features()), &Device::Cpu)?)
            })
            .collect()
    }

    pub(super) fn swiglu(
        &self,
        x: &Tensor,
        precision: Precision,
        gate: &Weight,
        up: &Weight,
    ) -> Result<Tensor> {
        let num_tokens = x.dim(0)?;
        let x = Elements::of(x)?;
        let (gate, up) = (gate.bytes()?, up.bytes()?);
        let (gate, up) = (gate.matrix(), up.matrix());
        let mut out = Vec::new();
        self.kernels.swiglu(
            &self.pool,
            x.as_slice()?,
            precision,
            &mut self.scratch(),
            (gate, up),
            &mut out,
        );
        Ok(Tensor::from_vec(out, (num_tokens, gate.out_features()), &Device::Cpu)?)
    }

    pub(super) fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let (x_values, y_values) = (Elements::of(x)?, Elements::of(y)?);
        let mut out = Vec::new();
        self.kernels.add(&self.pool, x_values.as_slice()?, y_values.as_slice()?, &mut out);
        Ok(Tensor::from_vec(out, x.shape(), &Device::Cpu)?)
    }

    pub(super) fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let (values, weight) = (Elements::of(x)?, Elements::of(weight)?);
        let mut out = Vec::new();
        self.kernels.rms_norm(
            &self.pool,
            values.as_slice()?,
            weight.as_slice()?,
            to_f32(eps),
            &mut out,
        );
        Ok(Tensor::from_vec(out, x.shape(), &Device::Cpu)?)
    }

    pub(super) fn norm_and_rotate(
        &self,
        x: &Tensor,
        weight: &Tensor,
        eps: f64,
        angles: &Angles,
    ) -> Result<Tensor> {
        let (values, weight) = (Elements::of(x)?, Elements::of(weight)?);
        let (cos, sin) = (Elements::of(&angles.cos)?, Elements::of(&angles.sin)?);
        let how = NormAndRotate {
            weight: weight.as_slice()?,
            eps: to_f32(eps),
            cos: cos.as_slice()?,
            sin: sin.as_slice()?,
        };
        let mut out = Vec::new();
        self.kernels.norm_and_rotate(&self.pool, values.as_slice()?, how, &mut out);
        Ok(Tensor::from_vec(out, x.shape(), &Device::Cpu)?)
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        // Nothing in it outlives a call, so a panic in an earlier one does no harm.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "eps joins a sum in f32")]
fn to_f32(eps: f64) -> f32 {
    eps as f32
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn attention_takes_the_tokens_and_heads_that_it_is_told_of() {
        let layout = KvLayout { block_size: 16, num_kv_heads: 2, head_dim: 16 };
        let sequence = Sequence { first_token: 0, num_tokens: 3, start_pos: 0, block_table: &[0] };
        let cpu = Cpu::new(1).unwrap();
        let check = |shapes: [[usize; 3]; 3], expected: Option<&str>| {
            let [q, k, v] = shapes.map(|s| Tensor::zeros(&s, DType::F32, &Device::Cpu).unwrap());
            let (mut keys, mut values) = ([0.0; 16 * 2 * 16], [0.0; 16 * 2 * 16]);
            let kv = KvMut::F32 { k: &mut keys, v: &mut values };
            let attended = cpu.attend(&layout, kv, &[sequence], [&q, &k, &v]);
            assert_eq!(attended.err().map(|error| error.to_string()).as_deref(), expected);
        };
        let (q, kv) = ([3, 4, 16], [3, 2, 16]);
        check([q, kv, kv], None);
        // As many numbers as 4 heads of 3 tokens have.
        let others = [6, 2, 16];
        check([others, kv, kv], Some("q: expected shape [3, 2, 16], found [6, 2, 16]"));
        check([[3, 3, 16], kv, kv], Some("q: expected shape [3, 2, 16], found [3, 3, 16]"));
        check([q, [6, 1, 16], kv], Some("k: expected shape [3, 2, 16], found [6, 1, 16]"));
        check([q, kv, [3, 1, 32]], Some("v: expected shape [3, 2, 16], found [3, 1, 32]"));
    }
}
