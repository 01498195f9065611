//! 8 bits: symmetric groups along K, in [strips](super::strips).
//!
//! A weight is an integer from -127 to 127, times its group's scale in f16. Scales below the smallest normal f16 are subnormal
//! ones: what they stand for stays within half a scale of what it was, and that is less than 2^-25.

use half::f16;

use super::strips::{self, ROWS, STEP, Scales, Step, Strip, ZERO_POINT};
use super::{Flaw, Unencodable, WeightFormat};
use crate::prefetch::LINE_BYTES;

/// With groups of `STEPS` steps.
pub(super) struct Q8<const STEPS: usize>;

/// The largest integer.
const MAX: f32 = 127.0;

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
        Some(strips::strip_bytes(in_features, STEPS, size_of::<Step>())? / ROWS)
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
                let scale = scale.to_f32();
                for (values, step) in values.chunks(STEP).zip(steps) {
                    for (value, byte) in values.iter().zip(&mut step[row * STEP..]) {
                        *byte = encoded(*value, scale);
                    }
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
fn integer(byte: u8) -> i16 {
    i16::from(byte) - i16::from(ZERO_POINT)
}

/// The scale of a group, by which none of its finite values is more than 127.5: the nearest f16 to a 127th of the largest, or
/// where that is too small, the next.
///
/// # Errors
/// Where the largest is, if the scale is too large for f16.
fn scale(values: &[f32]) -> Result<f16, usize> {
    let (mut largest, mut column) = (0.0f32, 0);
    for (i, value) in values.iter().enumerate() {
        if value.abs() > largest {
            (largest, column) = (value.abs(), i);
        }
    }
    let mut scale = f16::from_f32(largest / MAX);
    if largest > (MAX + 0.5) * scale.to_f32() {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    if scale.is_finite() { Ok(scale) } else { Err(column) }
}

/// `value` in units of `scale`, to the nearest.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "from 1 to 255 by then"
)]
fn encoded(value: f32, scale: f32) -> u8 {
    if scale == 0.0 {
        return ZERO_POINT;
    }
    let integer = (value / scale).round_ties_even().clamp(-MAX, MAX);
    (integer + f32::from(ZERO_POINT)) as u8
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
