//! JSON schemas as llguidance takes them.
//!
//! A schema is written anew, with what llguidance holds a text to and nothing else: annotations are left out, references
//! become plain ones, keywords that decide nothing go, and those that can't be held are refused by name. Numbers that
//! llguidance would round become [`Placeholders`].

use std::collections::HashMap;
use std::ptr;

use llguidance::derivre::{RegexAst, RegexBuilder};
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};

use super::keywords::{
    FORMATS, HELD, LONGEST, NOT_HELD, TYPES, count, expected_instead, has_no_effect, is_same,
    is_true,
};
use super::number::{self, Bounds, Decimal, is_big};
use super::placeholders::{MARK, Placeholders};
use super::references::{References, ResourceIndex};
use super::schema_checks::{
    APPLICATORS, ESCAPES, check_cycles, check_intersections, exclude_each_other, is_open,
    needs_controls,
};
use crate::big_integer::big_integer;
use crate::error::{Error, Result};

/// Whitespace between the parts of a JSON text: a space, or a line end and what the next line is indented by. JSON has no
/// bound; a model that has nothing to say would never come to an end of it.
const WHITESPACE: &str = r" |\r?\n[ \t]{0,32}";

/// Parts of a schema at most, counted as often as they are written out.
const MAX_NUM_PARTS: usize = 50_000;

/// Parts of a schema within each other.
const MAX_DEPTH: usize = 256;

/// `schema` as llguidance takes it.
pub(super) fn prepared(schema: &Value, placeholders: &mut Placeholders) -> Result<Value> {
    let mut writer = Writer {
        references: References::of(schema),
        definitions: Vec::new(),
        by_target: HashMap::new(),
        inlined: Vec::new(),
        numbers: Map::new(),
        placeholders,
        path: vec!["#".to_owned()],
        num_parts: 0,
    };
    let root = writer.schema(schema, 0)?;
    let mut definitions = Map::new();
    while let Some((target, resource, reference)) = writer.definitions.get(definitions.len()) {
        let (target, resource) = (*target, *resource);
        writer.path = vec![reference.clone()];
        let definition = writer.schema(target, resource)?;
        definitions.insert(definitions.len().to_string(), definition);
    }
    check_cycles(&definitions)?;
    let numbers = writer.numbers;
    if !numbers.is_empty() {
        check_intersections(&root, &definitions)?;
        if schema.to_string().contains(MARK) {
            let reason = format!("expected no {MARK:?} in a schema with integers beyond 2^53");
            return Err(Error::grammar(reason));
        }
    }
    let mut options = json!({"whitespace_pattern": WHITESPACE});
    let all = || [&root].into_iter().chain(definitions.values());
    if all().any(is_open) {
        if all().any(needs_controls) {
            let reason = "`additionalProperties`: expected false in a schema whose strings have control characters";
            return Err(Error::grammar(reason));
        }
        options["json_allowed_escapes"] = ESCAPES.into();
    }
    let mut root = match root {
        Value::Object(fields) => fields,
        any => [("allOf".to_owned(), json!([any]))].into_iter().collect(),
    };
    definitions.extend(numbers);
    root.insert("$defs".to_owned(), definitions.into());
    // llguidance's own keyword: how it writes JSON.
    root.insert("x-guidance".to_owned(), options);
    Ok(root.into())
}

/// Writes a schema anew.
struct Writer<'a, 'b> {
    references: References<'a>,
    /// What is referred to, how, and the resource that it is a part of.
    definitions: Vec<(&'a Value, ResourceIndex, String)>,
    by_target: HashMap<*const Value, usize>,
    /// What is being written in the place of a reference.
    inlined: Vec<*const Value>,
    /// Definitions of numbers that llguidance would round.
    numbers: Map<String, Value>,
    placeholders: &'b mut Placeholders,
    /// Where the schema is that is being written, for errors.
    path: Vec<String>,
    num_parts: usize,
}

impl<'a> Writer<'a, '_> {
    fn schema(&mut self, schema: &'a Value, outer: ResourceIndex) -> Result<Value> {
        self.num_parts += 1;
        if self.num_parts > MAX_NUM_PARTS || self.path.len() > MAX_DEPTH {
            return Err(Error::grammar("the schema is too large, or nested too deep"));
        }
        let fields = match schema {
            Value::Object(fields) if big_integer(schema).is_none() => fields,
            Value::Bool(_) => return Ok(schema.clone()),
            other => {
                let path = self.path.join("/");
                let reason =
                    format!("`{path}`: expected a schema, an object or a boolean, found {other}");
                return Err(Error::grammar(reason));
            }
        };
        let resource = self.references.resource_of(schema, outer);
        let mut written = Map::new();
        for (keyword, value) in fields {
            if let Some(value) = self.keyword(keyword, value, fields, resource)? {
                written.insert(keyword.clone(), value);
            }
        }
        self.property_names(fields, resource, &mut written)?;
        for (unevaluated, other) in
            [("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")]
        {
            if let Some(rest) = written.shift_remove(unevaluated) {
                written.entry(other).or_insert(rest);
            }
        }
        self.check_num_properties(&written)?;
        self.exact(written)
    }

    /// What is written of a keyword; `None` if it decides nothing.
    fn keyword(
        &mut self,
        keyword: &str,
        value: &'a Value,
        fields: &'a Map<String, Value>,
        resource: ResourceIndex,
    ) -> Result<Option<Value>> {
        let has = |keyword: &str| fields.contains_key(keyword);
        Ok(Some(match keyword {
            "properties" | "patternProperties" => {
                let Value::Object(schemas) = value else {
                    return Err(self.refusal(keyword, "expected an object"));
                };
                let mut written = Map::new();
                for (name, schema) in schemas {
                    if keyword == "patternProperties" {
                        self.check_pattern(keyword, name)?;
                    }
                    let schema = self.within(&[keyword, name], |it| it.schema(schema, resource))?;
                    written.insert(name.clone(), schema);
                }
                written.into()
            }
            // Only behind a list of items.
            "additionalItems" if !fields.get("items").is_some_and(Value::is_array) => {
                return Ok(None);
            }
            "allOf" | "anyOf" | "oneOf" | "items" | "prefixItems" if value.is_array() => {
                self.list(keyword, value, fields, resource)?
            }
            "allOf" | "anyOf" | "oneOf" => {
                return Err(self.refusal(keyword, format!("expected a list, found {value}")));
            }
            "items" | "additionalItems" | "additionalProperties" => {
                self.within(&[keyword], |it| it.schema(value, resource))?
            }
            "$ref" => self.definition(value, resource)?,
            // As OpenAPI 3.0 has it: only beside a type.
            "type" if fields.get("nullable") == Some(&Value::Bool(true)) => match value {
                Value::String(name) => json!([name, "null"]),
                Value::Array(names) => names.iter().cloned().chain([json!("null")]).collect(),
                other => other.clone(),
            },
            "format" => match value {
                Value::String(name) if FORMATS.contains(&&**name) => value.clone(),
                Value::String(_) => return Ok(None),
                other => {
                    return Err(self.refusal(keyword, format!("expected a string, found {other}")));
                }
            },
            "pattern" => {
                let Value::String(pattern) = value else {
                    return Err(self.refusal(keyword, format!("expected a string, found {value}")));
                };
                self.check_pattern(keyword, pattern)?;
                value.clone()
            }
            "minLength" | "minItems" | "minProperties" | "maxLength" | "maxItems"
            | "maxProperties" => match count(value) {
                Some(LONGEST..) if keyword.starts_with("max") => return Ok(None),
                Some(count @ ..LONGEST) => count.into(),
                _ => {
                    let reason = format!("expected an integer from 0 to 2^31, found {value}");
                    return Err(self.refusal(keyword, reason));
                }
            },
            "unevaluatedProperties" | "unevaluatedItems"
                if !APPLICATORS.into_iter().any(has) && !is_true(value) =>
            {
                self.within(&[keyword], |it| it.schema(value, resource))?
            }
            _ if HELD.contains(&keyword) => {
                if let Some(expected) = expected_instead(keyword, value) {
                    let reason = format!("expected {expected}, found {value}");
                    return Err(self.refusal(keyword, reason));
                }
                value.clone()
            }
            _ if NOT_HELD.contains(&keyword) => {
                if !has_no_effect(keyword, value, fields) {
                    return Err(self.refusal(keyword, "texts can't be held to it, leave it out"));
                }
                return Ok(None);
            }
            _ => return Ok(None),
        }))
    }

    /// The schemas of a keyword that has several.
    fn list(
        &mut self,
        keyword: &str,
        schemas: &'a Value,
        fields: &'a Map<String, Value>,
        resource: ResourceIndex,
    ) -> Result<Value> {
        let schemas = schemas.as_array().into_iter().flatten().enumerate();
        let tag = fields.get("discriminator").and_then(|it| it.get("propertyName"));
        let tag = tag.and_then(Value::as_str);
        let written = schemas.map(|(index, schema)| {
            self.within(&[keyword, &index.to_string()], |it| match keyword {
                "oneOf" => it.option(schema, resource, tag),
                _ => it.schema(schema, resource),
            })
        });
        let written = written.collect::<Result<Vec<_>>>()?;
        if keyword == "oneOf" && exclude_each_other(&written) {
            return Ok(json!([{"anyOf": written}]));
        }
        Ok(written.into())
    }

    /// A reference to the definition of what is referred to.
    fn definition(&mut self, reference: &Value, resource: ResourceIndex) -> Result<Value> {
        let found = reference.as_str().and_then(|it| self.references.find(it, resource));
        let Some((target, resource)) = found else {
            let reason = format!("expected a part of this schema, found {reference}");
            return Err(self.refusal("$ref", reason));
        };
        let index = *self.by_target.entry(ptr::from_ref(target)).or_insert_with(|| {
            let reference = reference.as_str().unwrap_or_default().to_owned();
            self.definitions.push((target, resource, reference));
            self.definitions.len() - 1
        });
        Ok(format!("#/$defs/{index}").into())
    }

    fn check_pattern(&self, keyword: &str, pattern: &str) -> Result<()> {
        let text = RegexAst::SearchRegex(regex_to_lark(pattern, "dw"));
        let checked = RegexBuilder::new().mk(&text).map(drop);
        checked.map_err(|error| self.refusal(keyword, error.to_string()))
    }

    /// One of the schemas of which exactly one must fit: written in place, so that it shows whether they exclude each other.
    /// It has the property that tells them apart.
    fn option(
        &mut self,
        schema: &'a Value,
        resource: ResourceIndex,
        tag: Option<&str>,
    ) -> Result<Value> {
        let (target, resource) = self.resolved(schema, resource);
        if self.inlined.contains(&ptr::from_ref(target)) {
            return self.schema(schema, resource);
        }
        self.inlined.push(ptr::from_ref(target));
        let mut written = self.schema(target, resource)?;
        self.inlined.pop();
        if let Some(tag) = tag
            && written
                .pointer("/properties")
                .is_some_and(|properties| properties.get(tag).is_some())
        {
            let required = written["required"].as_array().into_iter().flatten();
            let others = required.filter(|name| *name != tag).cloned();
            written["required"] = others.chain([tag.into()]).collect();
        }
        Ok(written)
    }

    /// What a schema that is nothing but a reference refers to.
    fn resolved(&self, schema: &'a Value, resource: ResourceIndex) -> (&'a Value, ResourceIndex) {
        let (mut found, mut within) = (schema, resource);
        // What leads further is left to the definitions.
        for _ in 0..16 {
            let is_held = |keyword: &&String| {
                let keyword = keyword.as_str();
                HELD.contains(&keyword)
                    || NOT_HELD.contains(&keyword)
                    || APPLICATORS.contains(&keyword)
            };
            let Value::Object(fields) = found else { break };
            let mut keywords = fields.keys().filter(is_held);
            let (Some("$ref"), None) = (keywords.next().map(String::as_str), keywords.next())
            else {
                break;
            };
            let within_target = self.references.resource_of(found, within);
            let reference = fields.get("$ref").and_then(Value::as_str);
            match reference.and_then(|it| self.references.find(it, within_target)) {
                Some(target) => (found, within) = target,
                None => break,
            }
        }
        (found, within)
    }

    /// Names of properties, where they are listed or match a pattern, and no property is named besides.
    fn property_names(
        &mut self,
        fields: &'a Map<String, Value>,
        resource: ResourceIndex,
        written: &mut Map<String, Value>,
    ) -> Result<()> {
        const KEYWORD: &str = "propertyNames";
        let Some(names) = fields.get(KEYWORD) else { return Ok(()) };
        let (names, names_resource) = self.resolved(names, resource);
        let names = self.within(&[KEYWORD], |it| it.schema(names, names_resource))?;
        let is_string = |types: &Value| *types == "string" || types[0] == "string";
        let mut rules = names.as_object().cloned().unwrap_or_default();
        if rules.get("type").is_some_and(is_string) {
            rules.shift_remove("type");
        }
        if names != Value::Bool(false) && rules.is_empty() {
            return Ok(());
        }
        let value = written.get("additionalProperties").cloned().unwrap_or(Value::Bool(true));
        let mut rules = rules.into_iter();
        let (keyword, schemas) = match (rules.next(), rules.next()) {
            (Some((keyword, pattern @ Value::String(_))), None) if keyword == "pattern" => {
                ("patternProperties", vec![pattern])
            }
            (Some((keyword, Value::Array(names))), None) if keyword == "enum" => {
                ("properties", names)
            }
            (Some((keyword, name)), None) if keyword == "const" => ("properties", vec![name]),
            _ => (KEYWORD, Vec::new()),
        };
        let is_named =
            written.contains_key("properties") || written.contains_key("patternProperties");
        if keyword == KEYWORD || is_named {
            let reason = "names can't be held to it, beyond an `enum` or a `pattern` where no others are given";
            return Err(self.refusal(KEYWORD, reason));
        }
        // Others than strings are never names.
        let names = schemas.iter().filter_map(Value::as_str);
        let schemas: Map<String, Value> =
            names.map(|name| (name.to_owned(), value.clone())).collect();
        self.num_parts += schemas.len();
        written.insert(keyword.to_owned(), schemas.into());
        written.insert("additionalProperties".to_owned(), Value::Bool(false));
        Ok(())
    }

    /// Nothing keeps keys that aren't listed from coming twice.
    fn check_num_properties(&self, written: &Map<String, Value>) -> Result<()> {
        const KEYWORD: &str = "minProperties";
        let Some(least) = written.get(KEYWORD).and_then(Value::as_u64) else { return Ok(()) };
        let num_required = written.get("required").and_then(Value::as_array).map_or(0, Vec::len);
        let is_closed = written.get("additionalProperties") == Some(&Value::Bool(false));
        let is_listed = is_closed && !written.contains_key("patternProperties");
        if least > num_required as u64 + 1 && !is_listed {
            let reason = "expected at most one more than are `required`, as others may come twice";
            return Err(self.refusal(KEYWORD, reason));
        }
        Ok(())
    }

    /// A schema whose numbers are held to the last digit.
    fn exact(&mut self, mut schema: Map<String, Value>) -> Result<Value> {
        let values = match (schema.get("const"), schema.get("enum")) {
            (None, Some(Value::Array(values))) => Some(values.clone()),
            (None, _) => None,
            (Some(value), Some(Value::Array(values))) => {
                let is_one = values.iter().any(|other| is_same(value, other));
                Some(if is_one { vec![value.clone()] } else { Vec::new() })
            }
            (Some(value), _) => Some(vec![value.clone()]),
        };
        let types: Vec<&str> = match schema.get("type") {
            Some(Value::String(name)) => vec![name],
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => TYPES.to_vec(),
        };
        let types: Vec<String> = types.into_iter().map(str::to_owned).collect();
        let has_type = |name: &str| types.iter().any(|other| other == name);
        let is_integer = !has_type("number");
        let has_numbers = has_type("number") || has_type("integer");
        let is_misread = match &values {
            Some(values) => values.iter().any(has_big),
            None => has_numbers && Bounds::are_misread(&schema, is_integer),
        };
        if !is_misread {
            return Ok(schema.into());
        }
        let bounds = Bounds::of(&schema)?;
        if let Some(other) = APPLICATORS.into_iter().find(|it| schema.contains_key(*it)) {
            let reason = "expected no such numbers beside it";
            return Err(self.refusal(other, reason));
        }
        for keyword in Bounds::KEYWORDS.into_iter().chain(["const", "enum"]) {
            schema.shift_remove(keyword);
        }

        let mut options = Vec::new();
        let Some(values) = values else {
            let number = bounds.expression(is_integer)?;
            options.push(self.number(format!("{is_integer} {}", bounds.described()), number)?);
            let others: Vec<String> =
                types.into_iter().filter(|it| it != "number" && it != "integer").collect();
            if !others.is_empty() {
                schema.insert("type".to_owned(), others.into());
                options.push(schema.into());
            }
            return Ok(any_of(options));
        };
        let (mut numbers, mut others) = (Vec::new(), Vec::new());
        for value in values {
            if let Some(number) = Decimal::of(&value) {
                let fits = has_type("number") || (has_type("integer") && number.is_integer());
                if fits && bounds.contain(&number)? {
                    numbers.push(number);
                }
            } else if has_big(&value) {
                let kind = if value.is_array() { "array" } else { "object" };
                if schema.keys().any(|keyword| keyword != "type") {
                    let reason =
                        "expected no other keywords beside values with integers beyond 2^53";
                    return Err(self.refusal("enum", reason));
                }
                if has_type(kind) {
                    options.push(self.constant(&value)?);
                }
            } else {
                others.push(value);
            }
        }
        if !numbers.is_empty() {
            options.push(self.number(number::described(&numbers), number::one_of(&numbers))?);
        }
        if !others.is_empty() {
            schema.insert("enum".to_owned(), others.into());
            options.push(schema.into());
        }
        if options.is_empty() {
            return Err(self.refusal("enum", "expected a value that fits the other keywords"));
        }
        Ok(any_of(options))
    }

    /// The schema of a value, whose numbers are held to the last digit.
    fn constant(&mut self, value: &Value) -> Result<Value> {
        if let Some(number) = Decimal::of(value).filter(|_| is_big(value)) {
            let numbers = [number];
            return self.number(number::described(&numbers), number::one_of(&numbers));
        }
        Ok(match value {
            Value::Array(items) => {
                let constants = items.iter().map(|item| self.constant(item));
                let constants: Vec<Value> = constants.collect::<Result<_>>()?;
                let num = constants.len();
                json!({"type": "array", "prefixItems": constants, "items": false, "minItems": num})
            }
            Value::Object(fields) => {
                let constants =
                    fields.iter().map(|(key, value)| Ok((key.clone(), self.constant(value)?)));
                let constants: Map<String, Value> = constants.collect::<Result<_>>()?;
                let required: Vec<&String> = fields.keys().collect();
                json!({
                    "type": "object", "properties": constants, "required": required,
                    "additionalProperties": false,
                })
            }
            other => json!({"const": other}),
        })
    }

    fn number(&mut self, description: String, expression: RegexAst) -> Result<Value> {
        let (name, definition) = self.placeholders.add(description, expression)?;
        let reference = json!({"$ref": format!("#/$defs/{name}")});
        self.numbers.insert(name, definition);
        Ok(reference)
    }

    /// Goes on below, as errors say.
    fn within<T>(
        &mut self,
        path: &[&str],
        write: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let len = self.path.len();
        self.path.extend(path.iter().map(|&part| part.to_owned()));
        let written = write(self)?;
        self.path.truncate(len);
        Ok(written)
    }

    fn refusal(&self, keyword: &str, reason: impl AsRef<str>) -> Error {
        let (path, reason) = (self.path.join("/"), reason.as_ref());
        Error::grammar(format!("`{keyword}` in `{path}`: {reason}"))
    }
}

fn any_of(mut options: Vec<Value>) -> Value {
    match options.pop() {
        Some(only) if options.is_empty() => only,
        last => {
            options.extend(last);
            json!({"anyOf": options})
        }
    }
}

/// Whether a value is, or has in it, a number that 64 bits don't tell from its neighbours.
fn has_big(value: &Value) -> bool {
    is_big(value)
        || match value {
            Value::Array(items) => items.iter().any(has_big),
            Value::Object(fields) => fields.values().any(has_big),
            _ => false,
        }
}
