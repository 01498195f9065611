//! A few tokens: weights pass by once, and are prefetched so far ahead that they come from memory in time.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]

use bytemuck::Pod;

use super::micro_kernel::{MicroKernel, Operands, REDUCED, Sums, multiply_tile, write};
use super::rows::RowMajor;
use crate::prefetch::Prefetch;
use crate::results::Outputs;
use crate::tier::{Compile, Tier, Work};

/// The most tokens that any tier takes for few.
pub(crate) const MAX_TOKENS: usize = 5;

/// `x @ rowsᵀ` for up to `NR` tokens, by `MR` rows at a time: the fewest row streams that keep up with memory.
///
/// A single token waits for memory alone and prefetches in every step, more do so every `EVERY` steps.
pub(crate) fn gemv<K: MicroKernel, const MR: usize, const NR: usize, const EVERY: usize>(
    tier: K::Tier,
    operands: Operands<'_, K>,
    out: Outputs<'_>,
) {
    const { assert!(NR <= MAX_TOKENS && REDUCED.is_multiple_of(MR)) };
    match operands.x.layout().num_tokens {
        1 => tier.compile(Gemv::<K, MR, 1, 1> { tier, operands, out }),
        2 if const { NR >= 2 } => tier.compile(Gemv::<K, MR, 2, EVERY> { tier, operands, out }),
        3 if const { NR >= 3 } => tier.compile(Gemv::<K, MR, 3, EVERY> { tier, operands, out }),
        4 if const { NR >= 4 } => tier.compile(Gemv::<K, MR, 4, EVERY> { tier, operands, out }),
        5 if const { NR >= 5 } => tier.compile(Gemv::<K, MR, 5, EVERY> { tier, operands, out }),
        num_tokens => unreachable!("{num_tokens} are more than a few tokens"),
    }
}

/// [`gemv`] of `T` tokens.
pub(crate) struct Gemv<'a, K: MicroKernel, const MR: usize, const T: usize, const EVERY: usize> {
    tier: K::Tier,
    operands: Operands<'a, K>,
    out: Outputs<'a>,
}

impl<K: MicroKernel, const MR: usize, const T: usize, const EVERY: usize> Work
    for Gemv<'_, K, MR, T, EVERY>
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { tier, operands: Operands { rows, next, x, .. }, mut out } = self;
        let x = bytemuck::cast_slice(x.tiles(0..1));
        let num_rows = rows.num_rows();
        for first in (0..num_rows).step_by(REDUCED) {
            let mut sums = [[tier.zero(); T]; REDUCED];
            let (at_once, _) = sums.as_chunks_mut::<MR>();
            for (sums, r) in at_once.iter_mut().zip((first..num_rows).step_by(MR)) {
                let prefetch = Prefetch::of(rows_to_prefetch(rows, next, r, MR));
                let rows = rows.rows(r..num_rows.min(r + MR));
                *sums = some_rows::<K, MR, T, EVERY>(tier, rows, x, prefetch, *sums);
            }
            write::<K, REDUCED, T>(
                tier,
                &sums,
                REDUCED.min(num_rows - first),
                (0, first),
                &mut out,
            );
        }
    }
}

/// The sums of up to `MR` rows.
#[inline(always)]
fn some_rows<K: MicroKernel, const MR: usize, const T: usize, const EVERY: usize>(
    tier: K::Tier,
    rows: RowMajor<'_, K::Weight>,
    x: &[K::InputStep],
    prefetch: Prefetch,
    mut sums: [[Sums<K>; T]; MR],
) -> [[Sums<K>; T]; MR] {
    let k = rows.k();
    if rows.num_rows() == MR {
        return multiply_tile::<K, MR, T, EVERY, false>(
            tier,
            rows.elements(),
            k,
            x,
            prefetch,
            sums,
        );
    }
    let nothing = Prefetch::of::<u8>(&[]);
    for (r, sums) in sums.iter_mut().enumerate().take(rows.num_rows()) {
        [*sums] = multiply_tile::<K, 1, T, EVERY, false>(tier, rows.row(r), k, x, nothing, [*sums]);
    }
    sums
}

/// Bytes between what is multiplied and what is prefetched: some pages, so that the wait at the start of a page is over when
/// its weights are needed.
const PREFETCH_DISTANCE: usize = 8 * 1024;

/// The rows to prefetch while `len` rows from `r` of `w` are multiplied, as bytes; the rows of `next` come after those of `w`.
/// Where `len` divides the rows of `w`, none is left out.
pub(crate) fn rows_to_prefetch<'a, E: Pod>(
    w: RowMajor<'a, E>,
    next: RowMajor<'a, u8>,
    r: usize,
    len: usize,
) -> &'a [u8] {
    let first = r + (PREFETCH_DISTANCE / (w.k() * size_of::<E>())).max(1).next_multiple_of(len);
    match first.checked_sub(w.num_rows()) {
        None => bytemuck::cast_slice(some(w, first, len)),
        Some(first) => some(next, first, len),
    }
}

/// Up to `len` rows from `first` on.
fn some<E: Copy>(from: RowMajor<'_, E>, first: usize, len: usize) -> &[E] {
    let end = from.num_rows().min(first + len);
    from.rows(first.min(end)..end).elements()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rows_are_prefetched_once() {
        let (k, num_rows) = (700, 24);
        let elements: Vec<u16> = vec![0; 3 * num_rows * k];
        let all = RowMajor::new(&elements, k);
        let bytes = RowMajor::new(bytemuck::cast_slice::<u16, u8>(&elements), 2 * k);
        for len in [1, 2, 3, 4, 8] {
            let rows = |task| task * num_rows..(task + 1) * num_rows;
            let mut asked: Vec<_> = (0..2)
                .flat_map(|task| {
                    let (w, next) = (all.rows(rows(task)), bytes.rows(rows(task + 1)));
                    (0..num_rows).step_by(len).map(move |r| rows_to_prefetch(w, next, r, len))
                })
                .map(<[u8]>::as_ptr_range)
                .collect();
            asked.sort_by_key(|range| range.start);
            let first = asked[0].start.addr() - elements.as_ptr().addr();
            assert!(first <= 16 * 1024, "{first} bytes of the first task are not prefetched");
            assert!(
                asked.windows(2).all(|pair| pair[0].end == pair[1].start),
                "{len} rows at once"
            );
        }
    }
}
