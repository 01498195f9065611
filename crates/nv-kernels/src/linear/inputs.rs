//! Prepared inputs: how tokens are laid out for the kernels.
//!
//! Tokens come in tiles of up to NR, tiles in panels. A panel is a single tile, which stays in the first-level cache while all
//! rows of a task pass by from the second-level cache; or it is as many tiles as stay in the second-level cache, and pass by
//! some rows that stay in the first-level cache. Which is faster is measured, by tier and number of tokens.

use std::ops::Range;

use crate::caches::Caches;
use crate::prefetch::LINE_BYTES;

/// The inputs of a linear layer as kernels read them, in order: tiles of tokens; in a tile, one step of K after
/// another; in a step, the tile's tokens side by side. The last step is padded with zeros.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs<'a, E> {
    data: &'a [E],
    layout: InputLayout,
}

/// How tokens are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InputLayout {
    pub(crate) num_tokens: usize,
    pub(crate) num_tiles: usize,
    tokens_a_tile: usize,
    /// Tiles that have one token more; they are the first.
    num_longer: usize,
    /// Tiles of a panel; the last panel may have fewer.
    pub(crate) tiles_a_panel: usize,
    /// Elements of K a step.
    pub(crate) step: usize,
    /// Elements of a token, the last step's padding included.
    pub(crate) padded_k: usize,
}

impl InputLayout {
    /// Tiles whose sizes differ by one at most, in panels of about `panel_bytes`, with elements of `element_bytes`.
    pub(crate) fn new(
        (num_tokens, k): (usize, usize),
        num_tiles: usize,
        step: usize,
        (panel_bytes, element_bytes): (usize, usize),
    ) -> Self {
        let padded_k = k.next_multiple_of(step);
        let bytes = num_tokens * padded_k * element_bytes;
        let num_panels = bytes.div_ceil(panel_bytes.max(1)).min(num_tiles);
        let tiles_a_panel = num_tiles.div_ceil(num_panels);
        let (tokens_a_tile, num_longer) = (num_tokens / num_tiles, num_tokens % num_tiles);
        Self { num_tokens, num_tiles, tokens_a_tile, num_longer, tiles_a_panel, step, padded_k }
    }

    /// Elements of all tokens.
    pub(crate) fn len(&self) -> usize {
        self.num_tokens * self.padded_k
    }

    /// The panels, each a range of tiles.
    pub(crate) fn panels(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        let (num_tiles, len) = (self.num_tiles, self.tiles_a_panel);
        (0..num_tiles).step_by(len).map(move |first| first..num_tiles.min(first + len))
    }

    /// The tokens of some tiles.
    pub(crate) fn tokens(&self, tiles: Range<usize>) -> Range<usize> {
        let first = |tile: usize| tile * self.tokens_a_tile + tile.min(self.num_longer);
        first(tiles.start)..first(tiles.end)
    }

    /// Where the elements of some tiles are.
    pub(crate) fn elements(&self, tiles: Range<usize>) -> Range<usize> {
        let tokens = self.tokens(tiles);
        tokens.start * self.padded_k..tokens.end * self.padded_k
    }
}

impl<E> Inputs<'_, E> {
    pub(crate) fn layout(&self) -> &InputLayout {
        &self.layout
    }
}

impl<'a> Inputs<'a, u8> {
    /// Inputs whose elements are known to their kernel.
    pub(crate) fn of_bytes(data: &'a [u8], layout: InputLayout) -> Self {
        Self { data, layout }
    }

    /// The inputs with elements of `E`.
    ///
    /// # Panics
    /// If there are not as many as the layout says.
    pub(crate) fn typed<E: bytemuck::Pod>(self) -> Inputs<'a, E> {
        let data: &[E] = bytemuck::cast_slice(self.data);
        assert_eq!(data.len(), self.layout.len());
        Inputs { data, layout: self.layout }
    }
}

impl<'a, E: Copy> Inputs<'a, E> {
    pub(crate) fn tiles(&self, tiles: Range<usize>) -> &'a [E] {
        &self.data[self.layout.elements(tiles)]
    }

    /// The tile to prefetch while `tile` is multiplied, if the tokens are too many to stay in the second-level cache; the first
    /// comes after the last.
    pub(crate) fn tile_to_prefetch(&self, tile: usize) -> &'a [E] {
        if size_of_val(self.data) <= near_bytes() {
            return &[];
        }
        let next = (tile + 1) % self.layout.num_tiles;
        self.tiles(next..next + 1)
    }
}

/// Bytes of tokens that stay in the second-level cache beside the weights: a quarter of it.
pub(crate) fn near_bytes() -> usize {
    Caches::get().l2 / 4
}

/// `len` elements of `buffer`, which grows as needed, from the start of a cache line.
pub(crate) fn aligned<E: Copy + Default>(buffer: &mut Vec<E>, len: usize) -> &mut [E] {
    if buffer.len() < len + LINE_BYTES / size_of::<E>() {
        buffer.resize(len + LINE_BYTES / size_of::<E>(), E::default());
    }
    let start = buffer.as_ptr().align_offset(LINE_BYTES);
    &mut buffer[start..start + len]
}

/// Whether `elements` start with a cache line.
pub(crate) fn starts_line<E>(elements: &[E]) -> bool {
    elements.as_ptr().addr().is_multiple_of(LINE_BYTES)
}
