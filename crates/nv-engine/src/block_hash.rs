//! Names for the contents of full blocks, chained so that a name stands for all the tokens up to a block's end.
//!
//! A name only finds candidates: whoever looks a block up compares its tokens and its parent too, so that two contents
//! of one name can never be taken for each other. Knows nothing of blocks themselves.

use std::hash::{BuildHasher, RandomState};

use crate::TokenId;

/// The name of a full block: a hash of its tokens, of all tokens before them and of the sequence's salt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash(u64);

/// What names blocks: the standard library's `SipHash` with keys drawn at random when the process makes the hasher, so
/// that nobody outside can prepare two prompts of one name.
#[derive(Debug)]
pub struct BlockHasher {
    keys: RandomState,
    /// The bits of a hash that are kept: all, but for tests that want equal names.
    mask: u64,
}

impl BlockHasher {
    /// A hasher with keys of its own; names made by another one mean nothing to it.
    pub fn new() -> Self {
        Self { keys: RandomState::new(), mask: u64::MAX }
    }

    /// The name of the block of `token_ids` behind the block named `parent`, or at the start of a sequence with
    /// `cache_salt`, which the names of later blocks inherit.
    ///
    /// ```
    /// use nv_engine::BlockHasher;
    ///
    /// let hasher = BlockHasher::new();
    /// let first = hasher.hash(None, None, &[1, 2]);
    /// assert_eq!(first, hasher.hash(None, None, &[1, 2]));
    /// assert_ne!(first, hasher.hash(None, Some("tenant"), &[1, 2]));
    /// assert_ne!(first, hasher.hash(Some(first), None, &[1, 2]));
    /// ```
    pub fn hash(
        &self,
        parent: Option<BlockHash>,
        cache_salt: Option<&str>,
        token_ids: &[TokenId],
    ) -> BlockHash {
        BlockHash(self.keys.hash_one((parent, cache_salt, token_ids)) & self.mask)
    }
}

impl Default for BlockHasher {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
impl BlockHasher {
    /// A hasher that knows four names only.
    pub(crate) fn weak() -> Self {
        Self { mask: 3, ..Self::new() }
    }
}

#[cfg(test)]
impl BlockHash {
    /// A name chosen by a test, such as one that several contents share.
    pub(crate) fn of(hash: u64) -> Self {
        Self(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_depends_on_everything_before_the_end_of_the_block() {
        let hasher = BlockHasher::new();
        let chain = |salt: Option<&str>, blocks: &[[TokenId; 2]]| {
            blocks.iter().fold(None, |parent, block| {
                Some(hasher.hash(parent, salt.filter(|_| parent.is_none()), block))
            })
        };
        let name = chain(None, &[[1, 2], [3, 4]]);
        assert_eq!(name, chain(None, &[[1, 2], [3, 4]]));
        for other in [
            chain(None, &[[9, 2], [3, 4]]),
            chain(None, &[[1, 2], [3, 9]]),
            chain(None, &[[2, 1], [3, 4]]),
            chain(None, &[[3, 4]]),
            chain(Some(""), &[[1, 2], [3, 4]]),
            chain(Some("a"), &[[1, 2], [3, 4]]),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn hashers_have_keys_of_their_own() {
        let names = [(); 2].map(|()| BlockHasher::new().hash(None, None, &[1, 2, 3]));
        assert_ne!(names[0], names[1]);
    }
}
