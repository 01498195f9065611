//! The calls over a tier's kernels.

use crate::kv::{KvLayout, KvMut, Sequence};
use crate::linear::kernel::Precision;
use crate::linear::{Linear, Scratch};
use crate::matrix::Matrix;
use crate::pool::Pool;
use crate::rows::{self, NormAndRotate};
use crate::table::Kernels;

/// A result takes the place of what its vector held, in the same capacity if that is large enough.
impl Kernels {
    /// `x @ weightᵀ` for several weights that share their input, in one parallel region.
    ///
    /// Shapes: `x` `[num_tokens, in_features]`; each output becomes `[num_tokens, out_features]` of its weight.
    /// Dtypes: `x` f32, rounded to bf16 if `precision` says so; products summed in f32. Over weights in integers `x` is quantised to
    /// 8 bits a token and group of K, whatever `precision` says; products of a group are summed as integers, groups in f32.
    ///
    /// # Panics
    /// If the shapes do not fit, or if f32 weights are to be multiplied in [`Precision::Bf16`].
    pub fn linear(
        &self,
        pool: &Pool,
        x: &[f32],
        precision: Precision,
        scratch: &mut Scratch,
        outputs: &mut [Linear<'_>],
    ) {
        crate::linear::linear(self, pool, x, precision, scratch, outputs);
    }

    /// `silu(x @ gateᵀ) · (x @ upᵀ)`, in one parallel region.
    ///
    /// Shapes: `x` `[num_tokens, in_features]`; `out` becomes `[num_tokens, out_features]` of `gate` and `up`.
    /// Dtypes: as [`Self::linear`].
    ///
    /// # Panics
    /// As [`Self::linear`].
    pub fn swiglu(
        &self,
        pool: &Pool,
        x: &[f32],
        precision: Precision,
        scratch: &mut Scratch,
        (gate, up): (Matrix<'_>, Matrix<'_>),
        out: &mut Vec<f32>,
    ) {
        crate::linear::swiglu(self, pool, x, precision, scratch, (gate, up), out);
    }

    /// `x + y`, element by element.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&self, pool: &Pool, x: &[f32], y: &[f32], out: &mut Vec<f32>) {
        rows::add(pool, x, y, out);
    }

    /// RMS norm of each row: `weight · x / sqrt(mean(x²) + eps)`.
    ///
    /// Shapes: `x` `[num_rows, size]`, and so becomes `out`; `weight` `[size]`. Dtypes: f32.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rms_norm(&self, pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut Vec<f32>) {
        rows::rms_norm(self, pool, x, weight, eps, out);
    }

    /// RMS norm of each head, then its rotation by its token's position, first half against second.
    ///
    /// Shapes: `x` `[num_tokens, num_heads, head_dim]`, and so becomes `out`. Dtypes: f32.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn norm_and_rotate(
        &self,
        pool: &Pool,
        x: &[f32],
        how: NormAndRotate<'_>,
        out: &mut Vec<f32>,
    ) {
        rows::norm_and_rotate(self, pool, x, how, out);
    }

    /// The rows of `table` that `ids` name, as f32.
    ///
    /// Shapes: `table` `[vocab_size, size]`; `out` becomes `[ids.len(), size]`.
    ///
    /// # Panics
    /// If an id is no row, or the shapes do not fit.
    pub fn embed(&self, pool: &Pool, table: Matrix<'_>, ids: &[u32], out: &mut Vec<f32>) {
        rows::embed(pool, table, ids, out);
    }

    /// Puts the keys and values of a batch's new tokens into their blocks.
    ///
    /// Shapes: `k` and `v` `[num_tokens, num_kv_heads, head_dim]`, packed as `sequences` say. Dtypes: f32, rounded to
    /// the cache's.
    ///
    /// # Panics
    /// If a shape, a block id or the layout does not fit, or the sequences are not packed one after another.
    pub fn store_kv(
        &self,
        pool: &Pool,
        layout: &KvLayout,
        kv: &mut KvMut<'_>,
        sequences: &[Sequence<'_>],
        k: &[f32],
        v: &[f32],
    ) {
        crate::kv::store(self, pool, layout, kv, sequences, k, v);
    }

    /// Attends a batch's queries over everything that their sequences hold, the batch's own tokens included, which
    /// [`Self::store_kv`] must have stored.
    ///
    /// Shapes: `q` `[num_tokens, num_heads, head_dim]`, and so becomes `out`; the number of heads follows from the length of `q`.
    /// Dtypes: f32; with a bfloat16 cache `q`
    /// and the softmax weights are rounded to bfloat16 before they are multiplied. Scores are scaled by
    /// `1 / sqrt(head_dim)`.
    ///
    /// # Panics
    /// If a shape, a block id or the layout does not fit, or the sequences are not packed one after another.
    pub fn attention(
        &self,
        pool: &Pool,
        layout: &KvLayout,
        kv: &KvMut<'_>,
        sequences: &[Sequence<'_>],
        q: &[f32],
        out: &mut Vec<f32>,
    ) {
        crate::attention::run(self, pool, layout, kv, sequences, q, out);
    }
}
