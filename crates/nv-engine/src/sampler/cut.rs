//! Which tokens are likely enough to be chosen: all up to some place in the order of likelihood.
//!
//! A token is likelier than another if its logit is larger, or equal and its index lower. Nothing here sorts a
//! vocabulary: most tokens are only compared with the least likely of those that count.

use std::cmp::Ordering;

use super::softmax::Softmax;

/// Logits that are looked at together, so that those of no interest cost next to nothing.
pub(crate) const CHUNK: usize = 64;

/// How finely [`Cutter::prefix`] tells logits apart before it compares them.
const NUM_BUCKETS: usize = 512;

/// Sums of a bucket, to which tokens are added in turn: one sum alone is waited for when neighbours share a bucket.
const LANES: usize = 4;

/// The last token that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cut {
    logit: f32,
    index: u32,
}

impl Cut {
    /// Lets every token be chosen.
    pub(crate) const NONE: Self = Self { logit: f32::NEG_INFINITY, index: u32::MAX };

    /// Lets tokens of `logit` or more be chosen.
    pub(crate) fn at(logit: f32) -> Self {
        Self { logit, index: u32::MAX }
    }

    /// Lets a token be chosen and all that are likelier.
    pub(crate) fn behind(logit: f32, index: u32) -> Self {
        Self { logit, index }
    }

    /// The one of both that lets fewer tokens be chosen.
    #[must_use]
    pub(crate) fn tighter(self, other: Self) -> Self {
        if other.keeps(self.logit, self.index) { self } else { other }
    }

    /// Whether a token may be chosen.
    #[inline]
    pub(crate) fn keeps(self, logit: f32, index: u32) -> bool {
        logit > self.logit || (logit >= self.logit && index <= self.index)
    }

    /// How many tokens may be chosen.
    pub(crate) fn num_kept(self, logits: &[f32]) -> usize {
        (0..).zip(logits).filter(|&(index, &logit)| self.keeps(logit, index)).count()
    }

    /// Writes the indices and logits of the tokens that may be chosen, in order of the indices.
    pub(crate) fn gather(self, logits: &[f32], indices: &mut Vec<u32>, kept: &mut Vec<f32>) {
        indices.clear();
        kept.clear();
        for (first, chunk) in chunks_with(logits, |logit| logit >= self.logit) {
            for (index, &logit) in (first..).zip(chunk) {
                if self.keeps(logit, index) {
                    indices.push(index);
                    kept.push(logit);
                }
            }
        }
    }
}

/// The parts of `logits` that have any that is wanted, and the index of the first of each.
fn chunks_with(
    logits: &[f32],
    wanted: impl Fn(f32) -> bool,
) -> impl Iterator<Item = (u32, &[f32])> {
    (0..).step_by(CHUNK).zip(logits.chunks(CHUNK)).filter(move |(_, chunk)| has_any(chunk, &wanted))
}

/// Whether any of the logits is wanted.
pub(crate) fn has_any(chunk: &[f32], wanted: impl Fn(f32) -> bool) -> bool {
    // Without an early exit, so that many are looked at in one go.
    chunk.iter().fold(false, |any, &logit| any | wanted(logit))
}

/// A token on the way to a cut.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    index: u32,
    weight: u64,
}

impl Candidate {
    fn by_likelihood(a: &Self, b: &Self) -> Ordering {
        by_likelihood((a.index, a.logit), (b.index, b.logit))
    }

    fn cut(&self) -> Cut {
        Cut::behind(self.logit, self.index)
    }
}

/// Orders tokens, given by index and logit, the likelier first.
pub(crate) fn by_likelihood((a_index, a): (u32, f32), (b_index, b): (u32, f32)) -> Ordering {
    // Not total_cmp: -0 and 0 are equal.
    b.partial_cmp(&a).expect("logits were checked to be numbers").then(a_index.cmp(&b_index))
}

/// Finds cuts. Holds buffers only.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    candidates: Vec<Candidate>,
    buckets: Vec<[u64; LANES]>,
}

impl Cutter {
    /// The cut behind the `k` likeliest tokens, `k` at least 1. Takes linear time.
    pub(crate) fn top_k(&mut self, logits: &[f32], max_logit: f32, k: usize) -> Cut {
        /// Up to this share of all tokens, those that may be among the likeliest are few: most are only compared.
        const FEW: usize = 16;

        if k >= logits.len() {
            return Cut::NONE;
        }
        if k > logits.len() / FEW {
            return self.prefix(logits, max_logit, f32::INFINITY, |_| 1, k as u64).0;
        }
        let candidates = &mut self.candidates;
        candidates.clear();
        let mut cut = Cut::NONE;
        // Of equal logits the earlier stays.
        for (first, chunk) in (0..).step_by(CHUNK).zip(logits.chunks(CHUNK)) {
            if !has_any(chunk, |logit| logit > cut.logit) {
                continue;
            }
            for (index, &logit) in (first..).zip(chunk) {
                if logit > cut.logit {
                    candidates.push(Candidate { logit, index, weight: 0 });
                }
            }
            // Twice as many as needed: halving them costs a constant for each that was pushed.
            if candidates.len() >= (k * 2).max(CHUNK) {
                cut = keep_top_k(candidates, k);
            }
        }
        if candidates.len() > k { keep_top_k(candidates, k) } else { cut }
    }

    /// The cut behind the fewest likeliest tokens that have `top_p` of `total` together, and what they have.
    ///
    /// `weights` are those of `softmax` for `logits`, `total` is their sum. Takes linear time.
    pub(crate) fn top_p(
        &mut self,
        softmax: &Softmax,
        logits: &[f32],
        weights: &[u64],
        total: u64,
        top_p: f64,
    ) -> (Cut, u64) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 0 and at most `total`"
        )]
        let target = ((total as f64 * top_p).ceil() as u64).clamp(1, total);
        self.prefix(logits, softmax.max_logit(), softmax.reach(), |index| weights[index], target)
    }

    /// The cut behind the fewest likeliest tokens whose weights, by index, reach `target`, and what they have.
    ///
    /// `target` is at least 1 and at most the sum of all weights. Tokens are told apart at once as far as `reach` below
    /// `max_logit`, which is the largest.
    fn prefix(
        &mut self,
        logits: &[f32],
        max_logit: f32,
        reach: f32,
        weight: impl Fn(usize) -> u64,
        target: u64,
    ) -> (Cut, u64) {
        // The token that reaches the target is in a bucket that few share.
        let buckets = Buckets::new(logits, max_logit, reach);
        self.buckets.clear();
        self.buckets.resize(NUM_BUCKETS, [0; LANES]);
        for (first, chunk) in (0..).step_by(CHUNK).zip(logits.chunks(CHUNK)) {
            // First all buckets in one go, then the sums one by one.
            let mut of_chunk = [0; CHUNK];
            for (bucket, &logit) in of_chunk.iter_mut().zip(chunk) {
                *bucket = buckets.bucket(logit);
            }
            for (index, &bucket) in (first..).zip(&of_chunk[..chunk.len()]) {
                self.buckets[bucket as usize][index % LANES] += weight(index);
            }
        }
        let (mut before, mut crossing) = (0, 0);
        for (bucket, sums) in (0..).zip(&self.buckets) {
            crossing = bucket;
            let weight: u64 = sums.iter().sum();
            if before + weight >= target {
                break;
            }
            before += weight;
        }

        self.candidates.clear();
        let wanted = |logit| buckets.bucket(logit) == crossing;
        for (first, chunk) in chunks_with(logits, wanted) {
            for (index, &logit) in (first..).zip(chunk) {
                if wanted(logit) {
                    let weight = weight(index as usize);
                    self.candidates.push(Candidate { logit, index, weight });
                }
            }
        }
        let (cut, weight) = smallest_prefix(&mut self.candidates, target - before);
        (cut, before + weight)
    }
}

/// Divides the range of logits that have a weight into [`NUM_BUCKETS`] of equal width, the largest logits first.
#[derive(Debug, Clone, Copy)]
struct Buckets {
    max_logit: f32,
    per_logit: f32,
}

impl Buckets {
    /// A number so large that nothing but an integer fits in its fraction beside it.
    const ROUND: f32 = 8_388_608.0; // 2^23
    const LAST: f32 = (NUM_BUCKETS - 1) as f32;

    fn new(logits: &[f32], max_logit: f32, reach: f32) -> Self {
        // Numbers from 0 are in the order of their bits, and integers have one maximum in whatever order.
        let range = logits.iter().fold(0, |range, &logit| {
            // Of two zeros it may be -0, whose bits are larger than all others.
            let distance = (max_logit - logit).abs();
            range.max(if distance < f32::INFINITY { distance.to_bits() } else { 0 })
        });
        Self { max_logit, per_logit: Self::LAST / f32::from_bits(range).min(reach) }
    }

    /// The bucket of a logit: never lower for a smaller logit.
    #[inline]
    fn bucket(self, logit: f32) -> u32 {
        let place = (self.max_logit - logit) * self.per_logit;
        // What is no number stems from 0 times infinity: then there is nothing to tell apart.
        let place = if place < Self::LAST { place } else { Self::LAST };
        (place + Self::ROUND).to_bits() - Self::ROUND.to_bits()
    }
}

/// Drops all but the `k` likeliest; returns the cut behind them.
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) -> Cut {
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, Candidate::by_likelihood);
    let cut = last.cut();
    candidates.truncate(k);
    cut
}

/// The cut behind the fewest likeliest candidates whose weights reach `target`, and their sum.
///
/// `target` is at least 1 and at most the sum of all weights. Takes linear time: each round halves what is left.
fn smallest_prefix(candidates: &mut [Candidate], target: u64) -> (Cut, u64) {
    // candidates[..low] are the likeliest and don't reach the target; candidates[..high] do.
    let (mut low, mut high) = (0, candidates.len());
    let mut before = 0;
    while high - low > 1 {
        let middle = low.midpoint(high);
        candidates[low..high].select_nth_unstable_by(middle - low, Candidate::by_likelihood);
        let weight: u64 = candidates[low..middle].iter().map(|candidate| candidate.weight).sum();
        if before + weight >= target {
            high = middle;
        } else {
            before += weight;
            low = middle;
        }
    }
    let last = candidates[low];
    (last.cut(), before + last.weight)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few different logits, so that ties are common.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let logit = prop_oneof![
            9 => (-12i8..12).prop_map(|i| f32::from(i) / 3.0),
            1 => Just(f32::NEG_INFINITY),
            1 => Just(-0.0),
        ];
        prop::collection::vec(logit, 1..400).prop_map(|mut logits| {
            logits[0] = 0.0;
            logits
        })
    }

    fn sorted(logits: &[f32]) -> Vec<u32> {
        let mut indices: Vec<u32> = (0..).take(logits.len()).collect();
        // A stable sort: of equals the lower index stays first.
        indices.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).unwrap());
        indices
    }

    fn kept(cut: Cut, logits: &[f32]) -> Vec<u32> {
        let (mut indices, mut kept) = (Vec::new(), Vec::new());
        cut.gather(logits, &mut indices, &mut kept);
        let by_index: Vec<u32> = (0..)
            .zip(logits)
            .filter(|&(index, &logit)| cut.keeps(logit, index))
            .map(|(index, _)| index)
            .collect();
        assert_eq!(indices, by_index);
        let by_index: Vec<f32> = indices.iter().map(|&index| logits[index as usize]).collect();
        assert_eq!(kept, by_index);
        indices
    }

    proptest! {
        #[test]
        fn a_top_k_cut_keeps_the_first_of_the_sorted(logits in logits(), k in 1..400usize) {
            let mut expected = sorted(&logits);
            expected.truncate(k);
            expected.retain(|&index| logits[index as usize] > f32::NEG_INFINITY);
            expected.sort_unstable();
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut found = kept(Cutter::default().top_k(&logits, max, k), &logits);
            found.retain(|&index| logits[index as usize] > f32::NEG_INFINITY);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_top_p_cut_keeps_the_fewest_that_suffice(
            logits in logits(),
            top_p in 0.001..1.0f64,
            temperature in prop_oneof![0.01..3.0f64, Just(f64::MIN_POSITIVE), Just(1e-20), Just(1e30), Just(f64::MAX)],
        ) {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let softmax = Softmax::new(logits.len(), max, temperature);
            let mut weights = Vec::new();
            let total = softmax.weigh(&logits, &mut weights);
            let (cut, weight) = Cutter::default().top_p(&softmax, &logits, &weights, total, top_p);

            let mut expected = Vec::new();
            let mut reached = 0;
            for index in sorted(&logits) {
                if reached as f64 >= total as f64 * top_p {
                    break;
                }
                reached += weights[index as usize];
                expected.push(index);
            }
            expected.sort_unstable();
            prop_assert_eq!(kept(cut, &logits), expected);
            prop_assert_eq!(weight, reached);
        }

        #[test]
        fn the_tighter_cut_keeps_what_both_keep(
            logits in logits(),
            a in any::<prop::sample::Index>(),
            b in any::<prop::sample::Index>(),
            floor in -4.0..4.0f32,
        ) {
            let cut = |index: prop::sample::Index| {
                let index = index.index(logits.len());
                Cut { logit: logits[index], index: u32::try_from(index).unwrap() }
            };
            let cuts = [cut(a), cut(b), Cut::at(floor), Cut::NONE];
            for a in cuts {
                for b in cuts {
                    let both: Vec<u32> = kept(a, &logits)
                        .into_iter()
                        .filter(|&index| b.keeps(logits[index as usize], index))
                        .collect();
                    prop_assert_eq!(kept(a.tighter(b), &logits), both);
                }
            }
        }
    }

    #[test]
    fn a_largest_logit_of_minus_zero_is_that_of_zero() {
        // Zeros are equal: which of them is called the largest is chance.
        let logits = [-0.0, 0.0, -1.0, -2.0];
        for max in [0.0, -0.0] {
            assert_eq!(kept(Cutter::default().top_k(&logits, max, 3), &logits), [0, 1, 2]);
        }
    }
}
