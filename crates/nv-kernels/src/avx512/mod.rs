//! AVX-512: 16 lanes of f32, bfloat16 widened in registers, or multiplied in pairs where the machine has instructions for that.
#![expect(
    unsafe_code,
    reason = "loads at addresses that callers vouch for, and calls of what needs an instruction set"
)]
#![expect(clippy::inline_always, reason = "methods of a tier become a part of the loops")]

pub(crate) mod dot;
pub(crate) mod int8;
pub(crate) mod outer;

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_and_si512, _mm512_castsi512_ps,
    _mm512_fmadd_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_slli_epi32,
};

use dot::{Bf16Pairs, Bf16Widened, F32, Unpacked};
pub(crate) use dot::{bf16_products, f32_products};
pub(crate) use outer::{outer_bf16, outer_bf16_f32, outer_f32};

use crate::avx2;
use crate::elementwise::arrange::{Bf16, InOrder, Rounded, Split, Unrounded, arrange};
use crate::formats::Format;
use crate::linear::int8::Int8;
use crate::linear::kernel::{InputForm, LinearKernel, Precision};
use crate::linear::micro_kernel::Dot;
use crate::linear::unpacked::{FROM_BF16, FROM_F32, Unpacking};
use crate::tier::{Compile, Products, Tier, Work};

/// The machine has AVX-512 F; with `BF16`, also BW and BF16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool = false>(());

impl<const BF16: bool> Compile for Avx512<BF16> {
    #[inline(always)]
    unsafe fn new() -> Self {
        Self(())
    }

    #[inline(always)]
    fn compile<W: Work>(self, work: W) -> W::Output {
        if BF16 {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { compiled_bf16(work) }
        } else {
            // SAFETY: the tier is a proof that the machine has it.
            unsafe { compiled(work) }
        }
    }

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl<const BF16: bool> Tier for Avx512<BF16> {
    type Vector = __m512;

    #[cfg(all(test, not(debug_assertions)))]
    fn address_of<W: Work>() -> usize {
        let compiled: unsafe fn(W) -> W::Output =
            if BF16 { compiled_bf16::<W> } else { compiled::<W> };
        compiled as usize
    }

    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn reduce(self, sums: [__m512; 4]) -> [f32; 4] {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { dot::reduce(sums) }
    }

    /// It goes to the first-level cache, though it is not needed so soon: the second-level cache alone was slower by up to 8 %
    /// for the layers of 2 to 64 tokens, on a Zen 5.
    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        self.prefetch_near(line);
    }

    #[inline(always)]
    fn prefetch_near(self, line: *const u8) {
        // SAFETY: the tier is a proof that the machine has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
}

/// `work` with the tier's instructions.
#[target_feature(enable = "avx512f")]
fn compiled<W: Work>(work: W) -> W::Output {
    work.run()
}

/// `work` with the instructions of the tier that multiplies bfloat16 pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn compiled_bf16<W: Work>(work: W) -> W::Output {
    work.run()
}

/// The linear layers of the tier.
pub(crate) fn linear(format: Format, precision: Precision) -> Option<&'static dyn LinearKernel> {
    static ROUNDED: Unpacking<Bf16Widened, Unpacked> = Unpacking::new(
        Dot::new(InputForm::Rounded, arrange::<Avx512, Split<32>, Rounded>),
        FROM_BF16,
    );
    static UNROUNDED: Unpacking<Bf16Widened, Unpacked> = Unpacking::new(
        Dot::new(InputForm::Unrounded, arrange::<Avx512, Split<32>, Unrounded>),
        FROM_BF16,
    );
    static UNWIDENED: Unpacking<F32, Unpacked> =
        Unpacking::new(Dot::new(InputForm::F32, arrange::<Avx512, Split<32>, Unrounded>), FROM_F32);
    match (format, precision) {
        (Format::Bf16, Precision::Bf16) => Some(&ROUNDED),
        (Format::Bf16, Precision::F32) => Some(&UNROUNDED),
        (Format::F32, Precision::F32) => Some(&UNWIDENED),
        (Format::Q8 | Format::Q4, _) if int8::is_available() => {
            Some(&Int8::<int8::Vnni, 32>::KERNEL)
        }
        (Format::Q8Group32, _) if int8::is_available() => Some(&Int8::<int8::Vnni, 8>::KERNEL),
        // The first machines with AVX-512 have no VNNI.
        (Format::Q8 | Format::Q8Group32 | Format::Q4, _) => avx2::linear(format, precision),
        _ => None,
    }
}

/// The products of bytes of [`linear`].
pub(crate) fn int8_products() -> Products {
    if int8::is_available() {
        Products { run: int8::vnni_products, operations_a_step: 24 * 64 * 2 }
    } else {
        avx2::int8_products()
    }
}

/// The linear layers of the tier that multiplies bfloat16 pairs.
pub(crate) fn linear_with_bf16(
    format: Format,
    precision: Precision,
) -> Option<&'static dyn LinearKernel> {
    static PAIRS: Dot<Bf16Pairs> = Dot::new(InputForm::Bf16, arrange::<Avx512, InOrder, Bf16>);
    match (format, precision) {
        (Format::Bf16, Precision::Bf16) => Some(&PAIRS),
        _ => linear(format, precision),
    }
}

/// The even ones of 32 bfloat16, as the f32 that they are.
#[target_feature(enable = "avx512f")]
#[inline]
fn even(pairs: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))
}

/// The odd ones of 32 bfloat16, as the f32 that they are.
#[target_feature(enable = "avx512f")]
#[inline]
fn odd(pairs: __m512i) -> __m512 {
    let bits = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    _mm512_castsi512_ps(_mm512_and_si512(pairs, bits))
}

/// 64 bytes, loaded again even where the compiler knows them: it would keep them in a register that a tile needs for sums.
///
/// # Safety
/// They must be there.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn reload(bytes: *const u8) -> __m512i {
    /// Of any alignment.
    #[repr(C, packed)]
    struct Unaligned(__m512i);
    // SAFETY: says the caller.
    unsafe { bytes.cast::<Unaligned>().read_volatile() }.0
}
