//! What a model's file asks of the sampler (`general.sampling`), where neither an option nor a request says otherwise.

use std::fmt;

use crate::gguf::{Metadata, Value};
use crate::sampling::{Sampler, SamplingParams};

/// Keys of samplers that brim does not have, and what they say when they do nothing.
const NOT_HERE: [(&str, f64); 5] = [
    ("xtc_probability", 0.0),
    ("mirostat", 0.0),
    ("penalty_last_n", crate::sampling::PENALTY_WINDOW as f64),
    ("sequence", f64::NAN),
    ("dynatemp_range", 0.0),
];

/// `usual`, with what the file states in its place. What cannot be had is said in the log, by the file's `name`.
pub fn defaults(metadata: &Metadata<'_>, name: impl fmt::Display, usual: SamplingParams) -> SamplingParams {
    let stated = |key: &str| metadata.get(&format!("general.sampling.{key}"));
    let number = |value: Value<'_>| match value {
        Value::F32(x) => Some(f64::from(x)),
        Value::F64(x) => Some(x),
        other => other.as_integer().map(|n| n as f64),
    };
    for (key, nothing) in NOT_HERE {
        if stated(key).is_some_and(|value| number(value) != Some(nothing)) {
            log::warn!(
                "{name}: `general.sampling.{key}` asks for what this version does not have; sampling goes without it"
            );
        }
    }
    let mut params = usual;
    let take = |params: &mut SamplingParams, key: &str, set: fn(&mut SamplingParams, f64)| {
        let Some(value) = stated(key) else { return };
        let mut changed = *params;
        match number(value) {
            Some(x) => set(&mut changed, x),
            None => changed.temp = f32::NAN,
        }
        match Sampler::new(changed) {
            Ok(_) => *params = changed,
            Err(_) => log::warn!("{name}: `general.sampling.{key}` is out of its range; the usual value stands"),
        }
    };
    take(&mut params, "temp", |params, x| params.temp = x as f32);
    // Below 1 it keeps all, as 0 does.
    take(&mut params, "top_k", |params, x| params.top_k = x.max(0.0) as u32);
    take(&mut params, "top_p", |params, x| params.top_p = x as f32);
    take(&mut params, "min_p", |params, x| params.min_p = x as f32);
    take(&mut params, "penalty_repeat", |params, x| params.repeat_penalty = x as f32);
    params
}
