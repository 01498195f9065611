//! Plain Rust, which every machine runs: the specification of the other tiers.
#![expect(clippy::inline_always, reason = "methods of a tier become a part of the loops")]

mod fused;
mod int8;
mod linear;

use std::hint::black_box;

pub(crate) use self::int8::{PRODUCTS_A_STEP as INT8_PRODUCTS_A_STEP, int8_products};
pub(crate) use self::linear::linear;
use crate::tier::{Compile, Work};

/// The tier, which every machine has.
///
/// Products are rounded before they are added: fused ones are an instruction on few machines and a dozen of them on others.
/// With `FUSED` they are fused nevertheless, as all other tiers' are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar<const FUSED: bool = false>(());

impl<const FUSED: bool> Compile for Scalar<FUSED> {
    #[inline(always)]
    #[expect(unsafe_code, reason = "tiers that need an instruction set have the same calls")]
    unsafe fn new() -> Self {
        Self(())
    }

    #[inline(always)]
    fn compile<W: Work>(self, work: W) -> W::Output {
        work.run()
    }

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        if FUSED { fused::mul_add(a, b, c) } else { a * b + c }
    }
}

/// Lanes of the vectors that the compiler makes of plain arithmetic, on x86-64 and elsewhere.
const LANES: usize = 4;

/// As many vectors as there are registers for.
const VECTORS: usize = 12;

pub(crate) const PRODUCTS_A_STEP: usize = VECTORS * LANES;

/// `steps` times [`PRODUCTS_A_STEP`] independent products.
pub(crate) fn f32_products(steps: usize) -> f32 {
    // Numbers that the compiler does not know, lest it multiply them once for all steps.
    let (a, b) = black_box(([0.5; LANES], [1.0; LANES]));
    let mut acc = black_box([[0.0f32; LANES]; VECTORS]);
    for _ in 0..steps {
        for acc in &mut acc {
            for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
                *acc = *acc * a + b;
            }
        }
    }
    black_box(acc)[0][0]
}
