//! What a text is held to, token by token: rules that others bring, and how their answers are ready in time.
//!
//! Which tokens may come next takes a while to find out. It is asked as soon as the token before is chosen, on threads of
//! its own, while the model computes the next logits; whoever comes to choose and finds no answer asks itself. The answer
//! is a function of the text's tokens alone, so that nothing hangs on who was first.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use crate::TokenId;
use crate::error::{Error, Result, panic_message};
use crate::sampling_params::SamplingParams;

/// Threads at most.
const MAX_NUM_THREADS: usize = 4;

/// Texts that wait for a thread at most; what comes then is asked by those who need it.
const MAX_NUM_WAITING: usize = 1024;

/// Bits of a word of a mask.
const WORD: usize = u32::BITS as usize;

/// What the texts of a request are held to, such as a grammar. Knows the tokens that texts are made of.
///
/// A panic, of this or of a [`ConstraintState`], is an error too: its request ends with [`Error::Constraint`], or is
/// refused with it.
pub trait Constraint: fmt::Debug + Send + Sync {
    /// A text that has not begun.
    fn begin(&self) -> Box<dyn ConstraintState>;
}

/// What one text is held to, as far as it has come. Its answers are a function of the tokens that were pushed.
pub trait ConstraintState: Send {
    /// The tokens that may come next.
    ///
    /// # Errors
    /// Why that can't be told. The request ends with that, as [`Error::Constraint`].
    fn next_tokens(&mut self) -> Result<TokenMask, String>;

    /// Goes on by a token that may come. Returns whether the text is complete: it may end, and nothing may follow.
    ///
    /// # Errors
    /// Why it can't go on. The request ends with that, as [`Error::Constraint`].
    fn push(&mut self, token_id: TokenId) -> Result<bool, String>;
}

/// Which tokens may come next.
///
/// ```
/// use nv_engine::TokenMask;
///
/// let mut mask = TokenMask::new(vec![0b101], false);
/// mask.set(40, true);
/// assert!(mask.allows(2) && mask.allows(40));
/// assert!(!mask.allows(1) && !mask.allows(999));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
    may_end: bool,
}

impl TokenMask {
    /// Token i may come if bit i % 32 of word i / 32 is set, and not if there is no such word. The text may end, by
    /// whatever token ends it, if `may_end`.
    pub fn new(words: Vec<u32>, may_end: bool) -> Self {
        Self { words, may_end }
    }

    /// Whether the text may end.
    pub fn may_end(&self) -> bool {
        self.may_end
    }

    /// Whether a token may come.
    pub fn allows(&self, token_id: TokenId) -> bool {
        let (word, bit) = place(token_id);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Says whether a token may come.
    pub fn set(&mut self, token_id: TokenId, is_allowed: bool) {
        let (word, bit) = place(token_id);
        if is_allowed {
            if word >= self.words.len() {
                self.words.resize(word + 1, 0);
            }
            self.words[word] |= bit;
        } else if let Some(word) = self.words.get_mut(word) {
            *word &= !bit;
        }
    }

    /// Makes the logits of tokens that may not come -inf.
    pub(crate) fn rule_out(&self, logits: &mut [f32]) {
        let words = self.words.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(WORD).zip(words) {
            match word {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word & (1 << bit) == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

/// The word of a token, and its bit there.
fn place(token_id: TokenId) -> (usize, u32) {
    (token_id as usize / WORD, 1 << (token_id as usize % WORD))
}

/// A text that is held to something, in the hands of whoever gets it first.
#[derive(Debug)]
pub(crate) struct ConstrainedText(Arc<Mutex<Place>>);

/// Where a text is, and what may come there.
pub(crate) struct Place {
    state: Box<dyn ConstraintState>,
    /// `None` until somebody asked.
    next: Option<Result<TokenMask>>,
    /// The request's, which say what ends a text.
    params: Arc<SamplingParams>,
}

impl ConstrainedText {
    /// A text that has not begun, of a request with `params`.
    ///
    /// # Errors
    /// [`Error::Constraint`] if `constraint` panics.
    pub(crate) fn begin(constraint: &dyn Constraint, params: &Arc<SamplingParams>) -> Result<Self> {
        let state = guard(|| Ok(constraint.begin()))?;
        let params = Arc::clone(params);
        Ok(Self(Arc::new(Mutex::new(Place { state, next: None, params }))))
    }

    /// The text, when nobody else has it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Place> {
        // Panics of what it is held to don't come this far, and others leave it as it was.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The tokens that may come next. Those that end a text may if it may end; others of those than the request's own
    /// only then.
    ///
    /// # Errors
    /// [`Error::Constraint`] if that can't be told.
    pub(crate) fn next_tokens(&mut self) -> Result<&TokenMask> {
        let Self { state, next, params } = self;
        let ask = || {
            let mut mask = guard(|| state.next_tokens())?;
            let may_end = mask.may_end();
            let eos_token_ids = if params.ignore_eos() { &[] } else { params.eos_token_ids() };
            for &token_id in eos_token_ids {
                mask.set(token_id, may_end);
            }
            if may_end {
                for &token_id in params.stop_token_ids() {
                    mask.set(token_id, true);
                }
            }
            Ok(mask)
        };
        next.get_or_insert_with(ask).as_ref().map_err(Error::clone)
    }

    /// Goes on by a token that may come. Returns whether the text is complete.
    ///
    /// # Errors
    /// [`Error::Constraint`] if it can't go on.
    pub(crate) fn push(&mut self, token_id: TokenId) -> Result<bool> {
        self.next = None;
        guard(|| self.state.push(token_id))
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("next", &self.next).finish_non_exhaustive()
    }
}

/// What a constraint answers. A panic of it is its request's alone, whichever thread asked: what it leaves half-done is
/// asked nothing more.
fn guard<T>(ask: impl FnOnce() -> Result<T, String>) -> Result<T> {
    let answer = panic::catch_unwind(AssertUnwindSafe(ask));
    answer
        .unwrap_or_else(|panic| Err(format!("it panicked: {}", panic_message(&*panic))))
        .map_err(|reason| Error::Constraint { reason })
}

/// The threads that ask ahead, as many as there is use for; none before the first text.
#[derive(Debug, Default)]
pub(crate) struct Lookahead {
    texts: Option<SyncSender<Weak<Mutex<Place>>>>,
}

impl Lookahead {
    /// Has somebody ask what may come next in `text`, soon.
    pub(crate) fn ask(&mut self, text: &ConstrainedText) {
        let texts = self.texts.get_or_insert_with(start);
        // If there is no room, or no thread, whoever needs to know asks.
        let _ = texts.try_send(Arc::downgrade(&text.0));
    }
}

/// Starts threads that end with the sender; fewer, if the system refuses them.
fn start() -> SyncSender<Weak<Mutex<Place>>> {
    let (sender, receiver) = mpsc::sync_channel(MAX_NUM_WAITING);
    let receiver = Arc::new(Mutex::new(receiver));
    // Most of the machine is the model's.
    let num_cores = thread::available_parallelism().map_or(1, usize::from);
    for _ in 0..(num_cores / 4).clamp(1, MAX_NUM_THREADS) {
        let receiver = Arc::clone(&receiver);
        let builder = thread::Builder::new().name("nv-constraint".to_owned());
        let _ = builder.spawn(move || run(&receiver));
    }
    sender
}

fn run(texts: &Mutex<Receiver<Weak<Mutex<Place>>>>) {
    loop {
        let text = texts.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(text) = text else { return };
        // Whoever gave the text up need not know.
        let Some(text) = text.upgrade() else { continue };
        // An error is found with the text, by whoever takes it next.
        let _ = ConstrainedText(text).lock().next_tokens();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    /// Counts how often it is asked; panics if it is told to.
    #[derive(Debug, Default)]
    struct Counted {
        num_asked: Arc<AtomicUsize>,
        panics: bool,
    }

    impl Constraint for Counted {
        fn begin(&self) -> Box<dyn ConstraintState> {
            Box::new(Self { num_asked: Arc::clone(&self.num_asked), panics: self.panics })
        }
    }

    impl ConstraintState for Counted {
        fn next_tokens(&mut self) -> Result<TokenMask, String> {
            self.num_asked.fetch_add(1, Ordering::SeqCst);
            assert!(!self.panics, "as it was told");
            Ok(TokenMask::new(vec![0b1001], true))
        }

        fn push(&mut self, token_id: TokenId) -> Result<bool, String> {
            if token_id == 3 { Err("three".to_owned()) } else { Ok(token_id == 2) }
        }
    }

    fn begin(constraint: &Counted) -> ConstrainedText {
        ConstrainedText::begin(constraint, &Arc::default()).unwrap()
    }

    fn wait_for(num_asked: &AtomicUsize, expected: usize) {
        let end = Instant::now() + Duration::from_secs(20);
        while num_asked.load(Ordering::SeqCst) < expected {
            assert!(Instant::now() < end, "nobody asks");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn logits_of_what_may_not_come_are_ruled_out() {
        let mask = TokenMask::new(vec![u32::MAX, 0, 0b10], false);
        let mut logits = vec![1.0; 100];
        mask.rule_out(&mut logits);
        for (token_id, logit) in (0..).zip(logits) {
            let expected = if mask.allows(token_id) { 1.0 } else { f32::NEG_INFINITY };
            assert!(logit.total_cmp(&expected).is_eq(), "{token_id}");
            assert_eq!(mask.allows(token_id), token_id < 32 || token_id == 65);
        }
    }

    #[test]
    fn a_text_is_asked_once_a_token_and_ahead() {
        let counted = Counted::default();
        let text = begin(&counted);
        let mut lookahead = Lookahead::default();
        lookahead.ask(&text);
        wait_for(&counted.num_asked, 1);
        lookahead.ask(&text);
        assert!(text.lock().next_tokens().unwrap().allows(3));
        assert!(!text.lock().push(0).unwrap());
        text.lock().next_tokens().unwrap();
        lookahead.ask(&text);
        assert!(text.lock().push(2).unwrap());
        lookahead.ask(&text);
        wait_for(&counted.num_asked, 3);
        // One that is gone is asked nothing, and more than there is room for come to no harm.
        drop(text);
        let gone = begin(&counted);
        let held = gone.lock();
        for _ in 0..2 * MAX_NUM_WAITING {
            lookahead.ask(&gone);
        }
        drop(held);
        wait_for(&counted.num_asked, 4);
    }

    #[test]
    fn what_ends_a_text_comes_where_it_may_end() {
        let params = SamplingParams::default().with_eos_token_ids(vec![3, 70]);
        let params = params.with_stop_token_ids(vec![0, 40]);
        let check = |params: &SamplingParams, may_end: bool, expected: &[TokenId]| {
            let mut place = Place {
                state: Box::new(Fixed(TokenMask::new(vec![0b1001], may_end))),
                next: None,
                params: Arc::new(params.clone()),
            };
            let mask = place.next_tokens().unwrap();
            let allowed: Vec<TokenId> = (0..99).filter(|&id| mask.allows(id)).collect();
            assert_eq!(allowed, expected);
        };
        check(&params, true, &[0, 3, 40, 70]);
        check(&params, false, &[0]);
        check(&params.clone().with_ignore_eos(true), true, &[0, 3, 40]);
    }

    struct Fixed(TokenMask);

    impl ConstraintState for Fixed {
        fn next_tokens(&mut self) -> Result<TokenMask, String> {
            Ok(self.0.clone())
        }

        fn push(&mut self, _token_id: TokenId) -> Result<bool, String> {
            Ok(false)
        }
    }

    #[test]
    fn errors_and_panics_are_the_texts_own() {
        let counted = Counted { panics: true, ..Counted::default() };
        let text = begin(&counted);
        let mut lookahead = Lookahead::default();
        lookahead.ask(&text);
        wait_for(&counted.num_asked, 1);
        let error = text.lock().next_tokens().unwrap_err();
        let expected = "the text can't be held to what was asked: it panicked: as it was told";
        assert_eq!(error.to_string(), expected);
        // The thread goes on.
        let counted = Counted::default();
        let text = begin(&counted);
        lookahead.ask(&text);
        wait_for(&counted.num_asked, 1);
        let error = text.lock().push(3).unwrap_err();
        assert_eq!(error.to_string(), "the text can't be held to what was asked: three");
    }
}
