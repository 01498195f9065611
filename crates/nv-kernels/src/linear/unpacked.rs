//! Many tokens by weights that are unpacked first: a task's rows become f32 in the order of their products, once, and these are
//! multiplied by all tokens. Elsewhere each tile unpacks what it loads.
//!
//! The products are the same, in the same order: no bit depends on it.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]

use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};

use super::inputs::{InputLayout, aligned};
use super::kernel::{InputForm, KernelScratch, LinearKernel, Task};
use super::micro_kernel::{Dot, MicroKernel, Operands, layout};
use super::rows::{RowMajor, Rows};
use crate::formats::Format;
use crate::matrix::Matrix;
use crate::results::Outputs;
use crate::tier::{Compile, Work};

/// The fewest tokens for which bfloat16 weights are unpacked first: by the operations saved, which are two a load and tile, against
/// those of unpacking and storing. Not measured by number of tokens.
pub(crate) const FROM_BF16: usize = 64;

/// The same of f32 weights, whose loads off a cache line cost more.
pub(crate) const FROM_F32: usize = 32;

/// Linear layers by `K`, or from some number of tokens on by `U` over what `K`'s weights unpack to.
pub(crate) struct Unpacking<K: MicroKernel, U> {
    dot: Dot<K>,
    /// The fewest tokens that repay unpacking: it costs as much for one as for many.
    min_tokens: usize,
    unpacked: PhantomData<U>,
}

impl<K: MicroKernel, U> Unpacking<K, U> {
    pub(crate) const fn new(dot: Dot<K>, min_tokens: usize) -> Self {
        Self { dot, min_tokens, unpacked: PhantomData }
    }

    fn is_unpacked(&self, num_tokens: usize) -> bool {
        num_tokens >= self.min_tokens
    }
}

#[expect(unsafe_code, reason = "kernels need their instruction set")]
impl<K, U> LinearKernel for Unpacking<K, U>
where
    K: MicroKernel<Input = f32, WeightVector: Pod>,
    U: MicroKernel<Tier = K::Tier, Weight = f32, Input = f32>,
{
    fn input_form(&self) -> InputForm {
        self.dot.input_form()
    }

    fn input_bytes(&self) -> usize {
        self.dot.input_bytes()
    }

    fn layout(&self, num_tokens: usize, k: usize) -> InputLayout {
        if self.is_unpacked(num_tokens) {
            layout::<U>(num_tokens, k)
        } else {
            self.dot.layout(num_tokens, k)
        }
    }

    unsafe fn prepare(&self, tile: &[f32], k: usize, layout: &InputLayout, out: &mut [u8]) {
        // SAFETY: the caller vouches for the tier.
        unsafe { self.dot.prepare(tile, k, layout, out) };
    }

    unsafe fn stage<'a>(
        &self,
        rows: Rows<'a>,
        layout: &InputLayout,
        copy: &'a mut Vec<u8>,
    ) -> Rows<'a> {
        if !self.is_unpacked(layout.num_tokens) {
            // SAFETY: the caller vouches for the tier.
            return unsafe { self.dot.stage(rows, layout, copy) };
        }
        // Rows that are whole pages apart would share few of the first-level cache's places.
        let stride = layout.padded_k + K::STEP;
        let copy = aligned(copy, rows.len * stride * size_of::<f32>());
        // SAFETY: the caller vouches for the tier.
        let tier = unsafe { K::Tier::new() };
        tier.compile(Unpack::<K> {
            tier,
            rows: RowMajor::new(bytemuck::cast_slice(rows.bytes()), rows.matrix.in_features()),
            steps: layout.padded_k / K::STEP,
            out: bytemuck::cast_slice_mut(copy),
        });
        Rows { matrix: Matrix::new(Format::F32, copy, stride), first: 0, len: rows.len }
    }

    unsafe fn multiply(&self, task: Task<'_>, scratch: &mut KernelScratch, out: Outputs<'_>) {
        if !self.is_unpacked(task.x.layout().num_tokens) {
            // SAFETY: the caller vouches for the tier.
            return unsafe { self.dot.multiply(task, scratch, out) };
        }
        // SAFETY: the caller vouches for the tier.
        let tier = unsafe { K::Tier::new() };
        U::multiply(tier, Operands::of(task), scratch, out);
    }
}

/// Unpacks rows: the vectors of one step after the other, and room for a step more after each row.
struct Unpack<'a, K: MicroKernel> {
    tier: K::Tier,
    rows: RowMajor<'a, K::Weight>,
    /// Of a row.
    steps: usize,
    out: &'a mut [[K::WeightVector; 2]],
}

impl<K: MicroKernel<WeightVector: Pod>> Work for Unpack<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        const { assert!(K::VECTORS == 2) };
        let Self { tier, rows, steps, out } = self;
        for (r, out) in out.chunks_exact_mut(steps + 1).enumerate() {
            let (whole, rest) = rows.row(r).split_at(rows.k() / K::STEP * K::STEP);
            let whole: &[K::WeightStep] = bytemuck::cast_slice(whole);
            for (step, out) in whole.iter().zip(&mut *out) {
                *out = unpacked::<K>(tier, step);
            }
            if !rest.is_empty() {
                let mut last = K::WeightStep::zeroed();
                let weights: &mut [K::Weight] =
                    bytemuck::cast_slice_mut(std::slice::from_mut(&mut last));
                weights[..rest.len()].copy_from_slice(rest);
                out[whole.len()] = unpacked::<K>(tier, &last);
            }
        }
    }
}

/// The vectors of a step.
#[inline(always)]
fn unpacked<K: MicroKernel>(tier: K::Tier, step: &K::WeightStep) -> [K::WeightVector; 2] {
    [K::weights::<0, false>(tier, step), K::weights::<1, false>(tier, step)]
}
