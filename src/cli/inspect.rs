//! `brim inspect`: what a GGUF file says about itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::args::Inspect;
use super::common::put;
use crate::error::Result;
use crate::gguf::{Array, TensorInfo, Value};
use crate::load::header::ModelFiles;
use crate::quant::TensorType;
use crate::units::Human;

/// Elements of an array shown to people.
const SHOWN_ELEMENTS: usize = 6;
/// Characters of a string shown to people.
const SHOWN_CHARS: usize = 80;
/// Longest array that JSON gives whole, and how much of a longer one it gives.
const JSON_ELEMENTS: usize = 64;

/// Runs the command.
pub fn execute(args: &Inspect) -> Result<()> {
    let model = ModelFiles::open(&args.file)?;
    let text = if args.json { format!("{:#}\n", document(&model)) } else { report(&model) };
    put(&mut std::io::stdout().lock(), &text).map(|_| ())
}

/// Tensors, elements and bytes of one type.
#[derive(Clone, Copy, Default)]
struct Share {
    tensors: u64,
    elements: u128,
    bytes: u64,
}

impl Share {
    fn add(&mut self, t: &TensorInfo) {
        self.tensors += 1;
        self.elements += u128::from(t.n_elements());
        self.bytes += t.bytes;
    }

    fn bits_per_weight(&self) -> f64 {
        if self.elements == 0 { 0.0 } else { self.bytes as f64 * 8.0 / self.elements as f64 }
    }
}

/// The share of each type, and of all.
fn shares(model: &ModelFiles) -> (BTreeMap<TensorType, Share>, Share) {
    let (mut by_type, mut all) = (BTreeMap::<_, Share>::new(), Share::default());
    for t in model.tables().tensors() {
        by_type.entry(t.ty).or_default().add(t);
        all.add(t);
    }
    (by_type, all)
}

/// What the architecture's own keys say, as label and value; absent ones are left out.
fn summary(model: &ModelFiles) -> Vec<(&'static str, Json)> {
    const KEYS: [(&str, &str); 9] = [
        ("context_length", "context_length"),
        ("layers", "block_count"),
        ("embedding_length", "embedding_length"),
        ("feed_forward_length", "feed_forward_length"),
        ("heads", "attention.head_count"),
        ("kv_heads", "attention.head_count_kv"),
        ("experts", "expert_count"),
        ("experts_used", "expert_used_count"),
        ("vocab_size", "vocab_size"),
    ];
    let metadata = model.metadata();
    let mut found = Vec::new();
    let mut add = |label, value: Option<Value<'_>>| found.extend(value.map(|v| (label, json_value(&v))));
    let architecture = metadata.get("general.architecture");
    add("architecture", architecture);
    add("name", metadata.get("general.name"));
    if let Some(Value::String(name)) = architecture {
        let name = String::from_utf8_lossy(name);
        for (label, key) in KEYS {
            add(label, metadata.get(&format!("{name}.{key}")));
        }
    }
    add("tokenizer", metadata.get("tokenizer.ggml.model"));
    if let Ok(Some(tokens)) = metadata.array("tokenizer.ggml.tokens") {
        found.push(("tokens", json!(tokens.len())));
    }
    found
}

fn report(model: &ModelFiles) -> String {
    let mut text = String::new();
    write_report(&mut text, model).expect("writing to a String cannot fail");
    text
}

fn write_report(out: &mut String, model: &ModelFiles) -> std::fmt::Result {
    let (by_type, all) = shares(model);
    for (file, part) in (0u16..).zip(model.tables().parts()) {
        let path = clean(&model.path(file).to_string_lossy());
        let size = Human(model.file_bytes(file));
        writeln!(out, "{path}: GGUF v{}, {size}, {} tensors", part.version, part.tensors_len)?;
    }
    if model.len() > 1 {
        writeln!(out, "{} files, {}", model.len(), Human(model.total_bytes()))?;
    }
    writeln!(out)?;
    for (label, value) in summary(model) {
        match value {
            Json::String(text) => writeln!(out, "{:<20} {}", label.replace('_', " "), shorten(&text))?,
            other => writeln!(out, "{:<20} {}", label.replace('_', " "), shorten(&other.to_string()))?,
        }
    }
    writeln!(out, "{:<20} {}", "parameters", all.elements)?;
    writeln!(out, "{:<20} {} ({:.2} bits per weight)", "tensor data", Human(all.bytes), all.bits_per_weight())?;

    writeln!(out, "\nmetadata ({})", model.metadata().len())?;
    for (key, value) in model.metadata().iter() {
        writeln!(out, "  {key} = {}", show(&value))?;
    }
    writeln!(out, "\ntensors ({})", all.tensors)?;
    let name_chars = model.tables().tensors().iter().map(|t| t.name().chars().count()).max().unwrap_or(0).max(4);
    if all.tensors > 0 {
        writeln!(out, "  {:<name_chars$} {:<8} {:<24} {:>14} {:>14} file", "name", "type", "dims", "bytes", "offset")?;
    }
    for t in model.tables().tensors() {
        let dims = t.shape().iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        let (name, ty, file) = (t.name(), t.ty, t.file + 1);
        writeln!(out, "  {name:<name_chars$} {ty:<8} {dims:<24} {:>14} {:>14} {file:>4}", t.bytes, t.offset)?;
    }
    writeln!(out, "\ntypes")?;
    for (ty, share) in &by_type {
        let (tensors, bits) = (share.tensors, share.bits_per_weight());
        let size = Human(share.bytes);
        writeln!(
            out,
            "  {ty:<8} {tensors:>5} tensors {:>16} elements {size:>12} {bits:>8.4} bits per weight",
            share.elements
        )?;
    }
    Ok(())
}

/// A value for people: strings and arrays shortened, with their length.
fn show(value: &Value<'_>) -> String {
    match value {
        Value::String(bytes) => format!("\"{}\"", shorten(&String::from_utf8_lossy(bytes))),
        Value::Array(array) => show_array(array),
        other => match json_value(other) {
            Json::String(text) => text,
            json => json.to_string(),
        },
    }
}

fn show_array(array: &Array<'_>) -> String {
    let mut shown: Vec<String> = array.iter().take(SHOWN_ELEMENTS).map(|v| show(&v)).collect();
    if array.len() > SHOWN_ELEMENTS {
        shown.push("...".to_owned());
    }
    format!("[{}] ({} x {})", shown.join(", "), array.len(), array.element_type())
}

/// Makes text safe for a terminal: control characters are escaped.
fn clean(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn shorten(text: &str) -> String {
    let chars = text.chars().count();
    if chars <= SHOWN_CHARS {
        return clean(text);
    }
    let front: String = text.chars().take(SHOWN_CHARS).collect();
    format!("{}... ({chars} characters)", clean(&front))
}

fn document(model: &ModelFiles) -> Json {
    let (by_type, all) = shares(model);
    let files: Vec<Json> = (0u16..)
        .zip(model.tables().parts())
        .map(|(file, part)| {
            json!({
                "path": model.path(file).to_string_lossy(),
                "version": part.version,
                "bytes": model.file_bytes(file),
                "header_bytes": part.header_bytes,
                "data_start": part.data_start,
                "alignment": part.alignment,
                "tensors": part.tensors_len,
            })
        })
        .collect();
    let metadata: Map<String, Json> = model.metadata().iter().map(|(k, v)| (k.to_owned(), json_value(&v))).collect();
    let summary: Map<String, Json> = summary(model).into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let tensors: Vec<Json> = model.tables().tensors().iter().map(json_tensor).collect();
    let types: Vec<Json> = by_type.iter().map(|(ty, share)| json_share(ty.name(), share)).collect();
    json!({
        "files": files,
        "bytes": model.total_bytes(),
        "parameters": json_count(all.elements),
        "summary": summary,
        "metadata": metadata,
        "tensors": tensors,
        "types": types,
        "total": json_share("all", &all),
    })
}

fn json_tensor(t: &TensorInfo) -> Json {
    json!({
        "name": t.name(),
        "type": t.ty.name(),
        "dims": t.shape(),
        "elements": t.n_elements(),
        "bytes": t.bytes,
        "offset": t.offset,
        "file": t.file + 1,
    })
}

fn json_share(name: &str, share: &Share) -> Json {
    json!({
        "type": name,
        "tensors": share.tensors,
        "elements": json_count(share.elements),
        "bytes": share.bytes,
        "bits_per_weight": share.bits_per_weight(),
    })
}

/// Counts fit u64 unless the file's tensors of a one-bit type were larger than any disk; then text keeps them exact.
fn json_count(count: u128) -> Json {
    u64::try_from(count).map_or_else(|_| json!(count.to_string()), |n| json!(n))
}

fn json_value(value: &Value<'_>) -> Json {
    match *value {
        Value::Bool(b) => json!(b),
        Value::F32(v) => json_float(v.is_finite(), v.to_string()),
        Value::F64(v) => json_float(v.is_finite(), v.to_string()),
        Value::U64(v) => json!(v),
        Value::String(bytes) => json!(String::from_utf8_lossy(bytes)),
        Value::Array(array) => json_array(&array),
        _ => json!(value.as_integer().and_then(|v| i64::try_from(v).ok())),
    }
}

/// The shortest digits that give the same float; what JSON has no number for is text.
fn json_float(finite: bool, text: String) -> Json {
    match text.parse::<f64>() {
        Ok(number) if finite => json!(number),
        _ => json!(text),
    }
}

fn json_array(array: &Array<'_>) -> Json {
    let first: Vec<Json> = array.iter().take(JSON_ELEMENTS).map(|v| json_value(&v)).collect();
    if array.len() <= JSON_ELEMENTS {
        return Json::Array(first);
    }
    json!({ "type": array.element_type().name(), "len": array.len(), "first": first })
}
