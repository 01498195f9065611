//! The engine over a model that is cheap and sees what it is given: keys are tokens, and logits follow from all of them.

mod constraint;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use candle_core::{Device, Tensor};
use nv_testing::Slots;

use self::constraint::{END, Rhythm};
use super::*;
use crate::{
    Batch, BlockCopy, Completion, FinishReason, KvCacheSize, Latencies, SamplingParams, StepTimes,
    TokenLogprobs,
};

const VOCAB_SIZE: u32 = 24;
const CONTEXT: usize = 200;

/// A prompt token on which a step returns an error.
pub(crate) const FAILS: TokenId = 20;
/// A prompt token on which a step panics.
pub(crate) const PANICS: TokenId = 21;
/// A prompt token after which every logit is NaN.
pub(crate) const NAN: TokenId = 22;

/// Logits are a function of the last three tokens, so that texts repeat themselves, and of how the text began.
#[derive(Debug)]
pub(crate) struct FakeModel {
    /// The tokens.
    slots: Slots<TokenId>,
    /// How long a step takes at least.
    step_time: Duration,
    /// Whether it panics at the next question, within a step or not.
    is_broken: Arc<AtomicBool>,
}

impl FakeModel {
    fn new(num_blocks: usize) -> Self {
        let slots = Slots::new(num_blocks, 8, 0);
        Self { slots, step_time: Duration::ZERO, is_broken: Arc::default() }
    }

    fn hash(text: &[TokenId]) -> i64 {
        if text.contains(&NAN) {
            return -1;
        }
        let mut hasher = DefaultHasher::new();
        (&text[..text.len().min(3)], &text[text.len().saturating_sub(2)..]).hash(&mut hasher);
        i64::try_from(hasher.finish() >> 1).unwrap()
    }
}

impl Model for FakeModel {
    fn vocab_size(&self) -> usize {
        assert!(!self.is_broken.load(Ordering::Relaxed), "the model is broken");
        VOCAB_SIZE as usize
    }

    fn max_position_embeddings(&self) -> usize {
        CONTEXT
    }

    fn kv_cache_size(&self) -> KvCacheSize {
        let (num_blocks, block_size) = (self.slots.num_blocks(), self.slots.block_size());
        KvCacheSize { num_blocks, block_size, block_bytes: block_size * size_of::<TokenId>() }
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Result<Tensor> {
        thread::sleep(self.step_time);
        if batch.token_ids.contains(&FAILS) {
            return Err(nv_qwen3::Error::ContextLength { length: 2, max_position_embeddings: 1 })?;
        }
        assert!(!batch.token_ids.contains(&PANICS), "token {PANICS} came");
        for &BlockCopy { src, dst } in batch.copies {
            self.slots.copy_block(src, dst);
        }
        let mut hashes = Vec::new();
        for sequence in batch.sequences {
            let table = sequence.block_table;
            for i in sequence.first_token..sequence.first_token + sequence.num_tokens {
                let position = sequence.start_pos + i - sequence.first_token;
                assert_eq!(batch.positions[i], position);
                self.slots.set(table, position, batch.token_ids[i]);
                hashes.push(Self::hash(&self.slots.up_to(table, position)));
            }
        }
        let num_tokens = hashes.len();
        assert_eq!(num_tokens, batch.token_ids.len());
        Ok(Tensor::from_vec(hashes, num_tokens, &Device::Cpu)?)
    }

    fn compute_logits(&mut self, hidden_states: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let hashes = hidden_states.to_vec1::<i64>()?;
        let logits = rows.iter().flat_map(|&row| {
            let hash = hashes[row as usize];
            (0..VOCAB_SIZE).map(move |token_id| {
                let mixed = (hash ^ i64::from(token_id)).wrapping_mul(0x1E37_79B9_7F4A_7C15);
                match token_id {
                    _ if hash < 0 => f32::NAN,
                    FAILS.. => f32::NEG_INFINITY,
                    _ => (mixed >> 48) as f32 / 8192.0,
                }
            })
        });
        let shape = (rows.len(), VOCAB_SIZE as usize);
        Ok(Tensor::from_vec(logits.collect::<Vec<f32>>(), shape, &Device::Cpu)?)
    }
}

pub(crate) fn config() -> EngineConfig {
    EngineConfig { max_num_batched_tokens: 64, max_num_seqs: 8, ..EngineConfig::default() }
}

pub(crate) fn engine(num_blocks: usize, config: &EngineConfig) -> Engine<FakeModel> {
    Engine::with_model(FakeModel::new(num_blocks), config).unwrap()
}

/// An engine whose steps are slow enough to be caught in the middle of a request.
pub(crate) fn slow_engine() -> Engine<FakeModel> {
    let model = FakeModel { step_time: Duration::from_millis(2), ..FakeModel::new(100) };
    Engine::with_model(model, &config()).unwrap()
}

/// As [`slow_engine`], with what breaks its model.
pub(crate) fn engine_to_break() -> (Engine<FakeModel>, Arc<AtomicBool>) {
    let engine = slow_engine();
    let is_broken = Arc::clone(&engine.model().is_broken);
    (engine, is_broken)
}

/// Tokens that no fault hangs on.
fn prompt(seed: u32, len: u32) -> Vec<TokenId> {
    (0..len).map(|i| (i * i * 7 + i * seed + seed) % 19).collect()
}

pub(crate) fn request(seed: u32, len: u32, max_tokens: usize) -> Request {
    let params = SamplingParams::default().with_max_tokens(max_tokens).unwrap();
    Request::new(prompt(seed, len), params)
}

/// Varied requests: greedy and warm, held to something and free, one and several continuations, penalties, log-probabilities.
fn requests() -> Vec<Request> {
    (0..12)
        .map(|i| {
            let mut request = request(i % 5, 5 + 9 * (i % 4), 10 + i as usize * 3);
            let mut params = request.params.with_seed(u64::from(i)).with_logprobs(2);
            if i % 3 > 0 {
                params = params.with_temperature(0.7).unwrap().with_n(i as usize % 4 + 1).unwrap();
            }
            if i % 4 == 1 {
                params = params.with_repetition_penalty(1.1).unwrap().with_prompt_logprobs(1);
            }
            if i % 2 == 0 {
                request.constraint = Some(Arc::new(Rhythm::default()));
                params = params.with_eos_token_ids(vec![END]);
            }
            request.params = params;
            request
        })
        .collect()
}

type Text = (Vec<TokenId>, Vec<TokenLogprobs>, FinishReason);

/// What must not depend on how a request is served.
fn texts(generation: Result<Generation>) -> (Vec<Text>, Vec<TokenLogprobs>) {
    let Generation { completions, prompt_logprobs, .. } = generation.unwrap();
    let text = |completion: Completion| {
        let Completion { token_ids, logprobs, finish_reason } = completion;
        assert_eq!(token_ids.len(), logprobs.len());
        (token_ids, logprobs, finish_reason)
    };
    (completions.into_iter().map(text).collect(), prompt_logprobs)
}

fn assert_idle(engine: &Engine<FakeModel>) {
    assert!(!engine.has_unfinished_requests());
    assert!(!engine.scheduler.has_unfinished_sequences());
    assert_eq!(engine.stats().scheduler.num_used_blocks, 0);
    engine.scheduler.check_invariants();
}

#[test]
fn what_a_request_gets_does_not_depend_on_how_it_is_served() {
    let alone: Vec<_> = requests()
        .into_iter()
        .map(|request| {
            let mut generations = engine(100, &config()).generate(vec![request]);
            texts(generations.pop().unwrap())
        })
        .collect();
    assert!(alone.iter().any(|(texts, _)| texts.len() == 4 && texts[0] != texts[1]));
    let constrained = alone.iter().step_by(2).flat_map(|(texts, _)| texts);
    let mut ends = Vec::new();
    for (token_ids, _, finish_reason) in constrained {
        Rhythm::check(token_ids, *finish_reason);
        ends.push(*finish_reason);
    }
    assert!(ends.contains(&FinishReason::Complete) && ends.contains(&FinishReason::Length));
    assert!(ends.contains(&FinishReason::Stop { token_id: END }));
    let mut num_preemptions = 0;
    let mut num_accepted_tokens = 0;
    for num_blocks in [200, 24, 16] {
        for max_num_batched_tokens in [8, 13, 400] {
            for num_speculative_tokens in [0, 3] {
                for enable_prefix_caching in [true, false] {
                    let config = EngineConfig {
                        max_num_batched_tokens,
                        num_speculative_tokens,
                        enable_prefix_caching,
                        min_ngram_size: 1,
                        ..config()
                    };
                    let mut engine = engine(num_blocks, &config);
                    let generations = engine.generate(requests());
                    let together: Vec<_> = generations.into_iter().map(texts).collect();
                    assert_eq!(together, alone, "{config:?}, {num_blocks} blocks");
                    assert_idle(&engine);
                    let stats = engine.stats().scheduler;
                    num_preemptions += stats.num_preemptions;
                    num_accepted_tokens += stats.num_accepted_tokens;
                    assert_eq!(stats.num_draft_tokens > 0, num_speculative_tokens > 0);
                }
            }
        }
    }
    assert!(num_preemptions > 10 && num_accepted_tokens > 10);
}

#[test]
fn outputs_come_step_by_step_and_say_why_they_end() {
    let mut engine = engine(100, &config());
    let whole = engine.generate(vec![request(3, 9, 30)]).pop().unwrap().unwrap();
    let token_ids = &whole.completions[0].token_ids;
    assert_eq!((token_ids.len(), whole.completions[0].finish_reason), (30, FinishReason::Length));

    let id = engine.add_request(request(3, 9, 30)).unwrap();
    let mut found = Vec::new();
    while engine.has_unfinished_requests() {
        for output in engine.step() {
            assert_eq!((output.request_id, output.index, output.token_ids.len()), (id, 0, 1));
            assert_eq!(output.num_cached_tokens, 8);
            found.extend(output.token_ids);
            assert_eq!(output.finished.is_some(), found.len() == 30);
        }
    }
    assert_eq!(&found, token_ids);

    let token_id = token_ids[12];
    let first = token_ids.iter().position(|id| *id == token_id).unwrap();
    let check = |params: SamplingParams, num_tokens, finish_reason| {
        let request = Request::new(prompt(3, 9), params);
        let mut engine = self::engine(100, &config());
        let generation = engine.generate(vec![request]).pop().unwrap().unwrap();
        let completion = &generation.completions[0];
        assert_eq!(completion.finish_reason, finish_reason);
        assert_eq!(completion.token_ids.len(), num_tokens);
        assert_idle(&engine);
    };
    let params = SamplingParams::default();
    let stops = params.clone().with_stop_token_ids(vec![token_id]);
    check(stops.clone(), first, FinishReason::Stop { token_id });
    check(stops.with_max_tokens(first).unwrap(), first, FinishReason::Length);
    let eos = params.clone().with_eos_token_ids(vec![token_id]);
    check(eos.clone(), first, FinishReason::Stop { token_id });
    check(eos.with_ignore_eos(true), CONTEXT - 9, FinishReason::ContextFull);
    check(params.clone(), CONTEXT - 9, FinishReason::ContextFull);
    check(params.with_max_tokens(1000).unwrap(), CONTEXT - 9, FinishReason::ContextFull);
}

#[test]
fn a_text_ends_where_the_context_does_however_small_the_cache() {
    let small = EngineConfig { max_model_len: Some(60), ..config() };
    for (num_blocks, config, max_model_len) in
        [(100, config(), CONTEXT), (10, config(), 80), (100, small, 60)]
    {
        for max_tokens in [None, Some(max_model_len - 8), Some(usize::MAX)] {
            let mut request = request(3, 9, 1);
            request.params = SamplingParams::default();
            if let Some(max_tokens) = max_tokens {
                request.params = request.params.with_max_tokens(max_tokens).unwrap();
            }
            let mut engine = engine(num_blocks, &config);
            let generation = engine.generate(vec![request]).pop().unwrap().unwrap();
            let completion = &generation.completions[0];
            assert_eq!(completion.finish_reason, FinishReason::ContextFull);
            assert_eq!(completion.token_ids.len(), max_model_len - 9);
        }
    }
}

#[test]
fn a_text_has_at_least_its_min_tokens() {
    let stops: Vec<TokenId> = (0..12).collect();
    let params = SamplingParams::default().with_temperature(1.0).unwrap();
    let params = params.with_stop_token_ids(stops).with_min_tokens(15);
    let generation = engine(100, &config()).generate(vec![Request::new(prompt(3, 9), params)]);
    let completion = &generation[0].as_ref().unwrap().completions[0];
    assert!(completion.token_ids.len() >= 15 && completion.token_ids.iter().all(|&id| id >= 12));
    assert!(matches!(completion.finish_reason, FinishReason::Stop { token_id } if token_id < 12));
}

#[test]
fn logprobs_come_for_each_token_of_prompt_and_text() {
    let params = SamplingParams::default().with_max_tokens(4).unwrap();
    let params = params.with_logprobs(3).with_prompt_logprobs(0);
    let request = Request::new(prompt(3, 90), params);
    let mut engine = engine(100, &config());
    // What the cache holds has no logits.
    for _ in 0..2 {
        let generation = engine.generate(vec![request.clone()]).pop().unwrap().unwrap();
        let token_ids: Vec<TokenId> =
            generation.prompt_logprobs.iter().map(|row| row.token.token_id).collect();
        assert_eq!(token_ids, request.prompt_token_ids[1..]);
        assert_eq!(generation.num_cached_tokens, 0);
        let completion = &generation.completions[0];
        for (&token_id, row) in completion.token_ids.iter().zip(&completion.logprobs) {
            assert_eq!((row.token.token_id, row.token.rank, row.top.len()), (token_id, 1, 3));
        }
        assert_eq!(completion.logprobs.len(), 4);
    }
}

#[test]
fn what_cannot_be_served_is_refused_at_once() {
    let mut engine = engine(10, &config());
    let mut check = |request: Request, expected: &str| {
        assert_eq!(engine.add_request(request).unwrap_err().to_string(), expected);
    };
    check(request(1, 0, 5), "the prompt is empty: expected at least one token");
    let too_long = "the request has 80 prompt tokens and wants 1 more: expected at most 80 together (the KV cache holds 80)";
    check(request(1, 80, 11), too_long);
    check(Request::new(prompt(1, 80), SamplingParams::default()), too_long);
    check(
        Request::new(vec![1, 24], SamplingParams::default()),
        "token 24 has no logit: expected an id below 24",
    );
    let params = SamplingParams::default();
    check(
        Request::new(vec![1], params.clone().with_banned_token_ids(vec![99])),
        "banned_token_ids: expected token ids below the vocabulary's 24, found 99",
    );
    let error = params.with_n(1025).unwrap_err();
    assert_eq!(error.to_string(), "n: expected at most 1024, found 1025");
    assert_idle(&engine);
    assert_eq!(engine.stats().num_requests, 0);
}

#[test]
fn a_step_that_fails_ends_its_requests_and_the_engine_goes_on() {
    let good = || request(3, 9, 20);
    let expected = engine(100, &config()).generate(vec![good()]).pop().unwrap();
    let expected = expected.unwrap().completions[0].token_ids.clone();
    for (fault, message) in [
        (FAILS, "the sequence would reach 2 positions, more than max_position_embeddings 1"),
        (PANICS, "the step that computed the request panicked: token 21 came"),
    ] {
        let mut engine = engine(100, &config());
        let bad = Request {
            prompt_token_ids: vec![1, 2, fault],
            params: SamplingParams::default().with_n(3).unwrap(),
            ..good()
        };
        let others = [engine.add_request(bad.clone()), engine.add_request(good())];
        let others = others.map(Result::unwrap);
        let outputs = engine.step();
        let failed: Vec<_> =
            outputs.iter().map(|output| (output.request_id, output.index)).collect();
        let [first, second] = others;
        assert_eq!(failed, [(first, 0), (first, 1), (first, 2), (second, 0)]);
        for output in outputs {
            assert_eq!(output.finished.unwrap().unwrap_err().to_string(), message);
        }
        assert_idle(&engine);
        let generations = engine.generate(vec![good(), good()]);
        for generation in generations {
            assert_eq!(generation.unwrap().completions[0].token_ids, expected);
        }
        assert_eq!((engine.stats().num_failed, engine.stats().num_finished), (4, 2));
    }
}

#[test]
fn requests_that_are_in_no_failing_step_do_not_notice_it() {
    let config = EngineConfig { max_num_seqs: 1, ..config() };
    let mut engine = engine(100, &config);
    let bad = Request { prompt_token_ids: vec![PANICS], ..request(1, 1, 5) };
    let mut generations = engine.generate(vec![request(3, 9, 20), bad, request(3, 9, 20)]);
    let last = generations.pop().unwrap().unwrap();
    assert!(matches!(generations.pop().unwrap(), Err(Error::Panic { .. })));
    assert_eq!(
        generations.pop().unwrap().unwrap().completions[0].token_ids,
        last.completions[0].token_ids
    );
    assert_idle(&engine);
}

#[test]
fn a_nan_ends_its_own_request_alone() {
    let mut engine = engine(100, &config());
    let bad = Request { prompt_token_ids: vec![1, NAN, 3], ..request(1, 1, 5) };
    let expected = engine.generate(vec![request(3, 9, 20)]).pop().unwrap().unwrap();
    let mut generations = engine.generate(vec![request(3, 9, 20), bad, request(4, 9, 20)]);
    generations.pop().unwrap().unwrap();
    assert_eq!(
        generations.pop().unwrap().unwrap_err().to_string(),
        "the logit of token 0 is NaN: expected a finite number or -inf"
    );
    assert_eq!(
        generations.pop().unwrap().unwrap().completions[0].token_ids,
        expected.completions[0].token_ids
    );
    assert_idle(&engine);
    assert_eq!(engine.stats().num_failed, 1);
}

#[test]
fn an_aborted_request_gives_its_blocks_back() {
    let mut engine = engine(100, &config());
    let mut several = request(3, 9, 20);
    several.params = several.params.with_n(4).unwrap().with_temperature(0.9).unwrap();
    let id = engine.add_request(several.clone()).unwrap();
    assert!(engine.abort(id) && !engine.abort(id));
    assert_idle(&engine);
    let id = engine.add_request(several).unwrap();
    let other = engine.add_request(request(4, 9, 20)).unwrap();
    engine.step();
    engine.step();
    assert_eq!(engine.stats().scheduler.num_running, 5);
    assert!(engine.abort(id));
    assert!(engine.step().iter().all(|output| output.request_id == other));
    assert!(engine.abort(other));
    assert_idle(&engine);
    assert_eq!(engine.stats().num_aborted, 9);
    assert!(engine.step().is_empty());
}

#[test]
fn a_continuation_that_is_aborted_leaves_the_others() {
    let mut engine = engine(100, &config());
    let mut several = request(3, 9, 20);
    several.params = several.params.with_n(3).unwrap().with_temperature(0.9).unwrap();
    let expected = engine.generate(vec![several.clone()]).pop().unwrap().unwrap();
    let id = engine.add_request(several).unwrap();
    assert!(!engine.abort_continuation(id, 0), "it has no token");
    engine.step();
    assert!(engine.abort_continuation(id, 0) && !engine.abort_continuation(id, 0));
    assert!(engine.abort_continuation(id, 2) && !engine.abort_continuation(id, 3));
    let mut token_ids = expected.completions[1].token_ids[..1].to_vec();
    while engine.has_unfinished_requests() {
        for output in engine.step() {
            assert_eq!(output.index, 1);
            token_ids.extend(output.token_ids);
        }
    }
    assert_eq!(token_ids, expected.completions[1].token_ids);
    let id = engine.add_request(request(4, 9, 20)).unwrap();
    engine.step();
    assert!(engine.abort_continuation(id, 0));
    assert_idle(&engine);
    assert_eq!(engine.stats().num_aborted, 3);
}

#[test]
fn the_time_of_a_step_is_the_models_or_the_samplers_or_overhead() {
    let mut engine = engine(100, &config());
    engine.model.step_time = Duration::from_millis(20);
    engine.generate(vec![request(1, 20, 6)]).pop().unwrap().unwrap();
    let StepTimes { all, model, sampler } = engine.stats().step_times;
    assert!(model >= 6 * Duration::from_millis(20) && !sampler.is_zero());
    assert!(all >= model + sampler);
    assert!(engine.stats().step_times.overhead() < 0.5);
}

#[test]
fn a_request_that_is_preempted_goes_on_where_it_was() {
    let mut engine = engine(100, &config());
    let mut several = request(3, 20, 20);
    several.params = several.params.with_n(3).unwrap().with_temperature(0.9).unwrap();
    let expected = engine.generate(vec![several.clone()]).pop().unwrap().unwrap();
    let id = engine.add_request(several).unwrap();
    assert!(!engine.preempt(id), "it waits");
    let mut found = vec![Vec::new(); 3];
    while engine.has_unfinished_requests() {
        for output in engine.step() {
            found[output.index].extend(output.token_ids);
        }
        if found[0].len() % 5 == 2 {
            assert!(engine.preempt(id));
            assert_eq!(engine.stats().scheduler.num_used_blocks, 0);
            engine.scheduler.check_invariants();
        }
    }
    assert!(!engine.preempt(id), "it has ended");
    assert_eq!(engine.stats().scheduler.num_preemptions, 12);
    for (found, expected) in found.iter().zip(&expected.completions) {
        assert_eq!(found, &expected.token_ids);
    }
}

#[test]
fn continuations_share_the_blocks_of_their_prompt() {
    let mut engine = engine(100, &config());
    let mut several = request(3, 20, 20);
    several.params = several.params.with_n(5).unwrap();
    engine.add_request(several).unwrap();
    engine.step();
    assert_eq!(engine.stats().scheduler.num_used_blocks, 3);
    engine.step();
    // The last block of the prompt is written to by each: four of them get a copy.
    assert_eq!(engine.stats().scheduler.num_used_blocks, 3 + 4);
}

#[test]
fn everything_is_counted() {
    let mut engine = engine(100, &EngineConfig { max_num_seqs: 2, ..config() });
    let generations =
        engine.generate(vec![request(1, 20, 6), request(2, 10, 4), request(1, 20, 2)]);
    assert_eq!(generations[2].as_ref().unwrap().num_cached_tokens, 16);
    let stats = engine.stats();
    assert_eq!((stats.num_requests, stats.num_finished, stats.num_failed), (3, 3, 0));
    assert_eq!((stats.num_prompt_tokens, stats.num_generated_tokens), (50, 12));
    assert_eq!((stats.scheduler.num_prefix_queries, stats.scheduler.num_prefix_hits), (50, 16));
    let Latencies { queue, prefill, time_to_first_token, inter_token, end_to_end } =
        stats.latencies;
    assert_eq!((queue.count(), prefill.count(), time_to_first_token.count()), (3, 3, 3));
    assert_eq!((inter_token.count(), end_to_end.count()), (9, 3));
    assert!(queue.sum + prefill.sum <= time_to_first_token.sum);
    assert!(time_to_first_token.sum + inter_token.sum <= end_to_end.sum);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let check = |config: EngineConfig, expected: &str| {
        let error = Engine::with_model(FakeModel::new(10), &config).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(
        EngineConfig { max_num_seqs: 0, ..config() },
        "max_num_seqs: expected at least 1, found 0",
    );
    check(
        EngineConfig { num_speculative_tokens: 2, min_ngram_size: 0, ..config() },
        "min_ngram_size: expected at least 1, found 0",
    );
    check(
        EngineConfig { max_model_len: Some(1), ..config() },
        "max_model_len: expected at least 2 (a prompt and what follows it), found 1",
    );
    let positions = FakeModel::new(10).max_position_embeddings();
    check(
        EngineConfig { max_model_len: Some(positions + 1), ..config() },
        &format!(
            "max_model_len: expected at most the model's {positions} positions (rope_scaling or \
             max_position_embeddings in its config.json make more), found {}",
            positions + 1
        ),
    );
    let longest = EngineConfig { max_model_len: Some(positions), ..config() };
    Engine::with_model(FakeModel::new(10), &longest).unwrap();
}
