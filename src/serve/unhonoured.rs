//! Fields of other servers that would change the answer, and that this one does not honour: an answer other than the one
//! that was asked for is worse than none.

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;

/// Each field with the numbers that ask for nothing; `false` and what is empty never do.
const FIELDS: &[(&str, &[f64])] = &[
    ("adaptive_target", &[-1.0]),
    ("allowed_token_ids", &[]),
    ("audio", &[]),
    ("background", &[]),
    ("bad_words", &[]),
    ("best_of", &[0.0, 1.0]),
    ("container", &[]),
    ("dry_multiplier", &[0.0]),
    ("dynatemp_range", &[0.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("function_call", &[]),
    ("functions", &[]),
    ("guidance_scale", &[0.0, 1.0]),
    ("include_stop_str_in_output", &[]),
    ("length_penalty", &[1.0]),
    ("lora", &[]),
    ("lora_request", &[]),
    ("mcp_servers", &[]),
    ("min_tokens", &[0.0]),
    ("mirostat", &[0.0]),
    ("mirostat_mode", &[0.0]),
    ("modalities", &[]),
    ("negative_prompt", &[]),
    ("no_repeat_ngram_size", &[0.0]),
    ("num_beams", &[1.0]),
    ("penalty_alpha", &[0.0]),
    ("post_sampling_probs", &[]),
    ("smoothing_factor", &[0.0]),
    ("stop_token_ids", &[]),
    ("tfs", &[1.0]),
    ("tfs_z", &[1.0]),
    ("top_a", &[0.0]),
    ("top_n_sigma", &[-1.0, 0.0]),
    ("truncate_prompt_tokens", &[-1.0]),
    ("typical_p", &[0.0, 1.0]),
    ("use_beam_search", &[]),
    ("web_search_options", &[]),
    ("xtc_probability", &[0.0]),
];

/// Refuses a request that asks for one of them.
///
/// # Errors
/// 400 with the field.
pub fn refuse(fields: &Fields<'_>) -> Result<(), ApiError> {
    for &(name, neutral) in FIELDS {
        let asks = fields.get(name).is_some_and(|value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Bool(true) => true,
            Value::Number(number) => number.as_f64().is_none_or(|number| !neutral.contains(&number)),
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => list.iter().any(|item| item != "text"),
            // An object of settings; one that is empty still asks, say, for a search of the web.
            Value::Object(_) => true,
        });
        if asks {
            let instead = match name {
                "functions" => "send tools",
                "function_call" => "send tool_choice",
                _ => "leave it out",
            };
            let name = fields.path(name);
            let text = format!(
                "{name} would change the answer, and this server does not honour it; {instead} to get an answer without it"
            );
            return Err(ApiError::field(name, text).code("unsupported_parameter"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_asks_for_nothing_is_let_through() {
        let neutral = json!({"mirostat": 0, "typical_p": 1.0, "top_n_sigma": -1, "lora": [], "use_beam_search": false,
            "modalities": ["text"], "bad_words": null, "negative_prompt": "", "samplers": ["top_k"]});
        refuse(&Fields::of(&neutral).unwrap()).unwrap();
        for asks in
            [json!({"mirostat": 2}), json!({"modalities": ["text", "audio"]}), json!({"web_search_options": {}})]
        {
            let error = refuse(&Fields::of(&asks).unwrap()).unwrap_err();
            assert_eq!((error.status.as_u16(), error.code), (400, Some("unsupported_parameter")), "{asks}");
        }
        assert!(FIELDS.is_sorted_by_key(|(name, _)| *name));
    }
}
