//! Rotary position embedding, plain or stretched by YaRN.
//!
//! Angles are computed in float64 for the positions at hand and rounded once: no table is kept, so a model
//! with a long context starts as fast as one with a short one. Elementary functions are `libm`'s, which has the same bits
//! on every platform; the standard library's are the platform's own.

use std::f64::consts::PI;

use candle_core::{Device, Result, Tensor};
use nv_config::{Qwen3Config, RopeScaling};

use crate::ops::Angles;

/// The rotation frequencies of a model.
#[derive(Debug, Clone)]
pub(crate) struct Qwen3RotaryEmbedding {
    /// Radians a position, one for each pair of a head's dimensions: `[head_dim / 2]`.
    inv_freq: Vec<f64>,
    /// YaRN's temperature, folded into both cosine and sine.
    attention_scaling: f64,
}

impl Qwen3RotaryEmbedding {
    pub(crate) fn new(config: &Qwen3Config) -> Self {
        let inv_freq: Vec<f64> = (0..config.head_dim / 2)
            .map(|pair| libm::pow(config.rope_theta, -2.0 * pair as f64 / config.head_dim as f64))
            .collect();
        match &config.rope_scaling {
            None => Self { inv_freq, attention_scaling: 1.0 },
            Some(RopeScaling::Yarn(yarn)) => yarn_frequencies(config, yarn, inv_freq),
        }
    }

    /// The angles of tokens at `positions`, one entry a token, on `device`.
    pub(crate) fn at(&self, positions: &[usize], device: &Device) -> Result<Angles> {
        let shape = (positions.len(), self.inv_freq.len());
        let mut cos = Vec::with_capacity(shape.0 * shape.1);
        let mut sin = Vec::with_capacity(shape.0 * shape.1);
        for &position in positions {
            for frequency in &self.inv_freq {
                let (s, c) = libm::sincos(position as f64 * frequency);
                cos.push(to_f32(c * self.attention_scaling));
                sin.push(to_f32(s * self.attention_scaling));
            }
        }
        Ok(Angles {
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }
}

/// YaRN: fast frequencies stay, slow ones are divided by `factor`, with a linear ramp between.
///
/// Source: transformers `modeling_rope_utils.py`, `_compute_yarn_parameters`.
fn yarn_frequencies(
    config: &Qwen3Config,
    yarn: &nv_config::Yarn,
    inv_freq: Vec<f64>,
) -> Qwen3RotaryEmbedding {
    let head_dim = config.head_dim as f64;
    // The (fractional) pair that turns `rotations` times within the original context.
    let pair_of = |rotations: f64| {
        let turns = yarn.original_max_position_embeddings as f64 / (rotations * 2.0 * PI);
        head_dim * libm::log(turns) / (2.0 * libm::log(config.rope_theta))
    };
    let (mut low, mut high) = (pair_of(yarn.beta_fast), pair_of(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(head_dim - 1.0));
    if low.total_cmp(&high).is_eq() {
        high += 0.001;
    }

    let inv_freq = inv_freq
        .into_iter()
        .enumerate()
        .map(|(pair, frequency)| {
            let interpolated = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / yarn.factor * interpolated + frequency * (1.0 - interpolated)
        })
        .collect();
    Qwen3RotaryEmbedding { inv_freq, attention_scaling: yarn.attention_scaling() }
}

#[expect(clippy::cast_possible_truncation, reason = "the one rounding of the tables")]
fn to_f32(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::ops::candle;

    fn config(extra: &str) -> Qwen3Config {
        serde_json::from_str(&format!(
            r#"{{"model_type": "qwen3", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
                "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                "head_dim": 8, "rope_theta": 10000.0, "max_position_embeddings": 64{extra}}}"#
        ))
        .unwrap()
    }

    fn assert_close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6 * expected.abs(), "{got} against {expected}");
        }
    }

    /// Expected values are those of transformers' `Qwen3RotaryEmbedding(config).inv_freq`, float32.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let check = |scaling: &str, inv_freq: [f64; 4], attention_scaling: f64| {
            let extra = match scaling {
                "" => String::new(),
                yarn => format!(r#", "rope_scaling": {{"rope_type": "yarn", {yarn}}}"#),
            };
            let rotary = Qwen3RotaryEmbedding::new(&config(&extra));
            assert_close(&rotary.inv_freq, &inv_freq);
            assert_close(&[rotary.attention_scaling], &[attention_scaling]);
        };
        check("", [1.0, 0.1, 0.01, 0.001], 1.0);
        check(
            r#""factor": 4.0, "original_max_position_embeddings": 16"#,
            [1.0, 0.025, 0.0025, 0.00025],
            1.138_629_436_111_989,
        );
        check(
            r#""factor": 2.0, "original_max_position_embeddings": 4096, "truncate": false"#,
            [1.0, 0.1, 0.007_704_647_257_924_08, 0.0005],
            1.069_314_718_055_994_5,
        );
        check(
            r#""factor": 4.0, "original_max_position_embeddings": 4096,
               "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16.0, "beta_slow": 2.0"#,
            [1.0, 0.1, 0.00625, 0.00025],
            1.064_821_625_369_571_5,
        );
        check(
            r#""factor": 4.0, "original_max_position_embeddings": 4096, "attention_factor": 1.5"#,
            [1.0, 0.1, 0.00625, 0.00025],
            1.5,
        );
    }

    /// SHA-256 of the cosines and sines at many positions, little-endian.
    fn digest(config: &Qwen3Config) -> String {
        let positions: Vec<usize> =
            (0..256).chain((256..=131_072).step_by(997)).chain([40_959, 131_071]).collect();
        let angles = Qwen3RotaryEmbedding::new(config).at(&positions, &Device::Cpu).unwrap();
        let mut digest = Sha256::new();
        for table in [angles.cos, angles.sin] {
            for angle in table.flatten_all().unwrap().to_vec1::<f32>().unwrap() {
                digest.update(angle.to_le_bytes());
            }
        }
        digest.finalize().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    #[test]
    fn angles_are_the_same_bits_on_every_platform() {
        // Of the published models, and with the scaling that their README gives for long contexts.
        let plain = Qwen3Config { head_dim: 128, rope_theta: 1e6, ..config("") };
        let yarn = config(
            r#", "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                "original_max_position_embeddings": 32768}"#,
        );
        let yarn = Qwen3Config { head_dim: 128, rope_theta: 1e6, ..yarn };
        let small = config("");
        for (config, expected) in [
            (plain, "68bd8528514393146c574f4170a942b8b1a36d385dace8f9d973c4fee0743b72"),
            (yarn, "1db5382e765a5b9992403913a9d517a25e7bf033d8c5d82133ac942b8ab66f92"),
            (small, "2ad5d30d950a7836bec412063723674b794eb5dbc2bb7f9044fcdab824529f39"),
        ] {
            assert_eq!(digest(&config), expected, "{config:?}");
        }
    }

    #[test]
    fn the_first_half_of_a_head_turns_against_the_second() {
        let angles = Qwen3RotaryEmbedding::new(&config("")).at(&[3], &Device::Cpu).unwrap();
        let x = Tensor::new(&[[[1f32, 2., 3., 4., 5., 6., 7., 8.]]], &Device::Cpu).unwrap();
        let got = candle::rope(&x, &angles.cos, &angles.sin)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        for (pair, frequency) in [1.0f64, 0.1, 0.01, 0.001].into_iter().enumerate() {
            let (sin, cos) = (3.0 * frequency).sin_cos();
            let (a, b) = (pair as f64 + 1.0, pair as f64 + 5.0);
            assert!((f64::from(got[pair]) - (a * cos - b * sin)).abs() < 1e-6);
            assert!((f64::from(got[pair + 4]) - (b * cos + a * sin)).abs() < 1e-6);
        }
    }
}
