//! Which blocks a sequence's keys and values go to, and which of them other sequences have computed already.
//!
//! Decides and counts; whoever has the tensors writes, and makes the copies that are asked for. Knows nothing of who
//! runs when.

use std::sync::Arc;

use crate::TokenId;
use crate::block_hash::{BlockHash, BlockHasher};
use crate::block_pool::{BlockId, BlockParent, BlockPool};

/// The blocks of one sequence, in the order of its positions.
///
/// Dropping it loses the blocks: it goes back through [`KvCacheManager::free`].
#[derive(Debug, Default)]
pub struct SequenceBlocks {
    block_ids: Vec<BlockId>,
    /// How many of them, from the first, are cached.
    num_cached_blocks: usize,
    /// Names of the sequence's full blocks, whether it has blocks for them at the moment or not.
    hashes: Vec<BlockHash>,
    cache_salt: Option<Arc<str>>,
}

impl SequenceBlocks {
    /// No blocks yet. Only sequences of an equal salt share blocks.
    pub fn new(cache_salt: Option<Arc<str>>) -> Self {
        Self { cache_salt, ..Self::default() }
    }

    /// Block `i` holds positions `i · block_size` and after.
    pub fn block_ids(&self) -> &[BlockId] {
        &self.block_ids
    }

    /// Whose blocks can be shared.
    pub fn cache_salt(&self) -> Option<&Arc<str>> {
        self.cache_salt.as_ref()
    }

    fn parent_of(&self, index: usize) -> BlockParent {
        match index.checked_sub(1) {
            Some(before) => BlockParent::Block(self.block_ids[before]),
            None => BlockParent::Root(self.cache_salt.clone()),
        }
    }
}

/// A block to copy, keys and values of every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Where from.
    pub src: BlockId,
    /// Where to.
    pub dst: BlockId,
}

/// Blocks of a KV cache of fixed size, shared among sequences with equal beginnings.
///
/// A block becomes findable when it is full of computed tokens. If the same tokens behind the same beginning were
/// computed before, the sequence goes over to that block and its own becomes free; equal content is held once. What is
/// found is therefore never written again: only a sequence's last, partly filled block is written, and if that is
/// shared (after [`fork`](Self::fork)), a copy of it.
#[derive(Debug)]
pub struct KvCacheManager {
    pool: BlockPool,
    hasher: BlockHasher,
    enable_prefix_caching: bool,
}

impl KvCacheManager {
    /// A cache of `num_blocks` blocks of `block_size` tokens. Without prefix caching nothing is ever found.
    ///
    /// # Panics
    /// As [`BlockPool::new`].
    pub fn new(num_blocks: u32, block_size: usize, enable_prefix_caching: bool) -> Self {
        Self {
            pool: BlockPool::new(num_blocks, block_size),
            hasher: BlockHasher::new(),
            enable_prefix_caching,
        }
    }

    /// The blocks as a whole.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// How many blocks hold `num_tokens` tokens.
    pub fn num_blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.pool.block_size())
    }

    /// Gives a sequence without blocks the cached ones of its longest known beginning, and returns how many tokens
    /// they hold: at most all of `token_ids` but the last, whose logits are what the sequence wants.
    pub fn get_computed_blocks(
        &mut self,
        blocks: &mut SequenceBlocks,
        token_ids: &[TokenId],
    ) -> usize {
        debug_assert!(blocks.block_ids.is_empty(), "a sequence with blocks knows what is computed");
        let block_size = self.pool.block_size();
        if self.enable_prefix_caching {
            self.hash_blocks(blocks, token_ids);
            let max_blocks = token_ids.len().saturating_sub(1) / block_size;
            for (index, tokens) in token_ids.chunks_exact(block_size).take(max_blocks).enumerate() {
                let parent = blocks.parent_of(index);
                let found = self.pool.cached_block(blocks.hashes[index], &parent, tokens);
                let Some(id) = found else { break };
                self.pool.touch(id);
                blocks.block_ids.push(id);
            }
        }
        blocks.num_cached_blocks = blocks.block_ids.len();
        blocks.num_cached_blocks * block_size
    }

    /// Gives the sequence blocks for positions up to `num_tokens`, of which those from `num_computed_tokens` are about
    /// to be written; returns whether `num_reserved_blocks` blocks were free beside what it took. If not, nothing has
    /// changed.
    ///
    /// Adds to `copies` what must be copied before anything is written.
    #[must_use = "without blocks the tokens have no place"]
    pub fn allocate_slots(
        &mut self,
        blocks: &mut SequenceBlocks,
        num_computed_tokens: usize,
        num_tokens: usize,
        num_reserved_blocks: usize,
        copies: &mut Vec<BlockCopy>,
    ) -> bool {
        let shared = self.shared_block(blocks, num_computed_tokens);
        let num_more = self.num_blocks_for(num_tokens).saturating_sub(blocks.block_ids.len());
        let num_needed = num_more + usize::from(shared.is_some());
        if num_needed + num_reserved_blocks > self.pool.num_free_blocks() {
            return false;
        }
        if let Some(index) = shared {
            let src = blocks.block_ids[index];
            let dst = self.allocate();
            self.pool.free(src);
            blocks.block_ids[index] = dst;
            copies.push(BlockCopy { src, dst });
        }
        for _ in 0..num_more {
            blocks.block_ids.push(self.allocate());
        }
        true
    }

    /// Makes the blocks that are full of the first `num_computed_tokens` of `token_ids` findable.
    pub fn cache_blocks(
        &mut self,
        blocks: &mut SequenceBlocks,
        token_ids: &[TokenId],
        num_computed_tokens: usize,
    ) {
        let block_size = self.pool.block_size();
        let num_full_blocks = num_computed_tokens / block_size;
        if !self.enable_prefix_caching || num_full_blocks <= blocks.num_cached_blocks {
            return;
        }
        self.hash_blocks(blocks, token_ids);
        for index in blocks.num_cached_blocks..num_full_blocks {
            let tokens = &token_ids[index * block_size..][..block_size];
            let own = blocks.block_ids[index];
            let parent = blocks.parent_of(index);
            let hash = blocks.hashes[index];
            if let Some(found) = self.pool.cached_block(hash, &parent, tokens) {
                self.pool.touch(found);
                self.pool.free(own);
                blocks.block_ids[index] = found;
            } else {
                // If the hash belongs to other content, blocks behind this one would have no cached parent: they stay
                // unknown too. Forks share such blocks, and the parent that one of them has isn't the others'.
                let is_cached =
                    self.pool.ref_count(own) == 1 && self.pool.cache(own, hash, parent, tokens);
                if !is_cached {
                    return;
                }
            }
            blocks.num_cached_blocks = index + 1;
        }
    }

    /// Blocks for a sequence that continues the first `num_computed_tokens` tokens of another one: the other one's,
    /// shared. Whoever writes to the last, partly filled one first gets a copy of it.
    pub fn fork(&mut self, blocks: &SequenceBlocks, num_computed_tokens: usize) -> SequenceBlocks {
        let block_ids = blocks.block_ids[..self.num_blocks_for(num_computed_tokens)].to_vec();
        for &id in &block_ids {
            self.pool.touch(id);
        }
        let num_full_blocks = num_computed_tokens / self.pool.block_size();
        let num_hashes = num_full_blocks.min(blocks.hashes.len());
        SequenceBlocks {
            num_cached_blocks: blocks.num_cached_blocks.min(num_full_blocks),
            hashes: blocks.hashes[..num_hashes].to_vec(),
            cache_salt: blocks.cache_salt().cloned(),
            block_ids,
        }
    }

    /// Takes the sequence's blocks back, the last one first, so that a beginning outlives its continuations.
    pub fn free(&mut self, blocks: &mut SequenceBlocks) {
        self.trim(blocks, 0);
    }

    /// Takes the blocks back that the sequence's first `num_tokens` tokens don't need.
    pub fn trim(&mut self, blocks: &mut SequenceBlocks, num_tokens: usize) {
        let num_blocks = self.num_blocks_for(num_tokens);
        for id in blocks.block_ids.drain(num_blocks.min(blocks.block_ids.len())..).rev() {
            self.pool.free(id);
        }
        blocks.num_cached_blocks = blocks.num_cached_blocks.min(num_blocks);
    }

    /// The index of the block that holds the next position to write, if it exists and others hold it too.
    fn shared_block(&self, blocks: &SequenceBlocks, num_computed_tokens: usize) -> Option<usize> {
        let index = num_computed_tokens / self.pool.block_size();
        let id = *blocks.block_ids.get(index)?;
        (self.pool.ref_count(id) > 1).then_some(index)
    }

    fn allocate(&mut self) -> BlockId {
        self.pool.allocate().expect("free blocks were counted before")
    }

    /// Names the full blocks of `token_ids` that have no name yet.
    fn hash_blocks(&self, blocks: &mut SequenceBlocks, token_ids: &[TokenId]) {
        let full = token_ids.chunks_exact(self.pool.block_size()).skip(blocks.hashes.len());
        for tokens in full {
            let parent = blocks.hashes.last().copied();
            let salt = blocks.cache_salt.as_deref().filter(|_| parent.is_none());
            blocks.hashes.push(self.hasher.hash(parent, salt, tokens));
        }
    }
}

#[cfg(test)]
impl KvCacheManager {
    /// Gives different contents equal names all the time.
    pub(crate) fn weaken_hashes(&mut self) {
        self.hasher = BlockHasher::weak();
    }

    /// Asserts what must hold between any two calls, if `sequences` are all that hold blocks.
    pub(crate) fn check_invariants<'a>(&self, sequences: impl Iterator<Item = &'a SequenceBlocks>) {
        let mut held = vec![0; self.pool.num_blocks()];
        for blocks in sequences {
            assert!(blocks.num_cached_blocks <= blocks.block_ids.len());
            for &id in &blocks.block_ids {
                held[id as usize] += 1;
            }
        }
        self.pool.check_invariants(&held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(num_blocks: u32) -> KvCacheManager {
        KvCacheManager::new(num_blocks, 4, true)
    }

    /// Computes all of `token_ids` in a new sequence; returns its blocks and how many tokens were found.
    fn compute(
        manager: &mut KvCacheManager,
        salt: Option<&str>,
        token_ids: &[TokenId],
    ) -> (SequenceBlocks, usize) {
        let mut blocks = SequenceBlocks::new(salt.map(Arc::from));
        let found = manager.get_computed_blocks(&mut blocks, token_ids);
        let mut copies = Vec::new();
        assert!(manager.allocate_slots(&mut blocks, found, token_ids.len(), 0, &mut copies));
        assert_eq!(copies, []);
        manager.cache_blocks(&mut blocks, token_ids, token_ids.len());
        (blocks, found)
    }

    #[test]
    fn the_last_token_is_always_computed() {
        for (len, expected) in [(1, 0), (4, 0), (5, 4), (7, 4), (8, 4), (9, 8)] {
            let mut manager = manager(16);
            let token_ids: Vec<TokenId> = (0..len).collect();
            assert_eq!(compute(&mut manager, None, &token_ids).1, 0);
            assert_eq!(compute(&mut manager, None, &token_ids).1, expected, "{len} tokens");
        }
    }

    #[test]
    fn equal_beginnings_are_held_once_and_found_after_they_are_freed() {
        let mut manager = manager(8);
        let (mut first, _) = compute(&mut manager, None, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let (mut second, found) = compute(&mut manager, None, &[1, 2, 3, 4, 5, 6, 7, 0, 9]);
        assert_eq!((found, first.block_ids()[0]), (4, second.block_ids()[0]));
        assert_ne!(first.block_ids()[1], second.block_ids()[1]);
        manager.check_invariants([&first, &second].into_iter());
        manager.free(&mut first);
        manager.free(&mut second);
        let (mut third, found) = compute(&mut manager, None, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(found, 8);
        manager.free(&mut third);
        manager.check_invariants(std::iter::empty());
        assert_eq!(manager.pool().num_free_blocks(), 8);
    }

    #[test]
    fn blocks_computed_twice_become_one() {
        let mut manager = manager(8);
        let token_ids = [1, 2, 3, 4, 5, 6, 7, 8];
        let mut both = [SequenceBlocks::new(None), SequenceBlocks::new(None)];
        for blocks in &mut both {
            assert_eq!(manager.get_computed_blocks(blocks, &token_ids), 0);
            assert!(manager.allocate_slots(blocks, 0, 8, 0, &mut Vec::new()));
        }
        assert_eq!(manager.pool().num_free_blocks(), 4);
        for blocks in &mut both {
            manager.cache_blocks(blocks, &token_ids, 8);
        }
        assert_eq!(both[0].block_ids(), both[1].block_ids());
        assert_eq!(manager.pool().num_free_blocks(), 6);
        manager.check_invariants(both.iter());
    }

    #[test]
    fn salts_keep_sequences_apart() {
        let mut manager = manager(16);
        let token_ids = [1, 2, 3, 4, 5];
        assert_eq!(compute(&mut manager, Some("a"), &token_ids).1, 0);
        assert_eq!(compute(&mut manager, Some("b"), &token_ids).1, 0);
        assert_eq!(compute(&mut manager, None, &token_ids).1, 0);
        assert_eq!(compute(&mut manager, Some("a"), &token_ids).1, 4);
    }

    #[test]
    fn only_computed_tokens_make_a_block_findable() {
        let mut manager = manager(8);
        let token_ids = [1, 2, 3, 4, 5];
        let mut blocks = SequenceBlocks::new(None);
        assert!(manager.allocate_slots(&mut blocks, 0, 5, 0, &mut Vec::new()));
        manager.cache_blocks(&mut blocks, &token_ids, 3);
        assert_eq!(compute(&mut manager, None, &token_ids).1, 0);
    }

    #[test]
    fn without_prefix_caching_nothing_is_found() {
        let mut manager = KvCacheManager::new(8, 4, false);
        let token_ids = [1, 2, 3, 4, 5];
        assert_eq!(compute(&mut manager, None, &token_ids).1, 0);
        assert_eq!(compute(&mut manager, None, &token_ids).1, 0);
    }

    #[test]
    fn a_refusal_changes_nothing() {
        let mut manager = manager(3);
        let mut blocks = SequenceBlocks::new(None);
        let mut copies = Vec::new();
        assert!(!manager.allocate_slots(&mut blocks, 0, 13, 0, &mut copies));
        assert!(!manager.allocate_slots(&mut blocks, 0, 9, 1, &mut copies));
        assert_eq!((blocks.block_ids(), manager.pool().num_free_blocks()), (&[][..], 3));
        assert!(manager.allocate_slots(&mut blocks, 0, 9, 0, &mut copies));
        assert!(manager.allocate_slots(&mut blocks, 9, 12, 0, &mut copies));
        assert!(!manager.allocate_slots(&mut blocks, 12, 13, 0, &mut copies));
        assert_eq!(blocks.block_ids().len(), 3);
    }

    #[test]
    fn forks_share_blocks_until_they_write() {
        let mut manager = manager(8);
        let (mut parent, _) = compute(&mut manager, None, &[1, 2, 3, 4, 5, 6]);
        let mut child = manager.fork(&parent, 6);
        assert_eq!(child.block_ids(), parent.block_ids());
        let shared = parent.block_ids()[1];

        let mut copies = Vec::new();
        assert!(manager.allocate_slots(&mut child, 6, 7, 0, &mut copies));
        assert_eq!(copies, [BlockCopy { src: shared, dst: child.block_ids()[1] }]);
        assert_eq!(child.block_ids()[0], parent.block_ids()[0]);
        assert!(manager.allocate_slots(&mut parent, 6, 7, 0, &mut copies));
        assert_eq!((copies.len(), parent.block_ids()[1]), (1, shared));
        manager.check_invariants([&parent, &child].into_iter());
    }

    #[test]
    fn a_fork_at_the_end_of_a_block_copies_nothing() {
        let mut manager = manager(8);
        let (mut parent, _) = compute(&mut manager, None, &[1, 2, 3, 4]);
        let mut child = manager.fork(&parent, 4);
        let mut copies = Vec::new();
        for blocks in [&mut parent, &mut child] {
            assert!(manager.allocate_slots(blocks, 4, 5, 0, &mut copies));
        }
        assert_eq!(copies, []);
        assert_ne!(parent.block_ids()[1], child.block_ids()[1]);
    }

    #[test]
    fn a_copy_needs_a_free_block() {
        let mut manager = manager(2);
        let (parent, _) = compute(&mut manager, None, &[1, 2, 3, 4, 5]);
        let mut child = manager.fork(&parent, 5);
        let mut copies = Vec::new();
        assert!(!manager.allocate_slots(&mut child, 5, 6, 0, &mut copies));
        assert_eq!(child.block_ids(), parent.block_ids());
        manager.free(&mut { parent });
        assert!(manager.allocate_slots(&mut child, 5, 6, 0, &mut copies));
        assert_eq!(copies, []);
    }
    #[test]
    fn a_block_is_only_known_to_those_who_hold_its_parent() {
        let mut manager = manager(8);
        let token_ids = [1, 2, 3, 4, 5, 6, 7, 8];
        let named = |hashes: &[u64]| SequenceBlocks {
            hashes: hashes.iter().copied().map(BlockHash::of).collect(),
            ..SequenceBlocks::default()
        };
        let compute =
            |manager: &mut KvCacheManager, blocks: &mut SequenceBlocks, token_ids: &[TokenId]| {
                assert!(manager.allocate_slots(blocks, 0, token_ids.len(), 0, &mut Vec::new()));
                manager.cache_blocks(blocks, token_ids, token_ids.len());
            };
        // The first block's name belongs to other content, so that neither block becomes known.
        let (mut other, mut parent) = (named(&[1]), named(&[1, 2]));
        compute(&mut manager, &mut other, &[9; 4]);
        compute(&mut manager, &mut parent, &token_ids);
        let mut child = manager.fork(&parent, 8);
        assert_eq!(manager.pool().num_cached_blocks(), 1);
        // That content goes, and the name is given to equal content of another sequence, which the child goes over to.
        manager.free(&mut other);
        let mut filler = SequenceBlocks::default();
        assert!(manager.allocate_slots(&mut filler, 0, 24, 0, &mut Vec::new()));
        manager.free(&mut filler);
        let mut same = named(&[1]);
        compute(&mut manager, &mut same, &token_ids[..4]);
        manager.cache_blocks(&mut child, &token_ids, 8);
        assert_eq!(child.block_ids()[0], same.block_ids()[0]);
        assert_ne!(child.block_ids()[0], parent.block_ids()[0]);
        // The second block, which both forks hold, stays unknown: only the child holds its parent.
        manager.free(&mut child);
        manager.free(&mut same);
        manager.check_invariants(std::iter::once(&parent));
        // Left alone, the parent can make it known.
        manager.cache_blocks(&mut parent, &token_ids, 8);
        assert_eq!(manager.pool().num_cached_blocks(), 2);
        manager.check_invariants(std::iter::once(&parent));
    }
}
