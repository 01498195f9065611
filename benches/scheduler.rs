//! Deciding what a step computes, and accounting for it afterwards.

use std::hint::black_box;

use criterion::Criterion;
use nv_engine::{
    BlockHasher, BlockParent, BlockPool, Event, NewSequence, Scheduler, SchedulerConfig,
    SchedulerOutput, SequenceId, TokenId,
};

const NUM_RUNNING: usize = 64;

/// Blocks that the prompts of all that run take, with room for what they add.
const NUM_HELD_BLOCKS: u32 = 64 * 48;

pub(crate) fn benches(criterion: &mut Criterion) {
    schedule(criterion);
    many_waiting(criterion);
    steps(criterion);
    block_pool(criterion);
}

/// `schedule` alone, of the same step again and again: 64 sequences decode, 10,000 wait.
fn schedule(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler/10000 waiting");
    let seats = config(2 * NUM_HELD_BLOCKS);
    // The first that waits has a beginning that is known, but all its tokens take more blocks than there are.
    let blocks = SchedulerConfig {
        max_num_seqs: NUM_RUNNING + 1,
        num_watermark_blocks: 16,
        ..config(64 * 33 + 32)
    };
    for (name, config) in [("no seat", seats), ("no room", blocks)] {
        let mut load = Load::new(config);
        let known = prompt(0);
        for _ in 0..10_000 {
            let prompt = [known.clone(), prompt(load.num_added)].concat();
            load.add(prompt);
        }
        load.scheduler.set_tracing(true);
        load.scheduler.schedule(&mut load.output);
        let is_blocked = |event: &Event| matches!(event, Event::Blocked { .. });
        assert_eq!(load.scheduler.take_trace().iter().any(is_blocked), name == "no room");
        load.scheduler.set_tracing(false);
        assert_eq!(load.output.scheduled.len(), NUM_RUNNING);
        assert_eq!(load.scheduler.stats().num_waiting, 10_000);
        group.bench_function(name, |b| {
            b.iter(|| load.scheduler.schedule(black_box(&mut load.output)));
        });
    }
    group.finish();
}

/// How the cost of `schedule` grows with those that wait.
fn many_waiting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler/waiting");
    for num_waiting in [10, 1_000, 100_000] {
        let mut load = Load::new(config(2 * NUM_HELD_BLOCKS));
        // Short ones: the memory of their prompts is not what is measured.
        for number in 0..num_waiting {
            load.add(vec![number; 16]);
        }
        assert_eq!(load.scheduler.stats().num_waiting, num_waiting as usize);
        group.bench_function(num_waiting.to_string(), |b| {
            b.iter(|| load.scheduler.schedule(black_box(&mut load.output)));
        });
        assert_eq!(load.output.scheduled.len(), NUM_RUNNING);
    }
    group.finish();
}

/// All that an engine asks of the scheduler in a step, sequences that end and others that take their places included.
fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler/64 running");
    for num_waiting in [1, 100, 10_000] {
        let mut load = Load::new(config(2 * NUM_HELD_BLOCKS));
        load.fill(NUM_RUNNING + num_waiting);
        group.bench_function(format!("step, {num_waiting} waiting"), |b| {
            b.iter(|| {
                load.step();
                load.fill(NUM_RUNNING + num_waiting);
            });
        });
        assert_eq!(load.scheduler.stats().num_preemptions, 0);
    }
    group.finish();
}

fn block_pool(criterion: &mut Criterion) {
    const BLOCK_SIZE: usize = 16;
    let hasher = BlockHasher::new();
    let contents: Vec<_> = (0..1 << 16)
        .map(|token| {
            let token_ids = [token; BLOCK_SIZE];
            (hasher.hash(None, None, &token_ids), token_ids)
        })
        .collect();
    let root = BlockParent::Root(None);
    let mut pool = BlockPool::new(1 << 16, BLOCK_SIZE);
    for (hash, token_ids) in &contents {
        let id = pool.allocate().unwrap();
        assert!(pool.cache(id, *hash, root.clone(), token_ids));
    }
    for id in 0..1 << 16 {
        pool.free(id);
    }
    // In an order that no cache of the processor foresees.
    let mut at = 0;
    let mut next = move || {
        at = (at + 40_503) % (1 << 16);
        at
    };

    let mut group = criterion.benchmark_group("block_pool/65536 cached");
    group.bench_function("hash", |b| {
        b.iter(|| hasher.hash(Some(contents[0].0), None, black_box(&contents[1].1)));
    });
    group.bench_function("find, touch and free", |b| {
        b.iter(|| {
            let (hash, token_ids) = &contents[next()];
            let id = pool.cached_block(*hash, &root, token_ids).unwrap();
            pool.touch(id);
            pool.free(id);
        });
    });
    group.bench_function("evict, cache and free", |b| {
        b.iter(|| {
            let id = pool.allocate().unwrap();
            let (hash, token_ids) = &contents[id as usize];
            assert!(pool.cache(id, *hash, root.clone(), token_ids));
            pool.free(id);
        });
    });
    group.finish();
}

fn config(num_blocks: u32) -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: NUM_RUNNING,
        max_num_batched_tokens: 2048,
        block_size: 16,
        ..SchedulerConfig::new(num_blocks, 4096)
    }
}

/// A scheduler under sequences of 512 + 256 tokens.
struct Load {
    scheduler: Scheduler,
    output: SchedulerOutput,
    num_added: u32,
}

impl Load {
    /// 64 sequences that decode.
    fn new(config: SchedulerConfig) -> Self {
        let scheduler = Scheduler::new(config).unwrap();
        let mut load = Self { scheduler, output: SchedulerOutput::default(), num_added: 0 };
        load.fill(NUM_RUNNING);
        while load.output.scheduled.len() < NUM_RUNNING {
            load.step();
        }
        load
    }

    fn add(&mut self, prompt_token_ids: Vec<TokenId>) {
        let number = self.num_added.into();
        self.num_added += 1;
        let new = NewSequence {
            id: SequenceId(number),
            prompt_token_ids,
            max_tokens: Some(256),
            priority: 0,
            arrival: number,
            cache_salt: None,
            skip_prefix_cache: false,
        };
        self.scheduler.add_sequence(new).unwrap();
    }

    /// Adds sequences until there are so many.
    fn fill(&mut self, num_sequences: usize) {
        let stats = self.scheduler.stats();
        for _ in stats.num_running + stats.num_waiting..num_sequences {
            self.add(prompt(self.num_added));
        }
    }

    fn step(&mut self) {
        self.scheduler.schedule(&mut self.output);
        for sequence in &self.output.scheduled {
            black_box(self.scheduler.scheduled_token_ids(sequence));
            black_box(self.scheduler.block_table(sequence));
        }
        for sequence in &self.output.scheduled {
            let sampled: &[TokenId] = if sequence.samples { &[TokenId::MAX] } else { &[] };
            self.scheduler.update(sequence, sampled, false);
        }
    }
}

/// 512 tokens that no other number has.
fn prompt(number: u32) -> Vec<TokenId> {
    let first = number << 10;
    (first..first + 512).collect()
}
