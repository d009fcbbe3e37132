//! `bench model`: prefill and decode of a model, each beside its own ceiling.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::args::Bench;
use super::ceilings::{PeakRounds, Peaks, ReadBy, ReadRounds};
use super::figures::{Spread, list, say};
use crate::boot::{Foundations, Headers, Workload};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::kernels::{Kernels, KvType};
use crate::load::Progress;
use crate::memory::PageKind;
use crate::model::config::AttentionConfig;
use crate::model::{CachePlan, Config, Form, Sizes, Weight, Weights};
use crate::quant::WeightType;
use crate::settings::Settings;
use crate::sys::file::{PageAccount, page_account};
use crate::units::{GIB, Human};

/// Of larger weights only so much is read for the ceiling.
const READ_BYTES_MAX: usize = 2 * GIB as usize;

/// One prefill or one stretch of decode, by round.
#[derive(Default)]
struct Rounds {
    seconds: Vec<f64>,
    attention_seconds: Vec<f64>,
}

impl Rounds {
    fn push(&mut self, elapsed: Duration, attention: Duration) {
        self.seconds.push(elapsed.as_secs_f64());
        self.attention_seconds.push(attention.as_secs_f64());
    }

    /// Tokens per second; with what attention took left out if `bare`.
    fn speed(&self, n_tokens: usize, bare: bool) -> Spread {
        let rounds = self.seconds.iter().zip(&self.attention_seconds);
        let speeds: Vec<f64> =
            rounds.map(|(all, att)| n_tokens as f64 / (all - if bare { *att } else { 0.0 })).collect();
        Spread::of(&speeds)
    }

    fn attention_share(&self) -> f64 {
        let rounds = self.seconds.iter().zip(&self.attention_seconds);
        Spread::of(&rounds.map(|(all, attention)| attention / all).collect::<Vec<_>>()).median
    }
}

/// What a token costs, from the model's numbers alone.
struct Cost<'a> {
    config: &'a Config,
    weights: &'a Weights,
    kv_type: KvType,
    /// Of the states of recurrent layers, read and written with every token.
    state_bytes: usize,
}

impl<'a> Cost<'a> {
    fn new(config: &'a Config, weights: &'a Weights, sizes: &Sizes) -> Self {
        let state_bytes = 2 * CachePlan::new(config, sizes).state_bytes;
        Cost { config, weights, kv_type: sizes.kv_type, state_bytes }
    }

    /// Positions that a token sees, itself among them: the mean over `n` tokens from `first` on.
    fn mean_context(first: usize, n: usize) -> f64 {
        first as f64 + (n as f64 + 1.0) / 2.0
    }

    /// MACs of attention per token with so many positions to see: queries times keys, and weights times values.
    fn attention_macs(&self, context: f64) -> f64 {
        let latent = self.config.latents().map(|l| l.n_heads * (l.row_dim() + l.kv_rank)).sum::<usize>() as f64;
        self.sum_over_positions(context, |a| a.n_heads * (a.key_dim + a.value_dim)) + latent * context
    }

    fn kv_bytes(&self, context: f64) -> f64 {
        let row_bytes = |dim| self.kv_type.row_bytes(dim);
        let latent = self.config.latents().map(|latent| row_bytes(latent.row_dim())).sum::<usize>() as f64;
        let heads = |a: &AttentionConfig| a.n_kv_heads * (row_bytes(a.key_dim) + row_bytes(a.value_dim));
        self.sum_over_positions(context, heads) + latent * context
    }

    /// What one position costs, times the positions seen, summed over layers, of which some see no more than their window.
    fn sum_over_positions(&self, context: f64, cost: impl Fn(&AttentionConfig) -> usize) -> f64 {
        let layers = self.config.attentions();
        layers.map(|attention| cost(attention) as f64 * context.min(attention.window_len() as f64)).sum()
    }

    /// The matrices that every token of a prompt meets. What comes behind the mixer of the last layer only the last token
    /// does: the region has the layers in their order.
    fn of_every_token(&self) -> impl Iterator<Item = Weight> {
        let matrices = self.weights.placements.iter().map(|placement| placement.weight);
        let end = self.weights.end_of_prefill();
        matrices
            .filter(move |w| w.form == Form::Panels && w.offset != self.weights.output.weight.offset && w.offset < end)
    }

    /// MACs per token of prefill, without attention.
    fn prefill_macs(&self) -> f64 {
        self.of_every_token().map(|w| w.macs_per_token() as f64).sum()
    }

    /// Seconds per token of prefill if every matrix ran at the peak of its type; output matrix and attention left out.
    fn ideal_seconds(&self, peaks: &Peaks) -> f64 {
        self.of_every_token().map(|w| w.macs_per_token() as f64 / 1e9 / peaks.of(w.ty)).sum()
    }
}

/// All figures of a run.
struct Figures {
    peaks: PeakRounds,
    read: ReadRounds,
    /// By prompt length.
    prefill: Vec<Rounds>,
    decode: Rounds,
}

impl Figures {
    fn new(kernels: &'static Kernels, prompts: &[usize]) -> Figures {
        Figures {
            peaks: PeakRounds::default(),
            read: ReadRounds::new(kernels),
            prefill: prompts.iter().map(|_| Rounds::default()).collect(),
            decode: Rounds::default(),
        }
    }
}

pub(super) fn measure(args: &Bench, settings: &Settings) -> Result<Value> {
    let prompts: Vec<usize> = list("-p", args.n_prompt.as_deref().unwrap_or("512"))?;
    let (n_gen, depth) = (args.n_gen as usize, args.depth as usize);
    let longest = prompts.iter().copied().max().unwrap_or(0);
    if longest + n_gen == 0 {
        return Err(Error::usage("bench model: -p and -n are both 0, so there is nothing to measure"));
    }
    if prompts.len() > 1 && prompts.contains(&0) {
        return Err(Error::usage("bench model: 0 in a list of -p is not a prompt; leave it out"));
    }
    let need = depth.saturating_add(longest.max(prompts[0].saturating_add(n_gen)));
    let workload = Workload { ctx_default: Some(need), ctx_least: need, ..Workload::default() };
    let planned = Headers::read(settings)?.of_text("bench")?.plan(&workload)?;
    let Headers { files, model, kernels, .. } = &planned.headers;
    let (name, kernels) = (files.name().to_string(), *kernels);
    let (config, weights, sizes) = (model.config.clone(), model.weights.clone(), planned.sizes);
    let mut figures = Figures::new(kernels, &prompts);
    let mut base = Foundations::default();
    let running = planned.map()?.start(&mut base, &Progress::default())?;
    let mut engine = Engine::new(running.core);
    let data = &running.weights[..running.weights.len().min(READ_BYTES_MAX)];
    let n_vocab = weights.n_vocab();
    if depth > 0 {
        engine.feed(&random_tokens(depth, n_vocab, 3))?;
    }
    // The first round warms up and is not counted.
    for round in 0..=args.repeat {
        let mut uncounted = Figures::new(kernels, &prompts);
        let figures = if round == 0 { &mut uncounted } else { &mut figures };
        figures.read.measure(running.workers, settings.threads(), data);
        figures.peaks.measure(kernels, running.workers);
        for (i, (&n, rounds)) in prompts.iter().zip(&mut figures.prefill).enumerate() {
            let left = engine.rewind(depth);
            if left < depth {
                engine.feed(&random_tokens(depth, n_vocab, 3)[left..])?;
            }
            let prompt = random_tokens(n, n_vocab, u64::from(round));
            feed(&mut engine, &prompt, n.max(1), rounds)?;
            if i == 0 {
                feed(&mut engine, &random_tokens(n_gen, n_vocab, u64::from(round) + 7), 1, &mut figures.decode)?;
            }
        }
    }
    let account = page_account(running.weights.as_ptr().addr());
    let page = running.mapped.plan.page();
    let report = Report { args, settings, name, kernels, page, account, sizes, prompts, depth, n_gen };
    report.write(&Cost::new(&config, &weights, &sizes), &figures)
}

/// Feeds tokens, `at_once` in one call.
fn feed(engine: &mut Engine<'_>, tokens: &[u32], at_once: usize, rounds: &mut Rounds) -> Result<()> {
    engine.take_attention_time();
    let begun = Instant::now();
    for tokens in tokens.chunks(at_once) {
        engine.feed(tokens)?;
    }
    rounds.push(begun.elapsed(), engine.take_attention_time());
    Ok(())
}

/// A small generator for token ids; the weights do not care which.
pub(super) fn random_tokens(n: usize, n_vocab: usize, seed: u64) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % n_vocab as u64) as u32
    };
    (0..n).map(|_| next()).collect()
}

/// What the figures are set against.
struct Report<'a> {
    args: &'a Bench,
    settings: &'a Settings,
    name: String,
    kernels: &'static Kernels,
    page: PageKind,
    account: Option<PageAccount>,
    sizes: Sizes,
    prompts: Vec<usize>,
    depth: usize,
    n_gen: usize,
}

impl Report<'_> {
    fn say(&self, line: &str) -> Result<()> {
        say(self.args, line)
    }

    fn write(&self, cost: &Cost<'_>, figures: &Figures) -> Result<Value> {
        let (peaks, (by, read)) = (figures.peaks.spread(), figures.read.best());
        let threads = self.settings.threads();
        let tier = self.kernels.tier().name();
        self.say(&format!("{}: kernels {tier}, {threads} threads, {}", self.name, pages(self.page, self.account)))?;
        self.say(&format!("ceilings: {peaks}; reading the weights {read} GB/s ({by})"))?;
        let prefills: Vec<Value> = self
            .prompts
            .iter()
            .zip(&figures.prefill)
            .filter(|(n, _)| **n > 0)
            .map(|(&n, rounds)| self.prefill(cost, &peaks, n, rounds))
            .collect::<Result<_>>()?;
        let decode = self.decode(cost, (by, read), &figures.decode)?;
        Ok(json!({
            "model": self.name,
            "tier": tier,
            "threads": threads,
            "page_bytes": self.page.bytes(),
            "kernel_page_bytes": self.account.map(|account| account.page_bytes),
            "transparent_bytes": self.account.map(|account| account.transparent_bytes),
            "depth": self.depth,
            "repetitions": self.args.repeat,
            "ceilings": {
                "int8_gmacs": peaks.int8.median, "bf16_gmacs": peaks.bf16.map(|bf16| bf16.median),
                "f32_gmacs": peaks.f32.median, "read_gbs": read.median, "peaks": peaks.json(), "read": read.json(),
                "read_way": by.to_string(),
            },
            "macs_per_token": cost.weights.macs_per_token,
            "bytes_per_token": cost.weights.bytes_per_token,
            "prefill": prefills.first().unwrap_or(&Value::Null),
            "prefills": prefills,
            "decode": decode,
        }))
    }

    fn prefill(&self, cost: &Cost<'_>, peaks: &Peaks, n: usize, rounds: &Rounds) -> Result<Value> {
        let (speed, bare) = (rounds.speed(n, false), rounds.speed(n, true));
        let share = speed.median * cost.ideal_seconds(peaks);
        let macs = cost.prefill_macs();
        let attention_macs = cost.attention_macs(Cost::mean_context(self.depth, n));
        let (of_time, of_macs) = (rounds.attention_share(), attention_macs / (macs + attention_macs));
        let kernels = self.kernel_names(cost.weights, n.min(self.sizes.n_batch));
        self.say(&format!("pp{n} @ d{}: {speed:.2} tokens/s, {:.1} % of the peak", self.depth, share * 100.0))?;
        self.say(&format!(
            "  {:.2} GMAC per token and {:.2} of attention ({:.1} %), which takes {:.1} % of the time; {:.2} tokens/s without",
            macs / 1e9, attention_macs / 1e9, of_macs * 100.0, of_time * 100.0, bare.median
        ))?;
        self.say(&format!("  {}", kernels.join(" ")))?;
        Ok(json!({
            "tokens": n, "tokens_per_second": speed.median, "min": speed.min, "max": speed.max,
            "share_of_ceiling": share, "attention_share_of_macs": of_macs, "attention_share_of_time": of_time,
            "tokens_per_second_without_attention": bare.median, "attention_macs_per_token": attention_macs,
            "kernels": kernels,
        }))
    }

    fn decode(&self, cost: &Cost<'_>, (by, read): (ReadBy, Spread), rounds: &Rounds) -> Result<Value> {
        if self.n_gen == 0 {
            return Ok(Value::Null);
        }
        let context = Cost::mean_context(self.depth + self.prompts[0], self.n_gen);
        let (weight_bytes, kv_bytes) = (cost.weights.bytes_per_token as f64, cost.kv_bytes(context));
        let (speed, bare) = (rounds.speed(self.n_gen, false), rounds.speed(self.n_gen, true));
        let share = speed.median * (weight_bytes + kv_bytes + cost.state_bytes as f64) / 1e9 / read.median;
        let states = match cost.state_bytes {
            0 => String::new(),
            bytes => format!(", {} of states, read and written", Human(bytes as u64)),
        };
        let of_time = rounds.attention_share();
        let kernels = self.kernel_names(cost.weights, 1);
        self.say(&format!(
            "tg{} @ d{}: {speed:.2} tokens/s, {:.1} % of the read bandwidth",
            self.n_gen,
            self.depth,
            share * 100.0
        ))?;
        self.say(&format!(
            "  {} of weights per token and {} of KV ({context:.0} positions){states}; attention takes {:.1} % of the time; \
             {:.2} tokens/s without",
            Human(weight_bytes as u64),
            Human(kv_bytes as u64),
            of_time * 100.0,
            bare.median
        ))?;
        self.say(&format!("  {}", kernels.join(" ")))?;
        Ok(json!({
            "tokens": self.n_gen, "tokens_per_second": speed.median, "min": speed.min, "max": speed.max,
            "share_of_ceiling": share, "read_way": by.to_string(), "mean_context": context,
            "weight_bytes_per_token": weight_bytes, "kv_bytes_per_token": kv_bytes,
            "state_bytes_per_token": cost.state_bytes,
            "attention_share_of_time": of_time, "tokens_per_second_without_attention": bare.median,
            "kernels": kernels,
        }))
    }

    /// The kernels that `n_tokens` at once run on, one for each weight type of the model.
    fn kernel_names(&self, weights: &Weights, n_tokens: usize) -> Vec<String> {
        let matrices = weights.placements.iter().map(|placement| placement.weight).filter(|w| w.form == Form::Panels);
        let mut types: Vec<WeightType> = matrices.map(|w| w.ty).collect();
        types.sort_by_key(|ty| *ty as u8);
        types.dedup();
        types.into_iter().map(|ty| self.kernels.name(ty, n_tokens)).collect()
    }
}

/// The pages that were planned, and what the kernel says about them.
fn pages(planned: PageKind, account: Option<PageAccount>) -> String {
    let Some(account) = account else { return format!("{planned} pages") };
    match planned {
        PageKind::Base4K => {
            let percent = account.transparent_bytes as f64 / account.mapped_bytes.max(1) as f64 * 100.0;
            format!("{planned} pages, {percent:.0} % of them in transparent huge pages")
        }
        _ if account.page_bytes == planned.bytes() => format!("{planned} pages, confirmed by the kernel"),
        _ => format!("{planned} pages planned, but the kernel says {}", Human(account.page_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_medians_over_rounds() {
        let rounds = Rounds { seconds: vec![2.0, 4.0, 1.0], attention_seconds: vec![1.0, 1.0, 0.5] };
        assert_eq!((rounds.speed(8, false).median, rounds.speed(8, true).median), (4.0, 8.0));
        assert_eq!(rounds.attention_share(), 0.5);
    }

    #[test]
    fn the_mean_token_sees_the_middle() {
        // Three tokens after ten: they see 11, 12 and 13 positions.
        assert_eq!(Cost::mean_context(10, 3), 12.0);
        assert_eq!(Cost::mean_context(0, 1), 1.0);
    }

    #[test]
    fn pages_are_said_as_they_are() {
        let account = PageAccount { page_bytes: 4096, mapped_bytes: 100, transparent_bytes: 50 };
        assert!(pages(PageKind::Base4K, Some(account)).contains("50 % of them in transparent"));
        assert!(pages(PageKind::Huge2M, Some(account)).contains("but the kernel says 4.0 KiB"));
    }
}
