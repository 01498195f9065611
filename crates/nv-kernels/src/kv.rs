//! A layer's keys and values in blocks: how they lie there, and how new ones get there.

use crate::attention::outer::LANES;
use crate::elementwise::Elementwise;
use crate::pool::Pool;
use crate::results::SharedResult;
use crate::table::Kernels;

/// Fewer elements than this are stored by the calling thread: waking others would cost more.
const STORED_ALONE: usize = 16 * 1024;

/// How a cache's blocks are shaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Tokens a block, a multiple of 8.
    pub block_size: usize,
    /// Key-value heads.
    pub num_kv_heads: usize,
    /// Elements a head, a multiple of 16.
    pub head_dim: usize,
}

impl KvLayout {
    /// Elements that one block's keys take, and its values likewise.
    pub fn block_elements(&self) -> usize {
        self.block_size * self.num_kv_heads * self.head_dim
    }

    pub(crate) fn head_elements(&self) -> usize {
        self.block_size * self.head_dim
    }

    /// Keys that lie side by side.
    pub(crate) fn lanes(&self) -> usize {
        if self.block_size.is_multiple_of(2 * LANES) { 2 * LANES } else { LANES }
    }

    /// Checks what `sequences` say about a cache. Returns the number of their tokens in the batch.
    ///
    /// # Panics
    /// If the layout is not one that the kernels have, the cache is not whole blocks, a sequence's blocks are not in the cache
    /// or too few, or the sequences are not packed one after another.
    pub(crate) fn check(&self, kv: &KvMut<'_>, sequences: &[Sequence<'_>]) -> usize {
        let Self { block_size, num_kv_heads, head_dim } = *self;
        assert!(block_size > 0 && block_size.is_multiple_of(LANES), "block_size {block_size}");
        assert!(num_kv_heads > 0, "num_kv_heads {num_kv_heads}");
        assert!(head_dim > 0 && head_dim.is_multiple_of(16), "head_dim {head_dim}");
        let elements = block_size
            .checked_mul(num_kv_heads)
            .and_then(|rows| rows.checked_mul(head_dim))
            .expect("a block's elements can be counted");
        let (k, v, block) = match kv {
            KvMut::Bf16 { k, v } => (k.len(), v.len(), elements / 2),
            KvMut::F32 { k, v } => (k.len(), v.len(), elements),
        };
        assert!(k == v && k.is_multiple_of(block), "{k} and {v} elements in blocks of {block}");
        let num_blocks = k / block;

        let mut num_tokens = 0;
        for &Sequence { first_token, num_tokens: tokens, start_pos, block_table } in sequences {
            // So no token is in two of them, or in none.
            assert_eq!(first_token, num_tokens, "sequences are packed one after another");
            num_tokens += tokens;
            let kv_len = start_pos.checked_add(tokens).expect("positions can be counted");
            let used = block_table.get(..kv_len.div_ceil(block_size));
            let used = used.unwrap_or_else(|| panic!("token {first_token}: blocks are missing"));
            let last = used.iter().max().map_or(0, |&last| last as usize);
            assert!(
                used.is_empty() || last < num_blocks,
                "token {first_token}: block {last} of {num_blocks}"
            );
        }
        num_tokens
    }
}

/// The keys and values of one layer.
///
/// Inside a block each head has its own region. Keys lie in groups of 16 tokens (of 8, if the block size is no
/// multiple of 16), element by element, the tokens of a group side by side, bfloat16 elements in pairs:
/// `[group][head_dim / 2][16][2]`. Values lie token by token,
/// bfloat16 tokens in pairs: `[block_size / 2][head_dim][2]`. In f32 the pairs fall away. A block that has never
/// been written must be zero.
#[derive(Debug)]
pub enum KvMut<'a> {
    /// bfloat16 keys and values, in pairs.
    Bf16 {
        /// `[num_blocks, block_elements / 2]` pairs of keys.
        k: &'a mut [u32],
        /// `[num_blocks, block_elements / 2]` pairs of values.
        v: &'a mut [u32],
    },
    /// f32 keys and values.
    F32 {
        /// `[num_blocks, block_elements]` keys.
        k: &'a mut [f32],
        /// `[num_blocks, block_elements]` values.
        v: &'a mut [f32],
    },
}

/// One sequence's part of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// The first of its tokens in the packed batch: as many as the sequences before it have there.
    pub first_token: usize,
    /// Its tokens in the batch.
    pub num_tokens: usize,
    /// The position of the first of them.
    pub start_pos: usize,
    /// Its blocks in order: block `i` holds positions `i · block_size` and after.
    pub block_table: &'a [u32],
}

impl Sequence<'_> {
    pub(crate) fn kv_len(&self) -> usize {
        self.start_pos + self.num_tokens
    }
}

/// See [`Kernels::store_kv`].
pub(crate) fn store(
    kernels: &Kernels,
    pool: &Pool,
    layout: &KvLayout,
    kv: &mut KvMut<'_>,
    sequences: &[Sequence<'_>],
    k: &[f32],
    v: &[f32],
) {
    let num_tokens = layout.check(kv, sequences);
    let expected = num_tokens * layout.num_kv_heads * layout.head_dim;
    assert!(
        k.len() == expected && v.len() == expected,
        "expected {expected} numbers, found {} of keys and {} of values",
        k.len(),
        v.len()
    );
    let elementwise = kernels.elementwise;
    match kv {
        KvMut::Bf16 { k: keys, v: values } => {
            let store = |slot: Slot, k: &[f32], v: &[f32], keys: &mut [u32], values: &mut [u32]| {
                store_pairs(elementwise, slot, k, v, keys, values);
            };
            store_elements::<_, 2>(pool, layout, keys, values, sequences, (k, v), store);
        }
        KvMut::F32 { k: keys, v: values } => {
            store_elements::<_, 1>(pool, layout, keys, values, sequences, (k, v), store_singles);
        }
    }
}

/// A token's place in its block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) index: usize,
    /// Keys that lie side by side.
    pub(crate) lanes: usize,
}

impl Slot {
    /// Where the token's group of keys starts, of elements that pack so many numbers.
    pub(crate) fn group(self, head_dim: usize, packed: usize) -> usize {
        self.index / self.lanes * self.lanes * head_dim / packed
    }
}

/// Calls `store(slot, k, v, keys, values)` for every token and head, heads in parallel.
fn store_elements<E: Send, const PACKED: usize>(
    pool: &Pool,
    layout: &KvLayout,
    keys: &mut [E],
    values: &mut [E],
    sequences: &[Sequence<'_>],
    (k, v): (&[f32], &[f32]),
    store: impl Fn(Slot, &[f32], &[f32], &mut [E], &mut [E]) + Sync,
) {
    let KvLayout { block_size, num_kv_heads, head_dim } = *layout;
    let num_blocks = keys.len() / (layout.block_elements() / PACKED);
    let keys = SharedResult::new(keys, layout.block_elements() / PACKED);
    let values = SharedResult::new(values, layout.block_elements() / PACKED);
    let store_head = |head: usize| {
        let region = layout.head_elements() / PACKED;
        let columns = head * region..(head + 1) * region;
        // SAFETY: each head has its own columns of every block, and the pool runs a head once.
        #[expect(unsafe_code, reason = "heads write disjoint columns")]
        let mut keys = unsafe { keys.part(0..num_blocks, columns.clone()) };
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "heads write disjoint columns")]
        let mut values = unsafe { values.part(0..num_blocks, columns) };
        for sequence in sequences {
            for i in 0..sequence.num_tokens {
                let position = sequence.start_pos + i;
                let block = sequence.block_table[position / block_size] as usize;
                let at = ((sequence.first_token + i) * num_kv_heads + head) * head_dim;
                let (k, v) = (&k[at..at + head_dim], &v[at..at + head_dim]);
                let slot = Slot { index: position % block_size, lanes: layout.lanes() };
                store(slot, k, v, keys.row(block), values.row(block));
            }
        }
    };
    if k.len() < STORED_ALONE {
        (0..num_kv_heads).for_each(store_head);
    } else {
        pool.run(num_kv_heads, store_head);
    }
}

/// Stores one token of one head at `slot`.
fn store_singles(slot: Slot, k: &[f32], v: &[f32], keys: &mut [f32], values: &mut [f32]) {
    let head_dim = k.len();
    let keys = &mut keys[slot.group(head_dim, 1)..];
    for (lanes, &k) in keys.chunks_mut(slot.lanes).zip(k) {
        lanes[slot.index % slot.lanes] = k;
    }
    values[slot.index * head_dim..][..head_dim].copy_from_slice(v);
}

/// Stores one token of one head at `slot`.
fn store_pairs(
    elementwise: &Elementwise,
    slot: Slot,
    k: &[f32],
    v: &[f32],
    keys: &mut [u32],
    values: &mut [u32],
) {
    /// Numbers of a key that are rounded at once.
    const CHUNK: usize = 64;
    let head_dim = k.len();
    let keys = &mut keys[slot.group(head_dim, 2)..];
    for (k, keys) in k.chunks(CHUNK).zip(keys.chunks_mut(CHUNK / 2 * slot.lanes)) {
        let mut pairs = [0; CHUNK / 2];
        let pairs = &mut pairs[..k.len() / 2];
        // SAFETY: `elementwise` is of a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (elementwise.pack_pairs)(k, pairs);
        }
        for (lanes, pair) in keys.chunks_mut(slot.lanes).zip(pairs) {
            lanes[slot.index % slot.lanes] = *pair;
        }
    }
    // The first of a pair clears its partner, so that what an earlier owner left cannot be a NaN there.
    let store = if slot.index.is_multiple_of(2) {
        elementwise.store_lower
    } else {
        elementwise.store_upper
    };
    let values = &mut values[slot.index / 2 * head_dim..][..head_dim];
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "kernels need their instruction set")]
    unsafe {
        store(v, values);
    }
}
