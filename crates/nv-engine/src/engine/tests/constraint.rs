//! Texts that are held to a constraint, which is cheap and looks back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::{PANICS, VOCAB_SIZE, assert_idle, config, engine, prompt, request};
use crate::{
    Completion, Constraint, ConstraintState, EngineConfig, Error, FinishReason, Generation,
    Request, SamplingParams, TokenId, TokenMask,
};

/// A token that ends texts.
pub(super) const END: TokenId = 19;

/// Allows tokens that differ from the one two places before modulo 3, and the end behind every fifth; complete behind a
/// fifth token that is a multiple of 4. A part of the time it is slow.
#[derive(Debug, Clone, Default)]
pub(super) struct Rhythm {
    text: Vec<TokenId>,
    is_broken: bool,
}

impl Rhythm {
    fn allows(text: &[TokenId], token_id: TokenId) -> bool {
        let before = text.len().checked_sub(2).map_or(0, |place| text[place]);
        token_id < END && token_id % 3 != before % 3
    }

    fn is_complete(text: &[TokenId]) -> bool {
        text.len().is_multiple_of(5) && text.last().is_some_and(|token_id| token_id % 4 == 0)
    }

    #[track_caller]
    pub(super) fn check(text: &[TokenId], finish_reason: FinishReason) {
        for (place, &token_id) in text.iter().enumerate() {
            assert!(Self::allows(&text[..place], token_id), "{text:?}");
            assert!(place == 0 || !Self::is_complete(&text[..place]), "{text:?}");
        }
        match finish_reason {
            FinishReason::Complete => assert!(Self::is_complete(text), "{text:?}"),
            FinishReason::Stop { token_id } => {
                let may_end = token_id == END && text.len().is_multiple_of(5);
                assert!(may_end || Self::allows(text, token_id), "{text:?}");
            }
            _ => {}
        }
    }
}

impl Constraint for Rhythm {
    fn begin(&self) -> Box<dyn ConstraintState> {
        Box::new(self.clone())
    }
}

impl ConstraintState for Rhythm {
    fn next_tokens(&mut self) -> Result<TokenMask, String> {
        if self.text.len() % 7 == 3 {
            thread::sleep(Duration::from_micros(100));
        }
        let may_end = self.text.len().is_multiple_of(5);
        let mut mask = TokenMask::new(Vec::new(), may_end);
        for token_id in 0..VOCAB_SIZE {
            mask.set(token_id, Self::allows(&self.text, token_id));
        }
        Ok(mask)
    }

    fn push(&mut self, token_id: TokenId) -> Result<bool, String> {
        assert!(Self::allows(&self.text, token_id), "it may not come");
        self.text.push(token_id);
        if self.is_broken && self.text.len() == 4 {
            return Err("it breaks at the fourth".to_owned());
        }
        Ok(Self::is_complete(&self.text))
    }
}

/// Where a constraint panics.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Begin,
    /// At the second text of the request.
    BeginAgain,
    NextTokens,
    Push,
}

/// Allows every token, and panics in one place.
#[derive(Debug)]
struct Faulty {
    fault: Fault,
    num_texts: AtomicUsize,
}

impl Constraint for Faulty {
    fn begin(&self) -> Box<dyn ConstraintState> {
        let here = match self.num_texts.fetch_add(1, Ordering::Relaxed) {
            0 => Fault::Begin,
            _ => Fault::BeginAgain,
        };
        assert!(self.fault != here, "at {here:?}");
        Box::new(self.fault)
    }
}

impl ConstraintState for Fault {
    fn next_tokens(&mut self) -> Result<TokenMask, String> {
        assert!(*self != Self::NextTokens, "at {self:?}");
        Ok(TokenMask::new(vec![u32::MAX], true))
    }

    fn push(&mut self, _token_id: TokenId) -> Result<bool, String> {
        assert!(*self != Self::Push, "at {self:?}");
        Ok(false)
    }
}

fn rhythmic(params: SamplingParams) -> Request {
    let constraint: Option<Arc<dyn Constraint>> = Some(Arc::new(Rhythm::default()));
    Request { constraint, ..Request::new(prompt(3, 20), params) }
}

#[test]
fn a_constraint_holds_each_continuation_to_itself() {
    let params = SamplingParams::default().with_temperature(1.5).unwrap().with_n(8).unwrap();
    let params = params.with_max_tokens(60).unwrap().with_logprobs(0);
    let free = Request::new(prompt(3, 20), params.clone());
    let generation = engine(100, &config()).generate(vec![rhythmic(params), free]);
    let [held, free] = generation.try_into().unwrap();
    let (held, free): (Generation, Generation) = (held.unwrap(), free.unwrap());
    for completion in &held.completions {
        Rhythm::check(&completion.token_ids, completion.finish_reason);
    }
    let first = held.completions[0].token_ids.clone();
    assert!(held.completions.iter().any(|completion| completion.token_ids != first));
    let breaks = |completion: &Completion| {
        let text = &completion.token_ids;
        (0..text.len()).any(|place| !Rhythm::allows(&text[..place], text[place]))
    };
    assert!(free.completions.iter().all(breaks));
    // The model's own judgement: what was ruled out has its share.
    let sum: f64 =
        held.completions[0].logprobs.iter().map(|row| f64::from(row.token.logprob)).sum();
    assert!(sum < -1.0, "{sum}");
}

#[test]
fn a_constraint_decides_where_a_text_may_end() {
    let check = |params: SamplingParams| {
        let generation = engine(100, &config()).generate(vec![rhythmic(params)]).pop().unwrap();
        let completion = generation.unwrap().completions.pop().unwrap();
        Rhythm::check(&completion.token_ids, completion.finish_reason);
        (completion.token_ids.len(), completion.finish_reason)
    };
    // The end is as likely as can be, and comes only where it may.
    let eager = SamplingParams::default().with_eos_token_ids(vec![END]);
    let eager = eager.with_logit_bias([(END, 100.0)]).unwrap();
    assert_eq!(check(eager.clone()), (0, FinishReason::Stop { token_id: END }));
    let (num_tokens, reason) = check(eager.clone().with_min_tokens(1));
    assert!(num_tokens == 5 && reason != FinishReason::Length, "{reason:?}");
    // Without a token that ends texts, and before the least number of tokens, a complete text ends all the same.
    let (num_tokens, reason) = check(eager.with_ignore_eos(true).with_min_tokens(150));
    assert!(num_tokens % 5 == 0 && reason == FinishReason::Complete, "{num_tokens} {reason:?}");
    // A stop token of the request's own ends it where the constraint has it come.
    let stop = SamplingParams::default().with_logit_bias([(7, 100.0)]).unwrap();
    assert_eq!(check(stop.with_stop_token_ids(vec![7])), (0, FinishReason::Stop { token_id: 7 }));
    // Nothing is left.
    let banned = SamplingParams::default().with_banned_token_ids((0..END).collect());
    let generation = engine(100, &config()).generate(vec![rhythmic(banned)]).pop().unwrap();
    assert!(matches!(generation, Err(Error::NoChoice { .. })));
}

#[test]
fn a_constraint_that_fails_ends_its_own_request_alone() {
    let broken = Arc::new(Rhythm { is_broken: true, ..Rhythm::default() });
    let mut engine = engine(100, &config());
    let expected = engine.generate(vec![request(3, 9, 20)]).pop().unwrap().unwrap();
    let bad = Request { constraint: Some(broken), ..request(4, 9, 20) };
    let mut generations = engine.generate(vec![bad, request(3, 9, 20)]);
    let other = generations.pop().unwrap().unwrap();
    assert_eq!(other.completions[0].token_ids, expected.completions[0].token_ids);
    let error = generations.pop().unwrap().unwrap_err().to_string();
    assert_eq!(error, "the text can't be held to what was asked: it breaks at the fourth");
    assert_idle(&engine);
}

#[test]
fn a_constraint_that_panics_ends_its_own_request_alone() {
    let mut engine = engine(100, &config());
    let expected = engine.generate(vec![request(3, 9, 20)]).pop().unwrap().unwrap();
    for fault in [Fault::Begin, Fault::BeginAgain, Fault::NextTokens, Fault::Push] {
        let faulty = Arc::new(Faulty { fault, num_texts: AtomicUsize::new(0) });
        let mut bad = Request { constraint: Some(faulty), ..request(4, 9, 20) };
        bad.params = bad.params.with_n(2).unwrap();
        let mut generations = engine.generate(vec![bad, request(3, 9, 20)]);
        let other = generations.pop().unwrap().unwrap();
        assert_eq!(other.completions[0].token_ids, expected.completions[0].token_ids);
        let error = generations.pop().unwrap().unwrap_err().to_string();
        let reason = format!("it panicked: at {fault:?}");
        assert_eq!(error, format!("the text can't be held to what was asked: {reason}"));
        assert_idle(&engine);
    }
}

#[test]
fn a_constraint_goes_on_after_a_failing_step_of_others_and_after_preemption() {
    let params = SamplingParams::default().with_temperature(0.8).unwrap().with_n(3).unwrap();
    let params = params.with_max_tokens(60).unwrap();
    // One sequence at a time: what fails does so in a step of its own.
    let mut engine = engine(100, &EngineConfig { max_num_seqs: 1, ..config() });
    let expected = engine.generate(vec![rhythmic(params.clone())]).pop().unwrap().unwrap();
    let id = engine.add_request(rhythmic(params.clone())).unwrap();
    let bad = Request { prompt_token_ids: vec![PANICS], priority: -1, ..request(1, 1, 5) };
    let mut found = vec![Vec::new(); 3];
    let (mut num_steps, mut num_failed) = (0, 0);
    while engine.has_unfinished_requests() {
        for output in engine.step() {
            if output.request_id == id {
                assert!(output.finished.as_ref().is_none_or(Result::is_ok));
                found[output.index].extend(output.token_ids);
            } else {
                assert!(matches!(output.finished, Some(Err(Error::Panic { .. }))));
                num_failed += 1;
            }
        }
        num_steps += 1;
        if num_steps % 4 == 2 && engine.preempt(id) {
            engine.add_request(bad.clone()).unwrap();
        }
    }
    for (found, expected) in found.iter().zip(&expected.completions) {
        assert_eq!(found, &expected.token_ids);
    }
    assert!(num_failed > 3 && engine.stats().scheduler.num_preemptions == num_failed);

    // A step that fails takes its requests along, constrained or not; the next ones begin anew.
    let mut engine = super::engine(100, &config());
    let generations = engine.generate(vec![rhythmic(params.clone()), bad]);
    assert!(generations.iter().all(|it| matches!(it, Err(Error::Panic { .. }))));
    let again = engine.generate(vec![rhythmic(params)]).pop().unwrap().unwrap();
    for (again, expected) in again.completions.iter().zip(&expected.completions) {
        assert_eq!(again.token_ids, expected.token_ids);
    }
    assert_idle(&engine);
}
