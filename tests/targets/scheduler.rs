//! Schedules, over a model that keeps in each slot what depends on all tokens before it.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::mem;

use nv_engine::{
    BlockCopy, NewSequence, ScheduledSequence, Scheduler, SchedulerConfig, SchedulerOutput,
    SequenceId, TokenId,
};

use nv_testing::Slots;

use super::Choices;

/// Few, so that texts and proposals meet by chance.
const VOCAB_SIZE: u8 = 3;

/// The bytes choose limits, then sequences that are added, aborted, preempted, forked, and what steps sample.
///
/// Whatever they choose: a step keeps its limits, no two sequences write to one block, each one's blocks hold what belongs
/// to its own tokens, all of them end, and no block is held after that.
pub fn scheduler(data: &[u8]) {
    let mut run = Run::new(Choices(data));
    while let Some(op) = run.choices.next() {
        match op % 8 {
            0..=1 => run.add(),
            2 => run.end_one(),
            3 => run.preempt(),
            op => run.step(op == 4),
        }
    }
    // The first in the order computes a token in each step.
    let num_steps: usize = run.ids.len() * run.scheduler.config().max_model_len;
    for _ in 0..num_steps {
        run.step(false);
    }
    assert!(!run.scheduler.has_unfinished_sequences());
    assert_eq!(run.scheduler.stats().num_used_blocks, 0);
}

struct Run<'a> {
    choices: Choices<'a>,
    scheduler: Scheduler,
    output: SchedulerOutput,
    /// What stands for keys and values.
    keys: Slots<u64>,
    /// The sequences that haven't ended, with their salts.
    ids: Vec<(SequenceId, Option<&'static str>)>,
    num_added: u64,
}

impl<'a> Run<'a> {
    fn new(mut choices: Choices<'a>) -> Self {
        let max_num_seqs = 1 + usize::from(choices.below(4));
        let config = SchedulerConfig {
            max_num_batched_tokens: max_num_seqs + usize::from(choices.below(16)),
            max_num_seqs,
            max_model_len: 8 + usize::from(choices.below(32)),
            num_blocks: 3 + u32::from(choices.below(9)),
            block_size: 1 + usize::from(choices.below(5)),
            num_watermark_blocks: choices.below(3).into(),
            priority_reach: choices.below(20).into(),
            enable_prefix_caching: choices.below(8) != 0,
        };
        let keys = Slots::new(config.num_blocks as usize, config.block_size, u64::MAX);
        let scheduler = Scheduler::new(config).expect("limits that something can run under");
        Self {
            choices,
            scheduler,
            output: SchedulerOutput::default(),
            keys,
            ids: Vec::new(),
            num_added: 0,
        }
    }

    fn next_id(&mut self) -> SequenceId {
        self.num_added += 1;
        SequenceId(self.num_added)
    }

    fn add(&mut self) {
        let (id, kind) = (self.next_id(), self.choices.below(u8::MAX));
        // Beginnings of two texts.
        let (text, len) = (u32::from(kind & 1), u32::from(self.choices.below(24)));
        let prompt_token_ids: Vec<TokenId> =
            (0..len).map(|at| at * 5 / 3 * (text + 1) % 3).collect();
        let max_tokens = usize::from(self.choices.below(12));
        let cache_salt = (kind & 2 != 0).then_some("salt");
        let num_tokens = prompt_token_ids.len() + max_tokens;
        let fits = len > 0 && max_tokens > 0 && num_tokens <= self.scheduler.config().max_model_len;
        let added = self.scheduler.add_sequence(NewSequence {
            id,
            prompt_token_ids,
            max_tokens: Some(max_tokens),
            priority: i32::from(kind / 8 % 3) - 1,
            arrival: id.0,
            cache_salt: cache_salt.map(Into::into),
            skip_prefix_cache: kind & 4 != 0,
        });
        assert_eq!(added.is_ok(), fits, "{added:?}");
        if fits {
            self.ids.push((id, cache_salt));
        }
    }

    fn choose(&mut self) -> Option<SequenceId> {
        let at = usize::from(self.choices.next()?).checked_rem(self.ids.len())?;
        Some(self.ids[at].0)
    }

    fn end_one(&mut self) {
        let Some(id) = self.choose() else { return };
        assert!(self.scheduler.abort(id));
        self.forget_ended();
    }

    fn preempt(&mut self) {
        let Some(id) = self.choose() else { return };
        let num_running = self.scheduler.stats().num_running;
        let ran = self.scheduler.preempt(id);
        assert_eq!(self.scheduler.stats().num_running, num_running - usize::from(ran));
    }

    fn forget_ended(&mut self) {
        let scheduler = &self.scheduler;
        self.ids.retain(|&(id, _)| scheduler.token_ids(id).is_some());
    }

    /// Schedules and runs a step; one that fails ends the sequences that were in it.
    fn step(&mut self, fails: bool) {
        let mut output = mem::take(&mut self.output);
        self.scheduler.schedule(&mut output);
        self.check(&output);
        for &BlockCopy { src, dst } in &output.copies {
            self.keys.copy_block(src, dst);
        }
        for scheduled in &output.scheduled {
            if fails {
                assert!(self.scheduler.abort(scheduled.id));
            } else {
                self.compute(scheduled);
            }
        }
        self.output = output;
        self.forget_ended();
        self.propose();
    }

    /// Asserts what must hold of any step.
    fn check(&self, output: &SchedulerOutput) {
        let (config, stats) = (self.scheduler.config(), self.scheduler.stats());
        assert!(output.num_scheduled_tokens() <= config.max_num_batched_tokens);
        assert!(output.scheduled.len() <= config.max_num_seqs);
        assert!(!output.scheduled.is_empty() || !self.scheduler.has_unfinished_sequences());
        assert_eq!(stats.num_running + stats.num_waiting, self.ids.len());
        let (mut written, mut held) = (BTreeSet::new(), BTreeSet::new());
        for scheduled in &output.scheduled {
            let table = self.scheduler.block_table(scheduled);
            let (read, own) = table.split_at(scheduled.num_computed_tokens / config.block_size);
            held.extend(read);
            for &id in own {
                assert!(written.insert(id), "block {id} is written for two sequences");
            }
        }
        assert!(held.is_disjoint(&written), "a block is written and read in one step");
        assert!(held.len() + written.len() <= stats.num_used_blocks);
    }

    /// Computes a sequence's tokens and samples what follows them.
    fn compute(&mut self, scheduled: &ScheduledSequence) {
        let Some(&(_, salt)) = self.ids.iter().find(|(id, _)| *id == scheduled.id) else {
            panic!("sequence {} is scheduled and has ended", scheduled.id);
        };
        let table = self.scheduler.block_table(scheduled);
        let own = self.scheduler.token_ids(scheduled.id).expect("it was found above");
        let input_ids = self.scheduler.scheduled_token_ids(scheduled);
        // Salts may not mix.
        let mut keys = salt.map_or(0, |salt| salt.len() as u64);
        for (at, &token_id) in own[..scheduled.num_computed_tokens].iter().enumerate() {
            keys = keys_of(keys, token_id);
            assert_eq!(
                self.keys.get(table, at),
                keys,
                "position {at} of sequence {}",
                scheduled.id
            );
        }
        for (at, &token_id) in (scheduled.num_computed_tokens..).zip(input_ids) {
            keys = keys_of(keys, token_id);
            self.keys.set(table, at, keys);
        }
        if !scheduled.samples {
            return self.scheduler.update(scheduled, &[], false);
        }
        // As many proposed tokens as the bytes say, and one that they say.
        let (num_tokens, draft) =
            (own.len(), &input_ids[input_ids.len() - scheduled.num_draft_tokens..]);
        let num_accepted = usize::from(self.choices.below(u8::MAX)) % (draft.len() + 1);
        let mut sampled = draft[..num_accepted].to_vec();
        sampled.push(self.choices.below(VOCAB_SIZE).into());
        let kind = self.choices.below(u8::MAX);
        if scheduled.num_draft_tokens == 0 && num_tokens < 24 && kind % 5 == 1 {
            let id = self.next_id();
            let token_id = self.choices.below(VOCAB_SIZE).into();
            self.scheduler
                .fork(scheduled, id, token_id)
                .expect("a step that samples can be forked");
            self.ids.push((id, salt));
        }
        self.scheduler.update(scheduled, &sampled, kind % 16 == 3);
    }

    /// Proposes tokens for one sequence.
    fn propose(&mut self) {
        let Some(id) = self.choose() else { return };
        let draft: Vec<TokenId> =
            (0..self.choices.below(5)).map(|_| self.choices.below(VOCAB_SIZE).into()).collect();
        self.scheduler.propose(id, &draft).expect("a sequence that has not ended");
    }
}

/// The number made of a token and of the number before it.
fn keys_of(before: u64, token_id: TokenId) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one((before, token_id))
}
