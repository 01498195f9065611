//! How a model is quantised: which of its matrices become which format.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use nv_config::PackedConfig;
use nv_kernels::Format;

use crate::error::{Error, Result};
use crate::spec::{Projection, Role, TensorSpec};

/// How a model is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preset {
    /// All matrices in 8 bits.
    Q8,
    /// Matrices in 4 bits, but those in 8 bits that lose most by it for their size: the embedding and the head, values, and the way
    /// back from the feed-forward network.
    Q4,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 2] = [Self::Q8, Self::Q4];

    /// `q8`, `q4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// The format of a tensor of this role; `None` if it stays as it is.
    pub fn format(self, role: Role) -> Option<Format> {
        match role {
            Role::Bias | Role::Norm => None,
            Role::Projection(Projection::V | Projection::Down) | Role::Embedding | Role::Head => {
                Some(Format::Q8)
            }
            Role::Projection(_) => Some(match self {
                Self::Q8 => Format::Q8,
                Self::Q4 => Format::Q4,
            }),
        }
    }

    /// What the `config.json` of a checkpoint of `tensors` says that is stored so.
    pub(crate) fn packed_config(self, tensors: &[TensorSpec]) -> PackedConfig {
        let mut formats = BTreeMap::new();
        for spec in tensors {
            if let Some(format) = self.format(spec.role) {
                formats.insert(spec.module().to_owned(), format.name().to_owned());
            }
        }
        PackedConfig { formats }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|preset| preset.name() == name)
            .ok_or_else(|| Error::UnknownPreset { name: name.into() })
    }
}
