//! What an answer has to look like, by the names that OpenAI, llama.cpp and vLLM have for it.

use serde_json::{Value, json};

use crate::serve::error::ApiError;
use crate::serve::fields::{Fields, wrong};
use crate::serve::job::OutputFormat;
use crate::serve::masks::Grammar;

/// Most texts to choose from.
const CHOICES_MAX: usize = 4096;

/// The one constraint that a request has, if any.
///
/// # Errors
/// 400 for a wrong one, for more than one, or for one that is not there.
pub fn format(fields: &Fields<'_>) -> Result<OutputFormat, ApiError> {
    let mut all = Vec::new();
    if let Some(format) = fields.object("response_format")? {
        all.extend(response_format(&format)?.map(|grammar| (grammar, "response_format")));
    }
    for name in ["grammar", "guided_grammar"] {
        all.extend(fields.text(name)?.map(|text| (Grammar::Text(text.to_owned()), name)));
    }
    for name in ["json_schema", "guided_json"] {
        all.extend(schema(fields, name)?.map(|grammar| (grammar, name)));
    }
    all.extend(fields.text("guided_regex")?.map(|text| (Grammar::Regex(text.to_owned()), "guided_regex")));
    all.extend(choice(fields, "guided_choice")?.map(|grammar| (grammar, "guided_choice")));
    if let Some(outputs) = fields.object("structured_outputs")? {
        all.extend(structured_outputs(&outputs)?.into_iter().map(|grammar| (grammar, "structured_outputs")));
    }
    let mut all = all.into_iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(OutputFormat::Text),
        (Some((grammar, name)), None) => Ok(OutputFormat::Grammar(grammar, name)),
        (Some((_, one)), Some((_, other))) => {
            let text = format!("{one} and {other} both constrain the answer; give one");
            Err(ApiError::field(other, text).code("invalid_value"))
        }
    }
}

/// `response_format` of chats and completions.
fn response_format(format: &Fields<'_>) -> Result<Option<Grammar>, ApiError> {
    match format.need_text("type")? {
        "text" => Ok(None),
        "json_object" => Ok(Some(schema(format, "schema")?.unwrap_or_else(any_object))),
        "json_schema" => {
            let inner = format.object("json_schema")?;
            let found = match &inner {
                // Some leave the layer between out.
                None => schema(format, "schema")?,
                Some(inner) => schema(inner, "schema")?,
            };
            let missing =
                || inner.as_ref().map_or_else(|| format.missing("json_schema"), |inner| inner.missing("schema"));
            found.map(Some).ok_or_else(missing)
        }
        other => {
            let path = format.path("type");
            let text = format!("{path} is {other:?}; expected text, json_object or json_schema");
            Err(ApiError::field(path, text).code("invalid_value"))
        }
    }
}

/// vLLM's `structured_outputs`.
fn structured_outputs(outputs: &Fields<'_>) -> Result<Vec<Grammar>, ApiError> {
    if outputs.get("structural_tag").is_some() {
        let path = outputs.path("structural_tag");
        let text = format!("{path} is not supported; use json, regex, choice or grammar");
        return Err(ApiError::field(path, text).code("unsupported_parameter"));
    }
    let found = [
        schema(outputs, "json")?,
        outputs.text("regex")?.map(|text| Grammar::Regex(text.to_owned())),
        choice(outputs, "choice")?,
        outputs.text("grammar")?.map(|text| Grammar::Text(text.to_owned())),
        outputs.is_set("json_object")?.then(any_object),
    ];
    Ok(found.into_iter().flatten().collect())
}

fn any_object() -> Grammar {
    Grammar::Schema(json!({"type": "object"}))
}

/// A JSON schema, or the text of one.
fn schema(fields: &Fields<'_>, name: &str) -> Result<Option<Grammar>, ApiError> {
    let need = "a JSON schema";
    let found = match fields.get(name) {
        None => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str(text).map_err(|e| {
            let path = fields.path(name);
            ApiError::field(&path, format!("{path}: the text is not JSON: {e}")).code("invalid_value")
        })?,
        Some(schema) => schema.clone(),
    };
    match found {
        schema @ (Value::Object(_) | Value::Bool(_)) => Ok(Some(Grammar::Schema(schema))),
        other => Err(wrong(&fields.path(name), &other, need)),
    }
}

/// A list of texts.
fn choice(fields: &Fields<'_>, name: &str) -> Result<Option<Grammar>, ApiError> {
    let Some(list) = fields.list(name)? else { return Ok(None) };
    let path = fields.path(name);
    if list.is_empty() || list.len() > CHOICES_MAX {
        let text = format!("{path} has {} texts; it must be 1 to {CHOICES_MAX}", list.len());
        return Err(ApiError::field(path, text).code("out_of_range"));
    }
    let mut texts = Vec::new();
    for (i, text) in list.iter().enumerate() {
        texts.push(text.as_str().ok_or_else(|| wrong(&format!("{path}[{i}]"), text, "a string"))?);
    }
    Ok(Some(Grammar::choice(&texts)))
}
