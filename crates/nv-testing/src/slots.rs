//! A paged cache in small: what a model of a test keeps in the blocks that it is told to read and write.
//!
//! Knows nothing of the engine's types, so that the engine's own unit tests can have it.

/// The slots of a paged cache, one `T` a token: `[num_blocks, block_size]`.
#[derive(Debug, Clone)]
pub struct Slots<T> {
    slots: Vec<T>,
    block_size: usize,
}

impl<T: Copy> Slots<T> {
    /// Every slot holds `value`.
    pub fn new(num_blocks: usize, block_size: usize, value: T) -> Self {
        Self { slots: vec![value; num_blocks * block_size], block_size }
    }

    /// How many blocks there are.
    pub fn num_blocks(&self) -> u32 {
        u32::try_from(self.slots.len() / self.block_size).unwrap()
    }

    /// Tokens of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Copies block `src` to block `dst`.
    pub fn copy_block(&mut self, src: u32, dst: u32) {
        let [src, dst] = [src, dst].map(|block| block as usize * self.block_size);
        self.slots.copy_within(src..src + self.block_size, dst);
    }

    /// What the token at `position` of the sequence with this block table has.
    pub fn get(&self, block_table: &[u32], position: usize) -> T {
        self.slots[self.index(block_table, position)]
    }

    /// Gives it `value`.
    pub fn set(&mut self, block_table: &[u32], position: usize, value: T) {
        let index = self.index(block_table, position);
        self.slots[index] = value;
    }

    /// What all tokens up to and with `position` have.
    pub fn up_to(&self, block_table: &[u32], position: usize) -> Vec<T> {
        (0..=position).map(|position| self.get(block_table, position)).collect()
    }

    fn index(&self, block_table: &[u32], position: usize) -> usize {
        let block = block_table[position / self.block_size] as usize;
        block * self.block_size + position % self.block_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_finds_its_tokens_by_its_table() {
        let mut slots = Slots::new(3, 2, 0);
        assert_eq!((slots.num_blocks(), slots.block_size()), (3, 2));
        for position in 0..4 {
            slots.set(&[2, 0], position, position + 1);
        }
        assert_eq!(slots.up_to(&[2, 0], 2), [1, 2, 3]);
        slots.copy_block(0, 1);
        assert_eq!(slots.up_to(&[2, 1], 3), [1, 2, 3, 4]);
    }
}
