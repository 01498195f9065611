//! Random schedules over a small pool, run by a model whose every token depends on all keys before it.
//!
//! The model keeps a number where a real one keeps keys and values, and reads it back from the blocks that the
//! scheduler names. A slot that was overwritten, not copied, or found for other tokens changes what is sampled.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use nv_testing::Slots;
use proptest::prelude::*;

use super::super::*;
use crate::kv_cache_manager::BlockCopy;

/// Few, so that texts and proposals meet by chance.
const VOCAB_SIZE: TokenId = 3;

#[derive(Debug, Clone)]
enum Op {
    Add {
        new: NewSequence,
        num_forks: usize,
    },
    /// Aborts one of the sequences, between steps or, if any, in the middle of the next one.
    Abort {
        which: usize,
        in_step: bool,
    },
    Step,
    /// A step after which the model fails.
    FailingStep,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Prompts are beginnings of a few texts.
    let new = (0..2_u32, 1..24_u32, prop::option::weighted(0.9, 1..12_usize), -1..=1);
    let kind = (prop::option::weighted(0.3, Just("salt".into())), any::<bool>(), 0..3_usize);
    let add =
        (new, kind).prop_map(|((text, len, max_tokens, priority), (salt, skip, num_forks))| {
            let prompt_token_ids = (0..len).map(|at| at * 5 / 3 * (text + 1) % 3).collect();
            let new = NewSequence {
                id: SequenceId(0),
                prompt_token_ids,
                max_tokens,
                priority,
                arrival: 0,
                cache_salt: salt,
                skip_prefix_cache: skip && len.is_multiple_of(4),
            };
            Op::Add { new, num_forks }
        });
    let abort =
        (0..8_usize, any::<bool>()).prop_map(|(which, in_step)| Op::Abort { which, in_step });
    let op = prop_oneof![4 => add, 1 => abort, 8 => Just(Op::Step), 1 => Just(Op::FailingStep)];
    prop::collection::vec(op, 1..40)
}

fn configs() -> impl Strategy<Value = SchedulerConfig> {
    let limits = (4..20_usize, 1..5_usize, 8..40_usize);
    (limits, 3..12_u32, 1..6_usize, 0..3_usize, 0..20_u32, prop::bool::weighted(0.9)).prop_map(
        |((budget, seqs, len), num_blocks, block_size, watermark, reach, caching)| {
            SchedulerConfig {
                max_num_batched_tokens: budget,
                max_num_seqs: seqs,
                max_model_len: len,
                num_blocks,
                block_size,
                num_watermark_blocks: watermark,
                priority_reach: reach,
                enable_prefix_caching: caching,
            }
        },
    )
}

/// What stands for keys and values: a number made of the token and of the number before it.
fn keys_of(before: u64, token_id: TokenId) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one((before, token_id))
}

/// The number before the first token: salts may not mix.
fn root(cache_salt: Option<&str>) -> u64 {
    cache_salt.map_or(0, |salt| salt.len() as u64)
}

/// What follows a token with these keys; a request's other sequences choose otherwise at their first token.
fn sample(keys: u64, choice: usize) -> TokenId {
    let token_id = (keys + choice as u64) % u64::from(VOCAB_SIZE);
    TokenId::try_from(token_id).unwrap()
}

/// What a sequence must come to, alone.
#[derive(Debug)]
struct Expected {
    cache_salt: Option<Arc<str>>,
    num_prompt_tokens: usize,
    token_ids: Vec<TokenId>,
    num_forks: usize,
}

impl Expected {
    /// Everything up to `max_num_tokens` that follows the prompt, with the first choice made otherwise by `choice`.
    fn new(new: &NewSequence, max_num_tokens: usize, choice: usize, num_forks: usize) -> Self {
        let mut token_ids = new.prompt_token_ids.clone();
        let root = root(new.cache_salt.as_deref());
        let mut keys = token_ids.iter().fold(root, |keys, &token_id| keys_of(keys, token_id));
        let num_prompt_tokens = token_ids.len();
        while token_ids.len() < max_num_tokens {
            let is_first = token_ids.len() == num_prompt_tokens;
            let token_id = sample(keys, if is_first { choice } else { 0 });
            token_ids.push(token_id);
            keys = keys_of(keys, token_id);
        }
        Self { cache_salt: new.cache_salt.clone(), num_prompt_tokens, token_ids, num_forks }
    }
}

/// An engine in small, with everything that it was promised.
struct Engine {
    scheduler: Scheduler,
    output: SchedulerOutput,
    keys: Slots<u64>,
    /// The sequences that haven't ended.
    expected: BTreeMap<SequenceId, Expected>,
    /// What their requests were, for the forks.
    new: BTreeMap<SequenceId, NewSequence>,
    num_added: u64,
    /// Aborted in the middle of the next step.
    abort_in_step: Option<usize>,
    /// Sequences that ended since the last step.
    ended: Vec<SequenceId>,
}

impl Engine {
    fn new(config: SchedulerConfig, has_weak_hashes: bool) -> Self {
        let keys = Slots::new(config.num_blocks as usize, config.block_size, u64::MAX);
        let mut scheduler = Scheduler::new(config).unwrap();
        if has_weak_hashes {
            scheduler.kv_cache.weaken_hashes();
        }
        Self {
            scheduler,
            output: SchedulerOutput::default(),
            keys,
            expected: BTreeMap::new(),
            new: BTreeMap::new(),
            num_added: 0,
            abort_in_step: None,
            ended: Vec::new(),
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Add { new, num_forks } => self.add(new, num_forks),
            Op::Abort { which, in_step: true } => self.abort_in_step = Some(which),
            Op::Abort { which, in_step: false } => self.abort(which),
            Op::Step => self.step(false),
            Op::FailingStep => self.step(true),
        }
        self.scheduler.check_invariants();
    }

    fn add(&mut self, new: NewSequence, num_forks: usize) {
        self.num_added += 1;
        let new = NewSequence { id: SequenceId(self.num_added), arrival: self.num_added, ..new };
        let max_model_len = self.scheduler.config().max_model_len;
        let num_prompt_tokens = new.prompt_token_ids.len();
        let fits = num_prompt_tokens + new.max_tokens.unwrap_or(1) <= max_model_len;
        assert_eq!(self.scheduler.add_sequence(new.clone()).is_ok(), fits);
        if fits {
            let max_num_tokens =
                new.max_tokens.map_or(max_model_len, |max| num_prompt_tokens + max);
            self.expected.insert(new.id, Expected::new(&new, max_num_tokens, 0, num_forks));
            self.new.insert(new.id, new);
        }
    }

    fn abort(&mut self, which: usize) {
        if let Some(&id) = self.expected.keys().nth(which) {
            assert!(self.scheduler.abort(id));
            self.end(id);
        }
    }

    fn end(&mut self, id: SequenceId) {
        self.expected.remove(&id).unwrap();
        self.ended.push(id);
    }

    fn step(&mut self, fails: bool) {
        let mut output = mem::take(&mut self.output);
        self.scheduler.schedule(&mut output);
        self.scheduler.check_invariants();
        self.check(&output);
        if let Some(which) = self.abort_in_step.take() {
            self.abort(which);
        }
        for &BlockCopy { src, dst } in &output.copies {
            self.keys.copy_block(src, dst);
        }
        for scheduled in &output.scheduled {
            if !self.expected.contains_key(&scheduled.id) {
                self.scheduler.update(scheduled, &[], true);
            } else if fails {
                assert!(self.scheduler.abort(scheduled.id));
                self.end(scheduled.id);
            } else {
                self.compute(scheduled);
            }
            self.scheduler.check_invariants();
        }
        self.output = output;
        self.propose();
    }

    /// Asserts what must hold of any step.
    fn check(&mut self, output: &SchedulerOutput) {
        let config = self.scheduler.config();
        assert!(output.num_scheduled_tokens() <= config.max_num_batched_tokens);
        assert!(output.scheduled.len() <= config.max_num_seqs);
        assert!(!output.scheduled.is_empty() || !self.scheduler.has_unfinished_sequences());
        assert_eq!(output.finished, mem::take(&mut self.ended));
        let mut written = Vec::new();
        for scheduled in &output.scheduled {
            let expected = &self.expected[&scheduled.id];
            let own = &expected.token_ids[..self.scheduler.token_ids(scheduled.id).unwrap().len()];
            assert_eq!(self.scheduler.token_ids(scheduled.id).unwrap(), own);
            let end = scheduled.num_computed_tokens + scheduled.num_scheduled_tokens;
            assert_eq!(scheduled.samples, end - scheduled.num_draft_tokens == own.len());
            assert!(end < expected.token_ids.len());
            let table = self.scheduler.block_table(scheduled);
            assert_eq!(table.len(), end.div_ceil(config.block_size));
            for &id in &table[scheduled.num_computed_tokens / config.block_size..] {
                assert_eq!(self.scheduler.kv_cache.pool().ref_count(id), 1);
                written.push(id);
            }
        }
        written.sort_unstable();
        assert!(written.is_sorted_by(|a, b| a < b), "a block is written for two sequences");
    }

    /// Computes a sequence's tokens and gives back what follows them.
    fn compute(&mut self, scheduled: &ScheduledSequence) {
        let input_ids = self.scheduler.scheduled_token_ids(scheduled).to_vec();
        let table = self.scheduler.block_table(scheduled).to_vec();
        let expected = &self.expected[&scheduled.id];
        let mut computed = Vec::new();
        for (at, &token_id) in (scheduled.num_computed_tokens..).zip(&input_ids) {
            let before = match at {
                0 => root(expected.cache_salt.as_deref()),
                _ => self.keys.get(&table, at - 1),
            };
            let keys = keys_of(before, token_id);
            self.keys.set(&table, at, keys);
            computed.push(keys);
        }
        if !scheduled.samples {
            return self.scheduler.update(scheduled, &[], false);
        }

        let num_own = scheduled.num_scheduled_tokens - scheduled.num_draft_tokens;
        let draft = &input_ids[num_own..];
        let at_prompt_end = scheduled.num_computed_tokens + num_own == expected.num_prompt_tokens;
        let (num_forks, salt) = (expected.num_forks, expected.cache_salt.is_some());
        if at_prompt_end {
            self.fork(scheduled, computed[num_own - 1], num_forks);
        }
        // A fork's first token was chosen otherwise, and isn't sampled again.
        let mut sampled = Vec::new();
        for (at, &keys) in computed[num_own - 1..].iter().enumerate() {
            let token_id = sample(keys, 0);
            sampled.push(token_id);
            if draft.get(at) != Some(&token_id) {
                break;
            }
        }
        // Some requests end by a stop token.
        let num_tokens = self.scheduler.token_ids(scheduled.id).unwrap().len() + sampled.len();
        let stops = salt && num_tokens.is_multiple_of(7);
        let is_full = num_tokens == self.expected[&scheduled.id].token_ids.len();
        self.scheduler.update(scheduled, &sampled, stops);
        if stops || is_full {
            self.end(scheduled.id);
        }
    }

    fn fork(&mut self, scheduled: &ScheduledSequence, keys: u64, num_forks: usize) {
        self.expected.get_mut(&scheduled.id).unwrap().num_forks = 0;
        for choice in 1..=num_forks {
            self.num_added += 1;
            let id = SequenceId(self.num_added);
            self.scheduler.fork(scheduled, id, sample(keys, choice)).unwrap();
            self.scheduler.check_invariants();
            let max_num_tokens = self.expected[&scheduled.id].token_ids.len();
            let new = NewSequence { id, ..self.new[&scheduled.id].clone() };
            let expected = Expected::new(&new, max_num_tokens, choice, 0);
            let is_full = expected.num_prompt_tokens + 1 == max_num_tokens;
            self.expected.insert(id, expected);
            if is_full {
                self.end(id);
            }
        }
    }

    /// Proposes for every third sequence, often what follows indeed.
    fn propose(&mut self) {
        for (&id, expected) in &self.expected {
            let num_tokens = self.scheduler.token_ids(id).unwrap().len();
            let variety = usize::try_from(id.0).unwrap() + num_tokens;
            if variety.is_multiple_of(3) {
                let mut draft = expected.token_ids[num_tokens..].to_vec();
                draft.truncate(variety % 5);
                if variety.is_multiple_of(2) && !draft.is_empty() {
                    // What follows it is rejected too.
                    let wrong = variety / 6 % draft.len();
                    draft[wrong] = (draft[wrong] + 1) % VOCAB_SIZE;
                }
                self.scheduler.propose(id, &draft).unwrap();
            }
        }
    }

    /// Runs until nothing is left; asserts that there always is an end.
    fn drain(&mut self) {
        self.abort_in_step = None;
        // The first in the order computes a token in every step, and forks double what there is at most twice.
        let num_tokens = |expected: &Expected| expected.token_ids.len() * (1 + expected.num_forks);
        let max_steps: usize = self.expected.values().map(num_tokens).sum();
        for _ in 0..max_steps {
            self.step(false);
        }
        assert!(self.expected.is_empty() && !self.scheduler.has_unfinished_sequences());
        self.step(false);
        assert_eq!(self.scheduler.stats().num_used_blocks, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn every_schedule_gives_each_sequence_what_it_gets_alone(
        config in configs(),
        has_weak_hashes in any::<bool>(),
        ops in ops(),
    ) {
        let mut engine = Engine::new(config, has_weak_hashes);
        for op in ops {
            engine.run(op);
        }
        engine.drain();
    }
}
