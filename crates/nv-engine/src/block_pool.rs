//! The blocks of the KV cache as numbers: who holds which, which are free, and which of the free ones hold keys and
//! values that may be found again.
//!
//! Every operation takes constant time (but for the tokens of the one block at hand). Knows nothing of sequences and
//! holds no tensor.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::TokenId;
use crate::block_hash::BlockHash;

/// The number of a block; block tables are slices of it, as the kernels take them.
pub type BlockId = u32;

/// What comes before a cached block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockParent {
    /// Nothing: the block starts a sequence with this salt.
    Root(Option<Arc<str>>),
    /// A block that is cached itself.
    Block(BlockId),
}

/// Reference counts, free list and prefix cache of a fixed number of blocks.
///
/// A block is held by a number of sequences, or it is in the free list. The list is the order in which free blocks are
/// handed out: those without content first, then the cached ones, least recently freed first.
///
/// A cached block stays findable, held or free, until [`allocate`](Self::allocate) hands it out for something else.
/// Provided that whoever holds a cached block holds its parent too, and frees the block first, blocks are evicted
/// before their parents; a parent is therefore as good as all that comes before it.
///
/// ```
/// use nv_engine::BlockPool;
///
/// let mut pool = BlockPool::new(2, 16);
/// let block = pool.allocate().unwrap();
/// pool.touch(block);
/// pool.free(block);
/// assert_eq!((pool.ref_count(block), pool.num_free_blocks()), (1, 1));
/// ```
#[derive(Debug)]
pub struct BlockPool {
    block_size: usize,
    blocks: Vec<Block>,
    /// The free list's links by block, and those of its two ends behind them.
    links: Vec<Links>,
    /// Where the links of the two ends are.
    ends: BlockId,
    num_free_blocks: usize,
    cached: HashMap<BlockHash, BlockId>,
    /// The tokens of cached blocks, `[num_blocks, block_size]`.
    token_ids: Vec<TokenId>,
}

#[derive(Debug, Clone, Default)]
struct Block {
    ref_count: u32,
    /// Present while the block is cached.
    content: Option<Content>,
}

/// What a cached block holds the keys and values of, beside its tokens.
#[derive(Debug, Clone)]
struct Content {
    hash: BlockHash,
    parent: BlockParent,
}

#[derive(Debug, Clone, Copy)]
struct Links {
    prev: BlockId,
    next: BlockId,
}

impl BlockPool {
    /// `num_blocks` free blocks of `block_size` tokens.
    ///
    /// # Panics
    /// If `num_blocks` is `u32::MAX`, which the ends of the free list need.
    pub fn new(num_blocks: u32, block_size: usize) -> Self {
        let ends = num_blocks;
        assert_ne!(ends, u32::MAX, "the ends of the free list need a number of their own");
        let links = (0..=ends).map(|id| Links {
            prev: id.checked_sub(1).unwrap_or(ends),
            next: if id == ends { 0 } else { id + 1 },
        });
        Self {
            block_size,
            blocks: vec![Block::default(); num_blocks as usize],
            links: links.collect(),
            ends,
            num_free_blocks: num_blocks as usize,
            cached: HashMap::with_capacity(num_blocks as usize),
            token_ids: vec![0; num_blocks as usize * block_size],
        }
    }

    /// All blocks, held or free.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds, cached or not.
    pub fn num_free_blocks(&self) -> usize {
        self.num_free_blocks
    }

    /// Blocks whose content can be found, held or free.
    pub fn num_cached_blocks(&self) -> usize {
        self.cached.len()
    }

    /// Tokens a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// How many hold the block.
    pub fn ref_count(&self, id: BlockId) -> u32 {
        self.blocks[id as usize].ref_count
    }

    /// A block that nobody held, now held once and of no content; `None` if every block is held.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let first = self.links[self.ends as usize].next;
        if first == self.ends {
            return None;
        }
        self.unlink(first);
        let block = &mut self.blocks[first as usize];
        block.ref_count = 1;
        if let Some(content) = block.content.take() {
            self.cached.remove(&content.hash);
        }
        Some(first)
    }

    /// Holds the block once more; if it was free, it no longer is.
    pub fn touch(&mut self, id: BlockId) {
        if self.ref_count(id) == 0 {
            self.unlink(id);
        }
        self.blocks[id as usize].ref_count += 1;
    }

    /// Holds the block once less; whoever holds it last makes it free.
    ///
    /// # Panics
    /// If nobody holds it.
    pub fn free(&mut self, id: BlockId) {
        let ends = self.ends;
        let block = &mut self.blocks[id as usize];
        assert!(block.ref_count > 0, "block {id} was freed more often than it was held");
        block.ref_count -= 1;
        if block.ref_count > 0 {
            return;
        }
        let is_cached = block.content.is_some();
        let next = if is_cached { ends } else { self.links[ends as usize].next };
        self.link_before(next, id);
    }

    /// The cached block of `token_ids` behind `parent`: hash, parent and tokens are the same.
    pub fn cached_block(
        &self,
        hash: BlockHash,
        parent: &BlockParent,
        token_ids: &[TokenId],
    ) -> Option<BlockId> {
        let id = *self.cached.get(&hash)?;
        let start = id as usize * self.block_size;
        let is_child = |content: &Content| content.parent == *parent;
        let is_same = self.blocks[id as usize].content.as_ref().is_some_and(is_child)
            && self.token_ids[start..start + self.block_size] == *token_ids;
        is_same.then_some(id)
    }

    /// Makes the held block `id`, full of the keys and values of `token_ids` behind `parent`, findable by `hash`;
    /// returns false, and does nothing, if the hash belongs to another block.
    ///
    /// # Panics
    /// If `id` is cached already.
    pub fn cache(
        &mut self,
        id: BlockId,
        hash: BlockHash,
        parent: BlockParent,
        token_ids: &[TokenId],
    ) -> bool {
        let Entry::Vacant(entry) = self.cached.entry(hash) else { return false };
        let block = &mut self.blocks[id as usize];
        assert!(block.content.is_none(), "block {id} was written while its content could be found");
        entry.insert(id);
        block.content = Some(Content { hash, parent });
        let start = id as usize * self.block_size;
        self.token_ids[start..start + self.block_size].copy_from_slice(token_ids);
        true
    }

    fn unlink(&mut self, id: BlockId) {
        let Links { prev, next } = self.links[id as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.num_free_blocks -= 1;
    }

    fn link_before(&mut self, next: BlockId, id: BlockId) {
        let prev = self.links[next as usize].prev;
        self.links[id as usize] = Links { prev, next };
        self.links[prev as usize].next = id;
        self.links[next as usize].prev = id;
        self.num_free_blocks += 1;
    }
}

#[cfg(test)]
impl BlockPool {
    /// The free list, in the order in which blocks are handed out.
    pub(crate) fn free_list(&self) -> Vec<BlockId> {
        let mut ids = Vec::new();
        let mut at = self.links[self.ends as usize].next;
        while at != self.ends {
            assert_eq!(self.links[self.links[at as usize].next as usize].prev, at);
            ids.push(at);
            at = self.links[at as usize].next;
        }
        ids
    }

    /// Asserts what must hold between any two calls, given how often each block is held.
    pub(crate) fn check_invariants(&self, held: &[u32]) {
        let free = self.free_list();
        assert_eq!(free.len(), self.num_free_blocks);
        let mut place = vec![None; self.num_blocks()];
        for (at, &id) in free.iter().enumerate() {
            assert_eq!(place[id as usize].replace(at), None, "block {id} is in the list twice");
        }
        for (id, block) in (0..).zip(&self.blocks) {
            let index = id as usize;
            assert_eq!(block.ref_count, held[index], "holders of block {id}");
            assert_eq!(block.ref_count == 0, place[index].is_some(), "block {id}");
            let Some(content) = &block.content else { continue };
            assert_eq!(self.cached.get(&content.hash), Some(&id));
            let BlockParent::Block(parent) = content.parent else { continue };
            let parent = parent as usize;
            assert!(self.blocks[parent].content.is_some(), "block {id} without its parent");
            // `None`, a held parent, is evicted later than anything in the list.
            assert!(
                place[parent].is_none()
                    || place[index].is_some_and(|place_| Some(place_) < place[parent]),
                "block {id} outlives its parent"
            );
        }
        let num_cached = self.blocks.iter().filter(|block| block.content.is_some()).count();
        assert_eq!(num_cached, self.cached.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: BlockParent = BlockParent::Root(None);

    fn cache(pool: &mut BlockPool, id: BlockId, parent: BlockParent, token: TokenId) {
        assert!(pool.cache(id, BlockHash::of(token.into()), parent, &[token; 4]));
    }

    fn find(pool: &BlockPool, parent: &BlockParent, token: TokenId) -> Option<BlockId> {
        pool.cached_block(BlockHash::of(token.into()), parent, &[token; 4])
    }

    #[test]
    fn blocks_are_handed_out_until_none_is_left() {
        let mut pool = BlockPool::new(3, 4);
        let ids: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(ids, [0, 1, 2]);
        pool.check_invariants(&[1, 1, 1]);
        pool.free(1);
        assert_eq!((pool.allocate(), pool.allocate()), (Some(1), None));
    }

    #[test]
    fn a_block_is_free_when_its_last_holder_frees_it() {
        let mut pool = BlockPool::new(2, 4);
        let id = pool.allocate().unwrap();
        pool.touch(id);
        pool.free(id);
        pool.check_invariants(&[1, 0]);
        pool.free(id);
        pool.check_invariants(&[0, 0]);
    }

    #[test]
    #[should_panic(expected = "block 0 was freed more often than it was held")]
    fn a_block_freed_too_often_is_noticed() {
        BlockPool::new(1, 4).free(0);
    }

    #[test]
    fn blocks_without_content_go_first_then_the_least_recently_freed() {
        let mut pool = BlockPool::new(4, 4);
        for token in 0..3 {
            let id = pool.allocate().unwrap();
            cache(&mut pool, id, ROOT, token);
        }
        assert_eq!(pool.allocate(), Some(3));
        for id in [1, 3, 0, 2] {
            pool.free(id);
        }
        assert_eq!(pool.free_list(), [3, 1, 0, 2]);
        pool.check_invariants(&[0; 4]);
    }

    #[test]
    fn a_freed_block_is_found_until_it_is_handed_out() {
        let mut pool = BlockPool::new(2, 4);
        let (first, second) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        cache(&mut pool, first, ROOT, 7);
        cache(&mut pool, second, BlockParent::Block(first), 8);
        pool.free(second);
        pool.free(first);
        assert_eq!(find(&pool, &ROOT, 7), Some(first));
        pool.touch(first);
        pool.check_invariants(&[1, 0]);
        assert_eq!(pool.allocate(), Some(second));
        assert_eq!(find(&pool, &BlockParent::Block(first), 8), None);
        assert_eq!((find(&pool, &ROOT, 7), pool.num_cached_blocks()), (Some(first), 1));
    }

    #[test]
    fn a_shared_hash_never_serves_other_content() {
        let mut pool = BlockPool::new(4, 4);
        let hash = BlockHash::of(1);
        let salted = BlockParent::Root(Some("tenant".into()));
        let id = pool.allocate().unwrap();
        assert!(pool.cache(id, hash, salted.clone(), &[1, 2, 3, 4]));
        for (parent, token_ids) in [
            (ROOT, [1, 2, 3, 4]),
            (BlockParent::Root(Some("".into())), [1, 2, 3, 4]),
            (BlockParent::Block(id), [1, 2, 3, 4]),
            (salted.clone(), [1, 2, 3, 5]),
        ] {
            assert_eq!(pool.cached_block(hash, &parent, &token_ids), None);
            let other = pool.allocate().unwrap();
            assert!(!pool.cache(other, hash, parent, &token_ids));
            pool.free(other);
        }
        assert_eq!(pool.cached_block(hash, &salted, &[1, 2, 3, 4]), Some(id));
        pool.check_invariants(&[1, 0, 0, 0]);
    }

    #[test]
    #[should_panic(expected = "block 0 was written while its content could be found")]
    fn a_block_cached_twice_is_noticed() {
        let mut pool = BlockPool::new(1, 4);
        let id = pool.allocate().unwrap();
        cache(&mut pool, id, ROOT, 1);
        cache(&mut pool, id, ROOT, 2);
    }
}
