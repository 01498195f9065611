//! From values to a format's bytes, and the check of bytes that came from elsewhere.

use std::marker::PhantomData;
use std::sync::Mutex;

use crate::formats::{Flaw, Format, FormatVisitor, Unencodable, WeightFormat};
use crate::isa::Isa;
use crate::matrix::Matrix;
use crate::pool::Pool;
use crate::results::SharedResult;
use crate::table::Kernels;
use crate::tier::{Compile, Work};

/// Why values can't be stored in a format.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// NaN or an infinity.
    #[error("row {row}, column {column}: expected a finite value, found {value}")]
    NotFinite {
        /// The row of the first such value.
        row: usize,
        /// Its column.
        column: usize,
        /// The value.
        value: f32,
    },
    /// A value of a greater magnitude than the format's scales reach.
    #[error("row {row}, column {column}: {value:e} is too large for {}", format.name())]
    TooLarge {
        /// What the values were to be stored in.
        format: Format,
        /// The row of the first such value.
        row: usize,
        /// Its column.
        column: usize,
        /// The value.
        value: f32,
    },
}

impl QuantizeError {
    /// The same of a matrix that has `num_rows` before those that were quantised.
    #[must_use]
    pub fn after(mut self, num_rows: usize) -> Self {
        match &mut self {
            Self::NotFinite { row, .. } | Self::TooLarge { row, .. } => *row += num_rows,
        }
        self
    }

    /// The row and column.
    fn place(&self) -> (usize, usize) {
        match *self {
            Self::NotFinite { row, column, .. } | Self::TooLarge { row, column, .. } => {
                (row, column)
            }
        }
    }
}

/// Bytes that no encoder of a format writes.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PackedError {
    /// NaN, an infinity or a negative number.
    #[error("row {row}, group {group}: expected a finite scale of 0 or more, found {scale}")]
    Scale {
        /// The row of the first such scale, padding included.
        row: usize,
        /// Its group along K.
        group: usize,
        /// The scale.
        scale: f32,
    },
}

/// Stores a matrix `[out_features, in_features]` in `format`: `row(i, values)` writes the values of row `i`, and `out` becomes
/// the bytes. Integers of 8 bits are the nearest, ties to even, in units of their group's scale; of 4 bits they are the nearest on lines that were
/// searched for a small squared error.
///
/// The result depends on the values alone, not on the machine or the number of threads.
///
/// # Errors
/// The first value, by row and column, that isn't finite or that the format can't hold. `out` then holds nothing of use.
///
/// # Panics
/// If there is no such matrix, or `out` has not [`Format::matrix_bytes`] or isn't aligned as the format asks.
pub fn quantize(
    pool: &Pool,
    format: Format,
    out_features: usize,
    in_features: usize,
    row: &(dyn Fn(usize, &mut [f32]) + Sync),
    out: &mut [u8],
) -> Result<(), QuantizeError> {
    let bytes = format.matrix_bytes(out_features, in_features).expect("there is such a matrix");
    assert_eq!(out.len(), bytes, "bytes of {format:?} [{out_features}, {in_features}]");
    assert!(out.as_ptr().addr().is_multiple_of(format.alignment()), "{format:?} is aligned");
    if out_features == 0 {
        return Ok(());
    }
    let kernels = Kernels::for_isa(Isa::detect()).expect("the machine has the tier");
    let encode = kernels.encoder(format);
    let together = format.rows_together();
    let unit_bytes = bytes / out_features.div_ceil(together);
    let shared = SharedResult::new(out, unit_bytes);
    let first_error: Mutex<Option<QuantizeError>> = Mutex::new(None);
    pool.run(out_features.div_ceil(together), |unit| {
        let first = unit * together;
        let num_rows = together.min(out_features - first);
        let mut values = vec![0.0; num_rows * in_features];
        for (i, values) in values.chunks_exact_mut(in_features).enumerate() {
            row(first + i, values);
        }
        // SAFETY: units are disjoint rows of the result, and the pool runs a task once.
        #[expect(unsafe_code, reason = "tasks write disjoint rows")]
        let mut part = unsafe { shared.part(unit..unit + 1, 0..unit_bytes) };
        let encoded = if let Some(i) = first_not_finite(&values) {
            let (row, column) = (first + i / in_features, i % in_features);
            Err(QuantizeError::NotFinite { row, column, value: values[i] })
        } else {
            // SAFETY: the encoder is from a `Kernels`, which exists only where the machine has its tier.
            #[expect(unsafe_code, reason = "a tier's loops need its instruction set")]
            let encoded = unsafe { encode(&values, in_features, part.row(0)) };
            encoded.map_err(|Unencodable { row, column }| {
                let value = values[row * in_features + column];
                QuantizeError::TooLarge { format, row: first + row, column, value }
            })
        };
        if let Err(error) = encoded {
            let mut first_error = first_error.lock().expect("nothing panics under the lock");
            if first_error.as_ref().is_none_or(|known| error.place() < known.place()) {
                *first_error = Some(error);
            }
        }
    });
    first_error.into_inner().expect("nothing panics under the lock").map_or(Ok(()), Err)
}

/// [`WeightFormat::encode`] as a tier compiles it: to be called only where the machine has the tier.
pub(crate) type Encode = unsafe fn(&[f32], usize, &mut [u8]) -> Result<(), Unencodable>;

/// The encoder of `format` as `C` compiles it.
pub(crate) fn encoder<C: Compile>(format: Format) -> Encode {
    struct Of<C>(PhantomData<C>);

    impl<C: Compile> FormatVisitor for Of<C> {
        type Output = Encode;

        fn visit<F: WeightFormat>(self) -> Encode {
            encode::<C, F>
        }
    }

    format.visit(Of::<C>(PhantomData))
}

/// # Safety
/// The machine has the tier.
#[expect(unsafe_code, reason = "a tier's loops need its instruction set")]
unsafe fn encode<C: Compile, F: WeightFormat>(
    rows: &[f32],
    in_features: usize,
    out: &mut [u8],
) -> Result<(), Unencodable> {
    struct Rows<'a, F>(&'a [f32], usize, &'a mut [u8], PhantomData<F>);

    impl<F: WeightFormat> Work for Rows<'_, F> {
        type Output = Result<(), Unencodable>;

        #[inline(always)]
        #[expect(clippy::inline_always, reason = "each tier compiles its own copy")]
        fn run(self) -> Self::Output {
            let Self(rows, in_features, out, _) = self;
            F::encode(rows, in_features, out)
        }
    }

    // SAFETY: the caller vouches for the tier.
    let tier = unsafe { C::new() };
    tier.compile(Rows::<F>(rows, in_features, out, PhantomData))
}

/// The place of the first NaN or infinity. All are looked at together first: nearly always there is none.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    const EXPONENT: u32 = f32::INFINITY.to_bits();
    let is_not_finite = |value: &f32| value.to_bits() & EXPONENT == EXPONENT;
    let any = values.iter().fold(false, |any, value| any | is_not_finite(value));
    if any { values.iter().position(is_not_finite) } else { None }
}

/// Checks that the bytes of `matrix`, which came from elsewhere, are what an encoder may have written: that scales are finite
/// and not negative. Any other byte multiplies to a finite number.
///
/// # Errors
/// [`PackedError`] with the first such row.
pub fn check_packed(pool: &Pool, matrix: Matrix<'_>) -> Result<(), PackedError> {
    matrix.format().visit(Check { pool, matrix })
}

/// See [`check_packed`].
struct Check<'a> {
    pool: &'a Pool,
    matrix: Matrix<'a>,
}

impl FormatVisitor for Check<'_> {
    type Output = Result<(), PackedError>;

    fn visit<F: WeightFormat>(self) -> Self::Output {
        /// Rows that a task checks.
        const ROWS_AT_ONCE: usize = 1024;
        let Self { pool, matrix } = self;
        let unit_bytes = F::ROWS_TOGETHER * matrix.row_bytes();
        let units_at_once = ROWS_AT_ONCE / F::ROWS_TOGETHER;
        let task_bytes = units_at_once * unit_bytes;
        let first_flaw: Mutex<Option<Flaw>> = Mutex::new(None);
        pool.run(matrix.data().len().div_ceil(task_bytes), |task| {
            let units = matrix.data()[task * task_bytes..].chunks_exact(unit_bytes);
            for (i, unit) in units.take(units_at_once).enumerate() {
                let Err(flaw) = F::check(unit, matrix.in_features()) else { continue };
                let row = task * ROWS_AT_ONCE + i * F::ROWS_TOGETHER + flaw.row;
                let mut first_flaw = first_flaw.lock().expect("nothing panics under the lock");
                if first_flaw.is_none_or(|known| row < known.row) {
                    *first_flaw = Some(Flaw { row, ..flaw });
                }
                break;
            }
        });
        let flaw = first_flaw.into_inner().expect("nothing panics under the lock");
        flaw.map_or(Ok(()), |Flaw { row, group, scale }| {
            Err(PackedError::Scale { row, group, scale })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefetch::LINE_BYTES;

    #[test]
    fn every_tier_encodes_to_the_same_bytes() {
        let (num_rows, in_features) = (16, 300);
        // Of all magnitudes that f16 scales reach, some of them with few digits.
        let values: Vec<f32> = (0..num_rows * in_features)
            .map(|i| {
                let x = (i * 7919 % 4001) as f32 / 2000.0 - 1.0;
                x * 2f32.powi(i32::try_from(i / in_features * 2).unwrap() - 26)
            })
            .collect();
        for format in [Format::Q8, Format::Q8Group32, Format::Q4] {
            let len = format.matrix_bytes(num_rows, in_features).unwrap();
            let encoded: Vec<Vec<u8>> = Isa::ALL
                .into_iter()
                .filter_map(Kernels::for_isa)
                .map(|kernels| {
                    let mut bytes = vec![0xa5; len + LINE_BYTES];
                    let start = bytes.as_ptr().align_offset(LINE_BYTES);
                    let out = &mut bytes[start..start + len];
                    // SAFETY: the machine has the tier.
                    #[expect(unsafe_code, reason = "a tier's loops need its instruction set")]
                    let done = unsafe { kernels.encoder(format)(&values, in_features, out) };
                    done.unwrap();
                    out.to_vec()
                })
                .collect();
            assert!(encoded.iter().all(|bytes| *bytes == encoded[0]), "{format:?}");
            assert!(encoded[0].iter().any(|byte| *byte != 0));
        }
    }
}
