//! AVX2 with FMA: 8 lanes of f32, bfloat16 widened in registers.
#![expect(
    unsafe_code,
    reason = "loads at addresses that callers vouch for, and calls of what needs an instruction set"
)]
#![expect(clippy::inline_always, reason = "methods of a tier become a part of the loops")]

pub(crate) mod dot;
pub(crate) mod int8;
pub(crate) mod outer;

use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm256_and_si256, _mm256_castsi256_ps,
    _mm256_fmadd_ps, _mm256_set1_epi32, _mm256_setzero_ps, _mm256_slli_epi32,
};

pub(crate) use dot::f32_products;
use dot::{Bf16Widened, F32, Unpacked};
pub(crate) use outer::{outer_bf16_f32, outer_f32};

use crate::elementwise::arrange::{Paired, Rounded, Split, Unrounded, arrange};
use crate::formats::Format;
use crate::linear::int8::Int8;
use crate::linear::kernel::{InputForm, LinearKernel, Precision};
use crate::linear::micro_kernel::Dot;
use crate::linear::unpacked::{FROM_BF16, FROM_F32, Unpacking};
use crate::tier::{Compile, Products, Tier, Work};

/// The machine has AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Compile for Avx2 {
    #[inline(always)]
    unsafe fn new() -> Self {
        Self(())
    }

    #[inline(always)]
    fn compile<W: Work>(self, work: W) -> W::Output {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { compiled(work) }
    }

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Tier for Avx2 {
    type Vector = __m256;

    #[cfg(all(test, not(debug_assertions)))]
    fn address_of<W: Work>() -> usize {
        compiled::<W> as unsafe fn(W) -> W::Output as usize
    }

    #[inline(always)]
    fn zero(self) -> __m256 {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn reduce(self, sums: [__m256; 4]) -> [f32; 4] {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { dot::reduce(sums) }
    }

    /// To the second-level cache.
    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }

    #[inline(always)]
    fn prefetch_near(self, line: *const u8) {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
}

/// `work` with the tier's instructions.
#[target_feature(enable = "avx2,fma")]
fn compiled<W: Work>(work: W) -> W::Output {
    work.run()
}

/// The linear layers of the tier.
pub(crate) fn linear(format: Format, precision: Precision) -> Option<&'static dyn LinearKernel> {
    static ROUNDED: Unpacking<Bf16Widened, Unpacked<Bf16Widened>> = Unpacking::new(
        Dot::new(InputForm::Rounded, arrange::<Avx2, Split<16>, Rounded>),
        FROM_BF16,
    );
    static UNROUNDED: Unpacking<Bf16Widened, Unpacked<Bf16Widened>> = Unpacking::new(
        Dot::new(InputForm::Unrounded, arrange::<Avx2, Split<16>, Unrounded>),
        FROM_BF16,
    );
    static UNWIDENED: Unpacking<F32, Unpacked<F32>> =
        Unpacking::new(Dot::new(InputForm::F32, arrange::<Avx2, Paired, Unrounded>), FROM_F32);
    match (format, precision) {
        (Format::Bf16, Precision::Bf16) => Some(&ROUNDED),
        (Format::Bf16, Precision::F32) => Some(&UNROUNDED),
        (Format::F32, Precision::F32) => Some(&UNWIDENED),
        (Format::Q8 | Format::Q4, _) => Some(&Int8::<int8::Widened, 32>::KERNEL),
        (Format::Q8Group32, _) => Some(&Int8::<int8::Widened, 8>::KERNEL),
        _ => None,
    }
}

/// The linear layers of the tier that multiplies fours of bytes.
pub(crate) fn linear_with_vnni(
    format: Format,
    precision: Precision,
) -> Option<&'static dyn LinearKernel> {
    match format {
        Format::Q8 | Format::Q4 => Some(&Int8::<int8::Vnni, 32>::KERNEL),
        Format::Q8Group32 => Some(&Int8::<int8::Vnni, 8>::KERNEL),
        _ => linear(format, precision),
    }
}

/// The products of bytes of [`linear`].
pub(crate) fn int8_products() -> Products {
    Products { run: int8::widened_products, operations_a_step: 12 * 16 * 2 }
}

/// Those of [`linear_with_vnni`].
pub(crate) fn int8_products_with_vnni() -> Products {
    Products { run: int8::vnni_products, operations_a_step: 12 * 32 * 2 }
}

/// The even ones of 16 bfloat16, as the f32 that they are.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn even(pairs: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))
}

/// The odd ones of 16 bfloat16, as the f32 that they are.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn odd(pairs: __m256i) -> __m256 {
    let bits = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
    _mm256_castsi256_ps(_mm256_and_si256(pairs, bits))
}

/// 32 bytes, loaded again even where the compiler knows them: it would keep them in a register that a tile needs for sums.
///
/// # Safety
/// They must be there.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn reload(bytes: *const u8) -> __m256i {
    /// Of any alignment.
    #[repr(C, packed)]
    struct Unaligned(__m256i);
    // SAFETY: says the caller.
    unsafe { bytes.cast::<Unaligned>().read_volatile() }.0
}
