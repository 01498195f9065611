//! Row-major results that threads write in disjoint parts, with the bounds that kernels rely on.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Some columns of some rows of a row-major result `[num_rows, stride]`, for one thread alone.
#[derive(Debug)]
pub(crate) struct PartMut<'a, E = f32> {
    /// The first of the columns in the first of the rows.
    start: *mut E,
    num_rows: usize,
    num_columns: usize,
    stride: usize,
    _result: PhantomData<&'a mut [E]>,
}

impl<E> PartMut<'_, E> {
    /// The part's columns of its `row`th row.
    pub(crate) fn row(&mut self, row: usize) -> &mut [E] {
        assert!(row < self.num_rows, "row {row} of {}", self.num_rows);
        let start = self.start.wrapping_add(row * self.stride);
        // SAFETY: `row < num_rows`, so these columns lie inside the part that `SharedResult::part` checked, and
        // no one else holds it.
        #[expect(unsafe_code, reason = "columns of a row-major result are not one slice")]
        unsafe {
            std::slice::from_raw_parts_mut(start, self.num_columns)
        }
    }
}

impl PartMut<'_, MaybeUninit<f32>> {
    /// The part's columns of some of its rows, to be written.
    pub(crate) fn outputs(&mut self, rows: Range<usize>) -> Outputs<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.num_rows, "rows {rows:?}");
        Outputs {
            start: self.start.wrapping_add(rows.start * self.stride).cast(),
            num_rows: rows.len(),
            num_columns: self.num_columns,
            stride: self.stride,
            _result: PhantomData,
        }
    }
}

/// Where a kernel writes its results: `[num_rows, num_columns]`, which nobody else holds and which may hold nothing yet.
#[derive(Debug)]
pub(crate) struct Outputs<'a> {
    start: *mut f32,
    num_rows: usize,
    num_columns: usize,
    stride: usize,
    _result: PhantomData<&'a mut [f32]>,
}

impl<'a> Outputs<'a> {
    /// The whole of `out`, rows of `num_columns` back to back.
    pub(crate) fn over(out: &'a mut [f32], num_columns: usize) -> Self {
        let num_rows = out.len() / num_columns;
        let start = out.as_mut_ptr();
        Self { start, num_rows, num_columns, stride: num_columns, _result: PhantomData }
    }

    /// The address of a place, to be prefetched.
    #[inline]
    pub(crate) fn address_of(&self, row: usize, column: usize) -> *const u8 {
        self.start.wrapping_add(row * self.stride + column).cast_const().cast()
    }

    /// Writes `values`, rows of columns, from `row` and `column` on.
    ///
    /// # Panics
    /// If they do not lie inside.
    #[inline]
    pub(crate) fn write<const COLUMNS: usize, const ROWS: usize>(
        &mut self,
        (row, column): (usize, usize),
        values: &[[f32; COLUMNS]; ROWS],
    ) {
        assert!(row <= self.num_rows && ROWS <= self.num_rows - row);
        assert!(column <= self.num_columns && COLUMNS <= self.num_columns - column);
        let place = self.start.wrapping_add(row * self.stride + column);
        for (row, values) in values.iter().enumerate() {
            let place = place.wrapping_add(row * self.stride).cast::<[f32; COLUMNS]>();
            // SAFETY: the rows and columns are inside what this was made of, which it holds alone.
            #[expect(unsafe_code, reason = "a place that holds nothing yet is no slice of f32")]
            unsafe {
                place.write_unaligned(*values);
            }
        }
    }

    /// [`Self::write`] of the first `num_columns` of `values`.
    #[cold]
    pub(crate) fn write_some<const COLUMNS: usize, const ROWS: usize>(
        &mut self,
        (row, column): (usize, usize),
        values: &[[f32; COLUMNS]; ROWS],
        num_columns: usize,
    ) {
        for (r, values) in values.iter().enumerate() {
            for (c, value) in values[..num_columns].iter().enumerate() {
                self.write((row + r, column + c), &[[*value]]);
            }
        }
    }
}

/// A row-major result `[num_rows, stride]` that several threads compute, each its own parts.
#[derive(Debug)]
pub(crate) struct SharedResult<'a, E = f32> {
    start: *mut E,
    num_rows: usize,
    stride: usize,
    _result: PhantomData<&'a mut [E]>,
}

// SAFETY: the address is only used through `part`, whose caller vouches that parts are disjoint.
#[expect(unsafe_code, reason = "threads write disjoint parts of one result")]
unsafe impl<E: Send> Sync for SharedResult<'_, E> {}

impl<'a, E> SharedResult<'a, E> {
    /// # Panics
    /// If `result` is not whole rows of `stride`.
    pub(crate) fn new(result: &'a mut [E], stride: usize) -> Self {
        assert!(stride > 0 && result.len().is_multiple_of(stride));
        Self {
            num_rows: result.len() / stride,
            start: result.as_mut_ptr(),
            stride,
            _result: PhantomData,
        }
    }

    /// The given columns of the given rows, neither empty.
    ///
    /// # Safety
    /// Nobody else may hold an overlapping part while the returned value lives.
    #[expect(unsafe_code, reason = "only the caller knows that parts are disjoint")]
    pub(crate) unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>) -> PartMut<'a, E> {
        assert!(rows.start < rows.end && rows.end <= self.num_rows);
        assert!(columns.start < columns.end && columns.end <= self.stride);
        PartMut {
            // SAFETY: the first row and column exist, say the assertions.
            start: unsafe { self.start.add(rows.start * self.stride + columns.start) },
            num_rows: rows.len(),
            num_columns: columns.len(),
            stride: self.stride,
            _result: PhantomData,
        }
    }
}

/// A row-major result that threads write into the capacity of a vector. Nobody zeroes it for them: that would cost as much
/// memory traffic as the result itself. The vector is empty until all is written.
#[derive(Debug)]
pub(crate) struct NewResult<'a> {
    out: &'a mut Vec<f32>,
    len: usize,
    stride: usize,
}

impl<'a> NewResult<'a> {
    /// `num_rows` rows of `stride` in the place of what `out` holds.
    pub(crate) fn new(out: &'a mut Vec<f32>, num_rows: usize, stride: usize) -> Self {
        out.clear();
        out.reserve(num_rows * stride);
        Self { out, len: num_rows * stride, stride }
    }

    /// The uninitialised elements, for threads to write.
    ///
    /// # Panics
    /// If rows are empty.
    pub(crate) fn shared(&mut self) -> SharedResult<'_, MaybeUninit<f32>> {
        SharedResult::new(&mut self.out.spare_capacity_mut()[..self.len], self.stride)
    }

    /// Gives the result to the vector.
    ///
    /// # Safety
    /// Every element of [`Self::shared`] must have been written.
    #[expect(unsafe_code, reason = "only the caller knows that all parts are written")]
    pub(crate) unsafe fn written(self) {
        // SAFETY: `new` reserved `len` elements, and the caller vouches that they are written.
        unsafe { self.out.set_len(self.len) }
    }
}
