//! `POST /tokenize` and `/detokenize`, and `GET /v1/models`.

use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::model::Served;
use super::super::models::Models;
use super::common::whole_text;
use super::token_text;
use crate::tokenizer::PromptForm;

/// `{"content": TEXT, "add_special": false, "parse_special": true}` to `{"tokens": [IDS]}`. With `add_special` the tokens
/// are those of a prompt: of a chat that a template has written, or without `parse_special` of a text. With `with_pieces`
/// each comes with its text, or its bytes where these are none. vLLM has the text as `prompt`, and `add_special_tokens`.
///
/// # Errors
/// What is wrong with the request.
pub async fn tokenize(served: &Served, body: &Value) -> Result<Value, ApiError> {
    let fields = Fields::of(body)?;
    let text = match fields.text("content")? {
        Some(text) => text,
        None => fields.text("prompt")?.ok_or_else(|| fields.missing("content"))?,
    };
    let (text, parse_special) = (text.to_owned(), fields.boolean("parse_special")?.unwrap_or(true));
    let add_special = fields.is_set("add_special")? || fields.is_set("add_special_tokens")?;
    let tokens = match (add_special, parse_special) {
        (false, _) => served.text_tokens(text, parse_special).await?,
        (true, true) => served.prompt_tokens(text, PromptForm::Chat).await?,
        (true, false) => served.prompt_tokens(text, PromptForm::Raw).await?,
    };
    let count = tokens.len();
    let piece = |&id: &u32| {
        let (text, bytes) = token_text(served, id);
        if text.as_bytes() == bytes { json!({"id": id, "piece": text}) } else { json!({"id": id, "piece": bytes}) }
    };
    let tokens = if fields.is_set("with_pieces")? { tokens.iter().map(piece).collect() } else { json!(tokens) };
    Ok(json!({"count": count, "tokens": tokens}))
}

/// `{"tokens": [IDS]}` to `{"content": TEXT}`, which vLLM calls `prompt`.
///
/// # Errors
/// What is wrong with the request.
pub fn detokenize(served: &Served, body: &Value) -> Result<Value, ApiError> {
    let fields = Fields::of(body)?;
    let tokens = fields.list("tokens")?.ok_or_else(|| fields.missing("tokens"))?;
    let mut ids = Vec::with_capacity(tokens.len());
    for (i, token) in tokens.iter().enumerate() {
        let n_tokens = served.tokenizer.n_tokens();
        let id = token.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < n_tokens);
        let path = format!("tokens[{i}]");
        ids.push(id.ok_or_else(|| ApiError::field(&path, format!("{path}: needs a token id below {n_tokens}")))?);
    }
    let text = whole_text(served, &ids);
    Ok(json!({"content": text, "prompt": text}))
}

/// `GET /tokenizer_info`, as vLLM has it: what a client has to know to count tokens here in place of at home.
pub fn info(served: &Served) -> Value {
    json!({"bos_token": served.bos, "eos_token": served.eos, "pad_token": null, "n_vocab": served.limits().n_vocab,
        "chat_template": served.template(false).map(|template| template.source())})
}

/// The models there are.
pub fn models(models: &Models) -> Value {
    let data: Vec<Value> = models.all().iter().map(|served| model(served)).collect();
    let [first, last] = [data.first(), data.last()].map(|model| model.map(|model| model["id"].clone()));
    json!({"object": "list", "data": data, "has_more": false, "first_id": first, "last_id": last})
}

/// One of them.
pub fn model(served: &Served) -> Value {
    let limits = served.limits();
    json!({
        "id": served.name,
        "object": "model",
        "type": "model",
        "display_name": served.name,
        "created": served.created,
        "owned_by": "brim",
        // The same number by the names that clients look for it under.
        "context_length": limits.ctx,
        "max_model_len": limits.ctx,
        "meta": {"n_ctx": limits.ctx, "n_ctx_train": served.about.ctx_train, "n_embd": limits.n_embd,
            "n_vocab": limits.n_vocab, "slots": limits.slots},
    })
}
