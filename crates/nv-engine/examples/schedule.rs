//! How requests share steps, without a model: `cargo run -p nv-engine --example schedule`.
//!
//! Three prompts meet a small KV cache: the long one comes in chunks beside those that decode, and when blocks run out the
//! latest is preempted.
#![expect(clippy::print_stdout, reason = "this is what the example is for")]

use std::error::Error;

use nv_engine::{NewSequence, Scheduler, SchedulerConfig, SchedulerOutput, SequenceId};

fn main() -> Result<(), Box<dyn Error>> {
    let config = SchedulerConfig {
        max_num_batched_tokens: 64,
        max_num_seqs: 4,
        block_size: 8,
        ..SchedulerConfig::new(22, 160)
    };
    let mut scheduler = Scheduler::new(config)?;
    scheduler.set_tracing(true);
    for (id, num_prompt_tokens) in [(0, 20), (1, 100), (2, 12)] {
        scheduler.add_sequence(NewSequence {
            id: SequenceId(id),
            prompt_token_ids: vec![1; num_prompt_tokens],
            max_tokens: Some(24),
            priority: 0,
            arrival: id,
            cache_salt: None,
            skip_prefix_cache: true,
        })?;
    }
    let mut output = SchedulerOutput::default();
    while scheduler.has_unfinished_sequences() {
        scheduler.schedule(&mut output);
        for event in scheduler.take_trace() {
            println!("{event}");
        }
        for scheduled in &output.scheduled {
            // Where a model would compute and a sampler choose.
            let sampled: &[u32] = if scheduled.samples { &[7] } else { &[] };
            scheduler.update(scheduled, sampled, false);
        }
    }
    Ok(())
}
