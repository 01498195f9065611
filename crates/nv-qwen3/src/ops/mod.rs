//! The arithmetic of the graph: nv-kernels on the CPU, plain candle ops on every other device.
//!
//! Activations are float32 from end to end; only a linear layer's operands and the KV cache are rounded to the
//! model's dtype. Knows shapes, nothing of layers, names or sequences.

pub(crate) mod candle;
mod cpu;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use nv_kernels::{Pool, Precision};

use crate::error::Result;
use crate::weight::Weight;

pub use candle::causal_attention;
pub use cpu::Cpu;

/// Where and how a model computes. Clones are cheap.
#[derive(Debug, Clone)]
pub(crate) enum Ops {
    /// The kernels; the precision says how a linear layer takes its input.
    Kernels(Cpu, Precision),
    /// Plain candle ops on the device.
    Candle(Device),
}

/// Cosines and sines of one batch of tokens: `[num_tokens, head_dim / 2]`, f32.
#[derive(Debug)]
pub(crate) struct Angles {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

impl Ops {
    /// The device of every tensor that the ops take and return.
    pub(crate) fn device(&self) -> &Device {
        match self {
            Self::Kernels(..) => &Device::Cpu,
            Self::Candle(device) => device,
        }
    }

    /// Whether matrices are bytes for kernels; else they are tensors on the device.
    pub(crate) fn takes_bytes(&self) -> bool {
        matches!(self, Self::Kernels(..))
    }

    /// The threads that prepare weights.
    pub(crate) fn pool(&self) -> Result<Arc<Pool>> {
        Ok(match self {
            Self::Kernels(cpu, _) => cpu.shared_pool(),
            Self::Candle(_) => Arc::new(Pool::new(Pool::default_threads())?),
        })
    }

    /// The same, with kernels whose bits are those of every machine.
    pub(crate) fn portable(self) -> Self {
        match self {
            Self::Kernels(cpu, precision) => Self::Kernels(cpu.portable(), precision),
            candle @ Self::Candle(_) => candle,
        }
    }

    /// The rows of `table` that `ids` name, in float32.
    ///
    /// Shapes: `table` `[vocab_size, hidden_size]`; returns `[ids.len(), hidden_size]`.
    pub(crate) fn embed(&self, table: &Weight, ids: &[u32]) -> Result<Tensor> {
        match self {
            Self::Kernels(cpu, _) => cpu.embed(table, ids),
            Self::Candle(device) => {
                let ids = Tensor::new(ids, device)?;
                Ok(table.tensor(device)?.index_select(&ids, 0)?.to_dtype(DType::F32)?)
            }
        }
    }

    /// `x @ weightᵀ` for weights that share their input, in one parallel region.
    ///
    /// Shapes: `x` `[num_tokens, in_features]`, a weight `[out_features, in_features]` as PyTorch stores it; returns
    /// `[num_tokens, out_features]` each. Dtypes: `x` f32, in BF16 rounded once to bfloat16; products summed in f32.
    pub(crate) fn linear<const N: usize>(
        &self,
        x: &Tensor,
        weights: [&Weight; N],
    ) -> Result<[Tensor; N]> {
        let products: Vec<Tensor> = match self {
            Self::Kernels(cpu, precision) => cpu.linear(x, *precision, &weights)?,
            Self::Candle(device) => weights
                .into_iter()
                .map(|weight| Ok(candle::linear(x, &*weight.tensor(device)?)?))
                .collect::<Result<_>>()?,
        };
        Ok(products.try_into().unwrap_or_else(|_| unreachable!("a product for each weight")))
    }

    /// `silu(x @ gateᵀ) * (x @ upᵀ)`, in one parallel region. Shapes and dtypes as for [`Self::linear`].
    pub(crate) fn swiglu(&self, x: &Tensor, gate: &Weight, up: &Weight) -> Result<Tensor> {
        match self {
            Self::Kernels(cpu, precision) => cpu.swiglu(x, *precision, gate, up),
            Self::Candle(device) => {
                Ok(candle::swiglu(x, &*gate.tensor(device)?, &*up.tensor(device)?)?)
            }
        }
    }

    /// `x + y`: the residual connection. Shapes: any, the same. Dtypes: f32.
    pub(crate) fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        match self {
            Self::Kernels(cpu, _) => cpu.add(x, y),
            Self::Candle(_) => Ok((x + y)?),
        }
    }

    /// RMS norm over the last axis: `weight * x / sqrt(mean(x²) + eps)`.
    ///
    /// Shapes: `x` `[.., size]`, `weight` `[size]`; returns `x`'s shape. Dtypes: f32 throughout.
    /// Source: transformers `modeling_qwen3.py`, `Qwen3RMSNorm`.
    pub(crate) fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        match self {
            Self::Kernels(cpu, _) => cpu.rms_norm(x, weight, eps),
            Self::Candle(_) => Ok(candle::rms_norm(x, weight, eps)?),
        }
    }

    /// RMS norm of each head, which is then rotated by its token's position, its first half against its second.
    ///
    /// Shapes: `x` `[num_tokens, num_heads, head_dim]`, `weight` `[head_dim]`; returns `x`'s shape. Dtypes: f32.
    /// Source: transformers `modeling_qwen3.py`, `Qwen3Attention.forward`, `apply_rotary_pos_emb`.
    pub(crate) fn norm_and_rotate(
        &self,
        x: &Tensor,
        weight: &Tensor,
        eps: f64,
        angles: &Angles,
    ) -> Result<Tensor> {
        match self {
            Self::Kernels(cpu, _) => cpu.norm_and_rotate(x, weight, eps, angles),
            Self::Candle(_) => {
                let normed = candle::rms_norm(x, weight, eps)?;
                Ok(candle::rope(&normed, &angles.cos, &angles.sin)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nv_testing::values;

    use super::*;

    fn tensor(shape: &[usize], seed: u64) -> Tensor {
        let values = values(shape.iter().product(), seed);
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// `tolerance` is relative to the largest value.
    fn assert_close(a: &Tensor, b: &Tensor, tolerance: f32) {
        assert_eq!((a.dims(), a.dtype()), (b.dims(), DType::F32));
        let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let difference = largest(&(a - b).unwrap());
        assert!(difference <= tolerance * largest(b), "differs by {difference}");
    }

    /// Kernels and candle ops, which on the CPU can both run.
    fn both(precision: Precision) -> [Ops; 2] {
        [Ops::Kernels(Cpu::new(2).unwrap(), precision), Ops::Candle(Device::Cpu)]
    }

    #[test]
    fn kernels_and_candle_ops_agree() {
        for (precision, dtype, tolerance) in
            [(Precision::F32, DType::F32, 1e-5), (Precision::Bf16, DType::BF16, 0.01)]
        {
            let [kernels, candle] = both(precision);
            let x = tensor(&[5, 48], 1);
            let weight = |rows: usize, seed| {
                Weight::Tensor(tensor(&[rows, 48], seed).to_dtype(dtype).unwrap())
            };
            let (a, b, c) = (weight(7, 2), weight(20, 3), weight(20, 4));

            let got = kernels.linear(&x, [&a, &b]).unwrap();
            for (got, want) in got.iter().zip(candle.linear(&x, [&a, &b]).unwrap()) {
                assert_close(got, &want, tolerance);
            }
            let want = candle.swiglu(&x, &b, &c).unwrap();
            assert_close(&kernels.swiglu(&x, &b, &c).unwrap(), &want, tolerance);
            let want = candle.embed(&a, &[6, 0, 6]).unwrap();
            assert_close(&kernels.embed(&a, &[6, 0, 6]).unwrap(), &want, 0.0);
        }
    }

    #[test]
    fn norms_and_rotation_agree() {
        let [kernels, candle] = both(Precision::F32);
        let (x, weight) = (tensor(&[5, 3, 16], 1), tensor(&[16], 2));
        let want = candle.rms_norm(&x, &weight, 1e-6).unwrap();
        assert_close(&kernels.rms_norm(&x, &weight, 1e-6).unwrap(), &want, 1e-5);
        let angles = Angles { cos: tensor(&[5, 8], 3), sin: tensor(&[5, 8], 4) };
        let want = candle.norm_and_rotate(&x, &weight, 1e-6, &angles).unwrap();
        assert_close(&kernels.norm_and_rotate(&x, &weight, 1e-6, &angles).unwrap(), &want, 1e-5);
    }
}
