//! 4 bits that become 8: groups of 128 along K, 16 rows together, as [`Q8`](super::q8) has them.
//!
//! A group has a scale a row, in f16, and four parts of 32 elements with a factor from 1 to 16 and an offset. An element `q` from
//! 0 to 15 stands for Q8's integer `factor * q + offset`. So there is one float a row and group, a group is multiplied as one of
//! Q8 is, and a weight takes 4.5 bits in all. The K-quants of GGUF, which have integer scales within a float one as well, take
//! as many for a factor and a minimum of 6 bits, but do not become integers of 8.
#![expect(
    clippy::inline_always,
    reason = "what unpacks becomes a part of loops that a tier compiles"
)]

use half::f16;

use super::q8;
use super::strips::{self, ROWS, STEP, Scales, Step, ZERO_POINT};
use super::{Flaw, Unencodable, WeightFormat};
use crate::prefetch::LINE_BYTES;

pub(super) struct Q4;

/// Steps of a group.
pub(crate) const STEPS: usize = 32;

/// Elements of K of a group.
const GROUP: usize = STEPS * STEP;

/// Elements of K of a part.
const PART: usize = 32;

/// Parts of a group.
const PARTS: usize = GROUP / PART;

/// Steps of a part.
const PART_STEPS: usize = PART / STEP;

/// The largest element.
const MAX: f32 = 15.0;

/// The largest factor: elements and factors have four bits each, and their product fits in 8.
const MAX_FACTOR: u8 = 16;

/// Two steps: a byte's low half is of the first, its high half of the second.
type StepPair = Step;

/// Bytes of a group of 16 rows before its elements: scales, factors, offsets.
pub(crate) const HEADER_BYTES: usize =
    size_of::<Scales>() + PARTS * ROWS / 2 + PARTS * size_of::<[u8; ROWS]>();

/// Bytes of a group of 16 rows: whole cache lines.
pub(crate) const GROUP_BYTES: usize = HEADER_BYTES + STEPS / 2 * size_of::<StepPair>();

const _: () =
    assert!(HEADER_BYTES.is_multiple_of(LINE_BYTES) && GROUP_BYTES.is_multiple_of(LINE_BYTES));

/// A group of 16 rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group<'a> {
    pub(crate) scales: &'a Scales,
    /// Less one. Those of two parts side by side: a byte's low half is the first part's.
    factors: &'a [[u8; ROWS]],
    /// With [`ZERO_POINT`].
    offsets: &'a [[u8; ROWS]],
    elements: &'a [StepPair],
}

impl<'a> Group<'a> {
    #[inline(always)]
    pub(crate) fn new(data: &'a [u8; GROUP_BYTES]) -> Self {
        let (scales, rest) = data.split_at(size_of::<Scales>());
        let (factors, rest) = rest.split_at(PARTS / 2 * ROWS);
        let (offsets, elements) = rest.split_at(PARTS * ROWS);
        Self {
            scales: bytemuck::from_bytes(scales),
            factors: factors.as_chunks().0,
            offsets: offsets.as_chunks().0,
            elements: elements.as_chunks().0,
        }
    }

    /// The factor of a row in a part.
    #[inline(always)]
    fn factor(self, part: usize, row: usize) -> u16 {
        u16::from(self.factors[part / 2][row] >> (part % 2 * 4) & 15) + 1
    }

    /// The offset of a row in a part.
    #[inline(always)]
    fn offset(self, part: usize, row: usize) -> u16 {
        u16::from(self.offsets[part][row])
    }

    /// The steps as Q8 has them.
    #[inline(always)]
    pub(crate) fn unpack(self, out: &mut [Step; STEPS]) {
        /// Pairs of elements in a step.
        const PAIRS: usize = ROWS * STEP / 2;
        let parts = out.as_chunks_mut::<PART_STEPS>().0.iter_mut();
        for (part, (out, elements)) in
            parts.zip(self.elements.chunks_exact(PART_STEPS / 2)).enumerate()
        {
            let factors: [_; PAIRS] = std::array::from_fn(|i| self.factor(part, i / 2));
            let offsets: [_; PAIRS] = std::array::from_fn(|i| self.offset(part, i / 2));
            for ([first, second], pairs) in out.as_chunks_mut::<2>().0.iter_mut().zip(elements) {
                let pairs = pairs.as_chunks().0;
                let first = first.as_chunks_mut().0;
                let second = second.as_chunks_mut().0;
                for i in 0..PAIRS {
                    [first[i], second[i]] = unpack_pair(pairs[i], factors[i], offsets[i]);
                }
            }
        }
    }

    /// The steps of a row as Q8 has them.
    fn row(self, row: usize) -> [[u8; STEP]; STEPS] {
        let mut out = [[0; STEP]; STEPS];
        for (i, (pairs, out)) in self.elements.iter().zip(out.as_chunks_mut::<2>().0).enumerate() {
            let part = 2 * i / PART_STEPS;
            let (factor, offset) = (self.factor(part, row), self.offset(part, row));
            for at in [0, 2] {
                let pair = [pairs[row * STEP + at], pairs[row * STEP + at + 1]];
                for (out, bytes) in out.iter_mut().zip(unpack_pair(pair, factor, offset)) {
                    out[at..at + 2].copy_from_slice(&bytes);
                }
            }
        }
        out
    }
}

/// Two elements of a step and two of the next, which share bytes. Both of a step are multiplied as one number: no product passes
/// 8 bits. A sum passes them only where no encoder wrote it, and is then the same wrong number in every tier.
#[inline(always)]
fn unpack_pair(pair: [u8; 2], factor: u16, offset: u16) -> [[u8; 2]; 2] {
    let pair = u16::from_le_bytes(pair);
    [pair, pair >> 4].map(|elements| {
        let product = (elements & 0x0f0f) * factor;
        product.wrapping_add(offset * 0x0101).to_le_bytes()
    })
}

/// The groups of 16 rows.
pub(crate) fn groups(data: &[u8]) -> &[[u8; GROUP_BYTES]] {
    let (groups, rest) = data.as_chunks();
    assert!(rest.is_empty(), "not a strip's bytes");
    groups
}

/// Writes rows that are stored together as Q8 stores them.
#[inline(always)]
pub(crate) fn unpack(data: &[u8], in_features: usize, out: &mut [u8]) {
    let (scales, elements) = strips::parts_mut(out, in_features, STEPS);
    let (steps, _) = elements.as_chunks_mut::<{ ROWS * STEP }>();
    for ((group, scales), steps) in
        groups(data).iter().zip(scales).zip(steps.as_chunks_mut::<STEPS>().0)
    {
        let group = Group::new(group);
        *scales = *group.scales;
        group.unpack(steps);
    }
}

impl WeightFormat for Q4 {
    const NAME: &'static str = "q4";
    const ALIGNMENT: usize = LINE_BYTES;
    const TAKES_BF16_INPUTS: bool = false;
    const IS_PORTABLE: bool = true;
    const ROWS_TOGETHER: usize = ROWS;
    const ROWS_A_TASK: usize = 4 * ROWS;

    fn row_bytes(in_features: usize) -> Option<usize> {
        strips::num_groups(in_features, STEPS).checked_mul(GROUP_BYTES / ROWS)
    }

    fn values(data: &[u8], in_features: usize, row: usize) -> impl Iterator<Item = f32> {
        let strip_bytes = ROWS * Self::row_bytes(in_features).expect("of what is there");
        let strip = groups(&data[row / ROWS * strip_bytes..][..strip_bytes]);
        let of_group = move |group| {
            let (group, lane) = (Group::new(group), row % ROWS);
            let scale = group.scales[lane].to_f32();
            let bytes = group.row(lane).into_iter().flatten();
            bytes.map(move |byte| scale * f32::from(q8::integer(byte)))
        };
        strip.iter().flat_map(of_group).take(in_features)
    }

    fn encode(rows: &[f32], in_features: usize, out: &mut [u8]) -> Result<(), Unencodable> {
        // What is not written below stands for zeros.
        out.fill(0);
        for group in out.as_chunks_mut::<GROUP_BYTES>().0 {
            group[HEADER_BYTES - PARTS * ROWS..HEADER_BYTES].fill(ZERO_POINT);
        }
        for (row, values) in rows.chunks_exact(in_features).enumerate() {
            let groups = out.as_chunks_mut::<GROUP_BYTES>().0;
            for (group, (values, out)) in values.chunks(GROUP).zip(groups).enumerate() {
                let scale = scale(values)
                    .map_err(|column| Unencodable { row, column: group * GROUP + column })?;
                encode_group(values, scale, row, out);
            }
        }
        Ok(())
    }

    fn check(data: &[u8], _: usize) -> Result<(), Flaw> {
        for (index, group) in groups(data).iter().enumerate() {
            q8::check_scales(std::slice::from_ref(Group::new(group).scales))
                .map_err(|flaw| Flaw { group: index, ..flaw })?;
        }
        Ok(())
    }
}

/// The scale of a group: by it none of its finite values is more than 127.5, nor does a part reach over more than elements do
/// with the largest factor. Somewhat larger than that asks for, where parts' factors and offsets then fit better.
///
/// # Errors
/// Where the largest value is, if the scale is too large for f16.
fn scale(values: &[f32]) -> Result<f16, usize> {
    const SLACK: f32 = 1.05;
    let mut least = 0.0;
    for part in values.chunks(PART) {
        let (min, max) = range(part);
        least = larger(least, larger(max, -min) / 127.5);
        least = larger(least, (max - min) / (MAX * f32::from(MAX_FACTOR)));
    }
    let mut scale = f16::from_f32(least * SLACK);
    if scale.to_f32() < least {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    if scale.is_finite() {
        return Ok(scale);
    }
    let largest = values.iter().fold(0.0, |largest, value| larger(largest, value.abs()));
    let is_largest = |value: &f32| value.abs() >= largest;
    Err(values.iter().position(is_largest).expect("the largest is one of them"))
}

/// Encodes a row of a group, with the parts' lines that lose least.
fn encode_group(values: &[f32], scale: f16, row: usize, out: &mut [u8; GROUP_BYTES]) {
    if scale == f16::ZERO {
        return;
    }
    let (scales, rest) = out.split_at_mut(size_of::<Scales>());
    scales[2 * row..][..2].copy_from_slice(&scale.to_le_bytes());
    let (factors, rest) = rest.split_at_mut(PARTS / 2 * ROWS);
    let (offsets, elements) = rest.split_at_mut(PARTS * ROWS);
    let pairs = elements.as_chunks_mut::<{ ROWS * STEP }>().0;
    for (part, values) in values.chunks(PART).enumerate() {
        // Where values are missing at the end of K, the last one is taken again.
        let last = *values.last().expect("a part has values");
        let mut scaled = [last; PART];
        scaled[..values.len()].copy_from_slice(values);
        let scaled = scaled.map(|value| value / scale.to_f32());
        let fit = Fit::of(&scaled);
        let factor = byte(fit.factor - 1.0);
        factors[part / 2 * ROWS + row] |= factor << (part % 2 * 4);
        offsets[part * ROWS + row] = byte(fit.offset + f32::from(ZERO_POINT));
        for (i, value) in scaled.into_iter().enumerate() {
            let (step, at) = (part * PART_STEPS + i / STEP, i % STEP);
            let element = byte(fit.element(value));
            pairs[step / 2][row * STEP + at] |= element << (step % 2 * 4);
        }
    }
}

/// Elements' factor and offset, whole numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Fit {
    factor: f32,
    offset: f32,
}

impl Fit {
    /// A line by which elements stand for `values` with a small sum of squared errors. The best of a grid near the line from the
    /// least value to the greatest, and of the best one's neighbours: within a few thousandths of the least there is.
    fn of(values: &[f32; PART]) -> Self {
        let (min, max) = range(values);
        // A scale leaves room for 16, about.
        let ideal = byte((max - min) / MAX);
        let mut best = (f32::INFINITY, Self { factor: 1.0, offset: 0.0 });
        for factor in ideal.saturating_sub(3).max(1)..=(ideal + 1).min(MAX_FACTOR) {
            let factor = f32::from(factor);
            let centred = (min + max - MAX * factor) / 2.0;
            for shift in [-0.4, -0.2, 0.0, 0.2, 0.4] {
                Self::improve(&mut best, factor, round(centred + shift * factor), values);
            }
        }
        let Self { factor, offset } = best.1;
        for (factor, offset) in [
            (factor, offset + 1.0),
            (factor, offset - 1.0),
            (factor + 1.0, offset),
            (factor - 1.0, offset),
        ] {
            Self::improve(&mut best, factor, offset, values);
        }
        best.1
    }

    /// Takes a line, brought into bounds, if its error is less.
    fn improve(best: &mut (f32, Self), factor: f32, offset: f32, values: &[f32; PART]) {
        let factor = factor.clamp(1.0, f32::from(MAX_FACTOR));
        let least = -f32::from(ZERO_POINT);
        let offset = offset.clamp(least, least + 255.0 - MAX * factor);
        let fit = Self { factor, offset };
        let error = fit.error(values);
        if error < best.0 {
            *best = (error, fit);
        }
    }

    /// The sum of squared errors.
    fn error(self, values: &[f32; PART]) -> f32 {
        // Lanes, which the compiler makes vectors of.
        let mut errors = [0.0; 8];
        let inverse = 1.0 / self.factor;
        for values in values.as_chunks::<8>().0 {
            for (error, value) in errors.iter_mut().zip(values) {
                let element = round(smaller(larger((value - self.offset) * inverse, 0.0), MAX));
                let difference = element * self.factor + self.offset - value;
                *error += difference * difference;
            }
        }
        errors.into_iter().sum()
    }

    /// The element for a value.
    fn element(self, value: f32) -> f32 {
        round(smaller(larger((value - self.offset) * (1.0 / self.factor), 0.0), MAX))
    }
}

/// The least and the greatest of some values.
fn range(values: &[f32]) -> (f32, f32) {
    let first = values[0];
    values
        .iter()
        .fold((first, first), |(min, max), &value| (smaller(min, value), larger(max, value)))
}

// Of numbers that are finite, so that each is one instruction.

fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

fn smaller(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// To the nearest integer, ties to even, of less than 2^22.
fn round(value: f32) -> f32 {
    (value + q8::WHOLE) - q8::WHOLE
}

/// A whole number from 0 to 255.
fn byte(value: f32) -> u8 {
    (value + q8::WHOLE).to_bits().to_le_bytes()[0]
}
