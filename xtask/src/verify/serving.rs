//! The ways to serve a request. Each must give the bits that the model gives alone, from its contiguous cache.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use nv_config::load_config;
use nv_engine::{
    Batch, Engine, EngineConfig, KvCacheMemory, KvCacheSize, Model, PagedQwen3, Request, RequestId,
    Sampler, SamplingParams, SamplingState, SequenceId, TokenId,
};
use nv_kernels::{Isa, Kernels};
use nv_qwen3::{Cpu, Elements, LoadOptions, Preset, Qwen3ForCausalLM};
use nv_weights::{Checkpoint, ModelFiles};
use serde_json::Value;

use crate::cases::references_dir;
use crate::synth::Recipe;

/// Tokens of the prompt: more than the longest chunk, and no whole blocks.
const NUM_PROMPT_TOKENS: usize = 67;

/// Tokens that are generated.
const NUM_OUTPUT_TOKENS: usize = 13;

/// Ways to serve that there are.
pub const NUM_ALL_WAYS: usize = 1152;

/// Tokens of the longest sequence that has room for all others.
const MIN_CONTEXT: usize = 1024;

/// One way to serve a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Requests that are under way at the same time.
    pub num_others: usize,
    /// Tokens of the prompt a step at most; `None` for all of it.
    pub chunk: Option<NonZeroUsize>,
    /// Tokens a block of the KV cache.
    pub block_size: usize,
    /// Whether the prompt was served before, and is found in the prefix cache.
    pub hits_prefix: bool,
    /// How often the request loses its blocks.
    pub preemption: Preemption,
    /// Threads that compute.
    pub num_threads: usize,
    /// Whether tokens are guessed ahead.
    pub speculates: bool,
}

/// How often a request loses its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preemption {
    /// Not at all.
    Never,
    /// In the middle of its text.
    Once,
    /// With every third token or more.
    Often,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { num_others, block_size, num_threads, .. } = self;
        match self.chunk {
            Some(chunk) => write!(f, "chunks of {chunk}")?,
            None => f.write_str("whole prompt")?,
        }
        write!(f, ", {num_others} others, blocks of {block_size}, ")?;
        let prefix = if self.hits_prefix { "hit" } else { "miss" };
        let speculation = if self.speculates { ", speculation" } else { "" };
        let preempted = match self.preemption {
            Preemption::Never => "never preempted",
            Preemption::Once => "preempted once",
            Preemption::Often => "preempted often",
        };
        write!(f, "prefix {prefix}, {preempted}, {num_threads} threads{speculation}")
    }
}

/// Ways to serve among which each value of each choice meets each value of each other choice, cheap ones where there is a
/// choice.
///
/// All that there are would be [`NUM_ALL_WAYS`].
pub fn ways() -> Vec<Way> {
    let all = all_ways();
    let pairs = |way: &Way| {
        let values = values(way);
        let mut pairs = Vec::new();
        for i in 0..values.len() {
            pairs.extend((0..i).map(|j| (j, values[j], i, values[i])));
        }
        pairs
    };
    let mut missing: HashSet<_> = all.iter().flat_map(pairs).collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let worth = |way: &Way| {
            let num_new = pairs(way).iter().filter(|pair| missing.contains(pair)).count();
            // What any way costs beside its tokens keeps their number small.
            num_new as f64 / (500 + cost(way)) as f64
        };
        // The first of the best, so that the choice is the same each time.
        let best = all.iter().rev().max_by(|a, b| worth(a).total_cmp(&worth(b)));
        let Some(best) = best else { break };
        for pair in pairs(best) {
            missing.remove(&pair);
        }
        chosen.push(*best);
    }
    chosen
}

/// What a way costs: tokens, and steps that each cost as much as some tokens do.
fn cost(way: &Way) -> usize {
    const STEP: usize = 4;
    let chunk = way.chunk.map_or(NUM_PROMPT_TOKENS, NonZeroUsize::get);
    let num_preemptions = match way.preemption {
        Preemption::Never => 0,
        Preemption::Once => 1,
        Preemption::Often => NUM_OUTPUT_TOKENS / 3,
    };
    // What is found is not computed again.
    let (num_tokens, num_alone) =
        if way.hits_prefix { (way.block_size, NUM_PROMPT_TOKENS) } else { (NUM_PROMPT_TOKENS, 0) };
    let num_steps = (1 + num_preemptions) * num_tokens.div_ceil(chunk) + NUM_OUTPUT_TOKENS;
    num_steps * (STEP + way.num_others)
        + (1 + num_preemptions) * num_tokens
        + num_alone.div_ceil(chunk) * STEP
}

fn all_ways() -> Vec<Way> {
    let mut ways = Vec::new();
    for num_others in [0, 1, 7, 31] {
        for chunk in [0, 1, 5, 64].map(NonZeroUsize::new) {
            for block_size in [8, 16, 32] {
                for hits_prefix in [false, true] {
                    for preemption in [Preemption::Never, Preemption::Once, Preemption::Often] {
                        for num_threads in [1, 2] {
                            ways.extend([false, true].map(|speculates| Way {
                                num_others,
                                chunk,
                                block_size,
                                hits_prefix,
                                preemption,
                                num_threads,
                                speculates,
                            }));
                        }
                    }
                }
            }
        }
    }
    ways
}

/// A number for each choice.
fn values(way: &Way) -> [usize; 7] {
    [
        way.num_others,
        way.chunk.map_or(0, NonZeroUsize::get),
        way.block_size,
        usize::from(way.hits_prefix),
        way.preemption as usize,
        way.num_threads,
        usize::from(way.speculates),
    ]
}

/// What a request gives: its tokens, and the bits of the logits that each was chosen by.
#[derive(Debug, PartialEq, Eq)]
pub struct Served {
    /// The tokens.
    pub token_ids: Vec<TokenId>,
    /// A row of bits a token.
    pub logits: Vec<Vec<u32>>,
}

/// How a request was served.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// Tokens of the prompt that were found.
    pub num_cached_tokens: usize,
    /// Times that the request lost its blocks.
    pub num_preemptions: u64,
    /// Guessed tokens of all requests that were right.
    pub num_accepted_tokens: u64,
}

/// Writes a random checkpoint of the committed config of that `name` to `dir`, with a context in which texts last.
///
/// # Errors
/// If the config can't be read, or the checkpoint not be written.
pub fn random_checkpoint(name: &str, dir: &Path) -> Result<ModelFiles> {
    let config = fs::read(references_dir().join(format!("{name}.config.json")))?;
    let mut json: Value = serde_json::from_slice(&config)?;
    json["max_position_embeddings"] = MIN_CONTEXT.into();
    let config = dir.join(format!("{name}.config.json"));
    fs::write(&config, json.to_string())?;
    let out = dir.join(name);
    Recipe { config, seed: 5, max_shard_bytes: usize::MAX }.write(&out)?;
    Ok(ModelFiles::from_dir(out)?)
}

/// A checkpoint to be served, in one dtype by one tier of kernels.
#[derive(Debug)]
pub struct Serving {
    files: ModelFiles,
    checkpoint: Arc<Checkpoint>,
    dtype: DType,
    quantize: Option<Preset>,
    isa: Isa,
}

impl Serving {
    /// Opens the checkpoint in `files`.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn open(
        files: ModelFiles,
        dtype: DType,
        quantize: Option<Preset>,
        isa: Isa,
    ) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(&files.weights)?);
        Ok(Self { files, checkpoint, dtype, quantize, isa })
    }

    /// What the model gives by itself, token by token from its contiguous cache, without an engine.
    ///
    /// # Errors
    /// If the model can't be loaded or run.
    pub fn alone(&self, params: &SamplingParams) -> Result<Served> {
        let mut model = self.qwen3(1)?;
        let prompt = Self::prompt(&model);
        let mut state = SamplingState::new(params, 0, &prompt);
        let mut sampler = Sampler::new();
        let (mut next, mut start_pos) = (prompt, 0);
        let mut served = Served { token_ids: Vec::new(), logits: Vec::new() };
        while served.token_ids.len() < NUM_OUTPUT_TOKENS {
            let input_ids = Tensor::new(next.as_slice(), &Device::Cpu)?.unsqueeze(0)?; // [1, seq_len]
            let logits = model.forward(&input_ids, start_pos)?.squeeze(0)?.to_vec1::<f32>()?;
            let token_id = sampler.sample(&logits, params, &state)?;
            state.push(token_id);
            served.token_ids.push(token_id);
            served.logits.push(logits.into_iter().map(f32::to_bits).collect());
            start_pos += next.len();
            next = vec![token_id];
        }
        Ok(served)
    }

    /// What an engine gives for the same request, served in this `way`.
    ///
    /// # Errors
    /// If the model can't be loaded or run, or the request was not served in that way.
    pub fn serve(&self, way: &Way, params: &SamplingParams) -> Result<(Served, Circumstances)> {
        let mut engine = self.engine(way)?;
        let prompt = Self::prompt(engine.model().inner.qwen3());
        if way.hits_prefix {
            let once = SamplingParams::default().with_max_tokens(1)?;
            engine.generate(vec![Request::new(prompt.clone(), once)]).remove(0)?;
        }
        for i in 0..way.num_others {
            // Texts of their own, which outlast the request. Nobody guesses them, so that budget is left for prompts.
            let mut others = prompt[..=i % 7].to_vec();
            others[0] = TokenId::try_from(i)?;
            let params = SamplingParams::default().with_temperature(3.0)?.with_seed(i as u64);
            engine.add_request(Request::new(others, params))?;
        }
        while engine.stats().latencies.time_to_first_token.count()
            < (way.num_others + usize::from(way.hits_prefix)) as u64
        {
            engine.step();
        }
        let params = params.clone().with_max_tokens(NUM_OUTPUT_TOKENS)?;
        let id = engine.add_request(Request::new(prompt, params))?;
        ensure!(id.sequence(0) == engine.model().sequence_id, "another sequence was watched");
        let found = Self::run(&mut engine, id, way.preemption)?;
        ensure!(
            engine.stats().scheduler.num_running == way.num_others,
            "the others did not last as long as the request"
        );
        let Circumstances { num_cached_tokens, num_preemptions, .. } = found.1;
        ensure!(
            (num_cached_tokens > 0) == way.hits_prefix,
            "{num_cached_tokens} tokens were found"
        );
        let is_right = match way.preemption {
            Preemption::Never => num_preemptions == 0,
            Preemption::Once => num_preemptions == 1,
            Preemption::Often => num_preemptions >= 3,
        };
        ensure!(is_right, "the request was preempted {num_preemptions} times");
        Ok(found)
    }

    /// Steps until the request is served.
    fn run(
        engine: &mut Engine<Watched>,
        id: RequestId,
        preemption: Preemption,
    ) -> Result<(Served, Circumstances)> {
        let mut token_ids = Vec::new();
        let mut circumstances = Circumstances::default();
        let (mut finished, mut num_at_preemption) = (None, 0);
        while finished.is_none() {
            for output in engine.step().into_iter().filter(|output| output.request_id == id) {
                circumstances.num_cached_tokens = output.num_cached_tokens;
                token_ids.extend(output.token_ids);
                finished = output.finished;
            }
            let is_to_go = match preemption {
                Preemption::Never => false,
                Preemption::Once => circumstances.num_preemptions == 0 && token_ids.len() > 4,
                Preemption::Often => token_ids.len() >= num_at_preemption + 3,
            };
            if is_to_go && finished.is_none() {
                num_at_preemption = token_ids.len();
                ensure!(engine.preempt(id), "the request does not run");
                circumstances.num_preemptions += 1;
            }
        }
        finished.context("the request has not ended")??;
        circumstances.num_accepted_tokens = engine.stats().scheduler.num_accepted_tokens;
        let rows = &engine.model().rows;
        let row = |i| {
            let row = rows.get(&(NUM_PROMPT_TOKENS - 1 + i)).cloned();
            row.context("a row of logits is missing")
        };
        let logits = (0..token_ids.len()).map(row).collect::<Result<_>>()?;
        Ok((Served { token_ids, logits }, circumstances))
    }

    fn engine(&self, way: &Way) -> Result<Engine<Watched>> {
        let qwen3 = self.qwen3(way.num_threads)?;
        let memory = KvCacheMemory::Tokens((way.num_others + 2) * MIN_CONTEXT);
        let size = KvCacheSize::new(qwen3.config(), self.dtype, way.block_size, memory)?;
        let inner = PagedQwen3::new(qwen3, self.dtype, size)?;
        let config = EngineConfig {
            block_size: way.block_size,
            max_num_seqs: way.num_others + 1,
            // While the others get a token each, the rest is the request's.
            max_num_batched_tokens: way.num_others
                + way.chunk.map_or(NUM_PROMPT_TOKENS, NonZeroUsize::get),
            enable_prefix_caching: way.hits_prefix,
            num_speculative_tokens: if way.speculates { 3 } else { 0 },
            ..EngineConfig::default()
        };
        // Requests are numbered as they come.
        let sequence_id = SequenceId((way.num_others + usize::from(way.hits_prefix)) as u64);
        let model = Watched { inner, sequence_id, positions: Vec::new(), rows: HashMap::new() };
        Ok(Engine::with_model(model, &config)?)
    }

    fn qwen3(&self, num_threads: usize) -> Result<Qwen3ForCausalLM> {
        let config = load_config(&self.files.config)?;
        let kernels = Kernels::for_isa(self.isa).context("this machine does not have the tier")?;
        let cpu = Cpu::with_kernels(kernels, num_threads)?;
        let new = LoadOptions::new(self.dtype, &Device::Cpu);
        let options = LoadOptions { cpu: Some(cpu), quantize: self.quantize, ..new };
        Ok(Qwen3ForCausalLM::load(&config, &self.checkpoint, options)?)
    }

    /// Ids that repeat themselves, so that there is something to guess.
    fn prompt(model: &Qwen3ForCausalLM) -> Vec<TokenId> {
        let vocab_size = model.config().vocab_size;
        (0..NUM_PROMPT_TOKENS)
            .map(|i| i % 17)
            .map(|i| TokenId::try_from((i * i * 31 + i * 7 + 3) % vocab_size).unwrap_or(0))
            .collect()
    }
}

/// A model that remembers the logits of one sequence.
#[derive(Debug)]
struct Watched {
    inner: PagedQwen3,
    sequence_id: SequenceId,
    /// For each token of the step its position, if it is the watched sequence's.
    positions: Vec<Option<usize>>,
    /// The bits of the logits behind a position, the last ones that were computed: behind a wrong guess, those that
    /// counted came later.
    rows: HashMap<usize, Vec<u32>>,
}

impl Model for Watched {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn max_position_embeddings(&self) -> usize {
        self.inner.max_position_embeddings()
    }

    fn kv_cache_size(&self) -> KvCacheSize {
        self.inner.kv_cache_size()
    }

    fn forward(&mut self, batch: &Batch<'_>) -> nv_engine::Result<Tensor> {
        self.positions.clear();
        for (sequence, &id) in batch.sequences.iter().zip(batch.sequence_ids) {
            let positions = &batch.positions[sequence.first_token..][..sequence.num_tokens];
            self.positions
                .extend(positions.iter().map(|&at| (id == self.sequence_id).then_some(at)));
        }
        self.inner.forward(batch)
    }

    fn compute_logits(
        &mut self,
        hidden_states: &Tensor,
        rows: &[u32],
    ) -> nv_engine::Result<Tensor> {
        let logits = self.inner.compute_logits(hidden_states, rows)?;
        let elements = Elements::of(&logits)?;
        let all = elements.as_slice::<f32>()?;
        for (&row, logits) in rows.iter().zip(all.chunks(self.vocab_size())) {
            if let Some(position) = self.positions[row as usize] {
                self.rows.insert(position, logits.iter().map(|logit| logit.to_bits()).collect());
            }
        }
        drop(elements);
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_two_values_meet_in_some_way() {
        let (all, chosen) = (all_ways(), ways());
        assert_eq!(all.len(), NUM_ALL_WAYS);
        assert!(chosen.len() < 40, "{}", chosen.len());
        for way in &all {
            let wanted = values(way);
            for i in 0..wanted.len() {
                for j in 0..i {
                    assert!(
                        chosen
                            .iter()
                            .map(values)
                            .any(|found| { (found[i], found[j]) == (wanted[i], wanted[j]) })
                    );
                }
            }
        }
    }
}
