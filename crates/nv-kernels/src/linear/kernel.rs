//! What a tier computes of a linear layer, for the parts that know neither formats nor instruction sets.

use std::ops::Range;

use super::inputs::{InputLayout, Inputs};
use super::rows::Rows;
use crate::results::Outputs;

/// What a linear layer over floating-point weights does with its input. Over integers it is quantised, whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Rounds it once to bfloat16, as the weights are.
    Bf16,
    /// Takes it as it is; bfloat16 weights are widened.
    F32,
}

/// How inputs are prepared. Kernels of one tier that take the same form share prepared inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputForm {
    /// bfloat16.
    Bf16,
    /// f32 rounded to bfloat16, in the order of widened bfloat16 weights.
    Rounded,
    /// f32, in the order of widened bfloat16 weights.
    Unrounded,
    /// f32, in the order of f32 weights.
    F32,
    /// 8-bit integers, by groups of so many steps.
    Int8 {
        /// Steps of a group.
        steps: usize,
    },
}

/// One tier's linear layers over weights of one format.
pub(crate) trait LinearKernel: Sync {
    fn input_form(&self) -> InputForm;

    /// Bytes of a prepared input.
    fn input_bytes(&self) -> usize;

    /// How so many tokens of `k` elements are laid out.
    fn layout(&self, num_tokens: usize, k: usize) -> InputLayout;

    /// Prepares the tokens of a tile, rows of `k`, as `layout` says.
    ///
    /// # Safety
    /// The machine has the kernel's tier.
    #[expect(unsafe_code, reason = "kernels need their instruction set")]
    unsafe fn prepare(&self, tile: &[f32], k: usize, layout: &InputLayout, out: &mut [u8]);

    /// `rows` as [`Self::multiply`] takes them: they themselves, or a copy in `copy`.
    ///
    /// # Safety
    /// The machine has the kernel's tier.
    #[expect(unsafe_code, reason = "kernels need their instruction set")]
    unsafe fn stage<'a>(
        &self,
        rows: Rows<'a>,
        layout: &InputLayout,
        copy: &'a mut Vec<u8>,
    ) -> Rows<'a>;

    /// Computes `x @ rowsᵀ`, `[num_tokens, num_rows]`, for the tokens of a panel.
    ///
    /// # Safety
    /// The machine has the kernel's tier.
    #[expect(unsafe_code, reason = "kernels need their instruction set")]
    unsafe fn multiply(&self, task: Task<'_>, scratch: &mut KernelScratch, out: Outputs<'_>);
}

/// Some weight rows by a panel of tokens.
#[derive(Debug, Clone)]
pub(crate) struct Task<'a> {
    /// As [`LinearKernel::stage`] gave them.
    pub(crate) rows: Rows<'a>,
    /// Rows that the thread is likely to want next, of the same format: the kernel prefetches them.
    pub(crate) next: Option<Rows<'a>>,
    pub(crate) x: Inputs<'a, u8>,
    /// The tiles of the panel.
    pub(crate) panel: Range<usize>,
}

/// What a thread keeps from task to task for a kernel's own use.
#[derive(Debug, Default)]
pub(crate) struct KernelScratch {
    /// Sums between two segments of K.
    pub(crate) sums: Vec<u8>,
    /// A copy of rows.
    pub(crate) rows: Vec<u8>,
}
