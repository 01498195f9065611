//! Weight matrices as they are stored.

use std::mem::MaybeUninit;

use half::bf16;

use crate::formats::{Format, FormatVisitor, WeightFormat};

/// A weight matrix `[out_features, in_features]` as it is stored: bytes, and the format that says what they mean.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    format: Format,
    data: &'a [u8],
    out_features: usize,
    in_features: usize,
    /// Of a row; where rows are stored together, of a row's part.
    row_bytes: usize,
}

/// Why bytes are no matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// A size that no matrix has.
    #[error(
        "a {} matrix [{out_features}, {in_features}]: expected columns, and bytes that can be counted",
        format.name()
    )]
    Shape {
        /// What the bytes mean.
        format: Format,
        /// The number of rows that was asked for.
        out_features: usize,
        /// The length of a row that was asked for.
        in_features: usize,
    },
    /// Too few bytes, or too many.
    #[error(
        "a {} matrix [{out_features}, {in_features}]: expected {expected} bytes, found {found}",
        format.name()
    )]
    Size {
        /// What the bytes mean.
        format: Format,
        /// The number of rows.
        out_features: usize,
        /// The length of a row.
        in_features: usize,
        /// What such a matrix takes.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// A first byte where no matrix of the format may start.
    #[error(
        "a {} matrix: expected an address that is a multiple of {expected}, found one that is {found} bytes past it",
        format.name()
    )]
    Alignment {
        /// What the bytes mean.
        format: Format,
        /// What the first byte's address must be a multiple of.
        expected: usize,
        /// What is left of the address.
        found: usize,
    },
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows of `in_features` are stored in `format`, one by one.
    ///
    /// # Panics
    /// If the format stores several rows together, `data` is not whole rows, or it does not start where elements of the format
    /// may.
    pub fn new(format: Format, data: &'a [u8], in_features: usize) -> Self {
        assert_eq!(format.rows_together(), 1, "{format:?} is not stored row by row");
        let row_bytes = format.row_bytes(in_features).expect("a matrix has columns");
        assert!(
            data.len().is_multiple_of(row_bytes),
            "{} bytes are not rows of {in_features} in {format:?}",
            data.len()
        );
        let matrix = Self::checked(format, data, data.len() / row_bytes, in_features);
        matrix.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The matrix `[out_features, in_features]` that is stored in `format` in the bytes `data`.
    ///
    /// What the bytes say isn't looked at: of a file, [`check_packed`](crate::check_packed) does that.
    ///
    /// # Errors
    /// [`MatrixError`] if they are not as many as such a matrix has, or don't start where it may.
    pub fn checked(
        format: Format,
        data: &'a [u8],
        out_features: usize,
        in_features: usize,
    ) -> Result<Self, MatrixError> {
        let bytes = format.matrix_bytes(out_features, in_features);
        let (Some(expected), Some(row_bytes)) = (bytes, format.row_bytes(in_features)) else {
            return Err(MatrixError::Shape { format, out_features, in_features });
        };
        let found = data.len();
        if found != expected {
            return Err(MatrixError::Size { format, out_features, in_features, expected, found });
        }
        let (expected, found) = (format.alignment(), data.as_ptr().addr() % format.alignment());
        if found != 0 {
            return Err(MatrixError::Alignment { format, expected, found });
        }
        Ok(Self { format, data, out_features, in_features, row_bytes })
    }

    /// A bf16 matrix with rows of `in_features`.
    ///
    /// # Panics
    /// If `data` is not whole rows.
    pub fn bf16(data: &'a [bf16], in_features: usize) -> Self {
        Self::new(Format::Bf16, bytemuck::cast_slice(data), in_features)
    }

    /// An f32 matrix with rows of `in_features`.
    ///
    /// # Panics
    /// If `data` is not whole rows.
    pub fn f32(data: &'a [f32], in_features: usize) -> Self {
        Self::new(Format::F32, bytemuck::cast_slice(data), in_features)
    }

    /// What the bytes mean.
    pub fn format(self) -> Format {
        self.format
    }

    /// The bytes of all rows.
    pub fn data(self) -> &'a [u8] {
        self.data
    }

    /// The length of a row.
    pub fn in_features(self) -> usize {
        self.in_features
    }

    /// The number of rows.
    pub fn out_features(self) -> usize {
        self.out_features
    }

    /// The bytes of a row; of rows that are stored together, the part of each.
    pub fn row_bytes(self) -> usize {
        self.row_bytes
    }

    /// Writes the values of a row to `out`, all of it.
    ///
    /// # Panics
    /// If there is no such row, or `out` has not `in_features` elements.
    pub(crate) fn write_row(self, row: usize, out: &mut [MaybeUninit<f32>]) {
        assert!(row < self.out_features, "row {row} of {}", self.out_features);
        assert_eq!(out.len(), self.in_features);
        self.format.visit(WriteRow { matrix: self, row, out });
    }
}

/// See [`Matrix::write_row`].
struct WriteRow<'a> {
    matrix: Matrix<'a>,
    row: usize,
    out: &'a mut [MaybeUninit<f32>],
}

impl FormatVisitor for WriteRow<'_> {
    type Output = ();

    fn visit<F: WeightFormat>(self) {
        let Self { matrix, row, out } = self;
        for (out, value) in out.iter_mut().zip(F::values(matrix.data, matrix.in_features, row)) {
            out.write(value);
        }
    }
}
