//! The table of a tier's kernels. This is where tiers are listed.

use std::fmt;
use std::sync::OnceLock;

use crate::attention::outer::{self, Outer};
use crate::elementwise::Elementwise;
use crate::error::Result;
use crate::formats::Format;
use crate::isa::Isa;
use crate::linear::kernel::{LinearKernel, Precision};
use crate::quantize::{Encode, encoder};
use crate::scalar::{self, Scalar};
use crate::tier::Products;
#[cfg(target_arch = "x86_64")]
use crate::{
    avx2::{self, Avx2},
    avx512::{self, Avx512},
};

/// The kernels of one tier. Only handed out for a tier that the machine has.
pub struct Kernels {
    isa: Isa,
    /// See [`Self::portable`].
    portable: &'static Kernels,
    /// The tier's own linear layers over weights of a format.
    linear: fn(Format, Precision) -> Option<&'static dyn LinearKernel>,
    /// Where the machine multiplies bfloat16 pairs itself; elsewhere both sides are widened to f32.
    pub(crate) outer_bf16: Option<unsafe fn(Outer<'_, u32, u32>)>,
    pub(crate) outer_bf16_f32: unsafe fn(Outer<'_, [f32; 2], u32>),
    pub(crate) outer_f32: unsafe fn(Outer<'_, [f32; 1], f32>),
    pub(crate) elementwise: &'static Elementwise,
    /// What turns values into a format's bytes: the same bytes in every tier.
    encoder: fn(Format) -> Encode,
    /// As [`Self::outer_bf16`].
    pub(crate) bf16_products: Option<Products>,
    pub(crate) f32_products: Products,
    /// As the machine does them best with the tier's instructions.
    pub(crate) int8_products: fn() -> Products,
}

static SCALAR: Kernels = scalar::<false>();

/// Products are fused, as they are in the other tiers.
static SCALAR_PORTABLE: Kernels = scalar::<true>();

const fn scalar<const FUSED: bool>() -> Kernels {
    Kernels {
        isa: Isa::Scalar,
        portable: &SCALAR_PORTABLE,
        linear: |_, _| None,
        outer_bf16: None,
        outer_bf16_f32: outer::scalar_bf16_f32::<Scalar<FUSED>>,
        outer_f32: outer::scalar_f32::<Scalar<FUSED>>,
        elementwise: const { &Elementwise::of::<Scalar<FUSED>>() },
        encoder: encoder::<Scalar<FUSED>>,
        bf16_products: None,
        f32_products: Products {
            run: scalar::f32_products,
            operations_a_step: scalar::PRODUCTS_A_STEP * 2,
        },
        int8_products: || Products {
            run: scalar::int8_products,
            operations_a_step: scalar::INT8_PRODUCTS_A_STEP * 2,
        },
    }
}

#[cfg(target_arch = "x86_64")]
static AVX2: Kernels = avx2();

#[cfg(target_arch = "x86_64")]
static AVX_VNNI: Kernels = Kernels {
    isa: Isa::AvxVnni,
    portable: &AVX_VNNI,
    linear: avx2::linear_with_vnni,
    int8_products: avx2::int8_products_with_vnni,
    ..avx2()
};

#[cfg(target_arch = "x86_64")]
const fn avx2() -> Kernels {
    Kernels {
        isa: Isa::Avx2,
        portable: &AVX2,
        linear: avx2::linear,
        outer_bf16: None,
        outer_bf16_f32: avx2::outer_bf16_f32,
        outer_f32: avx2::outer_f32,
        elementwise: const { &Elementwise::of::<Avx2>() },
        encoder: encoder::<Avx2>,
        bf16_products: None,
        f32_products: Products { run: avx2::f32_products, operations_a_step: 12 * 8 * 2 },
        int8_products: avx2::int8_products,
    }
}

#[cfg(target_arch = "x86_64")]
static AVX512: Kernels = Kernels {
    isa: Isa::Avx512,
    portable: &AVX512,
    linear: avx512::linear,
    outer_bf16: None,
    outer_bf16_f32: avx512::outer_bf16_f32,
    outer_f32: avx512::outer_f32,
    elementwise: &Elementwise::of::<Avx512>(),
    encoder: encoder::<Avx512>,
    bf16_products: None,
    f32_products: Products { run: avx512::f32_products, operations_a_step: 24 * 16 * 2 },
    int8_products: avx512::int8_products,
};

#[cfg(target_arch = "x86_64")]
static AVX512_BF16: Kernels =
    Kernels { outer_bf16: Some(avx512::outer_bf16), ..avx512_with_bf16() };

/// Attention's pairs are widened: products of pairs round as no other instruction does.
#[cfg(target_arch = "x86_64")]
static AVX512_BF16_PORTABLE: Kernels = avx512_with_bf16();

#[cfg(target_arch = "x86_64")]
const fn avx512_with_bf16() -> Kernels {
    Kernels {
        isa: Isa::Avx512Bf16,
        portable: &AVX512_BF16_PORTABLE,
        linear: avx512::linear_with_bf16,
        outer_bf16: None,
        outer_bf16_f32: avx512::outer_bf16_f32,
        outer_f32: avx512::outer_f32,
        elementwise: const { &Elementwise::of::<Avx512>() },
        encoder: encoder::<Avx512>,
        bf16_products: Some(Products {
            run: avx512::bf16_products,
            operations_a_step: 24 * 32 * 2,
        }),
        f32_products: Products { run: avx512::f32_products, operations_a_step: 24 * 16 * 2 },
        int8_products: avx512::int8_products,
    }
}

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
            Isa::AvxVnni => &AVX_VNNI,
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

    /// The kernels of the same tier whose bits are those of every other tier's portable kernels, on every machine.
    ///
    /// That is norms, rotation, SiLU, sums, lookups, and attention over either cache: every float operation, its order and
    /// what is fused are fixed. A NaN is where it is in other tiers, but may be another NaN. Linear layers are the tier's own:
    /// theirs are the same bits where their weights' format says so.
    ///
    /// In the AVX2 and AVX-512 tiers these are the same kernels. Those of AVX-512 BF16 attend as AVX-512 does, without products of
    /// pairs; the scalar ones fuse products without an instruction for it, which is slow.
    pub fn portable(&self) -> &'static Self {
        self.portable
    }

    /// What turns values into bytes of `format`.
    pub(crate) fn encoder(&self, format: Format) -> Encode {
        (self.encoder)(format)
    }

    /// How the tier multiplies weights of `format` in `precision`; in plain Rust, if it has no kernel of its own.
    ///
    /// # Panics
    /// If inputs in bfloat16 would lose what such weights hold.
    pub(crate) fn linear_kernel(
        &self,
        format: Format,
        precision: Precision,
    ) -> &'static dyn LinearKernel {
        (self.linear)(format, precision).unwrap_or_else(|| scalar::linear(format, precision))
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels")
            .field("isa", &self.isa)
            .field("is_portable", &std::ptr::eq(self, self.portable))
            .finish_non_exhaustive()
    }
}
