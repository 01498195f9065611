//! Rows of a weight matrix: as bytes for what knows no format, typed for kernels.

use std::ops::Range;

use crate::matrix::Matrix;

/// Consecutive rows of a matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) matrix: Matrix<'a>,
    pub(crate) first: usize,
    pub(crate) len: usize,
}

impl<'a> Rows<'a> {
    pub(crate) fn range(self) -> Range<usize> {
        self.first..self.first + self.len
    }

    /// The bytes of the rows, and of padding that is stored with the last ones.
    ///
    /// # Panics
    /// If the first is stored together with rows before it.
    pub(crate) fn bytes(self) -> &'a [u8] {
        let (row_bytes, together) = (self.matrix.row_bytes(), self.matrix.format().rows_together());
        assert!(self.first.is_multiple_of(together), "rows from {} on", self.first);
        let len = self.len.next_multiple_of(together);
        &self.matrix.data()[self.first * row_bytes..(self.first + len) * row_bytes]
    }
}

/// Rows of `k` elements each, back to back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowMajor<'a, E> {
    data: &'a [E],
    k: usize,
}

impl<'a, E: Copy> RowMajor<'a, E> {
    /// # Panics
    /// If `data` is not whole rows.
    pub(crate) fn new(data: &'a [E], k: usize) -> Self {
        assert!(
            k > 0 && data.len().is_multiple_of(k),
            "{} elements are not rows of {k}",
            data.len()
        );
        Self { data, k }
    }

    /// Elements a row.
    pub(crate) fn k(self) -> usize {
        self.k
    }

    pub(crate) fn num_rows(self) -> usize {
        self.data.len() / self.k
    }

    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        Self { data: &self.data[rows.start * self.k..rows.end * self.k], k: self.k }
    }

    pub(crate) fn elements(self) -> &'a [E] {
        self.data
    }

    pub(crate) fn row(self, row: usize) -> &'a [E] {
        &self.data[row * self.k..(row + 1) * self.k]
    }
}
