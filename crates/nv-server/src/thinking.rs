//! Whether the model reasons before it answers: the OpenAI API's field that says so, and its neighbours'.

use nv_text::Fields;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::fields::kind;

/// Degrees of reasoning, as the OpenAI API has them, and whether the model reasons at each. Qwen3 knows no degrees but
/// on and off.
const EFFORTS: &[(&str, bool)] = &[
    ("none", false),
    ("minimal", false),
    ("low", true),
    ("medium", true),
    ("high", true),
    ("xhigh", true),
    ("max", true),
];

/// Takes the fields that say whether the model reasons, and tells the chat template, unless `template_kwargs` do already.
///
/// Switches (`enable_thinking`, `think`, `thinking`, `reasoning.enabled`) go before degrees (`reasoning_effort`,
/// `reasoning.effort`). Without any, the template decides.
pub(crate) fn take(fields: &mut Fields, template_kwargs: &mut Map<String, Value>) -> Result<()> {
    let mut switches: Vec<(&str, bool)> = Vec::new();
    for name in ["enable_thinking", "think"] {
        switches.extend(fields.take(name)?.map(|is_on| (name, is_on)));
    }
    switches.extend(thinking(fields)?);
    let mut effort = fields.take::<String>("reasoning_effort")?.map(|it| ("reasoning_effort", it));
    if let Some(reasoning) = fields.take_value("reasoning") {
        let mut reasoning = Fields::new(reasoning, "reasoning")?;
        switches.extend(reasoning.take("enabled")?.map(|is_on| ("reasoning.enabled", is_on)));
        if reasoning.has("max_tokens") {
            let reason = "reasoning has no limit of its own: use `max_tokens`";
            return Err(Error::Unsupported { field: "reasoning.max_tokens", reason });
        }
        if reasoning.take("exclude")?.unwrap_or(false) {
            let reason = "leave `reasoning_content` unread";
            return Err(Error::Unsupported { field: "reasoning.exclude", reason });
        }
        effort = reasoning.take("effort")?.map(|it| ("reasoning.effort", it)).or(effort);
    }
    let by_effort = effort.as_ref().map(|(field, effort)| by_effort(field, effort)).transpose()?;
    if let Some((field, effort)) = effort {
        if effort == "none" {
            switches.push((field, false));
        }
        template_kwargs.entry("reasoning_effort").or_insert(effort.into());
    }
    if let [(first, is_on), rest @ ..] = &*switches
        && let Some((other, _)) = rest.iter().find(|(_, other)| other != is_on)
    {
        return Err(Error::field(
            *other,
            format!("expected what `{first}` says, found the opposite"),
        ));
    }
    let is_on = switches.first().map(|(_, is_on)| *is_on).or(by_effort);
    if let Some(is_on) = is_on {
        template_kwargs.entry("enable_thinking").or_insert(is_on.into());
    }
    Ok(())
}

fn by_effort(field: &str, effort: &str) -> Result<bool> {
    let known = EFFORTS.iter().find(|(name, _)| *name == effort);
    known.map(|(_, is_on)| *is_on).ok_or_else(|| {
        let names: Vec<_> = EFFORTS.iter().map(|(name, _)| *name).collect();
        Error::field(field, format!("expected one of {}", names.join(", ")))
    })
}

/// `{"type": "enabled"}`, or a switch alone.
fn thinking(fields: &mut Fields) -> Result<Option<(&'static str, bool)>> {
    const FIELD: &str = "thinking";
    let mut thinking = match fields.take_value(FIELD) {
        None => return Ok(None),
        Some(Value::Bool(is_on)) => return Ok(Some((FIELD, is_on))),
        Some(thinking @ Value::Object(_)) => Fields::new(thinking, FIELD)?,
        Some(other) => {
            let reason = format!("expected an object, true or false, found {}", kind(&other));
            return Err(Error::field(FIELD, reason));
        }
    };
    let is_on = match &*thinking.require::<String>("type")? {
        "enabled" => Some(true),
        "disabled" => Some(false),
        "auto" | "adaptive" => None,
        _ => {
            let reason = "expected enabled, disabled, auto or adaptive";
            return Err(Error::field("thinking.type", reason));
        }
    };
    if is_on != Some(false) && thinking.has("budget_tokens") {
        let reason = "reasoning has no limit of its own: use `max_tokens`";
        return Err(Error::Unsupported { field: "thinking.budget_tokens", reason });
    }
    Ok(is_on.map(|is_on| ("thinking.type", is_on)))
}

#[cfg(test)]
mod tests {
    use nv_text::FromField;
    use serde_json::json;

    use super::*;

    fn kwargs(request: Value, kwargs: Value) -> Result<Value> {
        let mut kwargs = Map::from_field(kwargs, "")?;
        take(&mut Fields::new(request, "")?, &mut kwargs)?;
        Ok(kwargs.into())
    }

    #[test]
    fn every_field_tells_the_template() {
        let check = |request: Value, expected: Option<bool>| {
            let found = kwargs(request.clone(), json!({})).unwrap();
            let found = found.get("enable_thinking").and_then(Value::as_bool);
            assert_eq!(found, expected, "{request}");
        };
        check(json!({}), None);
        for effort in ["none", "minimal"] {
            check(json!({"reasoning_effort": effort}), Some(false));
            check(json!({"reasoning": {"effort": effort, "summary": "auto"}}), Some(false));
        }
        for effort in ["low", "medium", "high", "xhigh", "max"] {
            check(json!({"reasoning_effort": effort}), Some(true));
        }
        for is_on in [false, true] {
            check(json!({"enable_thinking": is_on}), Some(is_on));
            check(json!({"think": is_on}), Some(is_on));
            check(json!({"thinking": is_on}), Some(is_on));
            check(json!({"reasoning": {"enabled": is_on, "exclude": false}}), Some(is_on));
        }
        check(json!({"thinking": {"type": "enabled"}}), Some(true));
        check(json!({"thinking": {"type": "disabled", "budget_tokens": 1024}}), Some(false));
        check(json!({"thinking": {"type": "adaptive"}}), None);
        check(
            json!({"enable_thinking": null, "thinking": null, "reasoning": {"effort": null}}),
            None,
        );
        // A degree counts where no switch does.
        check(json!({"enable_thinking": false, "reasoning_effort": "high"}), Some(false));
        check(json!({"enable_thinking": true, "reasoning_effort": "minimal"}), Some(true));
    }

    #[test]
    fn what_a_template_is_told_by_name_counts() {
        let told = json!({"enable_thinking": true, "reasoning_effort": "low"});
        let request = json!({"enable_thinking": false, "reasoning_effort": "high"});
        assert_eq!(kwargs(request, told.clone()).unwrap(), told);
        let effort = kwargs(json!({"reasoning_effort": "high"}), json!({})).unwrap();
        assert_eq!(effort, json!({"reasoning_effort": "high", "enable_thinking": true}));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let check = |request: Value, expected: &str| {
            let error = kwargs(request, json!({})).unwrap_err().to_string();
            assert!(error.starts_with(&format!("field `{expected}")), "{error}");
        };
        check(json!({"reasoning_effort": "huge"}), "reasoning_effort`: expected one of none, ");
        check(json!({"reasoning_effort": 1}), "reasoning_effort`: expected a string");
        check(json!({"enable_thinking": "no"}), "enable_thinking`: expected true or false");
        check(json!({"thinking": "on"}), "thinking`: expected an object, true or false");
        check(json!({"thinking": {}}), "thinking.type`: expected a string, found nothing");
        check(json!({"thinking": {"type": "on"}}), "thinking.type`: expected enabled");
        let budget = json!({"thinking": {"type": "enabled", "budget_tokens": 1}});
        check(budget, "thinking.budget_tokens` is not supported");
        check(json!({"reasoning": true}), "reasoning`: expected an object");
        check(json!({"reasoning": {"exclude": true}}), "reasoning.exclude` is not supported");
        check(json!({"reasoning": {"max_tokens": 9}}), "reasoning.max_tokens` is not supported");
        let opposite = json!({"enable_thinking": true, "thinking": {"type": "disabled"}});
        check(opposite, "thinking.type`: expected what `enable_thinking` says");
        let opposite = json!({"think": true, "reasoning_effort": "none"});
        check(opposite, "reasoning_effort`: expected what `think` says");
    }
}
