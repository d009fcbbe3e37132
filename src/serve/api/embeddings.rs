//! `POST /v1/embeddings` as OpenAI has it, `/embedding` as llama.cpp's server does, `/api/embed` and `/api/embeddings` as
//! Ollama does: vectors of texts.

use std::rc::Rc;
use std::time::Instant;

use hyper::StatusCode;
use serde_json::{Value, json};

use super::super::app::App;
use super::super::base64::push_base64;
use super::super::body::{Body, Sink};
use super::super::error::ApiError;
use super::super::fields::{Fields, wrong};
use super::super::model::Served;
use super::super::trace::Trace;
use super::super::vectors::{self, Vectors, normalised};
use super::Answer;

/// Most inputs of one request, as OpenAI has it.
pub const INPUTS_MAX: usize = 2048;

/// How a vector is written.
#[derive(Clone, Copy, PartialEq)]
enum Encoding {
    /// Numbers.
    Float,
    /// Base64 of little-endian f32.
    Base64,
}

/// Whose request it is.
#[derive(Clone, Copy, PartialEq)]
pub enum Interface {
    /// OpenAI's.
    OpenAi,
    /// That of llama.cpp's server.
    Llama,
    /// Ollama's.
    Ollama,
}

/// An input as it came: a text, or its tokens.
enum Input<'a> {
    Text(&'a str),
    Tokens(Vec<u32>),
}

/// That the model makes vectors of texts.
///
/// # Errors
/// 501 for one that makes text, or that ranks.
pub fn supported(served: &Served) -> Result<(), ApiError> {
    let text = match served.limits().vectors {
        Some(vectors) if !vectors.ranks() => return Ok(()),
        Some(_) => "embeddings are not supported: this model ranks documents; ask /v1/rerank",
        None => {
            "embeddings are not supported: this model generates text; start brim with one that is made for vectors, such as \
             Qwen3-Embedding, BERT or EmbeddingGemma"
        }
    };
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, text).code("not_implemented"))
}

/// That the model makes text.
///
/// # Errors
/// 501 for one that makes vectors.
pub fn makes_text(served: &Served) -> Result<(), ApiError> {
    let Some(vectors) = served.limits().vectors else { return Ok(()) };
    let route = if vectors.ranks() { "/v1/rerank" } else { "/v1/embeddings" };
    let text = format!("this model makes vectors of texts, and no text: ask {route}");
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, text).code("not_implemented"))
}

/// What is asked for.
struct Wish<'a> {
    /// The field that has the inputs.
    name: &'static str,
    inputs: Vec<Input<'a>>,
    form: Form,
    /// How many values of each vector.
    n_values: usize,
    /// Whether vectors are brought to length 1.
    normalise: bool,
    /// Texts are cut to so many tokens.
    cut: Option<usize>,
    begun: Instant,
}

/// Answers a request of one of the interfaces.
///
/// # Errors
/// What is wrong with the request, or with the answer.
pub async fn answer(
    app: &App,
    served: &Rc<Served>,
    (interface, body): (Interface, &Value),
    trace: &Rc<Trace>,
) -> Result<Answer, ApiError> {
    let wish = Wish::read(interface, body, served)?;
    if wish.inputs.is_empty() {
        return Ok(wish.nothing(served));
    }
    let (form, n_values, normalise, begun) = (wish.form, wish.n_values, wish.normalise, wish.begun);
    let vectors = compute(app, served, wish, trace).await?;
    let (head, tail) = form.ends(served, vectors.n_tokens, begun);
    Ok(Writer { head, n_values, normalise, form, tail }.answer(vectors))
}

impl<'a> Wish<'a> {
    fn read(interface: Interface, body: &'a Value, served: &Served) -> Result<Wish<'a>, ApiError> {
        let begun = Instant::now();
        let fields = Fields::of(body)?;
        let has = |name: &str| fields.get(name).is_some();
        let (name, form) = match interface {
            Interface::OpenAi => ("input", Form::OpenAi(encoding(&fields)?)),
            Interface::Llama => ("content", Form::Llama),
            Interface::Ollama if !has("input") && has("prompt") => ("prompt", Form::Prompt),
            Interface::Ollama => ("input", Form::Ollama),
        };
        // OpenAI's and llama.cpp's are one interface there.
        let name = match interface {
            Interface::OpenAi if !has("input") && has("content") => "content",
            Interface::Llama if has("input") => "input",
            _ => name,
        };
        let is_ollama = interface == Interface::Ollama;
        if form == Form::Prompt {
            fields.text(name)?;
        }
        let is_empty = match fields.get(name) {
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            _ => false,
        };
        let cut = is_ollama && fields.boolean("truncate")?.unwrap_or(true);
        Ok(Wish {
            name,
            inputs: if is_ollama && is_empty { Vec::new() } else { inputs(&fields, served, name)? },
            form,
            n_values: dimensions(&fields, served)?,
            normalise: is_normalised(&fields)? && form != Form::Prompt,
            cut: cut.then(|| served.limits().tokens_max()),
            begun,
        })
    }

    /// The answer to nothing.
    fn nothing(&self, served: &Served) -> Answer {
        Answer::Document(match self.form {
            Form::Prompt => json!({"embedding": []}),
            _ => json!({"model": served.name, "embeddings": []}),
        })
    }
}

fn encoding(fields: &Fields<'_>) -> Result<Encoding, ApiError> {
    match fields.text("encoding_format")? {
        None | Some("float") => Ok(Encoding::Float),
        Some("base64") => Ok(Encoding::Base64),
        Some(other) => {
            let text = format!("encoding_format is {other:?}; there are \"float\" and \"base64\"");
            Err(ApiError::field("encoding_format", text).code("invalid_value"))
        }
    }
}

/// `input`: a text, its tokens, or a list of either.
fn inputs<'a>(fields: &Fields<'a>, served: &Served, name: &str) -> Result<Vec<Input<'a>>, ApiError> {
    let need = "a string, an array of strings, an array of token ids, or an array of such arrays";
    let value = fields.get(name).ok_or_else(|| fields.missing(name))?;
    let n_vocab = served.limits().n_vocab;
    let tokens = |list: &[Value], path: &str| {
        let token = |(i, value): (usize, &Value)| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < n_vocab);
            let at = format!("{path}[{i}]");
            id.ok_or_else(|| {
                ApiError::field(&at, format!("{at}: needs a token id below {n_vocab}")).code("invalid_type")
            })
        };
        list.iter().enumerate().map(token).collect::<Result<Vec<u32>, _>>()
    };
    let inputs = match value {
        Value::String(text) => vec![Input::Text(text)],
        Value::Array(list) if list.first().is_some_and(Value::is_number) => vec![Input::Tokens(tokens(list, name)?)],
        Value::Array(list) => {
            if list.len() > INPUTS_MAX {
                let text = format!("{name}: {} inputs; the limit is {INPUTS_MAX} in one request", list.len());
                return Err(ApiError::field(name, text).code("out_of_range"));
            }
            let one = |(i, value): (usize, &'a Value)| match value {
                Value::String(text) => Ok(Input::Text(text)),
                Value::Array(list) => Ok(Input::Tokens(tokens(list, &format!("{name}[{i}]"))?)),
                other => Err(wrong(&format!("{name}[{i}]"), other, "a string or an array of token ids")),
            };
            list.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?
        }
        other => return Err(wrong(name, other, need)),
    };
    let is_empty = |input: &Input<'_>| match input {
        Input::Text(text) => text.is_empty(),
        Input::Tokens(tokens) => tokens.is_empty(),
    };
    if inputs.is_empty() {
        return Err(
            ApiError::field(name, format!("{name} is empty; it needs at least one input")).code("invalid_value")
        );
    }
    if let Some(i) = inputs.iter().position(is_empty) {
        let at = if inputs.len() > 1 || value.is_array() { format!("{name}[{i}]") } else { name.to_owned() };
        return Err(ApiError::field(&at, format!("{at} is empty; nothing has no vector")).code("invalid_value"));
    }
    Ok(inputs)
}

/// How many values of each vector are wanted.
fn dimensions(fields: &Fields<'_>, served: &Served) -> Result<usize, ApiError> {
    let most = served.limits().vector_len();
    Ok(fields.size("dimensions", 1, most)?.unwrap_or(most))
}

/// llama.cpp's `embd_normalize`: whether vectors are brought to length 1.
fn is_normalised(fields: &Fields<'_>) -> Result<bool, ApiError> {
    match fields.integer("embd_normalize", -1, i64::from(i32::MAX))? {
        None | Some(2) => Ok(true),
        Some(-1) if fields.get("content").is_some() => Ok(false),
        Some(other) => {
            let text =
                format!("embd_normalize is {other}; only 2 (length 1) is supported, and -1 (none) in /embedding");
            Err(ApiError::field("embd_normalize", text).code("unsupported_value"))
        }
    }
}

/// The vectors of inputs; texts longer than `cut` tokens lose what is too much of their end, but for the token that ends
/// them.
async fn compute(
    app: &App,
    served: &Rc<Served>,
    Wish { name, inputs, cut, .. }: Wish<'_>,
    trace: &Rc<Trace>,
) -> Result<Vectors, ApiError> {
    let is_one = inputs.len() == 1;
    let (mut texts, mut places) = (Vec::new(), Vec::new());
    let mut tokens: Vec<Vec<u32>> = Vec::with_capacity(inputs.len());
    for input in inputs {
        tokens.push(match input {
            Input::Text(text) => {
                texts.push(text.to_owned());
                places.push(tokens.len());
                Vec::new()
            }
            Input::Tokens(ids) => ids,
        });
    }
    for (index, ids) in places.into_iter().zip(served.vector_tokens(texts).await?) {
        tokens[index] = ids;
    }
    for ids in tokens.iter_mut() {
        if let (Some(cut), Some(last)) = (cut.filter(|cut| *cut < ids.len()), ids.last().copied()) {
            ids.truncate(cut);
            if [served.tokenizer.eos(), served.tokenizer.sep()].contains(&Some(last)) {
                ids[cut - 1] = last;
            }
        }
    }
    let field = |i: usize| if is_one { name.to_owned() } else { format!("{name}[{i}]") };
    if let Some(i) = tokens.iter().position(Vec::is_empty) {
        return Err(ApiError::field(field(i), format!("{} has no tokens; nothing has no vector", field(i))));
    }
    vectors::of_texts(app, served, tokens, &field, trace).await
}

/// What stands around the values of vectors.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    OpenAi(Encoding),
    Llama,
    Ollama,
    /// Ollama's older form: one vector.
    Prompt,
}

impl Form {
    /// What stands before all of them, and behind.
    fn ends(self, served: &Served, n: usize, begun: Instant) -> (String, String) {
        let name = || Value::from(served.name.as_str());
        match self {
            Form::OpenAi(_) => (
                "{\"object\":\"list\",\"data\":[".to_owned(),
                format!("],\"model\":{},\"usage\":{{\"prompt_tokens\":{n},\"total_tokens\":{n}}}}}", name()),
            ),
            Form::Llama => ("[".to_owned(), "]".to_owned()),
            Form::Prompt => ("{\"embedding\":".to_owned(), "}".to_owned()),
            Form::Ollama => (
                format!("{{\"model\":{},\"embeddings\":[", name()),
                format!(
                    "],\"total_duration\":{},\"load_duration\":0,\"prompt_eval_count\":{n}}}",
                    begun.elapsed().as_nanos()
                ),
            ),
        }
    }
}

/// Writes vectors one after the other while they are sent: no answer is in memory as a whole, and who waits for another is
/// not held up by a long one.
struct Writer {
    head: String,
    n_values: usize,
    normalise: bool,
    form: Form,
    tail: String,
}

impl Writer {
    fn answer(self, vectors: Vectors) -> Answer {
        Answer::Written(Body::streamed(|sink| self.write(vectors, sink)))
    }

    async fn write(self, mut vectors: Vectors, sink: Sink) {
        sink.borrow_mut().extend_from_slice(self.head.as_bytes());
        for index in 0..vectors.all.len() {
            let mut vector = std::mem::take(&mut vectors.all[index]);
            let vector = &mut vector[..self.n_values];
            if self.normalise {
                normalised(vector);
            }
            {
                let mut out = sink.borrow_mut();
                if index > 0 {
                    out.push(b',');
                }
                self.write_one(index, vector, &mut out);
            }
            tokio::task::yield_now().await;
        }
        sink.borrow_mut().extend_from_slice(self.tail.as_bytes());
    }

    fn write_one(&self, index: usize, vector: &[f32], out: &mut Vec<u8>) {
        match self.form {
            Form::OpenAi(encoding) => {
                out.extend_from_slice(
                    format!("{{\"object\":\"embedding\",\"index\":{index},\"embedding\":").as_bytes(),
                );
                match encoding {
                    Encoding::Float => push_floats(vector, out),
                    Encoding::Base64 => {
                        out.push(b'"');
                        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                        push_base64(&bytes, out);
                        out.push(b'"');
                    }
                }
                out.push(b'}');
            }
            Form::Llama => {
                out.extend_from_slice(format!("{{\"index\":{index},\"embedding\":[").as_bytes());
                push_floats(vector, out);
                out.extend_from_slice(b"]}");
            }
            Form::Ollama | Form::Prompt => push_floats(vector, out),
        }
    }
}

fn push_floats(vector: &[f32], out: &mut Vec<u8>) {
    // Numbers always serialise.
    let _ = serde_json::to_writer(&mut *out, vector);
}
