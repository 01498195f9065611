//! Dot products of weight rows and tokens.

use crate::panel::{Outputs, Panel};

/// `x @ wᵀ` for bfloat16 weights.
pub(crate) mod linear_bf16_f32 {
    use half::bf16;

    use crate::block::{Tokens, Weights};
    use crate::panel::Outputs;

    pub(crate) const STEP: usize = 1;

    pub(crate) fn num_tiles(num_tokens: usize) -> usize {
        num_tokens
    }

    pub(crate) fn block(w: Weights<'_, bf16>, x: Tokens<'_, f32>, tile: usize, out: Outputs<'_>) {
        super::linear(w.rows, x.tile(tile), out, bf16::to_f32);
    }
}

/// `x @ wᵀ` for f32 weights.
pub(crate) mod linear_f32 {
    use crate::block::{Tokens, Weights};
    use crate::panel::Outputs;

    pub(crate) const STEP: usize = 1;

    pub(crate) fn num_tiles(num_tokens: usize) -> usize {
        num_tokens
    }

    pub(crate) fn block(w: Weights<'_, f32>, x: Tokens<'_, f32>, tile: usize, out: Outputs<'_>) {
        super::linear(w.rows, x.tile(tile), out, |w| w);
    }
}

/// Products summed in f32 in the order of K; a tile is one token, its elements in order.
fn linear<W: Copy>(w: Panel<'_, W>, token: &[f32], mut out: Outputs<'_>, widen: impl Fn(W) -> f32) {
    for r in 0..w.num_rows() {
        out.write(0, r, &[w.row(r).iter().zip(token).map(|(&w, &x)| widen(w) * x).sum()]);
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
