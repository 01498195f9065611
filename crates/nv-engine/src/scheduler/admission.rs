//! Waiting sequences that begin to run.

use super::sequence::Slot;
use super::step::Step;
use super::{Event, Scheduler};

impl Scheduler {
    /// Starts waiting sequences, in order, as long as there is room for all their tokens.
    pub(super) fn admit(&mut self, step: &mut Step<'_>) {
        while step.budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some((&key, &slot)) = self.waiting.first_key_value() else { return };
            if !self.admit_one(slot, step) {
                self.record(|scheduler| {
                    let sequence = &scheduler.sequences[slot];
                    Event::Blocked {
                        id: sequence.id,
                        num_blocks: scheduler.kv_cache.num_blocks_for(sequence.num_tokens()),
                        num_free_blocks: scheduler.kv_cache.pool().num_free_blocks(),
                    }
                });
                return;
            }
            self.waiting.remove(&key);
            self.run(key, slot);
        }
    }

    /// Schedules the first tokens of a waiting sequence; returns whether there is room for all of them.
    fn admit_one(&mut self, slot: Slot, step: &mut Step<'_>) -> bool {
        let num_reserved_blocks = if self.running.is_empty() {
            0
        } else {
            self.config.num_watermark_blocks + step.num_promised_blocks
        };
        // Looking for cached blocks takes longer than seeing that even all of them would not help.
        if self.kv_cache.pool().num_free_blocks() <= num_reserved_blocks {
            return false;
        }
        let sequence = &mut self.sequences[slot];
        let num_tokens = sequence.num_tokens();
        let num_cached_tokens = if sequence.skips_prefix_cache() {
            0
        } else {
            let (blocks, token_ids) = sequence.blocks_and_token_ids();
            self.kv_cache.get_computed_blocks(blocks, token_ids)
        };
        let num_new_tokens = (num_tokens - num_cached_tokens).min(step.budget);
        let end = num_cached_tokens + num_new_tokens;
        let num_later_blocks =
            self.kv_cache.num_blocks_for(num_tokens) - self.kv_cache.num_blocks_for(end);
        if !self.kv_cache.allocate_slots(
            &mut sequence.blocks,
            num_cached_tokens,
            end,
            num_reserved_blocks + num_later_blocks,
            &mut step.output.copies,
        ) {
            self.kv_cache.free(&mut sequence.blocks);
            return false;
        }
        sequence.num_computed_tokens = num_cached_tokens;
        // What a preempted sequence finds is its own.
        let is_first = sequence.num_cached_tokens.is_none();
        sequence.num_cached_tokens.get_or_insert(num_cached_tokens);
        if is_first && self.config.enable_prefix_caching && !sequence.skips_prefix_cache() {
            self.counts.num_prefix_queries += num_tokens as u64;
            self.counts.num_prefix_hits += num_cached_tokens as u64;
        }
        let id = sequence.id;
        self.record(|_| Event::Admitted { id, num_tokens, num_cached_tokens });
        self.push(slot, num_new_tokens, step);
        true
    }
}
