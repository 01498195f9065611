//! A step in the making: which running sequences compute which tokens.

use super::sequence::Slot;
use super::{Event, ScheduledSequence, Scheduler, SchedulerOutput};

/// A step in the making.
pub(super) struct Step<'a> {
    /// Tokens that may still be scheduled.
    pub(super) budget: usize,
    /// Blocks that scheduled sequences need for the tokens that don't fit into the step.
    pub(super) num_promised_blocks: usize,
    pub(super) output: &'a mut SchedulerOutput,
}

impl Scheduler {
    /// One token for every running sequence that decodes.
    pub(super) fn schedule_decodes(&mut self, step: &mut Step<'_>) {
        let mut at = 0;
        while let Some(&(_, slot)) = self.running.get(at) {
            at += 1;
            if self.sequences[slot].decodes() {
                self.schedule_running(slot, 1, step);
            }
        }
    }

    /// Chunks of the prompts of running sequences.
    pub(super) fn schedule_prefills(&mut self, step: &mut Step<'_>) {
        let mut at = 0;
        while let Some(&(_, slot)) = self.running.get(at)
            && step.budget > 0
        {
            at += 1;
            let sequence = &self.sequences[slot];
            if !sequence.decodes() {
                let num_new_tokens = sequence.num_uncomputed_tokens().min(step.budget);
                self.schedule_running(slot, num_new_tokens, step);
            }
        }
    }

    /// Proposed tokens of sequences that decode, as far as budget and blocks are left that no other sequence wants.
    pub(super) fn schedule_drafts(&mut self, step: &mut Step<'_>) {
        let SchedulerOutput { scheduled, copies, .. } = &mut *step.output;
        for scheduled in scheduled {
            let sequence = &mut self.sequences[scheduled.slot];
            let num_draft_tokens = sequence.draft().len().min(step.budget);
            if num_draft_tokens == 0 || !sequence.decodes() {
                continue;
            }
            let (start, reserved) = (sequence.num_computed_tokens, step.num_promised_blocks);
            let (blocks, end) = (&mut sequence.blocks, start + 1 + num_draft_tokens);
            if self.kv_cache.allocate_slots(blocks, start, end, reserved, copies) {
                sequence.num_scheduled_tokens += num_draft_tokens;
                scheduled.num_scheduled_tokens += num_draft_tokens;
                scheduled.num_draft_tokens = num_draft_tokens;
                step.budget -= num_draft_tokens;
                let id = scheduled.id;
                self.record(|_| Event::Drafted { id, num_draft_tokens });
            }
        }
    }

    /// Schedules tokens of a running sequence, at the expense of the last ones in the order if blocks run out, and of
    /// itself if it is the last.
    fn schedule_running(&mut self, slot: Slot, num_new_tokens: usize, step: &mut Step<'_>) {
        loop {
            let sequence = &mut self.sequences[slot];
            let start = sequence.num_computed_tokens;
            let end = start + num_new_tokens;
            let copies = &mut step.output.copies;
            if self.kv_cache.allocate_slots(&mut sequence.blocks, start, end, 0, copies) {
                return self.push(slot, num_new_tokens, step);
            }
            if self.preempt_last(step) == slot {
                return;
            }
        }
    }

    /// Adds a sequence that has slots for its tokens to the step.
    pub(super) fn push(&mut self, slot: Slot, num_scheduled_tokens: usize, step: &mut Step<'_>) {
        let sequence = &mut self.sequences[slot];
        sequence.num_scheduled_tokens = num_scheduled_tokens;
        step.budget -= num_scheduled_tokens;
        step.num_promised_blocks += self
            .kv_cache
            .num_blocks_for(sequence.num_tokens())
            .saturating_sub(sequence.blocks.block_ids().len());
        let (id, num_computed_tokens) = (sequence.id, sequence.num_computed_tokens);
        step.output.scheduled.push(ScheduledSequence {
            id,
            num_scheduled_tokens,
            num_draft_tokens: 0,
            num_computed_tokens,
            num_cached_tokens: sequence.num_cached_tokens.unwrap_or(0),
            samples: num_scheduled_tokens == sequence.num_uncomputed_tokens(),
            slot,
        });
        self.record(|_| Event::Scheduled { id, num_computed_tokens, num_scheduled_tokens });
    }
}
