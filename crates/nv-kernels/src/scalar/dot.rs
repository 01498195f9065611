//! Dot products of weight rows and tokens.

use crate::block::Tokens;
use crate::panel::Panel;

/// `x @ wᵀ` for bfloat16 weights.
pub(crate) mod linear_bf16_f32 {
    use half::bf16;

    use crate::block::{Tokens, Weights};

    pub(crate) const STEP: usize = 1;

    pub(crate) const ROWS: usize = 1;

    pub(crate) fn tokens_a_tile(_num_tokens: usize, _k: usize) -> usize {
        1
    }

    pub(crate) fn block(w: Weights<'_, bf16, f32>, x: Tokens<'_, f32>, out: &mut [f32]) {
        super::linear(w.rows, x, out, bf16::to_f32);
    }
}

/// `x @ wᵀ` for f32 weights.
pub(crate) mod linear_f32 {
    use crate::block::{Tokens, Weights};

    pub(crate) const STEP: usize = 1;

    pub(crate) const ROWS: usize = 1;

    pub(crate) fn tokens_a_tile(_num_tokens: usize, _k: usize) -> usize {
        1
    }

    pub(crate) fn block(w: Weights<'_, f32, f32>, x: Tokens<'_, f32>, out: &mut [f32]) {
        super::linear(w.rows, x, out, |w| w);
    }
}

/// Products summed in f32 in the order of K; a tile is one token, its elements in order.
fn linear<W: Copy>(w: Panel<'_, W>, x: Tokens<'_, f32>, out: &mut [f32], widen: impl Fn(W) -> f32) {
    for t in 0..x.shape().num_tokens {
        for r in 0..w.num_rows() {
            out[t * w.num_rows() + r] =
                w.row(r).iter().zip(x.tile(t)).map(|(&w, &x)| widen(w) * x).sum();
        }
    }
}

/// `steps` times 8 independent products.
pub(crate) fn f32_products(steps: usize) -> f32 {
    let mut acc = [0.0f32; 8];
    for step in 0..steps {
        for acc in &mut acc {
            *acc += std::hint::black_box(step as f32) * 0.5;
        }
    }
    acc.into_iter().sum()
}
