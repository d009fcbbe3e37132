//! From logits to the next token: a leaf without clock or I/O, the seed is passed in.
//!
//! Order: repeat, presence and frequency penalties, biases, mask; then (unless greedy) top-k, top-p, min-p, temperature,
//! draw. Repeat penalty as in CTRL (arXiv:1909.05858), presence and frequency penalties and biases as in OpenAI's API,
//! top-p as in arXiv:1904.09751, min-p as in arXiv:2407.01082.

mod logprobs;
mod random;

use std::fmt;

use crate::error::{Error, Exit};
pub use logprobs::logprobs;
use random::Pcg32;

/// How many recent tokens the repeat penalty looks at.
pub const PENALTY_WINDOW: usize = 64;

/// A bias from which on a token is never drawn, as in OpenAI's API.
pub const BAN_BIAS: f32 = -100.0;

/// What the sampler does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by this; 0 is greedy.
    pub temp: f32,
    /// Only the K likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Only the likeliest tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// No token less likely than this share of the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Logits of recent tokens are divided (or, below zero, multiplied) by this; 1 changes nothing.
    pub repeat_penalty: f32,
    /// Subtracted from the logits of tokens that have been generated; 0 changes nothing.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens as many times as they have been generated; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Same seed, same draws.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temp: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

/// Why there is no next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SamplingError {
    /// A parameter out of its range.
    Param {
        /// The option.
        option: &'static str,
        /// Its value.
        found: f32,
        /// Its range, in words.
        need: &'static str,
    },
    /// A logit is not a number, or infinite.
    NotANumber {
        /// Of this token.
        token: usize,
    },
    /// No token has a finite logit and is allowed.
    NoCandidate,
}

impl fmt::Display for SamplingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SamplingError::Param { option, found, need } => write!(f, "--{option} {found}: needs {need}"),
            SamplingError::NotANumber { token } => write!(
                f,
                "the logit of token {token} is not a number: the weights or the memory are damaged; check the file's \
                 checksum and run `brim selftest`"
            ),
            SamplingError::NoCandidate => f.write_str(
                "no token is left to draw: a mask or biases exclude all, or no logit is finite because the weights or the \
                 memory are damaged; run `brim selftest`",
            ),
        }
    }
}

impl std::error::Error for SamplingError {}

impl From<SamplingError> for Error {
    fn from(e: SamplingError) -> Self {
        let exit = match e {
            SamplingError::Param { .. } => Exit::Usage,
            _ => Exit::Unexpected,
        };
        Error::new(exit, e)
    }
}

/// A token, and the bits of its logit, later of its weight: plain numbers, so that any memory holds them.
pub type Candidate = [u32; 2];

/// Logits of which the largest is looked for at a time.
const GROUP: usize = 64;

fn value([_, bits]: &Candidate) -> f32 {
    f32::from_bits(*bits)
}

/// What else one token depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Constraints<'s> {
    /// What presence and frequency penalties look at.
    pub generated: &'s [u32],
    /// Added to the logits of these tokens.
    pub biases: &'s [(u32, f32)],
    /// The tokens that may be drawn: bit `id % 32` of word `id / 32`.
    pub allowed: Option<&'s [u32]>,
}

/// Room for one draw at a time.
#[derive(Debug)]
pub struct SamplerScratch<'s> {
    /// [`Sampler::scratch_len`] of them.
    pub candidates: &'s mut [Candidate],
    /// A bit for each token, zero: with presence penalties. Zero again afterwards.
    pub seen: &'s mut [u32],
}

/// Draws tokens; allocates nothing.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    random: Pcg32,
    recent: [u32; PENALTY_WINDOW],
    n_recent: usize,
}

impl Sampler {
    /// A sampler with checked parameters.
    ///
    /// # Errors
    /// [`SamplingError::Param`].
    pub fn new(params: SamplingParams) -> Result<Sampler, SamplingError> {
        let SamplingParams { temp, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty, .. } = params;
        let check = |option, found: f32, good: bool, need| match good {
            true => Ok(()),
            false => Err(SamplingError::Param { option, found, need }),
        };
        check("temp", temp, (0.0..=100.0).contains(&temp), "0 to 100")?;
        check("top-p", top_p, top_p > 0.0 && top_p <= 1.0, "more than 0, at most 1")?;
        check("min-p", min_p, (0.0..=1.0).contains(&min_p), "0 to 1")?;
        check("repeat-penalty", repeat_penalty, (0.1..=10.0).contains(&repeat_penalty), "0.1 to 10")?;
        let signed = |penalty: f32| (-2.0..=2.0).contains(&penalty);
        check("presence-penalty", presence_penalty, signed(presence_penalty), "-2 to 2")?;
        check("frequency-penalty", frequency_penalty, signed(frequency_penalty), "-2 to 2")?;
        Ok(Sampler { params, random: Pcg32::new(params.seed), recent: [0; PENALTY_WINDOW], n_recent: 0 })
    }

    /// Candidates that [`Sampler::sample`] needs room for, given the vocabulary: none when greedy.
    pub fn scratch_len(&self, n_vocab: usize) -> usize {
        if self.params.temp == 0.0 { 0 } else { n_vocab }
    }

    /// Remembers a token for the repeat penalty.
    pub fn accept(&mut self, token: u32) {
        self.recent[self.n_recent % PENALTY_WINDOW] = token;
        self.n_recent += 1;
    }

    /// The next token; `logits` are penalised in place.
    ///
    /// # Errors
    /// A logit that is not a number, or none that is finite: never a token then.
    ///
    /// # Panics
    /// If `scratch` is shorter than [`Sampler::scratch_len`].
    pub fn sample(&mut self, logits: &mut [f32], scratch: &mut [Candidate]) -> Result<u32, SamplingError> {
        self.sample_with(logits, Constraints::default(), SamplerScratch { candidates: scratch, seen: &mut [] })
    }

    /// As [`Sampler::sample`], steered.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    ///
    /// # Panics
    /// If `scratch` is too small.
    pub fn sample_with(
        &mut self,
        logits: &mut [f32],
        constraints: Constraints<'_>,
        SamplerScratch { candidates: scratch, seen }: SamplerScratch<'_>,
    ) -> Result<u32, SamplingError> {
        // What a NaN of the weights comes to on its way may be an infinity as well.
        if let Some(token) = first_invalid(logits) {
            return Err(SamplingError::NotANumber { token });
        }
        self.penalise(logits);
        self.penalise_generated(logits, constraints.generated, seen);
        for &(token, bias) in constraints.biases {
            if let Some(x) = logits.get_mut(token as usize) {
                *x = if bias <= BAN_BIAS { f32::NEG_INFINITY } else { *x + bias };
            }
        }
        if let Some(allowed) = constraints.allowed {
            for (x, word) in logits.chunks_mut(32).zip(allowed) {
                if *word != u32::MAX {
                    let excluded = x.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                    excluded.for_each(|(_, x)| *x = f32::NEG_INFINITY);
                }
            }
        }
        let best = argmax(logits);
        if logits.get(best).is_none_or(|x| *x == f32::NEG_INFINITY) {
            return Err(SamplingError::NoCandidate);
        }
        // An infinite logit leaves nothing to draw.
        if self.params.temp == 0.0 || logits[best] == f32::INFINITY {
            return Ok(best as u32);
        }
        let likely = self.likely(logits, logits[best], &mut scratch[..logits.len()]);
        let kept = self.truncate(likely, logits[best]);
        Ok(self.draw(kept))
    }

    /// The tokens that can be among those of top-k, and a few more: sorting out 150,000 takes milliseconds.
    fn likely<'s>(&self, logits: &[f32], best: f32, scratch: &'s mut [Candidate]) -> &'s mut [Candidate] {
        // A token below e^-30 of the best is never drawn.
        let mut floor = best - 30.0 * self.params.temp.max(1.0);
        let (k, n_groups) = (self.params.top_k as usize, logits.len().div_ceil(GROUP));
        if (1..=n_groups).contains(&k) {
            // The largest of k groups are k tokens that are at least as likely as the least of them.
            let groups = &mut scratch[..n_groups];
            for (group, logits) in groups.iter_mut().zip(logits.chunks(GROUP)) {
                *group = [0, logits.iter().copied().fold(f32::NEG_INFINITY, f32::max).to_bits()];
            }
            let (_, least, _) = groups.select_nth_unstable_by(k - 1, |a, b| value(b).total_cmp(&value(a)));
            floor = floor.max(value(least));
        }
        let mut n = 0;
        for (token, logit) in (0..).zip(logits) {
            scratch[n] = [token, logit.to_bits()];
            n += usize::from(*logit >= floor);
        }
        &mut scratch[..n]
    }

    fn penalise(&self, logits: &mut [f32]) {
        if self.params.repeat_penalty == 1.0 {
            return;
        }
        let recent = &self.recent[..self.n_recent.min(PENALTY_WINDOW)];
        for (i, &token) in recent.iter().enumerate() {
            let seen_before = recent[..i].contains(&token);
            if let Some(x) = logits.get_mut(token as usize).filter(|_| !seen_before) {
                *x = if *x > 0.0 { *x / self.params.repeat_penalty } else { *x * self.params.repeat_penalty };
            }
        }
    }

    fn penalise_generated(&self, logits: &mut [f32], generated: &[u32], seen: &mut [u32]) {
        let SamplingParams { presence_penalty, frequency_penalty, .. } = self.params;
        if frequency_penalty != 0.0 {
            generated.iter().for_each(|&token| logits[token as usize] -= frequency_penalty);
        }
        if presence_penalty != 0.0 {
            for &token in generated {
                let (word, bit) = (&mut seen[token as usize / 32], 1 << (token % 32));
                if *word & bit == 0 {
                    *word |= bit;
                    logits[token as usize] -= presence_penalty;
                }
            }
            generated.iter().for_each(|&token| seen[token as usize / 32] = 0);
        }
    }

    /// Top-k, top-p and min-p; what is left is sorted, likeliest first.
    fn truncate<'s>(&self, mut all: &'s mut [Candidate], best: f32) -> &'s mut [Candidate] {
        let likeliest = |a: &Candidate, b: &Candidate| value(b).total_cmp(&value(a)).then(a[0].cmp(&b[0]));
        let k = match self.params.top_k as usize {
            0 => all.len(),
            k => k.min(all.len()),
        };
        if k < all.len() {
            all.select_nth_unstable_by(k - 1, likeliest);
            all = &mut all[..k];
        }
        all.sort_unstable_by(likeliest);
        let weight = |c: &Candidate| f64::from(value(c) - best).exp();
        let total: f64 = all.iter().map(weight).sum();
        let (mut sum, mut n) = (0.0, 0);
        while n < all.len() && (n == 0 || sum < f64::from(self.params.top_p) * total) {
            sum += weight(&all[n]);
            n += 1;
        }
        while n > 1 && weight(&all[n - 1]) < f64::from(self.params.min_p) {
            n -= 1;
        }
        &mut all[..n]
    }

    fn draw(&mut self, kept: &mut [Candidate]) -> u32 {
        let best = value(&kept[0]);
        let mut total = 0.0;
        for c in kept.iter_mut() {
            let weight = ((value(c) - best) / self.params.temp).exp();
            c[1] = weight.to_bits();
            total += f64::from(weight);
        }
        let mut mark = self.random.unit() * total;
        for c in &*kept {
            mark -= f64::from(value(c));
            if mark < 0.0 {
                return c[0];
            }
        }
        kept[0][0]
    }
}

/// Logits looked at together, without a branch for each: a vocabulary has up to 262,144 of them, for every slot and token.
const BLOCK: usize = 256;

/// The first logit that is not a number, or plus infinity.
fn first_invalid(logits: &[f32]) -> Option<usize> {
    let is_invalid = |x: &f32| x.is_nan() || *x == f32::INFINITY;
    for (block, logits) in logits.chunks(BLOCK).enumerate() {
        if logits.iter().fold(false, |any, x| any | is_invalid(x)) {
            return logits.iter().position(is_invalid).map(|at| block * BLOCK + at);
        }
    }
    None
}

/// The first of the largest logits.
fn argmax(logits: &[f32]) -> usize {
    let (mut best, mut first) = (f32::NEG_INFINITY, 0);
    for (block, logits) in logits.chunks(BLOCK).enumerate() {
        let top = largest(logits);
        if top > best {
            (best, first) = (top, block * BLOCK);
        }
    }
    logits[first..].iter().position(|x| *x == best).map_or(0, |at| first + at)
}

/// The largest of some logits; minus infinity if there are none.
fn largest(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (eights, rest) = logits.as_chunks::<8>();
    let mut tops = [f32::NEG_INFINITY; 8];
    for x in eights {
        for (top, x) in tops.iter_mut().zip(x) {
            *top = larger(*top, *x);
        }
    }
    tops.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

#[cfg(test)]
mod tests;
