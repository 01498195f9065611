//! The table of kernels of one tier, and the safe calls over it.

use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

use half::bf16;

use crate::block::{Tokens, TokensShape, Weights};
use crate::elementwise::{self, Elementwise};
use crate::error::Result;
use crate::isa::Isa;
use crate::kv::{KvLayout, KvMut, Sequence};
use crate::limits::Products;
use crate::linear::{Linear, Precision, Scratch};
use crate::outer::{self, Outer};
use crate::panel::{Matrix, Outputs};
use crate::pool::Pool;
use crate::rows::{self, NormAndRotate};
use crate::scalar;
#[cfg(target_arch = "x86_64")]
use crate::{avx2, avx512};

/// A linear layer's kernel and how it wants its inputs.
pub(crate) struct LinearKernel<W, X> {
    /// How so many tokens of `k` elements are laid out.
    pub(crate) shape: fn(usize, usize) -> TokensShape,
    /// Computes `x @ wᵀ`, `[num_tokens, num_rows]`, for some weight rows, which are whole steps, and a part of the tokens.
    pub(crate) block: unsafe fn(Weights<'_, W>, Tokens<'_, X>, Range<usize>, Outputs<'_>),
}

/// The [`LinearKernel`] that a module defines.
macro_rules! linear_kernel {
    ($($module:tt)*) => {
        LinearKernel { shape: $($module)*::shape, block: $($module)*::block }
    };
}

/// The kernels of one tier. Only handed out for a tier that the machine has.
///
/// A result takes the place of what its vector held, in the same room if that is large enough.
pub struct Kernels {
    isa: Isa,
    /// Where the machine multiplies bfloat16 pairs itself; elsewhere both sides are widened to f32.
    pub(crate) linear_bf16: Option<LinearKernel<bf16, bf16>>,
    pub(crate) linear_bf16_f32: LinearKernel<bf16, f32>,
    pub(crate) linear_f32: LinearKernel<f32, f32>,
    /// As [`Self::linear_bf16`].
    pub(crate) outer_bf16: Option<unsafe fn(Outer<'_, u32, u32>)>,
    pub(crate) outer_bf16_f32: unsafe fn(Outer<'_, [f32; 2], u32>),
    pub(crate) outer_f32: unsafe fn(Outer<'_, [f32; 1], f32>),
    pub(crate) elementwise: &'static Elementwise,
    pub(crate) bf16_products: Option<Products>,
    pub(crate) f32_products: Products,
}

static SCALAR: Kernels = Kernels {
    isa: Isa::Scalar,
    linear_bf16: None,
    linear_bf16_f32: linear_kernel!(scalar::linear_bf16_f32),
    linear_f32: linear_kernel!(scalar::linear_f32),
    outer_bf16: None,
    outer_bf16_f32: outer::scalar_bf16_f32,
    outer_f32: outer::scalar_f32,
    elementwise: &elementwise::SCALAR,
    bf16_products: None,
    f32_products: Products {
        run: scalar::f32_products,
        operations_a_step: scalar::PRODUCTS_A_STEP * 2,
    },
};

#[cfg(target_arch = "x86_64")]
static AVX2: Kernels = Kernels {
    isa: Isa::Avx2,
    linear_bf16: None,
    linear_bf16_f32: linear_kernel!(avx2::linear_bf16_f32),
    linear_f32: linear_kernel!(avx2::linear_f32),
    outer_bf16: None,
    outer_bf16_f32: avx2::outer_bf16_f32::add,
    outer_f32: avx2::outer_f32::add,
    elementwise: &elementwise::AVX2,
    bf16_products: None,
    f32_products: Products { run: avx2::f32_products, operations_a_step: 12 * 8 * 2 },
};

#[cfg(target_arch = "x86_64")]
static AVX512: Kernels = Kernels {
    isa: Isa::Avx512,
    linear_bf16: None,
    linear_bf16_f32: linear_kernel!(avx512::linear_bf16_f32),
    linear_f32: linear_kernel!(avx512::linear_f32),
    outer_bf16: None,
    outer_bf16_f32: avx512::outer_bf16_f32::add,
    outer_f32: avx512::outer_f32::add,
    elementwise: &elementwise::AVX512,
    bf16_products: None,
    f32_products: Products { run: avx512::f32_products, operations_a_step: 24 * 16 * 2 },
};

#[cfg(target_arch = "x86_64")]
static AVX512_BF16: Kernels = Kernels {
    isa: Isa::Avx512Bf16,
    linear_bf16: Some(linear_kernel!(avx512::linear_bf16)),
    linear_bf16_f32: linear_kernel!(avx512::linear_bf16_f32),
    linear_f32: linear_kernel!(avx512::linear_f32),
    outer_bf16: Some(avx512::outer_bf16::add),
    outer_bf16_f32: avx512::outer_bf16_f32::add,
    outer_f32: avx512::outer_f32::add,
    elementwise: &elementwise::AVX512,
    bf16_products: Some(Products { run: avx512::bf16_products, operations_a_step: 24 * 32 * 2 }),
    f32_products: Products { run: avx512::f32_products, operations_a_step: 24 * 16 * 2 },
};

impl Kernels {
    /// The kernels of `isa`, if this machine can run them.
    pub fn for_isa(isa: Isa) -> Option<&'static Self> {
        if !isa.is_available() {
            return None;
        }
        Some(match isa {
            Isa::Scalar => &SCALAR,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => &AVX512_BF16,
            #[cfg(not(target_arch = "x86_64"))]
            _ => return None,
        })
    }

    /// The kernels of [`Isa::from_env`], chosen once a process.
    ///
    /// # Errors
    /// As [`Isa::from_env`].
    pub fn best() -> Result<&'static Self> {
        static BEST: OnceLock<Result<&'static Kernels>> = OnceLock::new();
        BEST.get_or_init(|| Ok(Self::for_isa(Isa::from_env()?).unwrap_or(&SCALAR))).clone()
    }

    /// The tier.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// `x @ weightᵀ` for several weights that share their input, in one parallel region.
    ///
    /// Shapes: `x` `[num_tokens, in_features]`; each output becomes `[num_tokens, out_features]` of its weight.
    /// Dtypes: `x` f32, rounded to bf16 if `precision` says so; products summed in f32.
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
        crate::linear::run(self, pool, x, precision, scratch, outputs);
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

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).finish_non_exhaustive()
    }
}
