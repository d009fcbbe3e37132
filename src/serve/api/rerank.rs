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
use super::super::vectors::{self, Vectors};
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

/// What is asked for.
struct Wish<'a> {
    /// The field that has the documents: `texts` of text-embeddings-inference, else `documents`.
    name: &'static str,
    query: &'a str,
    documents: Vec<&'a str>,
    top_n: usize,
    with_text: bool,
    /// Scores are squeezed into 0 to 1.
    squeezed: bool,
}

/// Answers a request.
///
/// # Errors
/// What is wrong with it, or with the answer.
pub async fn answer(app: &App, served: &Rc<Served>, body: &Value, trace: &Rc<Trace>) -> Result<Answer, ApiError> {
    let wish = Wish::read(body, served)?;
    let documents = wish.documents.iter().map(|document| (*document).to_owned()).collect();
    let tokens = served.rank_tokens(wish.query.to_owned(), documents).await?;
    let field = |i: usize| format!("{}[{i}]", wish.name);
    let vectors = vectors::of_texts(app, served, tokens, &field, trace).await?;
    Ok(Answer::Document(wish.document(served, &vectors)))
}

impl<'a> Wish<'a> {
    fn read(body: &'a Value, served: &Served) -> Result<Wish<'a>, ApiError> {
        let fields = Fields::of(body)?;
        let is_tei = fields.get("documents").is_none() && fields.get("texts").is_some();
        let name = if is_tei { "texts" } else { "documents" };
        for name in ["rank_fields", "truncate"] {
            if fields.get(name).is_some_and(|value| !matches!(value, Value::Bool(false))) {
                let text = format!("{name} is not supported: documents are texts, and are read whole");
                return Err(ApiError::field(name, text).code("unsupported_value"));
            }
        }
        let softmax = served.limits().vectors.is_some_and(|vectors| vectors.softmax);
        Ok(Wish {
            name,
            query: fields.need_text("query")?,
            documents: documents(&fields, name)?,
            top_n: fields.size("top_n", 1, usize::MAX >> 1)?.unwrap_or(usize::MAX),
            with_text: fields.is_set(if is_tei { "return_text" } else { "return_documents" })?,
            // Scores are as the classifier gives them, as llama.cpp's server has it, unless the request says otherwise.
            squeezed: fields.boolean("raw_scores")? == Some(false) && !softmax,
        })
    }

    fn document(&self, served: &Served, vectors: &Vectors) -> Value {
        let is_tei = self.name == "texts";
        let score = |vector: &[f32]| match vector.first().copied().unwrap_or_default() {
            score if self.squeezed => 1.0 / (1.0 + (-score).exp()),
            score => score,
        };
        let mut ranked: Vec<(usize, f32)> = vectors.all.iter().map(|vector| score(vector)).enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(self.top_n);
        let label = if is_tei { "score" } else { "relevance_score" };
        let result = |(index, score): (usize, f32)| {
            let mut result = json!({"index": index, label: score});
            match (self.with_text, is_tei) {
                (true, true) => result["text"] = self.documents[index].into(),
                (true, false) => result["document"] = json!({"text": self.documents[index]}),
                (false, _) => {}
            }
            result
        };
        let results: Vec<Value> = ranked.into_iter().map(result).collect();
        if is_tei {
            return results.into();
        }
        json!({
            "id": fresh_id(served, "rerank-"),
            "object": "list",
            "model": served.name,
            "results": results,
            "usage": {"prompt_tokens": vectors.n_tokens, "total_tokens": vectors.n_tokens},
        })
    }
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
