//! What `$ref` refers to: JSON Pointers, anchors and identifiers within one schema.

use std::ptr;

use serde_json::{Map, Value};

/// Keywords whose values are no schemas, whatever is in them.
const DATA: [&str; 4] = ["const", "default", "enum", "examples"];

/// A schema with the resources in it: itself, and those of its parts that have an identifier of their own.
#[derive(Debug)]
pub(super) struct References<'a> {
    resources: Vec<Resource<'a>>,
    anchors: Vec<Anchor<'a>>,
}

#[derive(Debug)]
struct Resource<'a> {
    /// Without a fragment; empty if it has none.
    uri: String,
    root: &'a Value,
}

#[derive(Debug)]
struct Anchor<'a> {
    resource: ResourceIndex,
    name: &'a str,
    schema: &'a Value,
}

/// The resource that a part of a schema belongs to, which its references are relative to.
pub(super) type ResourceIndex = usize;

impl<'a> References<'a> {
    pub(super) fn of(root: &'a Value) -> Self {
        let resources = vec![Resource { uri: String::new(), root }];
        let mut references = Self { resources, anchors: Vec::new() };
        let mut rest = vec![(root, 0)];
        while let Some((value, mut resource)) = rest.pop() {
            match value {
                Value::Array(items) => rest.extend(items.iter().map(|item| (item, resource))),
                Value::Object(fields) => {
                    if let Some(id) = identifier(fields) {
                        let uri = joined(&references.resources[resource].uri, id);
                        if ptr::eq(value, root) {
                            references.resources[0].uri = uri;
                        } else {
                            resource = references.resources.len();
                            references.resources.push(Resource { uri, root: value });
                        }
                    }
                    for keyword in ["$anchor", "$dynamicAnchor"] {
                        if let Some(Value::String(name)) = fields.get(keyword) {
                            references.anchors.push(Anchor { resource, name, schema: value });
                        }
                    }
                    let schemas = fields.iter().filter(|(key, _)| !DATA.contains(&&***key));
                    rest.extend(schemas.map(|(_, value)| (value, resource)));
                }
                _ => {}
            }
        }
        references
    }

    /// The resource that `schema` begins, or else the one that it is a part of.
    pub(super) fn resource_of(&self, schema: &Value, outer: ResourceIndex) -> ResourceIndex {
        let found = self.resources.iter().position(|resource| ptr::eq(resource.root, schema));
        found.unwrap_or(outer)
    }

    /// What a reference in a part of `resource` refers to, and the resource of that; `None` if it isn't here.
    pub(super) fn find(
        &self,
        reference: &str,
        resource: ResourceIndex,
    ) -> Option<(&'a Value, ResourceIndex)> {
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let resource = if uri.is_empty() {
            resource
        } else {
            let uri = joined(&self.resources[resource].uri, uri);
            self.resources.iter().position(|resource| resource.uri == uri)?
        };
        let fragment = percent_decoded(fragment);
        if !fragment.is_empty() && !fragment.starts_with('/') {
            let anchor = |it: &&Anchor<'_>| it.resource == resource && it.name == fragment;
            return Some((self.anchors.iter().find(anchor)?.schema, resource));
        }
        let root = self.resources[resource].root;
        // What is meant by `#/` is seldom the field without a name.
        if fragment == "/" && root.get("").is_none() {
            return Some((root, resource));
        }
        let target = root.pointer(&fragment)?;
        let mut within = resource;
        for (end, _) in fragment.match_indices('/').skip(1) {
            within = self.resource_of(root.pointer(&fragment[..end])?, within);
        }
        Some((target, within))
    }
}

/// A schema's identifier that makes it a resource of its own.
fn identifier(schema: &Map<String, Value>) -> Option<&str> {
    let id = schema.get("$id")?.as_str()?;
    let id = id.strip_suffix('#').unwrap_or(id);
    (!id.is_empty() && !id.contains('#')).then_some(id)
}

/// A URI, which may be relative to another one.
fn joined(base: &str, uri: &str) -> String {
    let scheme = |uri: &str| {
        let (scheme, _) = uri.split_once(':')?;
        let is_scheme = scheme.starts_with(|char: char| char.is_ascii_alphabetic())
            && scheme.chars().all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char));
        is_scheme.then(|| scheme.len() + ":".len())
    };
    if scheme(uri).is_some() {
        return uri.to_owned();
    }
    let start = scheme(base).unwrap_or(0);
    let authority = match base[start..].strip_prefix("//") {
        Some(rest) => start + "//".len() + rest.find('/').unwrap_or(rest.len()),
        None => start,
    };
    let end = if uri.starts_with("//") {
        start
    } else if uri.starts_with('/') {
        authority
    } else {
        base.rfind('/').map_or(start, |slash| slash + 1).max(authority)
    };
    let slash = if end == base.len() && end > start && end == authority && !uri.starts_with('/') {
        "/"
    } else {
        ""
    };
    let mut path = format!("{}{slash}{uri}", &base[..end]);
    // As far as relative references go.
    while let Some(index) = path.find("/./") {
        path.replace_range(index..index + 2, "");
    }
    while let Some(index) = path.find("/../") {
        let start = path[..index].rfind('/').unwrap_or(index);
        path.replace_range(start..index + "/..".len(), "");
    }
    path
}

/// The text of a URI's part; what is no escape stays.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| byte == b'%').and_then(|digits| {
            let digits = str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
        });
        bytes.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_lead_to_parts_of_the_schema() {
        let schema = json!({
            "$id": "https://example.com/schemas/customer",
            "properties": {"a/b": 1, "c~d": 2, "e f": 3, "%25": 4, "é": 5, "g%h": {"$anchor": "g"}},
            "items": [6, {"$dynamicAnchor": "seven"}],
            "$defs": {
                "address": {"$id": "address", "$defs": {"city": 8}, "$anchor": "here"},
                "other": {"$id": "/other/", "not": {"$id": "deep.json", "$anchor": "here"}},
            },
            "enum": [{"$id": "https://example.com/data", "$anchor": "data"}],
        });
        let references = References::of(&schema);
        let check = |reference: &str, expected: Option<&str>| {
            let found = references.find(reference, 0).map(|(schema, _)| schema);
            assert_eq!(found, expected.map(|path| schema.pointer(path).unwrap()), "{reference}");
        };
        check("#", Some(""));
        check("", Some(""));
        check("#/", Some(""));
        check("customer", Some(""));
        check("https://example.com/schemas/customer#", Some(""));
        check("#/properties/a~1b", Some("/properties/a~1b"));
        check("#/properties/c~0d", Some("/properties/c~0d"));
        check("#/properties/c%7E0d", Some("/properties/c~0d"));
        check("#/properties/e%20f", Some("/properties/e f"));
        check("#/properties/%2525", Some("/properties/%25"));
        check("#/properties/%C3%A9", Some("/properties/é"));
        check("#/properties/g%h", Some("/properties/g%h"));
        check("#/items/0", Some("/items/0"));
        check("#g", Some("/properties/g%h"));
        check("#seven", Some("/items/1"));
        check("/schemas/address", Some("/$defs/address"));
        check("address#/$defs/city", Some("/$defs/address/$defs/city"));
        check("#/$defs/address/$defs/city", Some("/$defs/address/$defs/city"));
        check("address#here", Some("/$defs/address"));
        check("../other/deep.json#here", Some("/$defs/other/not"));
        check("https://example.com/other/", Some("/$defs/other"));
        for reference in ["#here", "#data", "#/properties/none", "#/items/9", "other", "data"] {
            check(reference, None);
        }
        // Within another resource, its own root counts.
        let (address, resource) = references.find("address", 0).unwrap();
        assert_eq!(references.resource_of(address, 0), resource);
        let (city, within) = references.find("#/$defs/city", resource).unwrap();
        assert_eq!((city, within), (&json!(8), resource));
        let (_, within) = references.find("#/$defs/address/$defs/city", 0).unwrap();
        assert_eq!(within, resource);
    }
}
