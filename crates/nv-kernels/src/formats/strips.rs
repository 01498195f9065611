//! How integers lie in memory when they are multiplied: in strips, without a sum across lanes. Eight-bit formats are stored so.
//!
//! A strip is 16 rows, interleaved: 64 bytes are 4 consecutive elements of K of each row. Elements come in groups, each with
//! a scale a row. The scales of all groups come first, padded to a cache line, so that all else starts with one; then the
//! groups' elements. Rows and K are padded with zeros.

use half::f16;

use crate::prefetch::LINE_BYTES;

/// Rows of a strip.
pub(crate) const ROWS: usize = 16;

/// Elements of K of each row in a step: 64 bytes of 8-bit elements.
pub(crate) const STEP: usize = 4;

/// Eight-bit elements of a step: those of the first row, of the second, and so on.
pub(crate) type Step = [u8; ROWS * STEP];

/// The scales of a group.
pub(crate) type Scales = [f16; ROWS];

/// What is added to an integer weight where it is stored, so that no byte is negative.
pub(crate) const ZERO_POINT: u8 = 128;

/// Groups of `steps` steps that hold rows of `in_features`.
pub(crate) fn num_groups(in_features: usize, steps: usize) -> usize {
    in_features.div_ceil(steps * STEP)
}

/// Bytes of the scales of so many groups, padding included.
fn scales_bytes(num_groups: usize) -> Option<usize> {
    num_groups.checked_mul(size_of::<Scales>())?.checked_next_multiple_of(LINE_BYTES)
}

/// Bytes of a strip with groups of `steps` steps.
pub(super) fn strip_bytes(in_features: usize, steps: usize) -> Option<usize> {
    let num_groups = num_groups(in_features, steps);
    num_groups.checked_mul(steps * size_of::<Step>())?.checked_add(scales_bytes(num_groups)?)
}

/// A strip in groups of `STEPS` steps of 8-bit elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strip<'a, const STEPS: usize> {
    scales: &'a [Scales],
    steps: &'a [Step],
}

impl<'a, const STEPS: usize> Strip<'a, STEPS> {
    /// The strip of the bytes `data`.
    ///
    /// # Panics
    /// If they are not those of a strip of rows of `in_features`.
    #[inline]
    pub(crate) fn new(data: &'a [u8], in_features: usize) -> Self {
        let num_groups = num_groups(in_features, STEPS);
        let (scales, steps) = data.split_at(scales_bytes(num_groups).expect("of what is there"));
        let scales = &scales[..num_groups * size_of::<Scales>()];
        let (steps, rest) = steps.as_chunks();
        assert!(rest.is_empty() && steps.len() == num_groups * STEPS, "not a strip's bytes");
        Self { scales: bytemuck::cast_slice(scales), steps }
    }

    #[inline]
    pub(crate) fn num_groups(self) -> usize {
        self.scales.len()
    }

    /// The scales of a group.
    #[inline]
    pub(crate) fn scales(self, group: usize) -> &'a Scales {
        &self.scales[group]
    }

    /// The steps of a group.
    #[inline]
    pub(crate) fn steps(self, group: usize) -> &'a [Step; STEPS] {
        self.steps[group * STEPS..].first_chunk().expect("a group has its steps")
    }

    /// Where the scales begin, and with them the strip.
    #[inline]
    pub(crate) fn all_scales(self) -> &'a [Scales] {
        self.scales
    }
}

/// The parts of the bytes of a strip to be written: its scales, and its steps.
pub(super) fn parts_mut(
    data: &mut [u8],
    in_features: usize,
    steps: usize,
) -> (&mut [Scales], &mut [u8]) {
    let num_groups = num_groups(in_features, steps);
    let (scales, elements) = data.split_at_mut(scales_bytes(num_groups).expect("of what is there"));
    let (scales, padding) = scales.split_at_mut(num_groups * size_of::<Scales>());
    padding.fill(0);
    (bytemuck::cast_slice_mut(scales), elements)
}
