//! JSON objects as they are written: a name may come twice, which a map would hide.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::error::{Error, Result};

/// A value that an object of untrusted JSON has by name.
pub(crate) trait Entry<'de>: Sized {
    /// What the object is, for errors.
    const EXPECTED: &'static str;

    /// Takes the value of `name`, which comes next in `map`.
    fn take<A: MapAccess<'de>>(name: &str, map: &mut A) -> Result<Self, A::Error>;
}

/// The entries of an object, in the order in which they are written.
pub(crate) struct Entries<T>(Vec<(String, T)>);

impl<T> Entries<T> {
    /// The entries by name; `path` is their file, for errors.
    ///
    /// # Errors
    /// [`Error::DuplicateName`] if a name comes twice.
    pub(crate) fn into_map(self, path: &Path) -> Result<BTreeMap<String, T>> {
        let mut map = BTreeMap::new();
        for (name, value) in self.0 {
            if map.contains_key(&name) {
                return Err(Error::DuplicateName { path: path.into(), name });
            }
            map.insert(name, value);
        }
        Ok(map)
    }
}

impl<'de, T: Entry<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor<T>(PhantomData<T>);

        impl<'de, T: Entry<'de>> Visitor<'de> for EntriesVisitor<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let value = T::take(&name, &mut map)?;
                    entries.push((name, value));
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}
