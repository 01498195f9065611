//! Plain candle ops: the graph's arithmetic on every device that candle drives.

use candle_core::{DType, Result, Tensor};

use crate::error::{self, Error};

/// See [`super::Ops::linear`]. The product is rounded to the weight's dtype, as candle's matmul returns it.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(DType::F32)
}

/// See [`super::Ops::swiglu`].
pub(crate) fn swiglu(x: &Tensor, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    linear(x, gate)?.silu()? * linear(x, up)?
}

/// See [`super::Ops::rms_norm`].
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "candle takes eps in f32, as the sum it joins"
    )]
    candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps as f32)
}

/// See [`super::Ops::norm_and_rotate`].
///
/// Shapes: `x` `[num_tokens, num_heads, head_dim]`, `cos` and `sin` `[num_tokens, head_dim / 2]`; returns `x`'s shape.
pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?, cos, sin)?.squeeze(0)
}

/// Query rows that share one score matrix; bounds the scores' memory for a long prompt.
const QUERY_TILE: usize = 256;

/// Causal attention of new queries over all keys so far, query heads grouped by their KV head.
///
/// Shapes: `q` `[batch, seq_len, num_heads, head_dim]`; `k` and `v`
/// `[batch, num_kv_heads, kv_len, head_dim]`, whose last `seq_len` rows belong to the queries' own tokens;
/// returns `[batch, seq_len, num_heads, head_dim]`.
/// Dtypes: `q` f32, `k` and `v` of any float dtype; scores, softmax and sums in f32.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit, [`Error::Candle`] if a tensor operation fails.
pub fn causal_attention(q: &Tensor, k: &Tensor, v: &Tensor) -> error::Result<Tensor> {
    let (batch, seq_len, num_heads, head_dim) = q.dims4()?;
    let (_, num_kv_heads, kv_len, _) = k.dims4()?;
    let (num_kv_heads, kv_len) = (num_kv_heads.max(1), kv_len.max(seq_len));
    let groups = (num_heads / num_kv_heads).max(1);
    Error::check_shape("q", q, &[batch, seq_len.max(1), num_kv_heads * groups, head_dim])?;
    Error::check_shape("k", k, &[batch, num_kv_heads, kv_len, head_dim])?;
    Error::check_shape("v", v, &[batch, num_kv_heads, kv_len, head_dim])?;
    let start_pos = kv_len - seq_len;

    let q = (q * (head_dim as f64).powf(-0.5))?
        .reshape((batch, seq_len, num_kv_heads, groups, head_dim))?
        .transpose(1, 2)?; // [batch, num_kv_heads, seq_len, groups, head_dim]
    let k_t = k.to_dtype(DType::F32)?.contiguous()?.t()?; // [batch, num_kv_heads, head_dim, kv_len]
    let v = v.to_dtype(DType::F32)?.contiguous()?;

    let mut tiles = Vec::with_capacity(seq_len.div_ceil(QUERY_TILE));
    for first in (0..seq_len).step_by(QUERY_TILE) {
        let rows = QUERY_TILE.min(seq_len - first);
        let visible = start_pos + first + rows;
        let q =
            q.narrow(2, first, rows)?.reshape((batch, num_kv_heads, rows * groups, head_dim))?;
        let scores = q
            .matmul(&k_t.narrow(3, 0, visible)?.contiguous()?)?
            .reshape((batch, num_kv_heads, rows, groups, visible))?
            .broadcast_add(&causal_mask(rows, visible, q.device())?)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.reshape((
            batch,
            num_kv_heads,
            rows * groups,
            visible,
        ))?;
        tiles.push(weights.matmul(&v.narrow(2, 0, visible)?.contiguous()?)?.reshape((
            batch,
            num_kv_heads,
            rows,
            groups,
            head_dim,
        ))?);
    }
    Ok(Tensor::cat(&tiles, 2)? // [batch, num_kv_heads, seq_len, groups, head_dim]
        .transpose(1, 2)?
        .reshape((batch, seq_len, num_heads, head_dim))?)
}

/// `[rows, 1, visible]`: 0 where the row's token may look, -∞ behind its own position. The last row sees all.
fn causal_mask(rows: usize, visible: usize, device: &candle_core::Device) -> Result<Tensor> {
    let first = visible - rows;
    let mask: Vec<f32> = (0..rows)
        .flat_map(|row| {
            (0..visible).map(move |key| if key <= first + row { 0.0 } else { f32::NEG_INFINITY })
        })
        .collect();
    Tensor::from_vec(mask, (rows, 1, visible), device)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn ramp(shape: &[usize], scale: f32) -> Tensor {
        let len = shape.iter().product::<usize>();
        let values: Vec<f32> =
            (0..len).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * scale).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// The definition, one query head and one token at a time, in f64.
    fn attention_by_definition(q: &Tensor, k: &Tensor, v: &Tensor) -> Vec<f64> {
        let (batch, seq_len, num_heads, head_dim) = q.dims4().unwrap();
        let (_, num_kv_heads, kv_len, _) = k.dims4().unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (q, k, v) = (flat(q), flat(k), flat(v));
        let mut out = Vec::new();
        for b in 0..batch {
            for t in 0..seq_len {
                for h in 0..num_heads {
                    let kv_head = h / (num_heads / num_kv_heads);
                    let q_at = ((b * seq_len + t) * num_heads + h) * head_dim;
                    let kv_at =
                        |key: usize| ((b * num_kv_heads + kv_head) * kv_len + key) * head_dim;
                    let visible = kv_len - seq_len + t + 1;
                    let scores: Vec<f64> = (0..visible)
                        .map(|key| {
                            (0..head_dim)
                                .map(|d| f64::from(q[q_at + d]) * f64::from(k[kv_at(key) + d]))
                                .sum::<f64>()
                                / (head_dim as f64).sqrt()
                        })
                        .map(f64::exp)
                        .collect();
                    let total: f64 = scores.iter().sum();
                    out.extend((0..head_dim).map(|d| {
                        (0..visible)
                            .map(|key| scores[key] / total * f64::from(v[kv_at(key) + d]))
                            .sum::<f64>()
                    }));
                }
            }
        }
        out
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let check = |q: [usize; 4], k: [usize; 4], v: [usize; 4], expected: &str| {
            let [q, k, v] = [q, k, v].map(|shape| ramp(&shape, 1.0));
            assert_eq!(causal_attention(&q, &k, &v).unwrap_err().to_string(), expected);
        };
        let (q, kv) = ([1, 3, 4, 8], [1, 2, 5, 8]);
        // Fewer keys than queries.
        let short = [1, 2, 2, 8];
        check(q, short, short, "k: expected shape [1, 2, 3, 8], found [1, 2, 2, 8]");
        check(q, kv, short, "v: expected shape [1, 2, 5, 8], found [1, 2, 2, 8]");
        let three = [1, 3, 5, 8];
        check(q, three, three, "q: expected shape [1, 3, 3, 8], found [1, 3, 4, 8]");
        let none = [1, 0, 5, 8];
        check(q, none, none, "k: expected shape [1, 1, 5, 8], found [1, 0, 5, 8]");
        let other = [2, 2, 5, 8];
        check(q, other, kv, "k: expected shape [1, 2, 5, 8], found [2, 2, 5, 8]");
        check([1, 0, 4, 8], kv, kv, "q: expected shape [1, 1, 4, 8], found [1, 0, 4, 8]");
    }

    #[test]
    fn attention_follows_its_definition_across_tiles_groups_and_history() {
        for (batch, seq_len, start_pos, num_heads, num_kv_heads, head_dim) in [
            (1, 1, 0, 1, 1, 4),
            (1, 1, 9, 4, 2, 4),
            (2, 5, 3, 6, 2, 8),
            (1, QUERY_TILE + 3, 2, 2, 1, 2),
        ] {
            let kv_len = start_pos + seq_len;
            let q = ramp(&[batch, seq_len, num_heads, head_dim], 3.0);
            let k = ramp(&[batch, num_kv_heads, kv_len, head_dim], 1.0);
            let v = ramp(&[batch, num_kv_heads, kv_len, head_dim], 0.5);
            let got = causal_attention(&q, &k, &v).unwrap();
            assert_eq!(got.dims(), [batch, seq_len, num_heads, head_dim]);
            let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (got, want) in got.iter().zip(attention_by_definition(&q, &k, &v)) {
                assert!((f64::from(*got) - want).abs() < 1e-5, "{got} against {want}");
            }
        }
    }
}
