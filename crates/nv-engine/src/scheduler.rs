//! Which tokens of which sequences the next step computes.
//!
//! Pure and deterministic: no clock, no I/O, no tensors, no threads. Decisions depend on the calls made and on
//! nothing else, so that a run can be repeated.

mod admission;
mod config;
mod output;
mod preemption;
mod sequence;
mod step;
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
use step::Step;

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
