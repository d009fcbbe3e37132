//! `POST /v1/rerank`: how well documents answer a query. The forms of Jina and Cohere (`documents`), and that of Hugging
//! Face's text-embeddings-inference (`texts`).

use std::rc::Rc;

use hyper::StatusCode;
use serde_json::{Value, json};

use super::super::app::App;
use super::super::error::ApiError;
use super::super::fields::{Fields, wrong};
use super::super::model::Served;
use super::super::trace::Trace;
use super::super::vectors;
use super::embeddings::INPUTS_MAX;
use super::{Answer, fresh_id};

/// That the model ranks.
///
/// # Errors
/// 501 for another.
pub fn supported(served: &Served) -> Result<(), ApiError> {
    if served.limits().vectors.is_some_and(|vectors| vectors.ranks()) {
        return Ok(());
    }
    let text = "reranking is not supported: this model has no classifier; start brim with one that has, such as Qwen3-Reranker";
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, text).code("not_implemented"))
}

/// Answers a request.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn answer(app: &App, served: &Rc<Served>, body: &Value, trace: &Rc<Trace>) -> Result<Answer, ApiError> {
    let fields = Fields::of(body)?;
    let name = if fields.get("documents").is_none() && fields.get("texts").is_some() { "texts" } else { "documents" };
    let is_tei = name == "texts";
    let query = fields.need_text("query")?;
    let documents = documents(&fields, name)?;
    let top_n = fields.size("top_n", 1, usize::MAX >> 1)?.unwrap_or(usize::MAX).min(documents.len());
    let with_text = fields.is_set(if is_tei { "return_text" } else { "return_documents" })?;
    // Scores are as the classifier gives them, as llama.cpp's server has it, unless the request says otherwise.
    let squashed = fields.boolean("raw_scores")? == Some(false);
    for name in ["rank_fields", "truncate"] {
        if fields.get(name).is_some_and(|value| !matches!(value, Value::Bool(false))) {
            let text = format!("{name} is not supported: documents are texts, and are read whole");
            return Err(ApiError::field(name, text).code("unsupported_value"));
        }
    }
    let pairs = documents.iter().map(|document| (*document).to_owned()).collect();
    let tokens = served.rank_tokens(query.to_owned(), pairs).await?;
    let field = |i: usize| format!("{name}[{i}]");
    let vectors = vectors::of_texts(app, served, tokens, &field, trace).await?;
    let softmax = served.limits().vectors.is_some_and(|vectors| vectors.softmax);
    let score = |vector: &[f32]| match vector.first().copied().unwrap_or_default() {
        score if squashed && !softmax => 1.0 / (1.0 + (-score).exp()),
        score => score,
    };
    let mut ranked: Vec<(usize, f32)> = vectors.all.iter().map(|vector| score(vector)).enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let label = if is_tei { "score" } else { "relevance_score" };
    let result = |&(index, score): &(usize, f32)| {
        let mut result = json!({"index": index, label: score});
        match (with_text, is_tei) {
            (true, true) => result["text"] = documents[index].into(),
            (true, false) => result["document"] = json!({"text": documents[index]}),
            (false, _) => {}
        }
        result
    };
    let results: Vec<Value> = ranked[..top_n].iter().map(result).collect();
    if is_tei {
        return Ok(Answer::Document(results.into()));
    }
    Ok(Answer::Document(json!({
        "id": fresh_id(served, "rerank-"),
        "object": "list",
        "model": served.name,
        "results": results,
        "usage": {"prompt_tokens": vectors.n_tokens, "total_tokens": vectors.n_tokens},
    })))
}

/// The documents: texts, or objects that have one.
fn documents<'a>(fields: &Fields<'a>, name: &str) -> Result<Vec<&'a str>, ApiError> {
    let list = fields.list(name)?.ok_or_else(|| fields.missing(name))?;
    if list.is_empty() || list.len() > INPUTS_MAX {
        let text = format!("{name}: {} documents; there may be 1 to {INPUTS_MAX} in one request", list.len());
        return Err(ApiError::field(name, text).code("out_of_range"));
    }
    let text = |(i, value): (usize, &'a Value)| match value {
        Value::String(text) => Ok(text.as_str()),
        Value::Object(_) => Fields::at(value, format!("{name}[{i}]"))?.need_text("text"),
        other => Err(wrong(&format!("{name}[{i}]"), other, "a string, or an object with a text")),
    };
    list.iter().enumerate().map(text).collect()
}
