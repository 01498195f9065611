//! A format of the tests alone, which shows what it takes to add one: a row is an f32 scale, then bfloat16.

use half::bf16;

use super::{Unencodable, WeightFormat};

pub(super) struct ScaledBf16;

impl WeightFormat for ScaledBf16 {
    const NAME: &'static str = "scaled_bf16";
    const ALIGNMENT: usize = 1;
    const TAKES_BF16_INPUTS: bool = true;

    fn row_bytes(in_features: usize) -> Option<usize> {
        in_features.checked_mul(size_of::<bf16>())?.checked_add(size_of::<f32>())
    }

    fn values(data: &[u8], in_features: usize, row: usize) -> impl Iterator<Item = f32> {
        let row_bytes = Self::row_bytes(in_features).expect("of what is there");
        let (scale, values) =
            data[row * row_bytes..][..row_bytes].split_first_chunk().expect("a row has a scale");
        let scale = f32::from_le_bytes(*scale);
        values.as_chunks().0.iter().map(move |value| scale * bf16::from_le_bytes(*value).to_f32())
    }

    fn encode(rows: &[f32], in_features: usize, out: &mut [u8]) -> Result<(), Unencodable> {
        let row_bytes = Self::row_bytes(in_features).expect("of what is there");
        for (row, out) in rows.chunks(in_features).zip(out.chunks_mut(row_bytes)) {
            let values = row.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes());
            out.iter_mut()
                .zip(1f32.to_le_bytes().into_iter().chain(values))
                .for_each(|(o, b)| *o = b);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Format;
    use crate::isa::Isa;
    use crate::linear::kernel::Precision;
    use crate::linear::{Linear, Scratch};
    use crate::matrix::Matrix;
    use crate::pool::Pool;
    use crate::table::Kernels;

    /// Rows of three, of which the second is twice the first, and the third is scaled to nothing.
    fn rows() -> Vec<u8> {
        let row = |scale: f32| {
            let values = [1.0f32, -2.0, 0.5].map(|value| bf16::from_f32(value).to_le_bytes());
            [&scale.to_le_bytes()[..], values.as_flattened()].concat()
        };
        [row(1.5), row(3.0), row(0.0)].concat()
    }

    #[test]
    fn a_format_without_kernels_of_its_own_runs_in_every_tier() {
        let bytes = rows();
        let weight = Matrix::new(Format::ScaledBf16, &bytes, 3);
        assert_eq!((weight.out_features(), weight.row_bytes()), (3, 10));
        let pool = Pool::new(1).unwrap();
        // The first is rounded to bfloat16, or not.
        let x = [1.0 + 1.0 / 1024.0, 1.0, 2.0, 0.0, 1.0, 0.0];
        for kernels in Isa::ALL.into_iter().filter_map(Kernels::for_isa) {
            for (precision, first) in [(Precision::Bf16, 1.0), (Precision::F32, x[0])] {
                let mut out = Vec::new();
                let mut outputs = [Linear { weight, out: &mut out }];
                kernels.linear(&pool, &x, precision, &mut Scratch::default(), &mut outputs);
                let sum = first - 2.0 + 1.0;
                assert_eq!(out, [1.5 * sum, 3.0 * sum, 0.0, -3.0, -6.0, 0.0], "{kernels:?}");
            }
            let mut embedded = Vec::new();
            kernels.embed(&pool, weight, &[1, 0], &mut embedded);
            assert_eq!(embedded, [3.0, -6.0, 1.5, 1.5, -3.0, 0.75]);
        }
    }
}
