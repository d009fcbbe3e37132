//! `brim eval`: perplexity of a text, and its logits for comparison with other engines.

use std::fs::File;
use std::io::{BufWriter, Write};

use log::LevelFilter;
use serde_json::json;

use super::args::Eval;
use super::common::{out, resolve};
use crate::boot::{CTX_DEFAULT, Foundations, Headers, Workload};
use crate::bytes;
use crate::engine::Engine;
use crate::error::{Error, Exit, Result};
use crate::load::Progress;
use crate::tokenizer::PromptForm;

/// Rows of logits computed at once.
const LOGIT_ROWS: usize = 16;

/// Executes `brim eval`. The text is encoded as it is, with BOS in front where the file says so.
///
/// # Errors
/// A text that cannot be read or is too short, and whatever stands in the way of loading.
pub fn execute(args: &Eval) -> Result<()> {
    let settings = resolve(&args.overrides(), LevelFilter::Warn)?;
    let text = std::fs::read(&args.file).map_err(|e| Error::usage(e.to_string()).at(&args.file))?;
    let text = String::from_utf8(text)
        .map_err(|e| Error::usage(format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())).at(&args.file))?;
    // No text has more tokens than bytes; two more for BOS and EOS.
    let ctx_default = Some((text.len() + 2).clamp(16, CTX_DEFAULT));
    let workload = Workload { n_logits: LOGIT_ROWS, ctx_default, ..Workload::default() };
    let mut base = Foundations::default();
    let running =
        Headers::read(&settings)?.of_text("eval")?.plan(&workload)?.map()?.start(&mut base, &Progress::default())?;
    let mut engine = Engine::new(running.core);
    let mut tokens = Vec::new();
    running.tokenizer.encode_prompt(&text, PromptForm::Raw, &mut tokens);
    if tokens.len() < 2 {
        return Err(Error::usage(format!("{} tokens: perplexity needs at least 2", tokens.len())).at(&args.file));
    }
    let mut file = match &args.logits {
        Some(path) => {
            let file = File::create(path).map_err(|e| Error::new(Exit::Unexpected, e).at(path))?;
            Some(BufWriter::with_capacity(1 << 20, file))
        }
        None => None,
    };
    let (mut nats, mut failure) = (0.0, None);
    engine.feed_all(&tokens, |i, logits| {
        if let Some(&next) = tokens.get(i + 1) {
            nats -= log_probability(logits, next as usize);
        }
        if let Some(file) = &mut file {
            failure = failure.take().or_else(|| file.write_all(bytes::bytes_of(logits)).err());
        }
    })?;
    if let Some(file) = &mut file {
        failure = failure.or_else(|| file.flush().err());
    }
    if let Some(e) = failure {
        return Err(Error::new(Exit::Unexpected, e).at("write the logits"));
    }
    if nats.is_nan() {
        return Err(Error::new(Exit::Unexpected, "the logits are not numbers: the weights are damaged"));
    }
    let perplexity = (nats / (tokens.len() - 1) as f64).exp();
    if args.json {
        let report = json!({"tokens": tokens.len(), "perplexity": perplexity, "nats": nats,
            "n_vocab": running.tokenizer.n_tokens(), "tier": engine.kernels().tier().name()});
        out(&report.to_string())
    } else {
        out(&format!("{} tokens, perplexity {perplexity:.4}", tokens.len()))
    }
}

/// `log softmax(logits)[token]`, summed in f64.
fn log_probability(logits: &[f32], token: usize) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|x| f64::from(x - top).exp()).sum();
    f64::from(logits[token] - top) - total.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_add_up() {
        let logits = [1.0f32, -2.0, 900.0, 899.5];
        let total: f64 = (0..4).map(|t| log_probability(&logits, t).exp()).sum();
        assert!((total - 1.0).abs() < 1e-12);
    }
}
