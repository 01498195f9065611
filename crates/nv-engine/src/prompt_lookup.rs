//! Guesses the next tokens of a text that repeats itself: speculation by prompt lookup.
//!
//! Knows nothing of models. A guess (a draft) is verified by computing the logits behind each of its tokens in one
//! step, and sampling from them one after the other as if the draft were not there: as long as the sampled token is
//! the draft's, the next logits are those that the text would have had. So a draft never changes a text:
//!
//! ```
//! # use nv_engine::{Result, Sampler, SamplingParams, SamplingState};
//! # fn verify(
//! #     rows: &[Vec<f32>],
//! #     draft: &[u32],
//! #     sampler: &mut Sampler,
//! #     params: &SamplingParams,
//! #     state: &mut SamplingState,
//! # ) -> Result<Vec<u32>> {
//! let mut output = Vec::new();
//! // rows[0] are the logits behind the last token of the text, rows[i] those behind the draft's first i.
//! for (i, logits) in rows.iter().enumerate() {
//!     let token_id = sampler.sample(logits, params, state)?;
//!     state.push(token_id);
//!     output.push(token_id);
//!     if draft.get(i) != Some(&token_id) {
//!         break;
//!     }
//! }
//! # Ok(output)
//! # }
//! ```

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::mem;
use std::sync::Arc;

use crate::TokenId;
use crate::error::Result;
use crate::sampling_params::refuse;

/// Guesses the next tokens of one sequence: those that followed the last few when these came before.
///
/// Of the sequences of `min_ngram_size` to `max_ngram_size` tokens that end the text, the longest that came before
/// counts, and of its places the earliest, as in vLLM's `NgramProposer`: the earliest has the most behind it.
/// Places are remembered as the text grows: a guess costs a look-up for each size and token that is new, however long
/// the text is, and each of them some 20 bytes for good.
///
/// ```
/// use nv_engine::PromptLookup;
///
/// let mut lookup = PromptLookup::new(2, 3, 4)?;
/// let text = [1, 2, 3, 4, 2, 3];
/// // [4, 2, 3] is new; [2, 3] came before, and these tokens after it.
/// assert_eq!(lookup.propose(&text), [4, 2, 3]);
/// # Ok::<(), nv_engine::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PromptLookup {
    min_ngram_size: usize,
    max_ngram_size: usize,
    num_speculative_tokens: usize,
    /// Those of the text's beginning, which clones share.
    prompt: Arc<FirstEnds>,
    /// Those of the rest that are not among them.
    rest: FirstEnds,
    /// Tokens of the text at whose end all sequences are remembered.
    num_indexed_tokens: usize,
}

impl PromptLookup {
    /// Guesses at most `num_speculative_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`](crate::Error::SamplingParameter) if a number is 0, or `min_ngram_size` exceeds
    /// `max_ngram_size`.
    pub fn new(
        min_ngram_size: usize,
        max_ngram_size: usize,
        num_speculative_tokens: usize,
    ) -> Result<Self> {
        if min_ngram_size == 0 {
            return refuse("min_ngram_size", "at least 1", min_ngram_size);
        }
        if max_ngram_size < min_ngram_size {
            let expected = format!("at least min_ngram_size, which is {min_ngram_size}");
            return refuse("max_ngram_size", expected, max_ngram_size);
        }
        if num_speculative_tokens == 0 {
            return refuse("num_speculative_tokens", "at least 1", num_speculative_tokens);
        }
        Ok(Self {
            min_ngram_size,
            max_ngram_size,
            num_speculative_tokens,
            prompt: Arc::default(),
            rest: FirstEnds::default(),
            num_indexed_tokens: 0,
        })
    }

    /// Remembers the places of the prompt that several texts begin with, if that hasn't been done yet: clones share them,
    /// instead of finding each its own.
    pub(crate) fn index_prompt(&mut self, prompt: &[TokenId]) {
        if self.num_indexed_tokens == 0 {
            self.index(prompt, prompt.len());
            self.prompt = Arc::new(mem::take(&mut self.rest));
        }
    }

    /// Remembers the sequences that end in the first `num_tokens` of `token_ids`.
    fn index(&mut self, token_ids: &[TokenId], num_tokens: usize) {
        for end in self.num_indexed_tokens + 1..=num_tokens {
            for ngram in self.ngrams(&token_ids[..end]) {
                let hash = hash(ngram);
                if !self.prompt.contains_key(&hash) {
                    self.rest.entry(hash).or_insert(end);
                }
            }
        }
        self.num_indexed_tokens = self.num_indexed_tokens.max(num_tokens);
    }

    /// The tokens that may follow `token_ids`: a part of it, empty if there is no guess.
    ///
    /// `token_ids` is the whole text, prompt and continuation; each call's begins with the one before.
    pub fn propose<'t>(&mut self, token_ids: &'t [TokenId]) -> &'t [TokenId] {
        // What ends the text itself is no earlier place.
        self.index(token_ids, token_ids.len().saturating_sub(1));
        for ngram in self.ngrams(token_ids) {
            let hash = hash(ngram);
            let end = self.prompt.get(&hash).or_else(|| self.rest.get(&hash));
            if let Some(&end) = end
                && token_ids.get(..end).is_some_and(|text| text.ends_with(ngram))
            {
                let guess = &token_ids[end..];
                return &guess[..guess.len().min(self.num_speculative_tokens)];
            }
        }
        &[]
    }

    /// The sequences that end `token_ids`, the longest first.
    fn ngrams<'t>(
        &self,
        token_ids: &'t [TokenId],
    ) -> impl Iterator<Item = &'t [TokenId]> + use<'t> {
        let num_tokens = token_ids.len();
        (self.min_ngram_size..=self.max_ngram_size.min(num_tokens))
            .rev()
            .map(move |size| &token_ids[num_tokens - size..])
    }
}

/// Where a sequence of tokens, by its hash, ended first. Two of the same hash are told apart by their tokens.
type FirstEnds = HashMap<u64, usize, BuildHasherDefault<DefaultHasher>>;

/// The same in every process: what is guessed is to be repeatable.
fn hash(ngram: &[TokenId]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(ngram)
}

#[cfg(test)]
impl PromptLookup {
    /// Whether both found the places of one prompt together.
    pub(crate) fn shares_prompt_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.prompt, &other.prompt)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Sampler, SamplingParams, SamplingState};

    /// Logits over 6 tokens that follow from the last two: a text that often repeats itself.
    fn model(token_ids: &[TokenId]) -> Vec<f32> {
        let last = hash(&token_ids[token_ids.len().saturating_sub(2)..]);
        (0..6).map(|i| (last.rotate_left(9 * i) % 64) as f32 / 16.0).collect()
    }

    /// The continuation of `prompt` by at least `num_tokens` tokens, and the steps that it took.
    fn generate(
        prompt: &[TokenId],
        num_tokens: usize,
        params: &SamplingParams,
        mut lookup: Option<PromptLookup>,
    ) -> (Vec<TokenId>, usize) {
        let mut sampler = Sampler::new();
        let mut state = SamplingState::new(params, 0, prompt);
        let mut text = prompt.to_vec();
        let mut num_steps = 0;
        while state.num_output_tokens() < num_tokens {
            num_steps += 1;
            let draft = lookup.as_mut().map_or(Vec::new(), |lookup| lookup.propose(&text).to_vec());
            for i in 0..=draft.len() {
                // As a model sees it: behind the draft, not behind what was sampled.
                let context = [&text[..text.len() - i], &draft[..i]].concat();
                let token_id = sampler.sample(&model(&context), params, &state).unwrap();
                state.push(token_id);
                text.push(token_id);
                if draft.get(i) != Some(&token_id) {
                    break;
                }
            }
        }
        (text[prompt.len()..][..num_tokens].to_vec(), num_steps)
    }

    #[test]
    fn a_draft_saves_steps_and_never_changes_a_text() {
        let warm = |params: SamplingParams| params.with_temperature(0.3).unwrap().with_seed(5);
        let penalised = SamplingParams::default()
            .with_frequency_penalty(0.01)
            .and_then(|params| params.with_repetition_penalty(1.01))
            .unwrap();
        for params in [SamplingParams::default(), warm(SamplingParams::default()), warm(penalised)]
        {
            let prompt = [0, 1, 2, 3, 0, 1, 2];
            let (expected, num_steps) = generate(&prompt, 200, &params, None);
            assert_eq!(num_steps, 200);
            let lookup = PromptLookup::new(1, 3, 4).unwrap();
            let (found, num_steps) = generate(&prompt, 200, &params, Some(lookup));
            assert_eq!(found, expected);
            assert!(num_steps < 150, "{num_steps}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let check = |sizes: (usize, usize, usize), expected: &str| {
            let error = PromptLookup::new(sizes.0, sizes.1, sizes.2).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check((0, 1, 1), "min_ngram_size: expected at least 1, found 0");
        check((3, 2, 1), "max_ngram_size: expected at least min_ngram_size, which is 3, found 2");
        check((1, 1, 0), "num_speculative_tokens: expected at least 1, found 0");
    }

    #[test]
    fn clones_share_a_prompt_and_keep_the_rest_apart() {
        let mut base = PromptLookup::new(1, 2, 2).unwrap();
        base.index_prompt(&[1, 2, 3]);
        // What follows is another text's: nothing is done again.
        base.index_prompt(&[1, 2, 3, 4]);
        let mut others = [base.clone(), base.clone()];
        assert_eq!(others[0].propose(&[1, 2, 3, 7, 8, 7]), [8, 7]);
        assert_eq!(others[1].propose(&[1, 2, 3, 7, 9, 2]), [3, 7]);
        assert_eq!(others[1].propose(&[1, 2, 3, 7, 9, 2, 7]), [9, 2]);
        for other in others {
            assert!(other.shares_prompt_with(&base));
            assert!(!other.rest.is_empty() && base.rest.is_empty());
        }
    }

    #[test]
    fn the_longest_match_counts_and_of_its_places_the_first() {
        let check = |text: &[TokenId], expected: &[TokenId]| {
            assert_eq!(PromptLookup::new(1, 3, 2).unwrap().propose(text), expected, "{text:?}");
        };
        check(&[], &[]);
        check(&[7], &[]);
        check(&[7, 7], &[7]);
        check(&[7, 8, 9], &[]);
        check(&[1, 5, 2, 5, 3, 5], &[2, 5]);
        check(&[9, 5, 1, 2, 3, 4, 5, 6, 4, 5], &[6, 4]);
        check(&[1, 2, 1, 2, 1, 2], &[1, 2]);
        let mut lookup = PromptLookup::new(1, 3, usize::MAX).unwrap();
        assert_eq!(lookup.propose(&[7, 1, 2, 3, 7]), [1, 2, 3, 7]);
    }

    proptest! {
        #[test]
        fn a_growing_text_is_guessed_as_if_searched(
            text in prop::collection::vec(0..4u32, 0..120),
            steps in prop::collection::vec(1..6usize, 1..60),
            min_ngram_size in 1..3usize,
            more in 0..3usize,
            num_speculative_tokens in 1..6usize,
            num_shared_tokens in 0..20usize,
        ) {
            let max_ngram_size = min_ngram_size + more;
            let mut lookup =
                PromptLookup::new(min_ngram_size, max_ngram_size, num_speculative_tokens).unwrap();
            // A prompt is shorter than the text.
            let mut len = num_shared_tokens.min(text.len().saturating_sub(1));
            lookup.index_prompt(&text[..len]);
            let shared = Arc::clone(&lookup.prompt);
            for step in steps {
                len = text.len().min(len + step);
                let text = &text[..len];
                let expected = (min_ngram_size..=max_ngram_size.min(len)).rev().find_map(|size| {
                    let end = (size..len).find(|&end| text[..end].ends_with(&text[len - size..]))?;
                    Some(&text[end..len.min(end + num_speculative_tokens)])
                });
                prop_assert_eq!(lookup.propose(text), expected.unwrap_or_default());
            }
            prop_assert!(Arc::ptr_eq(&shared, &lookup.prompt));
        }
    }
}
