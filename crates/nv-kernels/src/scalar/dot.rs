//! Dot products of weight rows and tokens.

use std::hint::black_box;

use crate::block::TokensShape;
use crate::panel::{Outputs, Panel};

/// `x @ wᵀ` for bfloat16 weights.
pub(crate) mod linear_bf16_f32 {
    use std::ops::Range;

    use half::bf16;

    use crate::block::{Tokens, Weights};
    use crate::panel::Outputs;

    pub(crate) use super::shape;

    pub(crate) fn block(
        w: Weights<'_, bf16>,
        x: Tokens<'_, f32>,
        part: Range<usize>,
        out: Outputs<'_>,
    ) {
        super::linear(w.rows, x.tiles(part), out, bf16::to_f32);
    }
}

/// `x @ wᵀ` for f32 weights.
pub(crate) mod linear_f32 {
    use std::ops::Range;

    use crate::block::{Tokens, Weights};
    use crate::panel::Outputs;

    pub(crate) use super::shape;

    pub(crate) fn block(
        w: Weights<'_, f32>,
        x: Tokens<'_, f32>,
        part: Range<usize>,
        out: Outputs<'_>,
    ) {
        super::linear(w.rows, x.tiles(part), out, |w| w);
    }
}

/// Each token is a tile and a part, a step one element.
pub(crate) fn shape(num_tokens: usize, k: usize) -> TokensShape {
    TokensShape::new::<f32>((num_tokens, k), num_tokens, 1, 1)
}

/// Products summed in f32 in the order of K.
fn linear<W: Copy>(w: Panel<'_, W>, token: &[f32], mut out: Outputs<'_>, widen: impl Fn(W) -> f32) {
    for r in 0..w.num_rows() {
        let products = w.row(r).iter().zip(token).map(|(&w, &x)| widen(w) * x);
        out.write((0, r), &[[products.sum()]]);
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
