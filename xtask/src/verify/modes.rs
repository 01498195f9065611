//! The ways to compute the logits of a sequence. Each must give the same ones.

use std::num::NonZeroUsize;

use anyhow::Result;
use candle_core::Tensor;
use nv_qwen3::Qwen3ForCausalLM;

/// One way to compute a sequence's logits.
#[derive(Debug)]
pub struct Mode {
    /// As the table calls it.
    pub name: &'static str,
    /// Threads that compute; `None` for as many as the machine has cores.
    pub threads: Option<NonZeroUsize>,
    /// Tokens per call; `None` for all at once.
    chunk: Option<NonZeroUsize>,
    /// The sequence's row in a batch of two; `None` if it runs alone.
    row: Option<usize>,
}

/// Every way that `verify` takes. The bits of the first are the measure of all others.
pub const MODES: &[Mode] = &[
    WHOLE,
    Mode { name: "token by token", chunk: NonZeroUsize::new(1), ..WHOLE },
    Mode { name: "chunks of 3", chunk: NonZeroUsize::new(3), ..WHOLE },
    Mode { name: "chunks of 7", chunk: NonZeroUsize::new(7), ..WHOLE },
    Mode { name: "first of a batch of 2", row: Some(0), ..WHOLE },
    Mode { name: "second of a batch of 2", row: Some(1), ..WHOLE },
    Mode { name: "second of 2 token by token", chunk: NonZeroUsize::new(1), row: Some(1), ..WHOLE },
    Mode { name: "1 thread", threads: NonZeroUsize::new(1), ..WHOLE },
    Mode { name: "2 threads", threads: NonZeroUsize::new(2), ..WHOLE },
    Mode { name: "3 threads", threads: NonZeroUsize::new(3), ..WHOLE },
    Mode { name: "8 threads", threads: NonZeroUsize::new(8), ..WHOLE },
];

const WHOLE: Mode = Mode { name: "whole prompt", threads: None, chunk: None, row: None };

impl Mode {
    /// The logits that follow each of `ids`, `[num_tokens, vocab_size]`, from a model on [`Self::threads`].
    ///
    /// In a batch, the other row is the same ids backwards: a row that saw the other's keys would show it.
    ///
    /// # Errors
    /// If the model refuses the ids.
    pub fn logits(&self, model: &mut Qwen3ForCausalLM, ids: &[u32]) -> Result<Vec<f32>> {
        let device = model.model().device().clone();
        let backwards: Vec<u32> = ids.iter().rev().copied().collect();
        let rows = match self.row {
            None => vec![ids],
            Some(0) => vec![ids, &backwards],
            Some(_) => vec![&backwards, ids],
        };
        let input_ids = Tensor::from_vec(rows.concat(), (rows.len(), ids.len()), &device)?; // [batch, num_tokens]

        let chunk = self.chunk.map_or(ids.len(), NonZeroUsize::get);
        let mut logits = Vec::new();
        for start in (0..ids.len()).step_by(chunk) {
            let piece = input_ids.narrow(1, start, chunk.min(ids.len() - start))?; // [batch, seq_len]
            // A single token goes the way of generation.
            let found = match piece.dim(1)? {
                1 => model.forward(&piece, start)?.unsqueeze(1)?,
                _ => model.forward_all(&piece, start)?,
            }; // [batch, seq_len, vocab_size]
            logits.extend(found.get(self.row.unwrap_or(0))?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(logits)
    }
}
