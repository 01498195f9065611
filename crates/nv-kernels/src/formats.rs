//! What the bytes of a weight matrix mean: a closed set, each format in a file of its own.

mod bf16;
mod f32;
#[cfg(test)]
mod scaled_bf16;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// bfloat16, row by row.
    Bf16,
    /// IEEE 754 binary32, row by row.
    F32,
    /// Shows what it takes to add a format.
    #[cfg(test)]
    ScaledBf16,
}

/// A format: where its rows are and what they mean. Tiers may have kernels for it; the scalar tier's follow from this.
pub(crate) trait WeightFormat: Sync + 'static {
    /// What the first byte's address is a multiple of.
    const ALIGNMENT: usize;

    /// Whether inputs may be rounded to bfloat16 for it.
    const TAKES_BF16_INPUTS: bool;

    /// Bytes of a row.
    fn row_bytes(in_features: usize) -> usize;

    /// The values of a row in the order of K; `data` are all rows.
    fn values(data: &[u8], in_features: usize, row: usize) -> impl Iterator<Item = f32>;
}

/// Something that differs from format to format.
pub(crate) trait FormatVisitor {
    type Output;

    fn visit<F: WeightFormat>(self) -> Self::Output;
}

impl Format {
    /// What `visitor` has for the format. This is where formats are listed.
    pub(crate) fn visit<V: FormatVisitor>(self, visitor: V) -> V::Output {
        match self {
            Self::Bf16 => visitor.visit::<bf16::Bf16>(),
            Self::F32 => visitor.visit::<f32::F32>(),
            #[cfg(test)]
            Self::ScaledBf16 => visitor.visit::<scaled_bf16::ScaledBf16>(),
        }
    }
}
