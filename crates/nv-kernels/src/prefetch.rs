//! Memory that is prefetched while something else is computed.

/// Cache lines to prefetch, by their addresses: nothing is read there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefetch {
    start: *const u8,
    /// Whole lines after `start`.
    end: *const u8,
}

/// Bytes of a cache line.
pub(crate) const LINE_BYTES: usize = 64;

impl Prefetch {
    pub(crate) fn of<E>(elements: &[E]) -> Self {
        let start = elements.as_ptr().cast::<u8>();
        let len = Self::num_lines_of::<E>(elements.len()) * LINE_BYTES;
        Self { start, end: start.wrapping_add(len) }
    }

    /// The whole lines of so many elements.
    pub(crate) fn num_lines_of<E>(num_elements: usize) -> usize {
        num_elements * size_of::<E>() / LINE_BYTES
    }

    pub(crate) fn num_lines(self) -> usize {
        (self.end.addr() - self.start.addr()) / LINE_BYTES
    }

    /// The `index`th of `num_runs` runs of equal length, but for the last ones.
    pub(crate) fn run(mut self, index: usize, num_runs: usize) -> Self {
        let len = self.num_lines().div_ceil(num_runs);
        self.split_to(index * len);
        self.split_to(len)
    }

    /// Takes up to `num_lines` off the start and returns them.
    #[inline]
    pub(crate) fn split_to(&mut self, num_lines: usize) -> Self {
        let end = self.start.wrapping_add(num_lines * LINE_BYTES).min(self.end);
        Self { start: std::mem::replace(&mut self.start, end), end }
    }
}

impl IntoIterator for Prefetch {
    type Item = *const u8;
    type IntoIter = Lines;

    #[inline]
    fn into_iter(self) -> Lines {
        Lines(self)
    }
}

/// The addresses of an [`Prefetch`].
#[derive(Debug)]
pub(crate) struct Lines(Prefetch);

impl Iterator for Lines {
    type Item = *const u8;

    #[inline]
    fn next(&mut self) -> Option<*const u8> {
        let Prefetch { start, end } = self.0;
        (start != end).then(|| {
            self.0.start = start.wrapping_add(LINE_BYTES);
            start
        })
    }
}

/// How many of `items` to take at each of `times`, if there are any times.
#[inline]
pub(crate) fn share(items: usize, times: usize) -> usize {
    if items <= times { 1 } else { items.div_ceil(times.max(1)) }
}

/// Several parts of memory, prefetched in equal shares.
#[derive(Debug)]
pub(crate) struct PrefetchParts<'a, E> {
    parts: &'a [&'a [E]],
    /// What is left of the last part that was begun.
    lines: Prefetch,
    lines_a_share: usize,
}

impl<'a, E> PrefetchParts<'a, E> {
    pub(crate) fn new(parts: &'a [&'a [E]], num_shares: usize) -> Self {
        let num_lines = parts.iter().map(|part| Prefetch::of(part).num_lines()).sum();
        let lines_a_share = share(num_lines, num_shares);
        Self { parts, lines: Prefetch::of::<E>(&[]), lines_a_share }
    }

    /// The next share, or what a part's end leaves of it.
    #[inline]
    pub(crate) fn next_share(&mut self) -> Prefetch {
        if self.lines.num_lines() == 0
            && let Some((part, parts)) = self.parts.split_first()
        {
            (self.lines, self.parts) = (Prefetch::of(part), parts);
        }
        self.lines.split_to(self.lines_a_share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_lines_of_all_parts_once() {
        let memory = [0u32; 16 * 40];
        let parts = [&memory[..16 * 7], &[][..], &memory[16 * 10..16 * 30]];
        for num_shares in [1, 2, 5, 9, 27, 100] {
            let mut prefetch = PrefetchParts::new(&parts, num_shares);
            // A part's end may cost a share more.
            let got: Vec<_> =
                (0..num_shares + parts.len()).flat_map(|_| prefetch.next_share()).collect();
            let lines =
                |part: &[u32]| part.chunks(16).map(|line| line.as_ptr().cast()).collect::<Vec<_>>();
            assert_eq!(got, [lines(parts[0]), lines(parts[2])].concat(), "{num_shares} shares");
        }
    }
}
