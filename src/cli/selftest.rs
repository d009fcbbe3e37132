//! `brim selftest`: the demo model's known answers on every kernel tier of this CPU. The answers were given by an
//! independent engine (`tools/demo/expect.py`), so they hold brim to someone else's truth.

use log::LevelFilter;
use serde::Deserialize;
use serde_json::json;

use super::args::Selftest;
use super::common::{out, resolve};
use crate::board::Ctx;
use crate::boot::{Foundations, Headers, Workload};
use crate::engine::Engine;
use crate::error::{Error, Exit, Result};
use crate::kernels::{self, Tier};
use crate::load::Progress;
use crate::sampling::{Sampler, SamplingParams};
use crate::settings::{Overrides, Settings};

/// A prompt and the ids it must lead to.
#[derive(Deserialize)]
struct Known {
    prompt: String,
    prompt_ids: Vec<u32>,
    answer_ids: Vec<u32>,
}

/// Executes `brim selftest`.
///
/// # Errors
/// Exit 6 if a tier gives another answer: a broken CPU, broken memory or a broken build.
pub fn execute(args: &Selftest) -> Result<()> {
    let known: Vec<Known> = serde_json::from_str(include_str!("../demo/expected.json"))
        .map_err(|e| Error::new(Exit::Unexpected, e).at("the recorded answers"))?;
    let mut report = Vec::new();
    let (mut wrong, mut printed) = (None, Ok(()));
    for tier in Tier::ALL {
        let (passed, note) = match tier.kernels() {
            None => (None, "this CPU lacks it".to_owned()),
            Some(_) => match answers(tier, &known)? {
                None => (Some(true), format!("{} prompts, all answers as recorded", known.len())),
                Some(prompt) => (Some(false), format!("the answer to {prompt:?} differs from the recorded one")),
            },
        };
        if !args.json {
            let verdict = match passed {
                Some(true) => "passed",
                Some(false) => "FAILED",
                None => "absent",
            };
            printed = printed.and(out(&format!("{:8} {verdict}: {note}", tier.name())));
        }
        if passed == Some(false) {
            wrong = Some(tier);
        }
        report.push(json!({"tier": tier.name(), "passed": passed, "note": note}));
    }
    if args.json {
        printed = out(&json!({"tiers": report, "passed": wrong.is_none()}).to_string());
    }
    match wrong {
        None => printed,
        Some(tier) => Err(Error::new(
            Exit::Cpu,
            format!(
                "self-test failed on the tier {}: the CPU, the memory or this binary is damaged; check the binary's checksum, \
                 then the memory, and use --isa {} meanwhile",
                tier.name(),
                kernels::available().map(|k| k.tier().name()).find(|name| *name != tier.name()).unwrap_or("scalar")
            ),
        )),
    }
}

/// The first prompt that this tier answers differently; `None` if there is none.
fn answers(tier: Tier, known: &[Known]) -> Result<Option<String>> {
    let overrides = Overrides { isa: Some(tier.name().to_owned()), ..Overrides::default() };
    // The environment and a board may speak of other models and pages; the self-test is always the same.
    let mut settings = Settings {
        model: None,
        sha256: Vec::new(),
        hugepages: false,
        ctx: Some(Ctx::Tokens(512)),
        ..resolve(&overrides, LevelFilter::Warn)?
    };
    settings.board.serve.models.clear();
    let mut base = Foundations::default();
    let planned = Headers::read(&settings)?.plan(&Workload::default())?;
    let mut engine = Engine::new(planned.map()?.start(&mut base, &Progress::default())?.core);
    for one in known {
        if answer(&mut engine, one)?.is_none() {
            return Ok(Some(one.prompt.clone()));
        }
    }
    Ok(None)
}

/// `Some` if the recorded tokens come out.
fn answer(engine: &mut Engine<'_>, one: &Known) -> Result<Option<()>> {
    let greedy = SamplingParams { temp: 0.0, ..SamplingParams::default() };
    let mut sampler = Sampler::new(greedy)?;
    engine.rewind(0);
    let mut next = one.prompt_ids.clone();
    for &want in &one.answer_ids {
        let token = sampler.sample(engine.feed(&next)?, &mut [])?;
        if token != want {
            return Ok(None);
        }
        next = vec![token];
    }
    Ok(Some(()))
}
