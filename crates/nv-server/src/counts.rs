//! What the server counts beside the engine: how requests end, and after how long.

use std::time::Duration;

use nv_engine::Histogram;

/// How a continuation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// At a stop token or a stop string.
    Stop,
    /// At the number of tokens asked for, or the end of the context.
    Length,
    /// Its client went away, or its time was up.
    Abort,
    /// With an error.
    Error,
}

/// Counts since the server was made.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By [`Ending`].
    num_ended: [u64; Ending::ALL.len()],
    /// From a request's arrival to the end of a continuation, those included that a stop string ends.
    pub(crate) end_to_end: Histogram,
}

impl Ending {
    pub(crate) const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    /// As vLLM's metrics call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

impl Counts {
    /// Counts a continuation that ended after `time`.
    pub(crate) fn end(&mut self, ending: Ending, time: Duration) {
        self.num_ended[ending as usize] += 1;
        if matches!(ending, Ending::Stop | Ending::Length) {
            self.end_to_end.record(time, 1);
        }
    }

    pub(crate) fn num_ended(&self, ending: Ending) -> u64 {
        self.num_ended[ending as usize]
    }
}
