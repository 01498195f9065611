//! 8 bits: symmetric groups along K, in [strips](super::strips).
//!
//! A weight is an integer from -127 to 127, times its group's scale in f16. Scales below the smallest normal f16 are subnormal
//! ones: what they stand for stays within half a scale of what it was, and that is less than 2^-25.

use half::f16;

use super::strips::{self, ROWS, STEP, Scales, Strip, ZERO_POINT};
use super::{Flaw, Unencodable, WeightFormat};
use crate::prefetch::LINE_BYTES;

/// With groups of `STEPS` steps.
pub(super) struct Q8<const STEPS: usize>;

/// The largest integer.
const MAX: f32 = 127.0;

/// An f32 of this size has no fraction: adding to it rounds, ties to even, and the sum's last bits are the integer's.
pub(super) const WHOLE: f32 = 12_582_912.0;

impl<const STEPS: usize> Q8<STEPS> {
    const GROUP: usize = STEPS * STEP;
}

impl<const STEPS: usize> WeightFormat for Q8<STEPS> {
    const NAME: &'static str = if STEPS == 32 { "q8" } else { "q8g32" };
    const ALIGNMENT: usize = LINE_BYTES;
    const TAKES_BF16_INPUTS: bool = false;
    const IS_PORTABLE: bool = true;
    const ROWS_TOGETHER: usize = ROWS;
    const ROWS_A_TASK: usize = 4 * ROWS;

    fn row_bytes(in_features: usize) -> Option<usize> {
        Some(strips::strip_bytes(in_features, STEPS)? / ROWS)
    }

    fn values(data: &[u8], in_features: usize, row: usize) -> impl Iterator<Item = f32> {
        let strip_bytes = ROWS * Self::row_bytes(in_features).expect("of what is there");
        let strip = &data[row / ROWS * strip_bytes..][..strip_bytes];
        let (strip, lane) = (Strip::<STEPS>::new(strip, in_features), row % ROWS);
        let of_group = move |group| {
            let scale = strip.scales(group)[lane].to_f32();
            let steps = strip.steps(group).iter();
            steps.flat_map(move |step| {
                let of_row: &[u8; STEP] = step[lane * STEP..].first_chunk().expect("16 rows");
                of_row.map(|byte| scale * f32::from(integer(byte)))
            })
        };
        (0..strip.num_groups()).flat_map(of_group).take(in_features)
    }

    fn encode(rows: &[f32], in_features: usize, out: &mut [u8]) -> Result<(), Unencodable> {
        let (scales, elements) = strips::parts_mut(out, in_features, STEPS);
        let (steps, _) = elements.as_chunks_mut::<{ ROWS * STEP }>();
        scales.fill([f16::ZERO; ROWS]);
        steps.fill([ZERO_POINT; ROWS * STEP]);
        for (row, values) in rows.chunks_exact(in_features).enumerate() {
            let groups = values.chunks(Self::GROUP).zip(steps.chunks_exact_mut(STEPS));
            for (group, (values, steps)) in groups.enumerate() {
                let scale = scale(values)
                    .map_err(|column| Unencodable { row, column: group * Self::GROUP + column })?;
                scales[group][row] = scale;
                let mut bytes = [[ZERO_POINT; STEP]; STEPS];
                encode_group(values, scale.to_f32(), bytes.as_flattened_mut());
                for (bytes, step) in bytes.iter().zip(steps) {
                    step[row * STEP..][..STEP].copy_from_slice(bytes);
                }
            }
        }
        Ok(())
    }

    fn check(data: &[u8], in_features: usize) -> Result<(), Flaw> {
        check_scales(Strip::<STEPS>::new(data, in_features).all_scales())
    }
}

/// The integer that a byte stands for.
pub(super) fn integer(byte: u8) -> i16 {
    i16::from(byte) - i16::from(ZERO_POINT)
}

/// The scale of a group, by which none of its finite values is more than 127.5: the nearest f16 to a 127th of the largest, or
/// where that is too small, the next.
///
/// # Errors
/// Where the largest is, if the scale is too large for f16.
fn scale(values: &[f32]) -> Result<f16, usize> {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let largest = values.iter().fold(0.0, |largest, value| larger(largest, value.abs()));
    let mut scale = f16::from_f32(largest / MAX);
    if largest > (MAX + 0.5) * scale.to_f32() {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    if scale.is_finite() {
        return Ok(scale);
    }
    let is_largest = |value: &f32| value.abs() >= largest;
    Err(values.iter().position(is_largest).expect("the largest is one of them"))
}

/// `values` in units of `scale`, to the nearest, ties to even.
fn encode_group(values: &[f32], scale: f32, bytes: &mut [u8]) {
    if scale == 0.0 {
        return;
    }
    for (value, byte) in values.iter().zip(bytes) {
        let integer = (value / scale).clamp(-MAX, MAX);
        let sum = integer + (WHOLE + f32::from(ZERO_POINT));
        *byte = sum.to_bits().to_le_bytes()[0];
    }
}

/// Finite scales that are not negative: a NaN would make all of a row one, and no encoder writes another.
pub(super) fn check_scales(scales: &[Scales]) -> Result<(), Flaw> {
    for (group, scales) in scales.iter().enumerate() {
        // As integers finite numbers without a sign are the least.
        if let Some(row) =
            scales.iter().position(|scale| scale.to_bits() >= f16::INFINITY.to_bits())
        {
            return Err(Flaw { row, group, scale: scales[row].to_f32() });
        }
    }
    Ok(())
}
