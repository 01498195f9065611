//! Weight matrices as they are stored.

use std::mem::MaybeUninit;

use half::bf16;

use crate::formats::{Format, FormatVisitor, WeightFormat};

/// A weight matrix `[out_features, in_features]` as it is stored: bytes, and the format that says what they mean.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    format: Format,
    data: &'a [u8],
    in_features: usize,
    /// Of a row.
    row_bytes: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows of `in_features` are stored in `format`.
    ///
    /// # Panics
    /// If `data` is not whole rows, or does not start where elements of the format may.
    pub fn new(format: Format, data: &'a [u8], in_features: usize) -> Self {
        assert!(in_features > 0, "a matrix of no columns");
        let (row_bytes, alignment) = format.visit(RowBytes { in_features });
        assert!(
            data.len().is_multiple_of(row_bytes),
            "{} bytes are not rows of {in_features} in {format:?}",
            data.len()
        );
        assert!(
            data.as_ptr().addr().is_multiple_of(alignment),
            "{format:?} starts at a multiple of {alignment} bytes"
        );
        Self { format, data, in_features, row_bytes }
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
        self.data.len() / self.row_bytes
    }

    /// The bytes of a row.
    pub fn row_bytes(self) -> usize {
        self.row_bytes
    }

    /// Writes the values of a row to `out`, all of it.
    ///
    /// # Panics
    /// If there is no such row, or `out` has not `in_features` elements.
    pub(crate) fn write_row(self, row: usize, out: &mut [MaybeUninit<f32>]) {
        assert!(row < self.out_features(), "row {row} of {}", self.out_features());
        assert_eq!(out.len(), self.in_features);
        self.format.visit(WriteRow { matrix: self, row, out });
    }
}

/// The bytes of a row, and what the first byte's address is a multiple of.
struct RowBytes {
    in_features: usize,
}

impl FormatVisitor for RowBytes {
    type Output = (usize, usize);

    fn visit<F: WeightFormat>(self) -> Self::Output {
        (F::row_bytes(self.in_features), F::ALIGNMENT)
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
