//! The loaded model as the server sees it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::background::Background;
use super::conversation::{Conversation, Unrendered};
use super::error::ApiError;
use super::fim::Fim;
use super::masks::Masks;
use super::output::Family;
use crate::chat::Renderer;
use crate::engine::{EngineHandle, RequestLimits};
use crate::sampling::SamplingParams;
use crate::sys::zygote::Zygote;
use crate::tokenizer::{PromptForm, Tokenizer};

/// What the loading thread hands over once a model is ready.
pub struct Loaded {
    /// The way to the engine.
    pub engine: EngineHandle,
    /// Text to tokens and back.
    pub tokenizer: &'static Tokenizer<'static>,
    /// The chat template, if there is one.
    pub template: Option<Renderer>,
    /// The one for chats with tools, if they have one of their own.
    pub tool_template: Option<Renderer>,
    /// How tokens are drawn where a request does not say.
    pub sampling: SamplingParams,
    /// The name that clients see.
    pub name: String,
    /// Further names that requests may ask for it by.
    pub aliases: Vec<String>,
    /// The pages that its memory has.
    pub pages: MappedPages,
    /// Bytes that it takes, rounded to pages.
    pub bytes: u64,
    /// Facts about model and memory for the status page, in place of those that [`start`](super::start) had.
    pub facts: Value,
    /// What the file says of the model.
    pub about: About,
}

/// What the file says of the model.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Where it is.
    pub path: String,
    /// `general.architecture`.
    pub architecture: String,
    /// How many parameters, as people write it; may be empty.
    pub size_label: String,
    /// `general.file_type`: which weight types it was made of.
    pub file_type: Option<u32>,
    /// Tokens of the context that it was trained with.
    pub ctx_train: Option<u32>,
    /// The tokens that it knows a gap by.
    pub fim: Option<Fim>,
    /// How a model that ranks writes a query and a document (`tokenizer.chat_template.rerank`).
    pub rank_template: Option<String>,
}

impl About {
    /// The name of its mixture of weight types; `unknown` where the file does not say.
    pub fn quantization(&self) -> &'static str {
        match self.file_type {
            Some(0) => "F32",
            Some(1) => "F16",
            Some(2) => "Q4_0",
            Some(3) => "Q4_1",
            Some(7) => "Q8_0",
            Some(8) => "Q5_0",
            Some(9) => "Q5_1",
            Some(10) => "Q2_K",
            Some(11) => "Q3_K_S",
            Some(12) => "Q3_K_M",
            Some(13) => "Q3_K_L",
            Some(14) => "Q4_K_S",
            Some(15) => "Q4_K_M",
            Some(16) => "Q5_K_S",
            Some(17) => "Q5_K_M",
            Some(18) => "Q6_K",
            Some(19) => "IQ2_XXS",
            Some(20) => "IQ2_XS",
            Some(21) => "Q2_K_S",
            Some(22) => "IQ3_XS",
            Some(23) => "IQ3_XXS",
            Some(24) => "IQ1_S",
            Some(25) => "IQ4_NL",
            Some(26) => "IQ3_S",
            Some(27) => "IQ3_M",
            Some(28) => "IQ2_S",
            Some(29) => "IQ2_M",
            Some(30) => "IQ4_XS",
            Some(31) => "IQ1_M",
            Some(32) => "BF16",
            Some(36) => "TQ1_0",
            Some(37) => "TQ2_0",
            Some(38) => "MXFP4_MOE",
            _ => "unknown",
        }
    }
}

/// The pages that memory has, which are not always those that were asked for.
#[derive(Clone, Copy, Debug)]
pub struct MappedPages {
    /// Bytes of one; of a mixture, of the smaller ones.
    pub bytes: u64,
    /// Ordinary pages stand for huge ones that could not be had.
    pub is_fallback: bool,
}

/// A chat template, and what is seen in it.
pub struct Template {
    renderer: Arc<Renderer>,
    /// How it writes tool calls.
    pub family: Family,
    /// It has a place for tools.
    pub takes_tools: bool,
    /// It refuses ids of calls that are not nine letters and digits.
    pub has_short_ids: bool,
    /// It has thoughts.
    pub thinks: bool,
    /// It reads how much the model is to think.
    pub reads_effort: bool,
}

impl Template {
    fn of(renderer: Renderer) -> Template {
        let mentions = |word: &str| renderer.mentions(word);
        let family = Family::of(mentions);
        let takes_tools = mentions("tools");
        let has_short_ids = mentions("length != 9") || mentions("length == 9");
        let thinks = family != Family::Harmony && family.thought().iter().any(|mark| mentions(mark.trim_end()));
        let reads_effort = mentions("reasoning_effort");
        let renderer = Arc::new(renderer);
        Template { family, takes_tools, has_short_ids, thinks, reads_effort, renderer }
    }

    /// Its text.
    pub fn source(&self) -> &str {
        self.renderer.source()
    }
}

/// The loaded model.
pub struct Served {
    /// The way to the engine.
    pub engine: EngineHandle,
    /// Text to tokens and back.
    pub tokenizer: &'static Tokenizer<'static>,
    /// The chat template, if there is one.
    template: Option<Template>,
    /// The one for chats with tools, if they have one of their own.
    tool_template: Option<Template>,
    /// How tokens are drawn where a request does not say.
    pub sampling: SamplingParams,
    /// The name that clients see.
    pub name: String,
    /// Further names that requests may ask for it by.
    pub aliases: Vec<String>,
    /// The token that begins a text, as templates write it.
    pub bos: String,
    /// The token that ends it.
    pub eos: String,
    /// Constrained output.
    pub masks: Rc<Masks>,
    /// Prompts are written to the log.
    pub config_log_prompts: bool,
    /// The pages that its memory has.
    pub pages: MappedPages,
    /// Bytes that it takes, rounded to pages.
    pub bytes: u64,
    /// Facts about model and memory.
    pub facts: Value,
    /// What the file says of the model.
    pub about: About,
    /// When it was loaded, seconds since 1970.
    pub created: u64,
    next_seed: Cell<u64>,
    texts: Background,
    renders: Background,
}

/// Texts up to this length are tokenised by the event loop: that takes two milliseconds at most.
const TEXT_BYTES_AT_ONCE: usize = 4 << 10;

/// What makes tokens of a text.
trait EncodeOne: Fn(&Tokenizer<'static>, &str, &mut Vec<u32>) + Send + 'static {}

impl<F: Fn(&Tokenizer<'static>, &str, &mut Vec<u32>) + Send + 'static> EncodeOne for F {}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Served {
    /// Looks at what was loaded, and gives it a number. Long texts and chats have threads of their own.
    pub fn new(
        (number, loaded): (u8, Loaded),
        (texts, renders): (Background, Background),
        zygote: Option<Arc<Zygote>>,
        log_prompts: bool,
    ) -> Served {
        let Loaded { engine, tokenizer, template, tool_template, sampling, name, .. } = loaded;
        let Loaded { aliases, pages, bytes, facts, about, .. } = loaded;
        let text =
            |id: Option<u32>| id.map(|id| String::from_utf8_lossy(tokenizer.text(id)).into_owned()).unwrap_or_default();
        let limits = engine.limits();
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        Served {
            bos: text(tokenizer.bos()),
            eos: text(tokenizer.eos()),
            masks: Masks::new((number, tokenizer), texts.clone(), zygote, limits.slots + limits.queue),
            config_log_prompts: log_prompts,
            created: unix_time(),
            next_seed: Cell::new(nanos as u64),
            texts,
            renders,
            engine,
            tokenizer,
            template: template.map(Template::of),
            tool_template: tool_template.map(Template::of),
            sampling,
            name,
            aliases,
            pages,
            bytes,
            facts,
            about,
        }
    }

    /// What the engine can do.
    pub fn limits(&self) -> RequestLimits {
        self.engine.limits()
    }

    /// The chat template for a chat with or without tools.
    pub fn template(&self, has_tools: bool) -> Option<&Template> {
        self.tool_template.as_ref().filter(|_| has_tools).or(self.template.as_ref())
    }

    /// A seed for a request that brings none.
    pub fn fresh_seed(&self) -> u64 {
        // Distance of the golden ratio: neighbouring requests get seeds that share no bits.
        let seed = self.next_seed.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.next_seed.set(seed);
        seed
    }

    /// The prompt of a chat, rendered on another thread.
    ///
    /// # Errors
    /// As [`Background::run`]; inside, why there is none.
    pub async fn render(
        &self,
        template: &Template,
        conversation: Conversation,
    ) -> Result<Result<String, Unrendered>, ApiError> {
        let renderer = Arc::clone(&template.renderer);
        self.renders.run(move || conversation.rendered(&renderer)).await
    }

    /// The tokens of a whole prompt, as [`Tokenizer::encode_prompt`] puts them together.
    ///
    /// # Errors
    /// As [`Background::run`].
    pub async fn prompt_tokens(&self, text: String, form: PromptForm) -> Result<Vec<u32>, ApiError> {
        let tokenizer = self.tokenizer;
        self.tokens(text, move |text, tokens| tokenizer.encode_prompt(text, form, tokens)).await
    }

    /// The tokens of a text and nothing else; control tokens in it are recognised with `parse_special`.
    ///
    /// # Errors
    /// As [`Background::run`].
    pub async fn text_tokens(&self, text: String, parse_special: bool) -> Result<Vec<u32>, ApiError> {
        let tokenizer = self.tokenizer;
        self.tokens(text, move |text, tokens| tokenizer.encode(text, parse_special, tokens)).await
    }

    /// The tokens of texts whose vectors are wanted; control tokens in them are recognised, as llama.cpp's server has it.
    ///
    /// # Errors
    /// As [`Background::run`].
    pub async fn vector_tokens(&self, texts: Vec<String>) -> Result<Vec<Vec<u32>>, ApiError> {
        self.tokens_of_each(texts, |tokenizer, text, tokens| tokenizer.encode_whole(text, tokens)).await
    }

    /// The tokens of a query with each of some documents: by the model's template if it has one, else as the vocabulary
    /// joins two texts.
    ///
    /// # Errors
    /// As [`Background::run`].
    pub async fn rank_tokens(&self, query: String, documents: Vec<String>) -> Result<Vec<Vec<u32>>, ApiError> {
        let template = self.about.rank_template.clone();
        self.tokens_of_each(documents, move |tokenizer, document, tokens| match &template {
            // A query that names the place of the document does not get it.
            Some(template) => {
                let with_query = |part: &str| part.replace("{query}", &query);
                let parts: Vec<String> = template.split("{document}").map(with_query).collect();
                tokenizer.encode(&parts.join(document), true, tokens);
            }
            None => tokenizer.encode_pair(&query, document, tokens),
        })
        .await
    }

    /// What `encode` makes of each of some texts, on another thread.
    async fn tokens_of_each(&self, texts: Vec<String>, encode: impl EncodeOne) -> Result<Vec<Vec<u32>>, ApiError> {
        let (tokenizer, encode): (_, Box<dyn EncodeOne>) = (self.tokenizer, Box::new(encode));
        let tokens = move |text: String| {
            let mut tokens = Vec::new();
            encode(tokenizer, &text, &mut tokens);
            tokens
        };
        self.texts.run(move || texts.into_iter().map(tokens).collect()).await
    }

    /// What `encode` makes of a text. A long one goes to another thread, so that nobody else waits for it.
    async fn tokens(
        &self,
        text: String,
        encode: impl FnOnce(&str, &mut Vec<u32>) + Send + 'static,
    ) -> Result<Vec<u32>, ApiError> {
        let n_bytes = text.len();
        let encode = move || {
            let mut tokens = Vec::new();
            encode(&text, &mut tokens);
            tokens
        };
        match n_bytes {
            0..=TEXT_BYTES_AT_ONCE => Ok(encode()),
            _ => self.texts.run(encode).await,
        }
    }
}
