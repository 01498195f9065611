//! Inputs of linear layers over 8-bit weights: quantised to 8 bits, a token and a group at a time.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]

use bytemuck::Pod;

use crate::formats::strips::{self, STEP, ZERO_POINT};
use crate::linear::inputs::InputLayout;

/// A group of inputs of a token, quantised.
pub(crate) struct QuantizedGroup<const STEPS: usize> {
    pub(crate) values: [[i8; STEP]; STEPS],
    pub(crate) scale: f32,
    pub(crate) sum: i32,
}

impl<const STEPS: usize> QuantizedGroup<STEPS> {
    /// `x`, each value to the nearest of 255 multiples of a scale: the greatest magnitude over 127.
    ///
    /// If a value is not finite the scale is NaN, which makes all the token's outputs NaN. If all are less than 2^-100, and a
    /// scale would lose its digits, all are taken as zero.
    ///
    /// Every operation is rounded by itself, so the result is the same however the compiler arranges it.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low byte of an integer from -127 to 127"
    )]
    pub(crate) fn new(x: &[[f32; STEP]; STEPS]) -> Self {
        /// Adding it to a small number leaves the nearest integer, ties to even, in the low bits.
        const ROUND: f32 = 12_582_912.0;
        const TINY: f32 = f32::from_bits(27 << 23);
        // The bits of magnitudes are in the order of their values; infinities and NaN come last.
        let mut largest = 0;
        for x in x.as_flattened() {
            largest = largest.max(x.to_bits() & 0x7fff_ffff);
        }
        let largest = f32::from_bits(largest);
        let mut group = Self { values: [[0; STEP]; STEPS], scale: 0.0, sum: 0 };
        if !largest.is_finite() {
            group.scale = f32::NAN;
        } else if largest >= TINY {
            group.scale = largest / 127.0;
            let inverse = 127.0 / largest;
            // One thing at a time, which the compiler makes vectors of.
            let mut bits = [[0; STEP]; STEPS];
            for (bits, x) in bits.as_flattened_mut().iter_mut().zip(x.as_flattened()) {
                *bits = (x * inverse + ROUND).to_bits();
            }
            for (value, bits) in group.values.as_flattened_mut().iter_mut().zip(bits.as_flattened())
            {
                *value = *bits as i8;
            }
            for bits in bits.as_flattened() {
                group.sum += bits.wrapping_sub(ROUND.to_bits()).cast_signed();
            }
        }
        group
    }
}

/// Bytes of a token's prepared inputs of a group: its steps, its scale, and where sums of products start.
const fn group_bytes<I>(steps: usize) -> usize {
    steps * size_of::<I>() + size_of::<f32>() + size_of::<i32>()
}

/// The prepared inputs of `T` tokens of a tile, of one group.
#[derive(Clone, Copy)]
pub(crate) struct GroupInputs<'a, I, const STEPS: usize, const T: usize> {
    pub(crate) steps: &'a [[I; T]; STEPS],
    pub(crate) scales: &'a [f32; T],
    /// Minus the zero point times the sum of the inputs: as weights are stored with it.
    pub(crate) starts: &'a [i32; T],
}

impl<'a, I: Pod, const STEPS: usize, const T: usize> GroupInputs<'a, I, STEPS, T> {
    /// Those of `group`; `tile` are the prepared inputs of the tile.
    #[inline(always)]
    pub(crate) fn new(tile: &'a [u8], group: usize) -> Self {
        let len = T * group_bytes::<I>(STEPS);
        let (steps, rest) = tile[group * len..][..len].split_at(STEPS * T * size_of::<I>());
        let (scales, starts) = rest.split_at(size_of::<[f32; T]>());
        let steps: &[[I; T]] = bytemuck::cast_slice(steps);
        Self {
            steps: steps.as_array().expect("as many steps"),
            scales: bytemuck::from_bytes(scales),
            starts: bytemuck::from_bytes(starts),
        }
    }
}

/// Prepares the tokens of a tile, rows of `k`, with steps of inputs as `arrange` puts them.
#[inline(always)]
pub(crate) fn prepare<I: Pod, const STEPS: usize>(
    tile: &[f32],
    k: usize,
    arrange: impl Fn([i8; STEP]) -> I,
    out: &mut [u8],
) {
    let num_tokens = tile.len() / k;
    let len = num_tokens * group_bytes::<I>(STEPS);
    for (token, x) in tile.chunks_exact(k).enumerate() {
        for (x, out) in x.chunks(STEPS * STEP).zip(out.chunks_exact_mut(len)) {
            let mut padded;
            let x = if let Some(x) = x.as_chunks().0.as_array() {
                x
            } else {
                padded = [[0.0; STEP]; STEPS];
                padded.as_flattened_mut()[..x.len()].copy_from_slice(x);
                &padded
            };
            let group = QuantizedGroup::<STEPS>::new(x);
            let (steps, rest) = out.split_at_mut(STEPS * num_tokens * size_of::<I>());
            let steps: &mut [I] = bytemuck::cast_slice_mut(steps);
            for (x, place) in group.values.into_iter().zip(steps.chunks_exact_mut(num_tokens)) {
                place[token] = arrange(x);
            }
            let (scales, starts) = rest.split_at_mut(num_tokens * size_of::<f32>());
            bytemuck::cast_slice_mut::<u8, f32>(scales)[token] = group.scale;
            bytemuck::cast_slice_mut::<u8, i32>(starts)[token] = -i32::from(ZERO_POINT) * group.sum;
        }
    }
}

/// How so many tokens of `k` elements are laid out in groups of `steps`, for tiles of up to `nr` tokens and panels of about
/// `panel_tokens`.
pub(crate) fn layout<I>(
    (num_tokens, k): (usize, usize),
    steps: usize,
    nr: usize,
    panel_tokens: usize,
) -> InputLayout {
    let group_bytes = group_bytes::<I>(steps);
    let token_bytes = strips::num_groups(k, steps) * group_bytes;
    let num_tiles = num_tokens.div_ceil(nr);
    InputLayout::new(
        (num_tokens, token_bytes),
        num_tiles,
        group_bytes,
        (panel_tokens * token_bytes, 1),
    )
}
