//! Weights of linear layers over 8-bit integers: strips of 16 rows, read a group at a time, some of them together.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]

use std::ptr;

use crate::formats::strips::{ROWS, Scales, Step, Strip};
use crate::formats::{Format, q4};
use crate::linear::inputs::{InputLayout, aligned};
use crate::linear::rows::Rows;
use crate::matrix::Matrix;
use crate::prefetch::LINE_BYTES;
use crate::tier::Work;

/// Strips that are read at once: several streams draw more from memory than one does.
pub(crate) const BLOCK: usize = 4;

/// Bytes of a strip between what is multiplied and what is prefetched.
const PREFETCH_DISTANCE: usize = 4096;

/// Rows in strips.
#[derive(Clone, Copy)]
pub(crate) struct StripRows<'a> {
    bytes: &'a [u8],
    pub(super) num_rows: usize,
    in_features: usize,
    is_packed: bool,
}

impl<'a> StripRows<'a> {
    pub(crate) fn new(rows: Rows<'a>) -> Self {
        Self {
            bytes: rows.bytes(),
            num_rows: rows.len,
            in_features: rows.matrix.in_features(),
            is_packed: rows.matrix.format() == Format::Q4,
        }
    }

    pub(super) fn num_strips(self) -> usize {
        self.num_rows.div_ceil(ROWS)
    }

    pub(crate) fn strips<const STEPS: usize>(
        self,
    ) -> impl Iterator<Item = GroupedStrip<'a, STEPS>> {
        (0..self.num_strips()).map(move |strip| self.strip(strip))
    }

    #[inline(always)]
    fn strip<const STEPS: usize>(self, strip: usize) -> GroupedStrip<'a, STEPS> {
        let strip_bytes = self.bytes.len() / self.num_strips();
        let bytes = &self.bytes[strip * strip_bytes..][..strip_bytes];
        if self.is_packed {
            GroupedStrip::Packed(q4::groups(bytes))
        } else {
            GroupedStrip::Whole(Strip::new(bytes, self.in_features))
        }
    }
}

/// A strip in groups of 8-bit elements, or of 4-bit ones that become such.
#[derive(Clone, Copy)]
pub(crate) enum GroupedStrip<'a, const STEPS: usize> {
    Whole(Strip<'a, STEPS>),
    Packed(&'a [[u8; q4::GROUP_BYTES]]),
}

/// A group of a strip as it is multiplied.
#[derive(Clone, Copy)]
pub(crate) struct Group<'a, const STEPS: usize> {
    pub(crate) steps: &'a [Step; STEPS],
    pub(crate) scales: &'a Scales,
}

impl<'a, const STEPS: usize> GroupedStrip<'a, STEPS> {
    #[inline(always)]
    pub(crate) fn num_groups(self) -> usize {
        match self {
            Self::Whole(strip) => strip.num_groups(),
            Self::Packed(groups) => groups.len(),
        }
    }

    /// A group; `room` is for its elements, where they aren't stored as they are multiplied.
    #[inline(always)]
    pub(crate) fn group<'r>(self, group: usize, room: &'r mut [Step; STEPS]) -> Group<'r, STEPS>
    where
        'a: 'r,
    {
        match self {
            Self::Whole(strip) => Group { steps: strip.steps(group), scales: strip.scales(group) },
            Self::Packed(groups) => {
                let group = q4::Group::new(&groups[group]);
                let steps =
                    room.as_mut_slice().try_into().expect("4 bits are packed in such groups");
                group.unpack(steps);
                Group { steps: room, scales: group.scales }
            }
        }
    }

    /// Where the elements of a group are.
    #[inline(always)]
    fn elements(self, group: usize) -> *const u8 {
        match self {
            Self::Whole(strip) => strip.steps(group).as_ptr().cast(),
            Self::Packed(groups) => groups[group][q4::HEADER_BYTES..].as_ptr(),
        }
    }

    /// Bytes of a group's elements for each of its steps.
    #[inline(always)]
    fn step_bytes(self) -> usize {
        match self {
            Self::Whole(_) => size_of::<Step>(),
            Self::Packed(_) => size_of::<Step>() / 2,
        }
    }
}

/// Strips that are read at once.
pub(super) struct Block<'a, const STEPS: usize> {
    /// For those that are missing the first is repeated: a tile of several strips multiplies them, and nobody takes the results.
    strips: [GroupedStrip<'a, STEPS>; BLOCK],
    pub(super) len: usize,
    /// Those that come next in the place of each.
    next: [GroupedStrip<'a, STEPS>; BLOCK],
}

impl<'a, const STEPS: usize> Block<'a, STEPS> {
    /// The strips of `rows` from `first` on; the strips of `next` come after those of `rows`.
    #[inline(always)]
    pub(super) fn new(rows: StripRows<'a>, next: Option<StripRows<'a>>, first: usize) -> Self {
        let num_strips = rows.num_strips();
        let len = BLOCK.min(num_strips - first);
        // Loops: closures of arrays' functions would be compiled by themselves, without the tier's instructions.
        let mut strips = [rows.strip(first); BLOCK];
        for i in 1..len {
            strips[i] = rows.strip(first + i);
        }
        // What isn't there is in the cache.
        let mut next_strips = strips;
        for (i, next_strip) in next_strips.iter_mut().enumerate() {
            let strip = first + BLOCK + i;
            if strip < num_strips {
                *next_strip = rows.strip(strip);
            } else if let Some(next) = next
                && first + BLOCK >= num_strips
                && i < next.num_strips()
            {
                *next_strip = next.strip(i);
            }
        }
        Self { strips, len, next: next_strips }
    }

    #[inline(always)]
    pub(super) fn num_groups(&self) -> usize {
        self.strips[0].num_groups()
    }

    /// A group of each strip.
    #[inline(always)]
    pub(super) fn groups<'r>(
        &self,
        group: usize,
        room: &'r mut [[Step; STEPS]; BLOCK],
    ) -> [Group<'r, STEPS>; BLOCK]
    where
        'a: 'r,
    {
        let [first, second, third, fourth] = room;
        [
            self.strips[0].group(group, first),
            self.strips[1].group(group, second),
            self.strips[2].group(group, third),
            self.strips[3].group(group, fourth),
        ]
    }

    /// What to prefetch while `group` is multiplied.
    #[inline(always)]
    pub(super) fn ahead(&self, group: usize) -> Ahead {
        let num_groups = self.num_groups();
        let step_bytes = self.strips[0].step_bytes();
        let distance = (PREFETCH_DISTANCE / (STEPS * step_bytes)).clamp(1, num_groups);
        let group = group + distance;
        let mut elements = [ptr::null(); BLOCK];
        for (i, elements) in elements.iter_mut().enumerate() {
            *elements = if group < num_groups {
                self.strips[i].elements(group)
            } else {
                // Next rows may be shorter.
                let next = self.next[i];
                next.elements((group - num_groups).min(next.num_groups() - 1))
            };
        }
        Ahead { elements, step_bytes }
    }

    /// The lines beside elements to prefetch while `group` is multiplied.
    #[inline(always)]
    pub(super) fn headers_ahead(
        &self,
        group: usize,
        ahead: Ahead,
    ) -> impl Iterator<Item = *const u8> {
        self.next
            .iter()
            .zip(ahead.elements)
            .flat_map(move |(next, elements)| match next {
                // The next strip's scales: a group's are half a line.
                GroupedStrip::Whole(strip) => {
                    let line = strip.all_scales().as_ptr().wrapping_add(group).cast();
                    [Some(line).filter(|_| group.is_multiple_of(2)), None]
                }
                GroupedStrip::Packed(_) => {
                    [2, 1].map(|lines| Some(elements.wrapping_sub(lines * LINE_BYTES)))
                }
            })
            .flatten()
    }
}

/// What to prefetch.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Of each strip, a group's elements.
    pub(super) elements: [*const u8; BLOCK],
    /// Bytes of them for each step.
    pub(super) step_bytes: usize,
}

/// Whether tokens laid out so read rows in 4 bits so often that unpacking them first pays.
pub(crate) fn is_unpacked_first(rows: Rows<'_>, layout: &InputLayout) -> bool {
    rows.matrix.format() == Format::Q4 && layout.panels().len() > 1
}

/// Rows in 4 bits as 8-bit ones, in `copy`.
pub(crate) struct Unpack<'a> {
    pub(crate) rows: Rows<'a>,
    pub(crate) copy: &'a mut Vec<u8>,
}

impl<'a> Work for Unpack<'a> {
    type Output = Rows<'a>;

    #[inline(always)]
    fn run(self) -> Rows<'a> {
        let Self { rows, copy } = self;
        let k = rows.matrix.in_features();
        let num_strips = rows.len.div_ceil(ROWS);
        let len = Format::Q8.matrix_bytes(rows.len, k).expect("bytes that can be counted");
        let copy = aligned(copy, len);
        let strips = rows.bytes().chunks_exact(rows.bytes().len() / num_strips);
        for (strip, copy) in strips.zip(copy.chunks_exact_mut(len / num_strips)) {
            q4::unpack(strip, k, copy);
        }
        let matrix = Matrix::checked(Format::Q8, copy, rows.len, k).expect("as many bytes");
        Rows { matrix, first: 0, len: rows.len }
    }
}
