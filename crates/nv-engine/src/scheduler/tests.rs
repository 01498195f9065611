//! Scheduling, decision by decision.

mod random_schedules;

use super::*;
use crate::kv_cache_manager::BlockCopy;

impl Scheduler {
    /// Asserts what must hold between any two calls.
    pub(crate) fn check_invariants(&self) {
        let num_sequences = self.sequences.iter().count();
        assert_eq!(num_sequences, self.running.len() + self.waiting.len());
        assert!(
            self.running.is_sorted_by_key(|&(key, _)| key)
                && self.running.len() <= self.config.max_num_seqs
        );
        for (&key, &slot) in &self.waiting {
            let sequence = &self.sequences[slot];
            assert_eq!((sequence.key, sequence.num_computed_tokens), (key, 0));
            assert!(sequence.blocks.block_ids().is_empty());
        }
        for &(key, slot) in &self.running {
            let sequence = &self.sequences[slot];
            assert_eq!(sequence.key, key);
            assert!(sequence.num_computed_tokens < sequence.num_tokens());
            assert!(sequence.num_tokens() < sequence.max_num_tokens);
            let num_tokens = sequence.num_computed_tokens + sequence.num_scheduled_tokens;
            let num_blocks = sequence.blocks.block_ids().len();
            assert!(num_blocks >= self.kv_cache.num_blocks_for(num_tokens));
            // Rejected tokens keep no blocks.
            let num_tokens = num_tokens.max(sequence.num_tokens());
            assert!(num_blocks <= self.kv_cache.num_blocks_for(num_tokens));
        }
        self.kv_cache.check_invariants(self.sequences.iter().map(|sequence| &sequence.blocks));
    }
}

/// Small limits without a watermark: 16 tokens and 4 sequences a step, blocks of 4 tokens.
fn config(num_blocks: u32) -> SchedulerConfig {
    SchedulerConfig {
        max_num_batched_tokens: 16,
        max_num_seqs: 4,
        block_size: 4,
        num_watermark_blocks: 0,
        priority_reach: 100,
        ..SchedulerConfig::new(num_blocks, 1000)
    }
}

/// A sequence of `num_prompt_tokens` tokens that no other id has, which arrives as its id says.
fn new(id: u32, num_prompt_tokens: u32, max_tokens: usize) -> NewSequence {
    let first = id * 1000;
    NewSequence {
        id: SequenceId(id.into()),
        prompt_token_ids: (first..first + num_prompt_tokens).collect(),
        max_tokens: Some(max_tokens),
        priority: 0,
        arrival: id.into(),
        cache_salt: None,
        skip_prefix_cache: false,
    }
}

fn scheduler(config: SchedulerConfig, new: impl IntoIterator<Item = NewSequence>) -> Scheduler {
    let mut scheduler = Scheduler::new(config).unwrap();
    for new in new {
        scheduler.add_sequence(new).unwrap();
    }
    scheduler
}

fn schedule(scheduler: &mut Scheduler) -> SchedulerOutput {
    let mut output = SchedulerOutput::default();
    scheduler.schedule(&mut output);
    scheduler.check_invariants();
    output
}

/// Samples token 7 wherever one is sampled.
fn update(scheduler: &mut Scheduler, output: &SchedulerOutput) {
    for sequence in &output.scheduled {
        scheduler.update(sequence, if sequence.samples { &[7] } else { &[] }, false);
        scheduler.check_invariants();
    }
}

/// Runs a step and asserts its `(id, num_computed_tokens, num_scheduled_tokens)`.
fn step(scheduler: &mut Scheduler, expected: &[(u64, usize, usize)]) -> SchedulerOutput {
    let output = schedule(scheduler);
    assert_eq!(summary(&output), expected);
    update(scheduler, &output);
    output
}

fn summary(output: &SchedulerOutput) -> Vec<(u64, usize, usize)> {
    let row = |s: &ScheduledSequence| (s.id.0, s.num_computed_tokens, s.num_scheduled_tokens);
    output.scheduled.iter().map(row).collect()
}

fn ids(ids: &[SequenceId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}

#[test]
fn prompts_are_chunked_to_the_budget_and_share_steps_with_decodes() {
    let mut scheduler = scheduler(config(100), [new(1, 3, 3), new(2, 30, 2), new(3, 2, 1)]);
    let output = step(&mut scheduler, &[(1, 0, 3), (2, 0, 13)]);
    assert!(output.scheduled[0].samples && !output.scheduled[1].samples);
    step(&mut scheduler, &[(1, 3, 1), (2, 13, 15)]);
    let output = step(&mut scheduler, &[(1, 4, 1), (2, 28, 2), (3, 0, 2)]);
    assert!(output.scheduled.iter().all(|sequence| sequence.samples));
    let output = step(&mut scheduler, &[(2, 30, 1)]);
    assert_eq!(ids(&output.finished), [1, 3]);
    assert!(!scheduler.has_unfinished_sequences());
    assert_eq!(ids(&schedule(&mut scheduler).finished), [2]);
    let stats = scheduler.stats();
    assert_eq!((stats.num_used_blocks, stats.max_num_used_blocks), (0, 2 + 8 + 1));
}

#[test]
fn a_step_shows_its_tokens_and_blocks() {
    let mut scheduler = scheduler(config(100), [new(1, 18, 3)]);
    let tokens = |scheduler: &mut Scheduler| {
        let output = schedule(scheduler);
        let sequence = &output.scheduled[0];
        let shown = (
            scheduler.scheduled_token_ids(sequence).to_vec(),
            scheduler.block_table(sequence).to_vec(),
        );
        update(scheduler, &output);
        shown
    };
    assert_eq!(tokens(&mut scheduler), ((1000..1016).collect(), vec![0, 1, 2, 3]));
    assert_eq!(tokens(&mut scheduler), (vec![1016, 1017], vec![0, 1, 2, 3, 4]));
    assert_eq!(tokens(&mut scheduler), (vec![7], vec![0, 1, 2, 3, 4]));
    let token_ids = scheduler.token_ids(SequenceId(1)).unwrap();
    assert_eq!((token_ids.len(), &token_ids[17..]), (20, &[1017, 7, 7][..]));
}

#[test]
fn priority_goes_before_arrival_within_its_reach() {
    let with = |id, arrival, priority| NewSequence { priority, arrival, ..new(id, 8, 1) };
    let late = with(1, 50, 0);
    let check = |others: [NewSequence; 2], expected: [u64; 3]| {
        let mut scheduler = scheduler(
            SchedulerConfig { max_num_batched_tokens: 8, ..config(100) },
            [late.clone()].into_iter().chain(others),
        );
        let order: Vec<u64> = std::iter::from_fn(|| {
            let output = schedule(&mut scheduler);
            update(&mut scheduler, &output);
            output.scheduled.first().map(|sequence| sequence.id.0)
        })
        .collect();
        assert_eq!(order, expected);
    };
    check([with(2, 40, 0), with(3, 60, 0)], [2, 1, 3]);
    check([with(2, 40, 1), with(3, 60, -1)], [3, 1, 2]);
    // One level reaches 100 arrivals far.
    check([with(2, 149, -1), with(3, 151, -1)], [2, 1, 3]);
    check([with(2, 251, -2), with(3, 150, -2)], [3, 1, 2]);
    check([with(2, u64::MAX, i32::MIN), with(3, 0, i32::MAX)], [1, 3, 2]);
}

#[test]
fn no_more_than_max_num_seqs_run() {
    let mut scheduler =
        scheduler(config(100), (1..=5).map(|id| new(id, 1, if id == 1 { 2 } else { 9 })));
    step(&mut scheduler, &[(1, 0, 1), (2, 0, 1), (3, 0, 1), (4, 0, 1)]);
    step(&mut scheduler, &[(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1)]);
    step(&mut scheduler, &[(2, 2, 1), (3, 2, 1), (4, 2, 1), (5, 0, 1)]);
}

#[test]
fn what_cannot_be_served_is_refused_with_the_numbers() {
    let check = |new: NewSequence, expected: &str| {
        let mut scheduler = scheduler(config(5), [self::new(1, 4, 16)]);
        assert_eq!(scheduler.add_sequence(new).unwrap_err().to_string(), expected);
        assert_eq!(scheduler.stats().num_waiting, 1);
    };
    check(
        new(2, 5, 16),
        "the request has 5 prompt tokens and wants 16 more: expected at most 20 together (the KV cache holds 20)",
    );
    check(
        NewSequence { max_tokens: None, ..new(2, 20, 1) },
        "the request has 20 prompt tokens and wants 1 more: expected at most 20 together (the KV cache holds 20)",
    );
    check(
        new(2, 5, usize::MAX),
        "the request has 5 prompt tokens and wants 18446744073709551615 more: expected at most 20 together (the KV cache holds 20)",
    );
    check(new(2, 0, 1), "the prompt is empty: expected at least one token");
    check(new(2, 1, 0), "max_tokens: expected at least 1, found 0");
    check(new(1, 1, 1), "sequence 1 hasn't ended yet: expected an id of its own for each sequence");
}

#[test]
fn a_sequence_without_max_tokens_ends_where_the_cache_does() {
    let mut scheduler = scheduler(config(5), [NewSequence { max_tokens: None, ..new(1, 16, 1) }]);
    assert_eq!(scheduler.config().max_model_len, 20);
    for computed in [0, 16, 17, 18] {
        let num_tokens = if computed == 0 { 16 } else { 1 };
        step(&mut scheduler, &[(1, computed, num_tokens)]);
    }
    assert!(!scheduler.has_unfinished_sequences());
}

#[test]
fn the_last_in_the_order_is_preempted_and_computed_anew() {
    // Each takes 4 blocks in the end; together they have 6.
    let urgent = NewSequence { priority: -1, ..new(2, 7, 8) };
    let mut scheduler = scheduler(config(6), [new(1, 7, 8), urgent]);
    step(&mut scheduler, &[(2, 0, 7), (1, 0, 7)]);
    step(&mut scheduler, &[(2, 7, 1), (1, 7, 1)]);
    for computed in 8..12 {
        step(&mut scheduler, &[(2, computed, 1), (1, computed, 1)]);
    }
    let output = step(&mut scheduler, &[(2, 12, 1)]);
    assert_eq!(ids(&output.preempted), [1]);
    // 4 blocks are taken, 2 are free: too few for all of the other's 13 tokens.
    step(&mut scheduler, &[(2, 13, 1)]);
    assert_eq!(scheduler.stats().num_waiting, 1);
    // What the sequence before it left unused is still cached.
    let output = step(&mut scheduler, &[(1, 8, 5)]);
    assert_eq!(ids(&output.finished), [2]);
    step(&mut scheduler, &[(1, 13, 1)]);
    assert!(!scheduler.has_unfinished_sequences());
    assert_eq!(scheduler.stats().num_preemptions, 1);
}

#[test]
fn a_preempted_sequence_leaves_the_step_that_it_was_in() {
    // The prompt of the urgent sequence takes all blocks, one of them from the other, which was to decode.
    let urgent = NewSequence { priority: -1, ..new(2, 20, 4) };
    let mut scheduler =
        scheduler(SchedulerConfig { max_num_batched_tokens: 12, ..config(6) }, [new(1, 4, 8)]);
    step(&mut scheduler, &[(1, 0, 4)]);
    scheduler.add_sequence(NewSequence { max_tokens: Some(1), ..urgent.clone() }).unwrap();
    // Room for its 5 blocks is not there yet: two are held.
    step(&mut scheduler, &[(1, 4, 1)]);
    assert_eq!(scheduler.stats().num_running, 1);
    scheduler.abort(SequenceId(2));

    // Now it starts first, and the other grows meanwhile.
    scheduler.abort(SequenceId(1));
    scheduler.add_sequence(urgent).unwrap();
    step(&mut scheduler, &[(2, 0, 12)]);
    scheduler.add_sequence(new(3, 2, 8)).unwrap();
    let output = schedule(&mut scheduler);
    assert_eq!(summary(&output), [(2, 12, 8), (3, 0, 2)]);
    update(&mut scheduler, &output);
    let output = step(&mut scheduler, &[(2, 20, 1)]);
    assert_eq!(ids(&output.preempted), [3]);
    assert_eq!(output.num_scheduled_tokens(), 1);
}

#[test]
fn the_first_without_room_holds_the_others_back() {
    let mut scheduler = scheduler(config(6), [new(1, 12, 3), new(2, 16, 1), new(3, 1, 1)]);
    step(&mut scheduler, &[(1, 0, 12)]);
    step(&mut scheduler, &[(1, 12, 1)]);
    step(&mut scheduler, &[(1, 13, 1)]);
    step(&mut scheduler, &[(2, 0, 16)]);
    step(&mut scheduler, &[(3, 0, 1)]);
}

#[test]
fn admission_counts_what_prompts_under_way_still_need() {
    // 10 blocks; the first prompt takes 8 of them in two steps.
    let mut scheduler = scheduler(
        SchedulerConfig { max_num_batched_tokens: 20, ..config(10) },
        [new(1, 30, 1), new(2, 10, 1)],
    );
    step(&mut scheduler, &[(1, 0, 20)]);
    step(&mut scheduler, &[(1, 20, 10)]);
    step(&mut scheduler, &[(2, 0, 10)]);

    let mut scheduler = self::scheduler(
        SchedulerConfig { max_num_batched_tokens: 20, ..config(11) },
        [new(1, 30, 1), new(2, 10, 1)],
    );
    step(&mut scheduler, &[(1, 0, 20)]);
    step(&mut scheduler, &[(1, 20, 10), (2, 0, 10)]);
}

#[test]
fn admission_keeps_a_watermark_unless_nothing_runs() {
    let config = SchedulerConfig { num_watermark_blocks: 3, ..config(6) };
    let mut scheduler = scheduler(config, [new(1, 8, 2), new(2, 8, 1), new(3, 16, 8)]);
    step(&mut scheduler, &[(1, 0, 8)]);
    step(&mut scheduler, &[(1, 8, 1)]);
    step(&mut scheduler, &[(2, 0, 8)]);
    step(&mut scheduler, &[(3, 0, 16)]);
}

#[test]
fn a_known_beginning_is_not_computed_again() {
    let same = |id| NewSequence { prompt_token_ids: (0..10).collect(), ..new(id, 1, 1) };
    let salted = |id| NewSequence { cache_salt: Some("tenant".into()), ..same(id) };
    let check = |first: NewSequence, second: NewSequence, cached: usize, queries: u64| {
        let mut scheduler = scheduler(config(100), [first]);
        step(&mut scheduler, &[(1, 0, 10)]);
        scheduler.add_sequence(second).unwrap();
        let output = step(&mut scheduler, &[(2, cached, 10 - cached)]);
        assert_eq!(output.scheduled[0].num_cached_tokens, cached);
        let stats = scheduler.stats();
        assert_eq!((stats.num_prefix_queries, stats.num_prefix_hits), (queries, cached as u64));
    };
    check(same(1), same(2), 8, 20);
    check(salted(1), salted(2), 8, 20);
    check(same(1), salted(2), 0, 20);
    check(salted(1), same(2), 0, 20);
    check(same(1), NewSequence { skip_prefix_cache: true, ..same(2) }, 0, 10);
    check(NewSequence { skip_prefix_cache: true, ..same(1) }, same(2), 8, 10);
}

#[test]
fn a_prompt_is_computed_whole_only_until_something_is_sampled() {
    let whole = NewSequence { skip_prefix_cache: true, ..new(1, 24, 9) };
    let mut scheduler = scheduler(config(100), [whole]);
    step(&mut scheduler, &[(1, 0, 16)]);
    assert!(scheduler.preempt(SequenceId(1)));
    step(&mut scheduler, &[(1, 0, 16)]);
    step(&mut scheduler, &[(1, 16, 8)]);
    assert!(scheduler.preempt(SequenceId(1)));
    let output = step(&mut scheduler, &[(1, 24, 1)]);
    // What it finds of itself was not there when it came.
    assert_eq!(output.scheduled[0].num_cached_tokens, 0);
    assert_eq!((scheduler.stats().num_prefix_queries, scheduler.stats().num_prefix_hits), (0, 0));
}

#[test]
fn a_continuation_is_found_by_the_next_turn() {
    let mut scheduler = scheduler(config(100), [new(1, 5, 4)]);
    for (computed, num_tokens) in [(0, 5), (5, 1), (6, 1), (7, 1)] {
        step(&mut scheduler, &[(1, computed, num_tokens)]);
    }
    let prompt_token_ids = [new(1, 5, 1).prompt_token_ids, vec![7, 7, 7, 7, 1, 2]].concat();
    scheduler.add_sequence(NewSequence { prompt_token_ids, ..new(2, 1, 1) }).unwrap();
    step(&mut scheduler, &[(2, 8, 3)]);
}

/// Proposes `draft`, gets `sampled`; asserts what is computed and known afterwards.
fn check_speculation(draft: &[TokenId], sampled: &[TokenId], num_computed_tokens: usize) {
    let mut scheduler = scheduler(config(100), [new(1, 6, 20)]);
    step(&mut scheduler, &[(1, 0, 6)]);
    scheduler.propose(SequenceId(1), draft).unwrap();
    let output = schedule(&mut scheduler);
    let sequence = &output.scheduled[0];
    assert_eq!(summary(&output), [(1, 6, 1 + draft.len())]);
    assert_eq!(sequence.num_draft_tokens, draft.len());
    assert!(sequence.samples);
    assert_eq!(scheduler.scheduled_token_ids(sequence), [&[7], draft].concat());
    scheduler.update(sequence, sampled, false);
    scheduler.check_invariants();
    let token_ids = scheduler.token_ids(SequenceId(1)).unwrap();
    assert_eq!(token_ids[7..], *sampled);
    let num_uncomputed = token_ids.len() - num_computed_tokens;
    step(&mut scheduler, &[(1, num_computed_tokens, num_uncomputed)]);
}

#[test]
fn proposed_tokens_count_as_computed_as_far_as_they_were_sampled() {
    check_speculation(&[1, 2, 3], &[1, 2, 3, 4], 10);
    check_speculation(&[1, 2, 3], &[1, 2, 9], 9);
    check_speculation(&[1, 2, 3], &[9], 7);
    check_speculation(&[1, 2, 3], &[1, 2, 3], 9);
    check_speculation(&[1, 2, 3], &[1], 7);
    check_speculation(&[], &[9], 7);
    // More than the proposal verified: the rest is computed next.
    check_speculation(&[1, 2, 3], &[1, 9, 9, 9], 8);
}

#[test]
fn acceptance_is_counted() {
    let mut scheduler = scheduler(config(100), [new(1, 6, 20)]);
    step(&mut scheduler, &[(1, 0, 6)]);
    scheduler.propose(SequenceId(1), &[7, 7, 9]).unwrap();
    let output = schedule(&mut scheduler);
    scheduler.update(&output.scheduled[0], &[7, 7, 7], false);
    let stats = scheduler.stats();
    assert_eq!((stats.num_draft_tokens, stats.num_accepted_tokens), (3, 2));
}

#[test]
fn rejected_tokens_are_never_found() {
    let mut scheduler = scheduler(config(100), [new(1, 6, 20)]);
    step(&mut scheduler, &[(1, 0, 6)]);
    scheduler.propose(SequenceId(1), &[8, 8, 8]).unwrap();
    let output = schedule(&mut scheduler);
    assert_eq!(summary(&output), [(1, 6, 4)]);
    scheduler.update(&output.scheduled[0], &[9], true);
    let prompt_token_ids = [new(1, 6, 1).prompt_token_ids, vec![7, 8, 8, 8]].concat();
    scheduler.add_sequence(NewSequence { prompt_token_ids, ..new(2, 1, 1) }).unwrap();
    step(&mut scheduler, &[(2, 4, 6)]);
}

#[test]
fn proposals_take_what_budget_length_and_blocks_leave() {
    // Budget: 16 tokens, of which each of the others keeps one.
    let mut scheduler = scheduler(config(100), [new(1, 2, 50), new(2, 2, 50), new(3, 12, 50)]);
    step(&mut scheduler, &[(1, 0, 2), (2, 0, 2), (3, 0, 12)]);
    scheduler.propose(SequenceId(1), &[1; 20]).unwrap();
    scheduler.propose(SequenceId(2), &[1; 20]).unwrap();
    let output = schedule(&mut scheduler);
    assert_eq!(summary(&output), [(1, 2, 14), (2, 2, 1), (3, 12, 1)]);

    // Length: the last token is never proposed.
    let mut scheduler = self::scheduler(config(100), [new(1, 6, 4)]);
    step(&mut scheduler, &[(1, 0, 6)]);
    scheduler.propose(SequenceId(1), &[1, 2, 3, 4]).unwrap();
    let output = schedule(&mut scheduler);
    assert_eq!(summary(&output), [(1, 6, 3)]);
    scheduler.update(&output.scheduled[0], &[1, 2, 3], false);
    assert!(!scheduler.has_unfinished_sequences());

    // Blocks: nobody is preempted for a proposal.
    let mut scheduler = self::scheduler(config(3), [new(1, 4, 8), new(2, 2, 2)]);
    step(&mut scheduler, &[(1, 0, 4), (2, 0, 2)]);
    scheduler.propose(SequenceId(1), &[1, 2, 3, 4]).unwrap();
    let output = schedule(&mut scheduler);
    assert_eq!((summary(&output), output.preempted.len()), (vec![(1, 4, 1), (2, 2, 1)], 0));
}

#[test]
fn rejected_tokens_give_their_blocks_back() {
    let mut scheduler = scheduler(config(6), [new(1, 3, 20), new(2, 3, 20)]);
    step(&mut scheduler, &[(1, 0, 3), (2, 0, 3)]);
    scheduler.propose(SequenceId(1), &[1; 14]).unwrap();
    // The proposal takes all blocks that are free; both sequences have room for one more token in theirs.
    let output = step(&mut scheduler, &[(1, 3, 15), (2, 3, 1)]);
    assert_eq!(output.scheduled[0].num_draft_tokens, 14);
    assert_eq!(scheduler.stats().num_used_blocks, 3);
    let output = step(&mut scheduler, &[(1, 4, 1), (2, 4, 1)]);
    assert_eq!((output.preempted.len(), scheduler.stats().num_used_blocks), (0, 4));
}

#[test]
fn proposals_wait_for_prompts() {
    let mut scheduler = scheduler(config(100), [new(1, 2, 50), new(2, 2, 50)]);
    step(&mut scheduler, &[(1, 0, 2), (2, 0, 2)]);
    // A budget of 16 tokens: 10 of them are wanted by one that waits.
    scheduler.add_sequence(new(3, 10, 50)).unwrap();
    let propose = |scheduler: &mut Scheduler| {
        for id in [1, 2] {
            scheduler.propose(SequenceId(id), &[1; 20]).unwrap();
        }
    };
    propose(&mut scheduler);
    step(&mut scheduler, &[(1, 2, 5), (2, 2, 1), (3, 0, 10)]);
    // 20 tokens take all that is left, in this step and, of one that runs, in the next.
    scheduler.add_sequence(new(4, 20, 50)).unwrap();
    propose(&mut scheduler);
    step(&mut scheduler, &[(1, 3, 1), (2, 3, 1), (3, 10, 1), (4, 0, 13)]);
    propose(&mut scheduler);
    step(&mut scheduler, &[(1, 4, 7), (2, 4, 1), (3, 11, 1), (4, 13, 7)]);
}

#[test]
fn forks_share_the_prompt_and_copy_its_last_block() {
    let mut scheduler = scheduler(config(100), [new(1, 6, 3)]);
    let output = schedule(&mut scheduler);
    let parent = output.scheduled[0];
    scheduler.fork(&parent, SequenceId(2), 8).unwrap();
    scheduler.fork(&parent, SequenceId(3), 9).unwrap();
    scheduler.update(&parent, &[7], false);
    assert_eq!(scheduler.stats().num_used_blocks, 2);

    let output = schedule(&mut scheduler);
    assert_eq!(summary(&output), [(1, 6, 1), (2, 6, 1), (3, 6, 1)]);
    assert_eq!(output.copies, [BlockCopy { src: 1, dst: 2 }, BlockCopy { src: 1, dst: 3 }]);
    let tables = [0, 1, 2].map(|i| scheduler.block_table(&output.scheduled[i]).to_vec());
    assert_eq!(tables, [[0, 2], [0, 3], [0, 1]]);
    let tokens = [0, 1, 2].map(|i| scheduler.scheduled_token_ids(&output.scheduled[i])[0]);
    assert_eq!(tokens, [7, 8, 9]);
    update(&mut scheduler, &output);
    step(&mut scheduler, &[(1, 7, 1), (2, 7, 1), (3, 7, 1)]);
    assert_eq!(ids(&schedule(&mut scheduler).finished), [1, 2, 3]);
}

#[test]
fn forks_outlive_a_parent_that_ends_with_its_first_token() {
    let mut scheduler = scheduler(config(100), [new(1, 6, 3)]);
    let output = schedule(&mut scheduler);
    scheduler.fork(&output.scheduled[0], SequenceId(2), 8).unwrap();
    scheduler.update(&output.scheduled[0], &[7], true);
    let output = step(&mut scheduler, &[(2, 6, 1)]);
    assert_eq!((output.copies, ids(&output.finished)), (vec![], vec![1]));
}

#[test]
fn forks_beyond_max_num_seqs_wait() {
    let config = SchedulerConfig { max_num_seqs: 1, ..config(100) };
    let mut scheduler = scheduler(config, [new(1, 6, 3), new(9, 1, 1)]);
    let output = schedule(&mut scheduler);
    scheduler.fork(&output.scheduled[0], SequenceId(2), 8).unwrap();
    scheduler.update(&output.scheduled[0], &[7], true);
    step(&mut scheduler, &[(2, 4, 3)]);
    step(&mut scheduler, &[(2, 7, 1)]);
    step(&mut scheduler, &[(9, 0, 1)]);
}

#[test]
fn a_fork_that_is_full_ends_at_once() {
    let mut scheduler = scheduler(config(100), [new(1, 6, 1)]);
    let output = schedule(&mut scheduler);
    scheduler.fork(&output.scheduled[0], SequenceId(2), 8).unwrap();
    scheduler.update(&output.scheduled[0], &[7], false);
    assert_eq!(ids(&schedule(&mut scheduler).finished), [2, 1]);
}

#[test]
fn a_sequence_can_be_aborted_at_any_time() {
    let mut scheduler = scheduler(config(100), (1..=3).map(|id| new(id, 8, 4)));
    let output = schedule(&mut scheduler);
    assert_eq!(summary(&output), [(1, 0, 8), (2, 0, 8)]);
    // Waiting, under way, unknown, and again.
    assert!(scheduler.abort(SequenceId(3)) && scheduler.abort(SequenceId(1)));
    assert!(!scheduler.abort(SequenceId(3)) && !scheduler.abort(SequenceId(4)));
    // Another sequence takes the place of one that a late update means.
    scheduler.add_sequence(new(5, 8, 4)).unwrap();
    update(&mut scheduler, &output);
    assert_eq!(scheduler.token_ids(SequenceId(5)).unwrap().len(), 8);
    let output = step(&mut scheduler, &[(2, 8, 1), (5, 0, 8)]);
    assert_eq!(ids(&output.finished), [3, 1]);
    let error = scheduler.fork(&output.scheduled[0], SequenceId(6), 1).unwrap_err();
    assert_eq!(error.to_string(), "there is no sequence 2: it has ended or was never added");
    let error = scheduler.propose(SequenceId(1), &[1]).unwrap_err();
    assert_eq!(error.to_string(), "there is no sequence 1: it has ended or was never added");
}

#[test]
fn a_step_that_was_not_run_is_scheduled_again() {
    let mut scheduler = scheduler(config(100), [new(1, 20, 4)]);
    assert_eq!(summary(&schedule(&mut scheduler)), [(1, 0, 16)]);
    step(&mut scheduler, &[(1, 0, 16)]);
    step(&mut scheduler, &[(1, 16, 4)]);
}

#[test]
#[should_panic(expected = "sequence 1 samples no token before its prompt is computed")]
fn a_token_out_of_the_middle_of_a_prompt_is_noticed() {
    let mut scheduler = scheduler(config(100), [new(1, 20, 4)]);
    let output = schedule(&mut scheduler);
    scheduler.update(&output.scheduled[0], &[7], false);
}

#[test]
fn decisions_can_be_read() {
    let mut scheduler = scheduler(config(4), [new(1, 7, 6), new(2, 4, 9)]);
    assert_eq!(scheduler.take_trace(), []);
    scheduler.set_tracing(true);
    for _ in 0..3 {
        let output = schedule(&mut scheduler);
        update(&mut scheduler, &output);
    }
    scheduler.propose(SequenceId(1), &[7]).unwrap();
    let output = schedule(&mut scheduler);
    scheduler.update(&output.scheduled[0], &[7, 7], true);
    let text: Vec<String> = scheduler.take_trace().iter().map(Event::to_string).collect();
    assert_eq!(text.join("\n"), EXPECTED.trim_end());
    assert_eq!(scheduler.take_trace(), []);
}

const EXPECTED: &str = "\
step 1: 0 running, 2 waiting, 4 blocks free
  1 admitted: 7 tokens, 0 cached
  1 scheduled: 7 at 0
  2 admitted: 4 tokens, 0 cached
  2 scheduled: 4 at 0
  1 updated: 8 tokens, 7 computed
  2 updated: 5 tokens, 4 computed
step 2: 2 running, 0 waiting, 1 blocks free
  1 scheduled: 1 at 7
  2 scheduled: 1 at 4
  1 updated: 9 tokens, 8 computed
  2 updated: 6 tokens, 5 computed
step 3: 2 running, 0 waiting, 0 blocks free
  2 preempted: 5 computed tokens lost
  1 scheduled: 1 at 8
  1 updated: 10 tokens, 9 computed
step 4: 1 running, 1 waiting, 1 blocks free
  1 scheduled: 1 at 9
  2 blocked: takes 2 blocks, 1 free
  1 drafted: 1 more
  1 updated: 12 tokens, 11 computed
  1 finished
";
