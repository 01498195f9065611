//! What was measured, for people and for programs.

use std::fmt;
use std::path::Path;

use nano_vllm_rs::qwen3::Preset;
use serde_json::{Value, json};

use super::measure::Measured;
use super::statistics::{Divergence, Likelihood};
use crate::format::{grouped, percent};
use crate::table::{Align, Table};

/// All of a run.
pub(super) struct Report<'a> {
    pub(super) model: &'a str,
    pub(super) dtype: &'static str,
    /// What its matrices are stored as.
    pub(super) formats: String,
    /// How they were quantised for the run, if they were.
    pub(super) quantize: Option<Preset>,
    pub(super) reference: Option<&'a str>,
    pub(super) text: &'a Path,
    /// Tokens of the whole text.
    pub(super) num_tokens: usize,
    /// Tokens a window.
    pub(super) context: usize,
    pub(super) measured: Measured,
}

impl Report<'_> {
    /// The numbers of the tables, divergences in nats. A number beyond the range of an f64 is null.
    pub(super) fn to_json(&self) -> Value {
        let Measured { num_windows, model, comparison, interrupted } = &self.measured;
        let mut report = json!({
            "model": {
                "name": self.model,
                "dtype": self.dtype,
                "formats": self.formats,
                "quantize": self.quantize.map(Preset::name),
            },
            "text": { "name": self.text.display().to_string(), "tokens": self.num_tokens },
            "context": self.context,
            "windows": num_windows,
            "predicted_tokens": model.num_tokens,
            "predicted_bytes": model.num_bytes,
            "perplexity": model.perplexity(),
            "bits_per_token": model.bits_a_token(),
            "bits_per_byte": model.bits_a_byte(),
            "reference": null,
            "interrupted": interrupted,
        });
        if let Some(comparison) = comparison {
            let Divergence { mean, median, percentile_99, agreement } = comparison.summary();
            report["reference"] = json!({
                "name": self.reference,
                "dtype": "f32",
                "perplexity": comparison.reference.perplexity(),
                "bits_per_token": comparison.reference.bits_a_token(),
                "bits_per_byte": comparison.reference.bits_a_byte(),
                "kl_divergence": { "mean": mean, "median": median, "percentile_99": percentile_99 },
                "likeliest_token_agreement": agreement,
            });
        }
        report
    }

    fn model_table(&self) -> Table<2> {
        let mut table = Table::new("model", [Align::Left, Align::Left]);
        table.row([&"name", &self.model]);
        table.row([&"dtype", &self.dtype]);
        table.row([&"matrices", &self.formats]);
        if let Some(reference) = self.reference {
            table.row([&"reference", &format!("{reference}, in f32")]);
        }
        table
    }

    fn text_table(&self) -> Table<2> {
        let Measured { num_windows, model, .. } = &self.measured;
        let number = |number: usize| grouped(number as u64);
        let mut table = Table::new("text", [Align::Left, Align::Left]);
        table.row([&"name", &self.text.display()]);
        table.row([&"tokens", &number(self.num_tokens)]);
        let windows = format!("{} of {}", number(*num_windows), number(self.context));
        table.row([&"windows", &windows]);
        let (tokens, bytes) = (number(model.num_tokens), number(model.num_bytes));
        table.row([&"predicted", &format!("{tokens} tokens, {bytes} bytes")]);
        table
    }

    /// A row's number of the model and, if there is one, the reference.
    fn likelihood_table(&self) -> Table<3> {
        let Measured { model, comparison, .. } = &self.measured;
        let reference = comparison.as_ref().map(|comparison| comparison.reference);
        let mut table = Table::new("predictions", [Align::Left, Align::Right, Align::Right]);
        if reference.is_some() {
            table.row([&"", &"model", &"reference"]);
        }
        let mut row = |name, number: fn(&Likelihood) -> f64| {
            let number = |likelihood| format!("{:.4}", number(likelihood));
            let of_reference = reference.as_ref().map(number).unwrap_or_default();
            table.row([&name, &number(model), &of_reference]);
        };
        row("perplexity", Likelihood::perplexity);
        row("bits a token", Likelihood::bits_a_token);
        row("bits a byte", Likelihood::bits_a_byte);
        table
    }

    fn divergence_table(divergence: &Divergence) -> Table<2> {
        let title = "difference to the reference";
        let mut table = Table::new(title, [Align::Left, Align::Right]);
        let mut row = |name, nats| table.row([&name, &format!("{nats:.6}")]);
        row("KL divergence, mean", divergence.mean);
        row("KL divergence, median", divergence.median);
        row("KL divergence, 99th percentile", divergence.percentile_99);
        table.row([&"same likeliest token", &percent(divergence.agreement)]);
        table
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = (self.model_table(), self.text_table(), self.likelihood_table());
        write!(f, "{}\n{}\n{}", tables.0, tables.1, tables.2)?;
        if let Some(comparison) = &self.measured.comparison {
            write!(f, "\n{}", Self::divergence_table(&comparison.summary()))?;
        }
        if self.measured.interrupted {
            writeln!(f, "\ninterrupted: this is a part, what was measured until then")?;
        }
        Ok(())
    }
}
