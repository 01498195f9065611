//! The ways to feed a sequence through the model. Each must give the same logits.

use std::num::NonZeroUsize;

use anyhow::Result;
use candle_core::Tensor;
use nv_qwen3::Qwen3ForCausalLM;

/// One way to feed a sequence.
#[derive(Debug)]
pub struct Mode {
    /// As the table calls it.
    pub name: &'static str,
    /// Tokens per call; `None` for all at once.
    chunk: Option<NonZeroUsize>,
    /// The sequence's row in a batch of two; `None` if it runs alone.
    row: Option<usize>,
}

/// Every way that `verify` takes.
pub const MODES: &[Mode] = &[
    Mode { name: "whole prompt", chunk: None, row: None },
    Mode { name: "token by token", chunk: NonZeroUsize::new(1), row: None },
    Mode { name: "chunks of 3", chunk: NonZeroUsize::new(3), row: None },
    Mode { name: "chunks of 7", chunk: NonZeroUsize::new(7), row: None },
    Mode { name: "first of a batch of 2", chunk: None, row: Some(0) },
    Mode { name: "second of a batch of 2", chunk: None, row: Some(1) },
    Mode { name: "second of 2, token by token", chunk: NonZeroUsize::new(1), row: Some(1) },
];

impl Mode {
    /// The logits that follow each of `ids`, `[num_tokens, vocab_size]`.
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
