//! Sequences that give their blocks up and wait again.

use std::mem;

use super::sequence::{Key, Slot};
use super::step::Step;
use super::{Event, Scheduler, SequenceId};

impl Scheduler {
    /// Takes a running sequence's blocks, between two steps, as if others had needed them: it waits again at its old place,
    /// and all its tokens will be computed anew, or found. Returns whether it ran.
    pub fn preempt(&mut self, id: SequenceId) -> bool {
        let Some(slot) = self.sequences.slot(id) else { return false };
        let key = self.sequences[slot].key;
        let at = self.running.binary_search_by_key(&key, |&(key, _)| key);
        if let Ok(at) = at {
            self.running.remove(at);
            self.give_up(key, slot);
        }
        at.is_ok()
    }

    /// Takes the last running sequence's blocks and its part of the step.
    pub(super) fn preempt_last(&mut self, step: &mut Step<'_>) -> Slot {
        let (key, slot) = self.running.pop().expect("only running sequences take others' blocks");
        let num_scheduled_tokens = self.give_up(key, slot);
        if num_scheduled_tokens > 0 {
            step.budget += num_scheduled_tokens;
            step.output.scheduled.retain(|scheduled| scheduled.slot != slot);
        }
        step.output.preempted.push(self.sequences[slot].id);
        slot
    }

    /// Lets a sequence that ran until now wait without blocks; returns how many of its tokens were scheduled.
    fn give_up(&mut self, key: Key, slot: Slot) -> usize {
        self.waiting.insert(key, slot);
        let sequence = &mut self.sequences[slot];
        self.kv_cache.free(&mut sequence.blocks);
        sequence.set_draft(&[]);
        let id = sequence.id;
        let num_computed_tokens = mem::take(&mut sequence.num_computed_tokens);
        let num_scheduled_tokens = mem::take(&mut sequence.num_scheduled_tokens);
        self.counts.num_preemptions += 1;
        self.record(|_| Event::Preempted { id, num_computed_tokens });
        num_scheduled_tokens
    }
}
