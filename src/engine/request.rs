//! What a client wants of the engine, and what it gets back: plain data of fixed size.

use std::fmt;
use std::time::Duration;

use super::error::EngineError;
pub use crate::model::{Pooling, Vectors};
use crate::sampling::{Sampler, SamplingError, SamplingParams};

/// Most sequences that are worked on at once: more would make no pass over the weights much cheaper per token, and each
/// costs its share of the KV cache.
pub const SLOTS_MAX: usize = 64;

/// Most requests that wait for a slot: more than a box answers within a client's patience.
pub const QUEUE_MAX: usize = 256;

/// Most likeliest tokens that a [`Step`] reports, as in OpenAI's API.
pub const TOP_LOGPROBS_MAX: usize = 20;

/// Most tokens with a bias of their own.
pub const LOGIT_BIAS_MAX: usize = 1024;

/// What a client wants of the engine. It is built and dropped on the client's thread; the engine only moves the box.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The prompt: at least one token, all of the vocabulary.
    pub prompt: Vec<u32>,
    /// What is to come of it.
    pub output: OutputKind,
}

/// What comes of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputKind {
    /// The tokens that follow it, one after the other.
    Tokens(Generate),
    /// One vector: the hidden states of its tokens, after the model's last norm, become one, and it what the model's head
    /// makes of it.
    Embedding(Pooling),
}

/// How tokens are generated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generate {
    /// Most tokens to generate; prompt and these must fit the context together. With 0 the prompt is read, and that is all.
    pub max_tokens: usize,
    /// How tokens are drawn. The repeat penalty looks at the end of the context; presence and frequency penalties at
    /// what this request has generated.
    pub sampling: SamplingParams,
    /// Added to the logits of these tokens; [`BAN_BIAS`](crate::sampling::BAN_BIAS) and below bans them.
    pub logit_bias: Vec<(u32, f32)>,
    /// `None`: no logprobs. `Some(n)`: that of the chosen token and of the `n` likeliest.
    pub n_top_logprobs: Option<u8>,
    /// The prompt's own tokens get logprobs, too, with as many of the likeliest: [`Event::Scored`].
    pub score_prompt: bool,
    /// Goes on after tokens that end generation.
    pub ignore_eos: bool,
    /// Every token waits for a mask from [`Ticket::set_mask`](super::Ticket::set_mask).
    pub constraint: bool,
}

impl Request {
    /// How tokens are generated; `None` for an embedding.
    pub fn generate(&self) -> Option<&Generate> {
        match &self.output {
            OutputKind::Tokens(generate) => Some(generate),
            OutputKind::Embedding(_) => None,
        }
    }

    /// Positions of the KV cache that it can come to need; the last token is never fed.
    pub(super) fn positions(&self) -> usize {
        self.prompt.len() + self.generate().map_or(1, |generate| generate.max_tokens) - 1
    }

    /// Values that its [`Scores`] have for each token: the token itself, and the likeliest. `None` where there are to be none.
    pub(super) fn scores_stride(&self) -> Option<usize> {
        let generate = self.generate().filter(|generate| generate.score_prompt)?;
        Some(1 + usize::from(generate.n_top_logprobs.unwrap_or(0)))
    }
}

/// What the engine can do for one request; the same for as long as it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Most tokens of one sequence, prompt and answer together.
    pub ctx: usize,
    /// Values of a hidden state.
    pub n_embd: usize,
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Sequences that are worked on at once.
    pub slots: usize,
    /// Requests that may wait for a slot.
    pub queue: usize,
    /// Tokens that the KV cache holds, of all sequences together.
    pub kv_tokens: usize,
    /// Tokens that a text can have that is read in one pass, as a model does whose tokens see those that come after them.
    pub pass_tokens: usize,
    /// What the model makes in place of text, if it makes none.
    pub vectors: Option<Vectors>,
}

impl RequestLimits {
    /// Most tokens that a sequence can have.
    pub fn tokens_max(&self) -> usize {
        self.ctx.min(self.kv_tokens).min(self.pass_tokens)
    }

    /// Values of a vector.
    pub fn vector_len(&self) -> usize {
        self.vectors.map_or(self.n_embd, |vectors| vectors.len(self.n_embd))
    }

    /// How many tokens can follow a prompt of `n_prompt`, at least one.
    ///
    /// # Errors
    /// An empty prompt, or one that leaves no room.
    pub fn room(&self, n_prompt: usize) -> Result<usize, RequestError> {
        match self.tokens_max().checked_sub(n_prompt) {
            _ if n_prompt == 0 => Err(RequestError::NoPrompt),
            None | Some(0) => Err(RequestError::PromptLength { found: n_prompt, limit: self.tokens_max() - 1 }),
            Some(room) => Ok(room),
        }
    }

    /// Whether `request` can be served at all; what draws its tokens, if there are to be any.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self, Request { prompt, output }: &Request) -> Result<Option<Sampler>, RequestError> {
        if prompt.is_empty() {
            return Err(RequestError::NoPrompt);
        }
        let n_vocab = self.n_vocab;
        if let Some(id) = prompt.iter().copied().find(|&id| id as usize >= n_vocab) {
            return Err(RequestError::PromptToken { id, n_vocab });
        }
        match output {
            OutputKind::Tokens(_) if self.vectors.is_some() => Err(RequestError::NoText),
            OutputKind::Tokens(generate) => self.check_generate(prompt.len(), generate).map(Some),
            OutputKind::Embedding(_) if prompt.len() > self.tokens_max() => {
                Err(RequestError::TextLength { found: prompt.len(), limit: self.tokens_max() })
            }
            OutputKind::Embedding(_) => Ok(None),
        }
    }

    fn check_generate(&self, n_prompt: usize, generate: &Generate) -> Result<Sampler, RequestError> {
        let Generate { max_tokens, sampling, logit_bias, n_top_logprobs, .. } = generate;
        let (max_tokens, n_vocab) = (*max_tokens, self.n_vocab);
        let room = match max_tokens {
            0 if n_prompt <= self.tokens_max() => 0,
            _ => self.room(n_prompt)?,
        };
        if max_tokens > room {
            return Err(RequestError::Context { prompt: n_prompt, max_tokens, limit: self.tokens_max() });
        }
        if logit_bias.len() > LOGIT_BIAS_MAX {
            return Err(RequestError::Biases { found: logit_bias.len() });
        }
        if let Some((id, _)) = logit_bias.iter().copied().find(|(id, _)| *id as usize >= n_vocab) {
            return Err(RequestError::BiasToken { id, n_vocab });
        }
        if let Some((id, _)) = logit_bias.iter().find(|(_, bias)| bias.is_nan()) {
            return Err(RequestError::BiasNaN { id: *id });
        }
        if let Some(found) = n_top_logprobs.filter(|n| usize::from(*n) > TOP_LOGPROBS_MAX) {
            return Err(RequestError::TopLogprobs { found });
        }
        Sampler::new(*sampling).map_err(RequestError::Sampling)
    }
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RequestError {
    /// An empty prompt.
    NoPrompt,
    /// A token of the prompt that the model does not have.
    PromptToken {
        /// The id.
        id: u32,
        /// Tokens of the vocabulary.
        n_vocab: usize,
    },
    /// A prompt that is too long by itself.
    PromptLength {
        /// Tokens of the prompt.
        found: usize,
        /// Tokens it can have.
        limit: usize,
    },
    /// A text, of which a vector is wanted, that is too long.
    TextLength {
        /// Its tokens.
        found: usize,
        /// Tokens it can have.
        limit: usize,
    },
    /// Text is wanted of a model that makes none.
    NoText,
    /// More tokens than a sequence can have.
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// Tokens there can be.
        limit: usize,
    },
    /// More than [`LOGIT_BIAS_MAX`] biases.
    Biases {
        /// How many.
        found: usize,
    },
    /// A bias of a token that the model does not have.
    BiasToken {
        /// The id.
        id: u32,
        /// Tokens of the vocabulary.
        n_vocab: usize,
    },
    /// A bias that is not a number.
    BiasNaN {
        /// Of this token.
        id: u32,
    },
    /// More than [`TOP_LOGPROBS_MAX`].
    TopLogprobs {
        /// How many.
        found: u8,
    },
    /// A sampling parameter out of its range.
    Sampling(SamplingError),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::NoPrompt => f.write_str("the prompt has no tokens; at least one is needed"),
            RequestError::PromptToken { id, n_vocab } => {
                write!(f, "token {id} of the prompt does not exist: the model has {n_vocab} tokens")
            }
            RequestError::PromptLength { found, limit } => write!(
                f,
                "the prompt has {found} tokens, at most {limit} fit the context and leave room for the answer; use a shorter \
                 prompt, or start with a larger --ctx"
            ),
            RequestError::TextLength { found, limit } => write!(
                f,
                "the input has {found} tokens, the maximum is {limit}; shorten it, or start with a larger --ctx if the model \
                 was trained for that"
            ),
            RequestError::NoText => f.write_str("the model makes vectors of texts, and no text"),
            RequestError::Context { prompt, max_tokens, limit } => write!(
                f,
                "the context holds {limit} tokens: {prompt} of the prompt and {max_tokens} to generate do not fit; use a \
                 shorter prompt or ask for fewer tokens"
            ),
            RequestError::Biases { found } => {
                write!(f, "{found} tokens have a logit bias; the limit is {LOGIT_BIAS_MAX}")
            }
            RequestError::BiasToken { id, n_vocab } => {
                write!(f, "token {id} has a logit bias and does not exist: the model has {n_vocab} tokens")
            }
            RequestError::BiasNaN { id } => write!(f, "the logit bias of token {id} is not a number"),
            RequestError::TopLogprobs { found } => {
                write!(f, "{found} top logprobs are asked for; the limit is {TOP_LOGPROBS_MAX}")
            }
            RequestError::Sampling(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RequestError {}

/// Why a request was not taken; it is handed back.
#[derive(Debug, PartialEq)]
pub enum SubmitError {
    /// The queue is full.
    Busy(Box<Request>),
    /// The engine takes no more requests.
    Stopping(Box<Request>),
    /// It cannot be served.
    Invalid(Box<Request>, RequestError),
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SubmitError::Busy(_) => f.write_str("the queue is full: try again later"),
            SubmitError::Stopping(_) => f.write_str("the engine is stopping and takes no more requests"),
            SubmitError::Invalid(_, error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SubmitError {}

/// One generated token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The token; that which ends generation is reported too, as the last.
    pub token: u32,
    /// Natural logarithm of its probability before penalties, biases, mask and temperature; 0 unless asked for.
    pub logprob: f32,
    /// The likeliest tokens and their logprobs, likeliest first; the first [`Step::n_top`] count.
    pub top: [(u32, f32); TOP_LOGPROBS_MAX],
    /// How many of `top` there are.
    pub n_top: u8,
}

/// The logprobs of a prompt's tokens from the second on, with the likeliest in their places.
#[derive(Debug)]
pub struct Scores {
    pub(super) values: Box<[(u32, f32)]>,
    pub(super) stride: usize,
}

impl Scores {
    /// For each token the token itself and then the likeliest, likeliest first, with their logprobs.
    pub fn tokens(&self) -> impl Iterator<Item = &[(u32, f32)]> {
        self.values.chunks_exact(self.stride)
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Finish {
    /// By a token that ends generation.
    EndOfGeneration,
    /// With as many tokens as were asked for.
    Length,
    /// With a vector, for [`Ticket::take_embedding`](super::Ticket::take_embedding).
    Embedded,
    /// Its client has gone. Only the statistics see this.
    Cancelled,
    /// It could not go on; other requests do.
    Failed(EngineError),
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From [`EngineHandle::submit`](super::EngineHandle::submit) until a slot was free.
    pub queued: Duration,
    /// From there to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// How many of them were in the cache already.
    pub reused_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
}

/// What happens to a request, in this order: `Started`, `Scored` where that was asked for, any number of `Step`s, `Finished`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// It has a slot.
    Started {
        /// Tokens of the prompt that were in the cache already.
        reused_tokens: u32,
    },
    /// The prompt has been read, and its logprobs are there for [`Ticket::take_scores`](super::Ticket::take_scores).
    Scored,
    /// A token.
    Step(Step),
    /// The end.
    Finished(Finish, Timings),
}
