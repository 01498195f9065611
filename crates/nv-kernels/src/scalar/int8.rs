//! The specification of linear layers over 8-bit integers, which every tier follows to the bit.
//!
//! Inputs are quantised a token and a group of K at a time. For each output `sum` starts at zero, and each group in the order of
//! K makes it `fma(s, w_scale · x_scale, sum)`: `s`, the sum of the products of integers, is exact as f32 too; the product of
//! the scales is rounded, and then the result is, once.

use std::hint::black_box;

use super::fused::mul_add;
use crate::formats::strips::{ROWS, STEP, ZERO_POINT};
use crate::linear::inputs::InputLayout;
use crate::linear::int8::inputs::{GroupInputs, layout, prepare};
use crate::linear::int8::strips::{StripRows, Unpack, is_unpacked_first};
use crate::linear::kernel::{InputForm, KernelScratch, LinearKernel, Task};
use crate::linear::rows::Rows;
use crate::results::Outputs;
use crate::tier::Work;

/// Over groups of `STEPS` steps. Each token is a tile and a panel.
pub(super) struct Int8<const STEPS: usize>;

#[expect(unsafe_code, reason = "tiers that need an instruction set have the same calls")]
impl<const STEPS: usize> LinearKernel for Int8<STEPS> {
    fn input_form(&self) -> InputForm {
        InputForm::Int8 { steps: STEPS }
    }

    fn input_bytes(&self) -> usize {
        1
    }

    fn layout(&self, num_tokens: usize, k: usize) -> InputLayout {
        layout::<[i8; STEP]>((num_tokens, k), STEPS, 1, 1)
    }

    unsafe fn prepare(&self, tile: &[f32], k: usize, _: &InputLayout, out: &mut [u8]) {
        prepare::<_, STEPS>(tile, k, |x| x, out);
    }

    unsafe fn stage<'a>(
        &self,
        rows: Rows<'a>,
        layout: &InputLayout,
        copy: &'a mut Vec<u8>,
    ) -> Rows<'a> {
        if is_unpacked_first(rows, layout) { Unpack { rows, copy }.run() } else { rows }
    }

    unsafe fn multiply(&self, task: Task<'_>, _: &mut KernelScratch, mut out: Outputs<'_>) {
        let (token, num_rows) = (task.x.tiles(task.panel), task.rows.len);
        for (i, strip) in StripRows::new(task.rows).strips::<STEPS>().enumerate() {
            let mut sums = [0.0f32; ROWS];
            let mut room = [[0; _]; STEPS];
            for group in 0..strip.num_groups() {
                let weights = strip.group(group, &mut room);
                let x = GroupInputs::<[i8; STEP], STEPS, 1>::new(token, group);
                let mut products = [0i32; ROWS];
                for (w, [x]) in weights.steps.iter().zip(x.steps) {
                    for (product, w) in products.iter_mut().zip(w.as_chunks::<STEP>().0) {
                        for (&w, &x) in w.iter().zip(x) {
                            *product += (i32::from(w) - i32::from(ZERO_POINT)) * i32::from(x);
                        }
                    }
                }
                let [x_scale] = *x.scales;
                for ((sum, product), w_scale) in sums.iter_mut().zip(products).zip(weights.scales) {
                    *sum = mul_add(product as f32, w_scale.to_f32() * x_scale, *sum);
                }
            }
            let first = i * ROWS;
            out.write_some((0, first), &[sums], ROWS.min(num_rows - first));
        }
    }
}

pub(crate) const PRODUCTS_A_STEP: usize = 4 * 8;

/// `steps` times [`PRODUCTS_A_STEP`] independent products.
pub(crate) fn int8_products(steps: usize) -> f32 {
    // Numbers that the compiler does not know, lest it multiply them once for all steps.
    let mut w = black_box([[1i16; 8]; 4]);
    let x = black_box([1i16; 8]);
    let mut sums = [[0i32; 4]; 4];
    for _ in 0..steps {
        for (w, sums) in w.iter_mut().zip(&mut sums) {
            for ((sum, w), x) in sums.iter_mut().zip(w.as_chunks::<2>().0).zip(x.as_chunks().0) {
                let [first, second] = *x;
                *sum += i32::from(w[0]) * i32::from(first) + i32::from(w[1]) * i32::from(second);
            }
            // What is multiplied next isn't known before.
            for w in w {
                *w ^= 1;
            }
        }
    }
    black_box(sums)[0][0] as f32
}
