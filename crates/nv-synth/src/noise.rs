//! Random numbers that are the same on every platform.
//!
//! A value comes from integers, one f32 multiplication, one addition and one rounding to bf16, each of which IEEE 754
//! defines to the bit.

use half::bf16;
use nv_qwen3::{Role, TensorSpec};
use sha2::{Digest, Sha256};

/// The values of one tensor: about normal, each a function of its index.
pub(crate) struct Noise {
    key: u64,
    mean: f32,
    /// The standard deviation over that of `value`'s integer.
    scale: f32,
}

impl Noise {
    pub(crate) fn new(seed: u64, spec: &TensorSpec) -> Self {
        let digest =
            Sha256::new().chain_update(seed.to_le_bytes()).chain_update(&spec.name).finalize();
        let (mean, std) = match spec.role {
            // Unit input gives unit output; so does the head, which may be the embedding, transposed.
            role if role.is_matrix() => (0.0, 1.0 / (spec.shape[1] as f32).sqrt()),
            Role::Norm => (1.0, 0.25),
            _ => (0.0, 0.25), // a bias
        };
        // Four uniform 16-bit integers have the variance 4 * (2^32 - 1) / 12.
        let key = u64::from_le_bytes(*digest.first_chunk().expect("a SHA-256 digest has 32 bytes"));
        Self { key, mean, scale: std / (4.0 * 4_294_967_295.0 / 12.0_f32).sqrt() }
    }

    pub(crate) fn value(&self, index: u64) -> bf16 {
        // SplitMix64, whose state is a counter.
        let mut bits = self.key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let sum: i32 = bits
            .to_le_bytes()
            .as_chunks()
            .0
            .iter()
            .map(|&b| i32::from(u16::from_le_bytes(b)))
            .sum();
        // An f32 holds the centred sum exactly.
        bf16::from_f32(self.mean + (sum - 2 * 65_535) as f32 * self.scale)
    }
}

#[cfg(test)]
mod tests {
    use nv_qwen3::Projection;

    use super::*;

    fn spec(name: &str, role: Role, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), role, shape: shape.into() }
    }

    #[test]
    fn seeds_and_names_give_values_of_their_own() {
        let values = |seed, name| {
            let noise = Noise::new(seed, &spec(name, Role::Head, &[4, 4]));
            (0..16).map(|index| noise.value(index).to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(values(1, "a"), values(1, "a"));
        assert_ne!(values(1, "a"), values(2, "a"));
        assert_ne!(values(1, "a"), values(1, "b"));
    }

    #[test]
    fn values_have_the_stated_mean_and_deviation() {
        let check = |name: &str, role, shape: &[usize], mean: f64, std: f64| {
            let noise = Noise::new(3, &spec(name, role, shape));
            let values: Vec<f64> = (0..100_000).map(|index| noise.value(index).to_f64()).collect();
            let found_mean = values.iter().sum::<f64>() / 1e5;
            let found_std =
                (values.iter().map(|x| (x - found_mean).powi(2)).sum::<f64>() / 1e5).sqrt();
            assert!((found_mean - mean).abs() < 0.02 * std, "{name}: mean {found_mean}");
            assert!((found_std / std - 1.0).abs() < 0.02, "{name}: deviation {found_std}");
        };
        check("q_proj.weight", Role::Projection(Projection::Q), &[512, 64], 0.0, 0.125);
        check("q_proj.bias", Role::Bias, &[512], 0.0, 0.25);
        check("model.norm.weight", Role::Norm, &[512], 1.0, 0.25);
    }
}
