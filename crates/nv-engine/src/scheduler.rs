//! Which tokens of which sequences the next step computes.
//!
//! Pure and deterministic: no clock, no I/O, no tensors, no threads. Decisions depend on the calls made and on
//! nothing else, so that a run can be repeated.

mod config;
mod output;
mod sequence;
mod trace;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::mem;

use crate::TokenId;
use crate::block_pool::BlockId;
use crate::error::{Error, Result};
use crate::kv_cache_manager::KvCacheManager;
use crate::sampling_params::refuse;
use sequence::{Key, Sequence, Sequences, Slot};

pub use config::SchedulerConfig;
pub(crate) use config::{DEFAULT_BLOCK_SIZE, DEFAULT_MAX_NUM_BATCHED_TOKENS};
pub use output::{ScheduledSequence, SchedulerOutput, SchedulerStats};
pub use sequence::{NewSequence, SequenceId};
pub use trace::Event;

/// Continuous batching over a paged KV cache.
///
/// Sequences stand in one order: by arrival, moved by priority. A step has one budget of tokens. Sequences that
/// run come first: those that decode get their token, then those whose prompt is not yet computed get chunks of it.
/// What is left of the budget admits waiting sequences in order; the first that finds no room for all its tokens holds
/// those behind it back. Proposed tokens come last, with what nobody else wants. When blocks run out, the last running
/// sequence in the order gives up its own and waits again at its old place.
///
/// Nothing waits for ever: the first sequence of all is never preempted and has room for itself, so it ends; and only
/// a bounded number of later arrivals can be put before a sequence.
///
/// ```
/// use nv_engine::{NewSequence, Scheduler, SchedulerConfig, SchedulerOutput, SequenceId};
///
/// let mut scheduler = Scheduler::new(SchedulerConfig::new(64, 512))?;
/// scheduler.add_sequence(NewSequence {
///     id: SequenceId(7),
///     prompt_token_ids: vec![1, 2, 3],
///     max_tokens: Some(2),
///     priority: 0,
///     arrival: 0,
///     cache_salt: None,
///     skip_prefix_cache: false,
/// })?;
/// let mut output = SchedulerOutput::default();
/// let mut sampled = 100;
/// while scheduler.has_unfinished_sequences() {
///     scheduler.schedule(&mut output);
///     for sequence in &output.scheduled {
///         let (input_ids, block_table) =
///             (scheduler.scheduled_token_ids(sequence), scheduler.block_table(sequence));
///         assert!(!input_ids.is_empty() && block_table == [0]);
///         sampled += 1; // what a model and a sampler would make of them
///         scheduler.update(sequence, &[sampled], false);
///     }
/// }
/// assert_eq!(sampled, 102);
/// # Ok::<(), nv_engine::Error>(())
/// ```
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    kv_cache: KvCacheManager,
    sequences: Sequences,
    /// Sequences that hold blocks, in order.
    running: Vec<(Key, Slot)>,
    /// Sequences that hold none, in order.
    waiting: BTreeMap<Key, Slot>,
    /// Sequences that ended since the last step.
    finished: Vec<SequenceId>,
    /// Counts; what [`Self::stats`] can look up is looked up there.
    counts: SchedulerStats,
    trace: Option<Vec<Event>>,
}

/// A step in the making.
struct Step<'a> {
    budget: usize,
    /// Blocks that scheduled sequences need for the tokens that don't fit into the step.
    num_promised_blocks: usize,
    output: &'a mut SchedulerOutput,
}

impl Scheduler {
    /// A scheduler without sequences.
    ///
    /// # Errors
    /// [`Error::Setting`] for limits that nothing could run under.
    pub fn new(mut config: SchedulerConfig) -> Result<Self> {
        config.check()?;
        config.max_model_len = config.max_model_len.min(config.num_cache_tokens());
        Ok(Self {
            kv_cache: KvCacheManager::new(
                config.num_blocks,
                config.block_size,
                config.enable_prefix_caching,
            ),
            config,
            sequences: Sequences::default(),
            running: Vec::new(),
            waiting: BTreeMap::new(),
            finished: Vec::new(),
            counts: SchedulerStats::default(),
            trace: None,
        })
    }

    /// The limits; `max_model_len` is the longest sequence that can be served, with what the blocks hold.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Puts a sequence among the waiting ones.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`]; [`Error::SamplingParameter`] if `max_tokens` is 0; [`Error::RequestTooLong`] if the
    /// sequence can't be served, however empty the cache; [`Error::DuplicateSequence`].
    pub fn add_sequence(&mut self, new: NewSequence) -> Result<()> {
        let num_prompt_tokens = new.prompt_token_ids.len();
        let max_model_len = self.config.max_model_len;
        if num_prompt_tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        if new.max_tokens == Some(0) {
            return refuse("max_tokens", "at least 1", 0);
        }
        let max_tokens = new.max_tokens.unwrap_or(1);
        if num_prompt_tokens.saturating_add(max_tokens) > max_model_len {
            return Err(Error::RequestTooLong {
                num_prompt_tokens,
                max_tokens,
                max_model_len,
                num_cache_tokens: self.config.num_cache_tokens(),
            });
        }
        self.check_new(new.id)?;
        let max_num_tokens = new.max_tokens.map_or(max_model_len, |max| num_prompt_tokens + max);
        let key = Key::new(&new, self.config.priority_reach);
        let slot = self.sequences.insert(Sequence::new(new, key, max_num_tokens));
        self.waiting.insert(key, slot);
        Ok(())
    }

    /// Proposes the tokens that follow a sequence's last one, to be verified in the next step that it decodes in;
    /// replaces what was proposed before. As many are scheduled as budget, blocks and the sequence's length leave room
    /// for; none before the prompt is computed.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`] if it has ended or was never added.
    ///
    /// # Panics
    /// If the sequence is in a step under way.
    pub fn propose(&mut self, id: SequenceId, draft_token_ids: &[TokenId]) -> Result<()> {
        let slot = self.sequences.slot(id).ok_or(Error::UnknownSequence { id })?;
        let sequence = &mut self.sequences[slot];
        assert_eq!(sequence.num_scheduled_tokens, 0, "sequence {id} is in a step under way");
        sequence.set_draft(draft_token_ids);
        Ok(())
    }

    /// Writes the next step to `output`, whose buffers are used again.
    ///
    /// Whoever runs the step makes its copies, computes its tokens and calls [`update`](Self::update) for every
    /// sequence of it. A sequence without `update` is scheduled again with the same tokens; after a step whose copies
    /// were not made, its sequences must be aborted.
    pub fn schedule(&mut self, output: &mut SchedulerOutput) {
        output.clear();
        mem::swap(&mut output.finished, &mut self.finished);
        self.counts.num_steps += 1;
        self.record(|scheduler| Event::Step {
            number: scheduler.counts.num_steps,
            num_running: scheduler.running.len(),
            num_waiting: scheduler.waiting.len(),
            num_free_blocks: scheduler.kv_cache.pool().num_free_blocks(),
        });
        for &(_, slot) in &self.running {
            self.sequences[slot].num_scheduled_tokens = 0;
        }
        let budget = self.config.max_num_batched_tokens;
        let mut step = Step { budget, num_promised_blocks: 0, output };
        self.schedule_decodes(&mut step);
        self.schedule_prefills(&mut step);
        if step.output.preempted.is_empty() {
            self.admit(&mut step);
        }
        self.schedule_drafts(&mut step);
        let num_used_blocks = self.stats().num_used_blocks;
        let max = &mut self.counts.max_num_used_blocks;
        *max = num_used_blocks.max(*max);
    }

    /// Applies what a step sampled: one token, or with proposed ones those accepted and the one after them; none if
    /// the sequence [samples](ScheduledSequence::samples) none. With `is_finished` the sequence ends; it ends by
    /// itself when it has its `max_tokens` or fills `max_model_len`.
    ///
    /// Proposed tokens are accepted as far as `token_ids` repeat them; the rest counts as not computed, and gives its
    /// blocks back. If the sequence was
    /// aborted in the meantime, or preempted, nothing happens.
    ///
    /// # Panics
    /// If there are tokens for a sequence that samples none.
    pub fn update(
        &mut self,
        scheduled: &ScheduledSequence,
        token_ids: &[TokenId],
        is_finished: bool,
    ) {
        assert!(
            scheduled.samples || token_ids.is_empty(),
            "sequence {} samples no token before its prompt is computed",
            scheduled.id
        );
        let Some(sequence) = self.sequences.get_mut(scheduled.slot, scheduled.id) else { return };
        if mem::take(&mut sequence.num_scheduled_tokens) == 0 {
            return;
        }
        let num_own_tokens = scheduled.num_scheduled_tokens - scheduled.num_draft_tokens;
        let draft = &sequence.draft()[..scheduled.num_draft_tokens];
        let num_accepted = draft.iter().zip(token_ids).take_while(|(a, b)| a == b).count();
        sequence.push(token_ids);
        let is_over = is_finished || sequence.is_full();
        // A token whose logits are still wanted counts as not computed.
        let max = sequence.num_tokens() - usize::from(!is_over);
        sequence.num_computed_tokens =
            (sequence.num_computed_tokens + num_own_tokens + num_accepted).min(max);
        self.counts.num_draft_tokens += scheduled.num_draft_tokens as u64;
        self.counts.num_accepted_tokens += num_accepted as u64;
        self.settle_blocks(scheduled.slot);
        self.record(|scheduler| {
            let sequence = &scheduler.sequences[scheduled.slot];
            Event::Updated {
                id: sequence.id,
                num_tokens: sequence.num_tokens(),
                num_computed_tokens: sequence.num_computed_tokens,
            }
        });
        if is_over {
            self.finish(scheduled.slot);
        }
    }

    /// Adds a sequence that continues a scheduled one with `token_id`, another sample of the logits that the step
    /// computed; to be called before the scheduled one's own [`update`](Self::update). It shares all blocks and runs at
    /// once if `max_num_seqs` allows, else it waits.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`] if the scheduled sequence was aborted; [`Error::DuplicateSequence`].
    ///
    /// # Panics
    /// If the scheduled sequence samples no token, or has proposed ones (as never in the step that ends its prompt).
    pub fn fork(
        &mut self,
        scheduled: &ScheduledSequence,
        id: SequenceId,
        token_id: TokenId,
    ) -> Result<()> {
        let can_fork = scheduled.samples && scheduled.num_draft_tokens == 0;
        assert!(can_fork, "sequence {} has no single end to fork at", scheduled.id);
        self.check_new(id)?;
        let parent = self.sequences.get_mut(scheduled.slot, scheduled.id);
        let Some(parent) = parent.filter(|parent| parent.num_scheduled_tokens > 0) else {
            return Err(Error::UnknownSequence { id: scheduled.id });
        };
        let num_computed_tokens = parent.num_tokens();
        let (blocks, token_ids) = parent.blocks_and_token_ids();
        self.kv_cache.cache_blocks(blocks, token_ids, num_computed_tokens);
        let mut child = parent.sibling(id, token_id);
        if child.is_full() {
            self.finished.push(id);
            return Ok(());
        }
        let key = child.key;
        if self.running.len() < self.config.max_num_seqs {
            child.num_computed_tokens = num_computed_tokens;
            child.blocks = self.kv_cache.fork(&parent.blocks, num_computed_tokens);
            let slot = self.sequences.insert(child);
            self.run(key, slot);
        } else {
            let slot = self.sequences.insert(child);
            self.waiting.insert(key, slot);
        }
        Ok(())
    }

    /// Ends a sequence, at any time; returns whether there was one. A step under way may go on writing to its
    /// blocks: they go to others in the next step at the earliest.
    pub fn abort(&mut self, id: SequenceId) -> bool {
        let slot = self.sequences.slot(id);
        if let Some(slot) = slot {
            self.finish(slot);
        }
        slot.is_some()
    }

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

    /// Whether there is anything to schedule.
    pub fn has_unfinished_sequences(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    /// The sequence's tokens, prompt and continuation; `None` if it has ended.
    pub fn token_ids(&self, id: SequenceId) -> Option<&[TokenId]> {
        self.sequences.slot(id).map(|slot| self.sequences[slot].token_ids())
    }

    /// The tokens that a step computes for a sequence of it, proposed ones last.
    ///
    /// # Panics
    /// If the sequence was updated or aborted since.
    pub fn scheduled_token_ids(&self, scheduled: &ScheduledSequence) -> &[TokenId] {
        self.of_step(scheduled).scheduled_token_ids()
    }

    /// The blocks of a scheduled sequence, enough for the tokens of the step.
    ///
    /// # Panics
    /// If the sequence was updated or aborted since.
    pub fn block_table(&self, scheduled: &ScheduledSequence) -> &[BlockId] {
        let num_tokens = scheduled.num_computed_tokens + scheduled.num_scheduled_tokens;
        &self.of_step(scheduled).blocks.block_ids()[..self.kv_cache.num_blocks_for(num_tokens)]
    }

    /// Counts and state.
    pub fn stats(&self) -> SchedulerStats {
        let pool = self.kv_cache.pool();
        SchedulerStats {
            num_running: self.running.len(),
            num_waiting: self.waiting.len(),
            num_blocks: pool.num_blocks(),
            num_used_blocks: pool.num_blocks() - pool.num_free_blocks(),
            num_cached_blocks: pool.num_cached_blocks(),
            ..self.counts
        }
    }

    /// Starts or ends keeping every decision until [`take_trace`](Self::take_trace); without it, which is the default,
    /// decisions cost nothing more.
    pub fn set_tracing(&mut self, is_on: bool) {
        self.trace = is_on.then(Vec::new);
    }

    /// The decisions since the last call; each prints as a line of text.
    pub fn take_trace(&mut self) -> Vec<Event> {
        self.trace.as_mut().map(mem::take).unwrap_or_default()
    }

    /// One token for every running sequence that decodes.
    fn schedule_decodes(&mut self, step: &mut Step<'_>) {
        let mut at = 0;
        while let Some(&(_, slot)) = self.running.get(at) {
            at += 1;
            if self.sequences[slot].decodes() {
                self.schedule_running(slot, 1, step);
            }
        }
    }

    /// Chunks of the prompts of running sequences.
    fn schedule_prefills(&mut self, step: &mut Step<'_>) {
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
    fn schedule_drafts(&mut self, step: &mut Step<'_>) {
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
    fn push(&mut self, slot: Slot, num_scheduled_tokens: usize, step: &mut Step<'_>) {
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

    /// Takes the last running sequence's blocks and its part of the step.
    fn preempt_last(&mut self, step: &mut Step<'_>) -> Slot {
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

    /// Starts waiting sequences, in order, as long as there is room for all their tokens.
    fn admit(&mut self, step: &mut Step<'_>) {
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

    /// Puts a sequence that has blocks at its place in the order.
    fn run(&mut self, key: Key, slot: Slot) {
        let at = self.running.partition_point(|&(other, _)| other < key);
        self.running.insert(at, (key, slot));
    }

    fn finish(&mut self, slot: Slot) {
        let mut sequence = self.sequences.remove(slot);
        match self.running.binary_search_by_key(&sequence.key, |&(key, _)| key) {
            Ok(at) => {
                self.running.remove(at);
            }
            Err(_) => {
                self.waiting.remove(&sequence.key);
            }
        }
        self.kv_cache.free(&mut sequence.blocks);
        self.finished.push(sequence.id);
        self.record(|_| Event::Finished { id: sequence.id });
    }

    /// Makes the blocks that a step filled findable, and takes those back that only rejected tokens had.
    fn settle_blocks(&mut self, slot: Slot) {
        let sequence = &mut self.sequences[slot];
        let num_computed_tokens = sequence.num_computed_tokens;
        let (blocks, token_ids) = sequence.blocks_and_token_ids();
        self.kv_cache.cache_blocks(blocks, token_ids, num_computed_tokens);
        self.kv_cache.trim(blocks, token_ids.len());
    }

    fn check_new(&self, id: SequenceId) -> Result<()> {
        match self.sequences.slot(id) {
            Some(_) => Err(Error::DuplicateSequence { id }),
            None => Ok(()),
        }
    }

    /// The sequence of a step under way.
    fn of_step(&self, scheduled: &ScheduledSequence) -> &Sequence {
        let sequence = self.sequences.get(scheduled.slot, scheduled.id);
        sequence
            .filter(|sequence| sequence.num_scheduled_tokens == scheduled.num_scheduled_tokens)
            .unwrap_or_else(|| panic!("sequence {} is in no step under way", scheduled.id))
    }

    fn record(&mut self, event: impl FnOnce(&Self) -> Event) {
        if self.trace.is_some() {
            let event = event(self);
            self.trace.get_or_insert_default().push(event);
        }
    }
}
