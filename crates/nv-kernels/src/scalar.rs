//! Plain Rust, which every machine runs: the specification of the other tiers.

mod linear;

use std::hint::black_box;

pub(crate) use self::linear::linear;

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
