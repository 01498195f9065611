//! What a request changes in a model's logits before a token is chosen.

use crate::constraint::TokenMask;
use crate::sampling_params::SamplingParams;
use crate::sampling_state::SamplingState;

/// Whether [`process`] would change anything.
pub(crate) fn is_needed(params: &SamplingParams, state: &SamplingState) -> bool {
    params.has_penalties()
        || !params.logit_bias().is_empty()
        || params.allowed_token_ids().is_some()
        || !params.banned_token_ids().is_empty()
        || must_go_on(params, state)
}

/// Writes the logits as the request wants them to `processed`.
///
/// In this order: tokens that aren't allowed, by `params` or by a mask, that are banned, and, before `min_tokens`, those that end a text become
/// -inf; the biases are added; the repetition penalty divides or multiplies, frequency and presence penalties are
/// subtracted. Costs a copy, and a step for each token that is named or that came before.
///
/// Shapes: `logits` and `processed` one a token. Dtypes: f32 throughout; what leaves its range stays at its end.
/// Token ids beyond the logits have nothing to change.
/// Source: vLLM's `Sampler`, `apply_penalties` and built-in logits processors.
pub(crate) fn process(
    logits: &[f32],
    params: &SamplingParams,
    state: &SamplingState,
    mask: Option<&TokenMask>,
    processed: &mut Vec<f32>,
) {
    processed.clear();
    if let Some(allowed) = params.allowed_token_ids() {
        processed.resize(logits.len(), f32::NEG_INFINITY);
        for &token_id in allowed {
            if let Some(&logit) = logits.get(token_id as usize) {
                processed[token_id as usize] = logit;
            }
        }
    } else {
        processed.extend_from_slice(logits);
    }
    if let Some(mask) = mask {
        mask.rule_out(processed);
    }

    let ends = [params.stop_token_ids(), params.eos_token_ids()].into_iter().flatten();
    let ends = ends.take(if must_go_on(params, state) { usize::MAX } else { 0 });
    for &token_id in params.banned_token_ids().iter().chain(ends) {
        if let Some(logit) = processed.get_mut(token_id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }

    for (&token_id, bias) in params.logit_bias() {
        if let Some(logit) = processed.get_mut(token_id as usize) {
            *logit += bias;
        }
    }

    let repetition_penalty = params.repetition_penalty();
    for (token_id, count) in state.output_counts() {
        let Some(logit) = processed.get_mut(token_id as usize) else { continue };
        if *logit == f32::NEG_INFINITY {
            continue;
        }
        *logit =
            if *logit < 0.0 { *logit * repetition_penalty } else { *logit / repetition_penalty };
        *logit -= params.frequency_penalty() * count as f32;
        *logit -= if count > 0 { params.presence_penalty() } else { 0.0 };
        *logit = logit.clamp(f32::MIN, f32::MAX);
    }
}

/// Whether the text is too short to end.
fn must_go_on(params: &SamplingParams, state: &SamplingState) -> bool {
    state.num_output_tokens() < params.min_tokens()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `params` for a text whose continuation is [2, 2, 3] after the prompt [0, 2], on these logits.
    fn check(params: SamplingParams, logits: &[f32], expected: &[f32]) {
        let mut state = SamplingState::new(&params, 0, &[0, 2]);
        for token_id in [2, 2, 3] {
            state.push(token_id);
        }
        assert!(is_needed(&params, &state));
        let mut processed = vec![0.0; 99];
        process(logits, &params, &state, None, &mut processed);
        assert_eq!(processed, expected);
    }

    const NONE: f32 = f32::NEG_INFINITY;

    #[test]
    fn the_prompt_counts_for_the_repetition_penalty_alone() {
        let params = SamplingParams::default;
        let logits = [4.0, 4.0, -4.0, 4.0, NONE];
        check(
            params().with_repetition_penalty(2.0).unwrap(),
            &logits,
            &[2.0, 4.0, -8.0, 2.0, NONE],
        );
        check(params().with_presence_penalty(1.0).unwrap(), &logits, &[4.0, 4.0, -5.0, 3.0, NONE]);
        check(
            params().with_frequency_penalty(-1.0).unwrap(),
            &logits,
            &[4.0, 4.0, -2.0, 5.0, NONE],
        );
    }

    #[test]
    fn what_is_ruled_out_stays_so() {
        let params = SamplingParams::default()
            .with_logit_bias([(1, 100.0), (3, 100.0)])
            .and_then(|params| params.with_allowed_token_ids(vec![0, 2, 3, 4]))
            .and_then(|params| params.with_repetition_penalty(1.5))
            .unwrap()
            .with_banned_token_ids(vec![2])
            .with_eos_token_ids(vec![3])
            .with_stop_token_ids(vec![4])
            .with_ignore_eos(true)
            .with_min_tokens(4);
        check(params, &[3.0; 6], &[2.0, NONE, NONE, NONE, NONE, NONE]);
    }

    #[test]
    fn a_mask_and_the_parameters_must_both_allow_a_token() {
        let params = SamplingParams::default()
            .with_allowed_token_ids(vec![0, 1, 2])
            .and_then(|params| params.with_logit_bias([(0, 9.0), (3, 9.0)]))
            .unwrap()
            .with_banned_token_ids(vec![1]);
        let state = SamplingState::new(&params, 0, &[7]);
        let mask = TokenMask::new(vec![0b1111_1110], false);
        let mut processed = Vec::new();
        process(&[1.0; 5], &params, &state, Some(&mask), &mut processed);
        assert_eq!(processed, [NONE, NONE, 1.0, NONE, NONE]);
    }

    #[test]
    fn enough_tokens_may_end() {
        let params = SamplingParams::default().with_eos_token_ids(vec![1]).with_min_tokens(1);
        let mut state = SamplingState::new(&params, 0, &[7, 7]);
        assert!(is_needed(&params, &state));
        state.push(5);
        assert!(!is_needed(&params, &state));
    }

    #[test]
    fn what_leaves_the_range_stays_at_its_end() {
        let smaller = SamplingParams::default().with_repetition_penalty(1e-30).unwrap();
        check(smaller, &[1e20, 0.0, -1e-20, 0.0], &[f32::MAX, 0.0, -1e-20 * 1e-30, 0.0]);
        let larger = SamplingParams::default().with_repetition_penalty(1e30).unwrap();
        check(larger, &[-1e20, 0.0, NONE, 0.0], &[f32::MIN, 0.0, NONE, 0.0]);
    }

    #[test]
    fn token_ids_without_a_logit_change_nothing() {
        let params = SamplingParams::default()
            .with_logit_bias([(9, 1.0)])
            .and_then(|params| params.with_allowed_token_ids(vec![1, 9]))
            .and_then(|params| params.with_presence_penalty(1.0))
            .unwrap()
            .with_banned_token_ids(vec![u32::MAX]);
        check(params, &[1.0, 2.0], &[NONE, 2.0]);
    }
}
