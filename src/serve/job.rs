//! From a request of any interface to what the engine gets: options checked, messages rendered, tokens counted.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;

use super::conversation::{Conversation, Ending, Turn, Unrendered, shorten_ids, tell_of_tools};
use super::error::ApiError;
use super::fields::{Fields, wrong};
use super::masks::{Calls, Grammar};
use super::model::Served;
use super::output::{Expect, Family};
use super::unhonoured;
use crate::chat::Role;
use crate::engine::{Generate, OutputKind, Request, TOP_LOGPROBS_MAX};
use crate::sampling::{BAN_BIAS, SamplingParams};
use crate::tokenizer::PromptForm;

/// Most answers to one request.
const CHOICES_MAX: usize = 8;

/// Most stop texts, and their length.
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 256;

/// Most biases before one by a text, which takes time to be cut into tokens.
const BIAS_TEXTS_MAX: usize = 1024;

/// Widest indentation that a request may ask for.
const INDENT_MAX: usize = 1024;

/// Most tools of one request.
const TOOLS_MAX: usize = 128;

/// Silence of a stream after which it says that it is alive, if the request does not say: clients and proxies give up after
/// as little as ten seconds.
const PING: Duration = Duration::from_secs(5);

/// Most tokens of an answer to a completion that does not say, as OpenAI has it.
const COMPLETION_TOKENS: usize = 16;

/// Whose request it is: the interfaces have some options under names and with defaults of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/messages`.
    Messages,
    /// Tokens of `/v1/messages` are counted, none is generated.
    CountTokens,
    /// `/v1/responses`.
    Responses,
    /// `/completion` and `/infill`, llama.cpp's own.
    Native,
}

/// How answers are to be generated: valid once it is read.
#[derive(Clone, Debug)]
pub struct Options {
    /// How tokens are drawn; the seed of further answers counts up from this one's.
    pub sampling: SamplingParams,
    /// How many answers.
    pub n: usize,
    /// Most tokens of each, `None` for as many as fit.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer, and are not part of it.
    pub stop: Vec<String>,
    /// Logprobs, with so many of the likeliest.
    pub n_top_logprobs: Option<u8>,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Go on after tokens that end generation.
    pub ignore_eos: bool,
    /// How often a stream says that it is alive while there is nothing else to say; `None`: never.
    pub ping: Option<Duration>,
    /// A stream tells how far the prompt is.
    pub reports_progress: bool,
    /// Tokens are reported, also without logprobs.
    pub wants_tokens: bool,
    /// Every piece of a stream tells what the answer took so far.
    pub wants_timings: bool,
    /// The answer ends with the first line that is indented less.
    pub indent: usize,
    /// So long after its first token an answer that has more than a line ends.
    pub most_time: Option<Duration>,
}

impl Options {
    /// The options of a request.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn read(fields: &Fields<'_>, served: &Served, interface: Interface) -> Result<Options, ApiError> {
        unhonoured::refuse(fields)?;
        let default = served.sampling;
        // Many clients say so that they want any.
        let seed = fields.integer("seed", i64::MIN, i64::MAX)?.filter(|seed| *seed != -1);
        let sampling = SamplingParams {
            temp: fields.number("temperature", 0.0, 2.0)?.unwrap_or(default.temp),
            top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(default.top_p).max(1e-6),
            top_k: fields.integer("top_k", -1, i64::from(u32::MAX))?.map_or(default.top_k, |k| k.max(0) as u32),
            min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(default.min_p),
            repeat_penalty: match fields.number("repeat_penalty", 0.1, 10.0)? {
                Some(penalty) => penalty,
                None => fields.number("repetition_penalty", 0.1, 10.0)?.unwrap_or(default.repeat_penalty),
            },
            presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            seed: seed.map_or_else(|| served.fresh_seed(), i64::cast_unsigned),
        };
        Ok(Options {
            sampling,
            n: n_answers(fields, interface)?,
            max_tokens: max_tokens(fields, served, interface)?,
            stop: stops(fields, if interface == Interface::Messages { "stop_sequences" } else { "stop" })?,
            n_top_logprobs: n_top_logprobs(fields, interface)?,
            logit_bias: biases(fields, served)?,
            ignore_eos: fields.is_set("ignore_eos")?,
            ping: match fields.integer("sse_ping_interval", -1, 3600)? {
                None => Some(PING),
                Some(seconds) => u64::try_from(seconds).ok().filter(|&s| s > 0).map(Duration::from_secs),
            },
            reports_progress: fields.is_set("return_progress")?,
            wants_tokens: false,
            wants_timings: fields.is_set("timings_per_token")?,
            indent: fields.size("n_indent", 0, INDENT_MAX)?.unwrap_or(0),
            most_time: fields
                .integer("t_max_predict_ms", -1, i64::from(u32::MAX))?
                .and_then(|ms| u64::try_from(ms).ok().filter(|ms| *ms > 0))
                .map(Duration::from_millis),
        })
    }
}

/// How many answers.
fn n_answers(fields: &Fields<'_>, interface: Interface) -> Result<usize, ApiError> {
    let (name, most) = match interface {
        Interface::Native if fields.get("n_cmpl").is_some() => ("n_cmpl", CHOICES_MAX),
        Interface::Chat | Interface::Completions | Interface::Native => ("n", CHOICES_MAX),
        _ => ("n", 1),
    };
    Ok(fields.size(name, 1, most)?.unwrap_or(1))
}

/// Most tokens of an answer, if the request or its interface says.
fn max_tokens(fields: &Fields<'_>, served: &Served, interface: Interface) -> Result<Option<usize>, ApiError> {
    let most = served.limits().ctx;
    // Without an answer the prompt is read, and reported where that is asked for.
    let least = usize::from(!matches!(interface, Interface::Completions | Interface::Native));
    let mut max_tokens = None;
    // llama.cpp's name, which counts before the others there; a negative number is as many as fit.
    let named = matches!(interface, Interface::Chat | Interface::Completions | Interface::Native);
    if let Some(n) = fields.integer("n_predict", -2, i64::MAX >> 1)?.filter(|_| named) {
        return match usize::try_from(n) {
            Ok(n) if n < least => {
                Err(ApiError::field("n_predict", "n_predict is 0; it must be 1 or more, or -1").code("out_of_range"))
            }
            n => Ok(n.ok().map(|n| n.min(most))),
        };
    }
    for name in ["max_completion_tokens", "max_tokens", "max_output_tokens"] {
        // Clients ask for more than there is; the context is the limit then.
        let found = fields.size(name, least, usize::MAX >> 1)?.map(|n| n.min(most));
        max_tokens = max_tokens.or(found);
    }
    match interface {
        Interface::Messages if max_tokens.is_none() => Err(fields.missing("max_tokens")),
        Interface::Completions => Ok(max_tokens.or(Some(COMPLETION_TOKENS))),
        _ => Ok(max_tokens),
    }
}

/// Logprobs, with so many of the likeliest.
fn n_top_logprobs(fields: &Fields<'_>, interface: Interface) -> Result<Option<u8>, ApiError> {
    match interface {
        Interface::Messages | Interface::CountTokens | Interface::Responses => return Ok(None),
        Interface::Completions => return Ok(fields.size("logprobs", 0, TOP_LOGPROBS_MAX)?.map(|n| n as u8)),
        Interface::Native => {
            let n = fields.size("n_probs", 0, TOP_LOGPROBS_MAX)?;
            return Ok(n.filter(|n| *n > 0).map(|n| n as u8));
        }
        Interface::Chat => (),
    }
    let wants = fields.is_set("logprobs")?;
    match fields.size("top_logprobs", 0, TOP_LOGPROBS_MAX)? {
        Some(n) if wants => Ok(Some(n as u8)),
        Some(n) if n > 0 => {
            Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs to be true").code("invalid_value"))
        }
        _ => Ok(wants.then_some(0)),
    }
}

/// A text, or a list of them.
fn stops(fields: &Fields<'_>, name: &str) -> Result<Vec<String>, ApiError> {
    let path = fields.path(name);
    let list = match fields.get(name) {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many
            .iter()
            .enumerate()
            .map(|(i, stop)| {
                let need = || wrong(&format!("{path}[{i}]"), stop, "a string");
                stop.as_str().map(str::to_owned).ok_or_else(need)
            })
            .collect::<Result<Vec<_>, _>>()?,
        Some(other) => return Err(wrong(&path, other, "a string or an array of strings")),
    };
    let list: Vec<String> = list.into_iter().filter(|stop| !stop.is_empty()).collect();
    if list.len() > STOPS_MAX || list.iter().any(|stop| stop.len() > STOP_BYTES_MAX) {
        let text = format!("{path}: the limit is {STOPS_MAX} texts of {STOP_BYTES_MAX} bytes");
        return Err(ApiError::field(path, text).code("out_of_range"));
    }
    Ok(list)
}

/// `{"TOKEN": BIAS}` or `[[TOKEN, BIAS]]`; a text stands for each of its tokens, and `false` forbids them.
fn biases(fields: &Fields<'_>, served: &Served) -> Result<Vec<(u32, f32)>, ApiError> {
    let path = fields.path("logit_bias");
    let mut biases = Vec::new();
    match fields.get("logit_bias") {
        None => {}
        Some(Value::Object(map)) => {
            for (key, bias) in map {
                bias_of(served, &format!("{path}.{key}"), (Some(key), None), bias, &mut biases)?;
            }
        }
        Some(Value::Array(list)) => {
            for (i, pair) in list.iter().enumerate() {
                let at = format!("{path}[{i}]");
                let Some([key, bias]) = pair.as_array().map(Vec::as_slice) else {
                    return Err(wrong(&at, pair, "a token and its bias"));
                };
                bias_of(served, &at, (key.as_str(), key.as_u64()), bias, &mut biases)?;
            }
        }
        Some(other) => return Err(wrong(&path, other, "an object or an array")),
    }
    Ok(biases)
}

/// One of them, by a text, which may be digits, or by a number.
fn bias_of(
    served: &Served,
    at: &str,
    (text, id): (Option<&str>, Option<u64>),
    bias: &Value,
    out: &mut Vec<(u32, f32)>,
) -> Result<(), ApiError> {
    let bias = match bias {
        Value::Bool(false) => BAN_BIAS,
        Value::Number(number) => {
            let most = f64::from(-BAN_BIAS);
            let number = number.as_f64().filter(|number| (-most..=most).contains(number));
            let text = || format!("{at} is {bias}; it must be -{most} to {most}");
            number.ok_or_else(|| ApiError::field(at, text()).code("out_of_range"))? as f32
        }
        other => return Err(wrong(at, other, "a number, or false")),
    };
    let n_vocab = served.limits().n_vocab;
    match (text, id.or_else(|| text?.parse().ok())) {
        (_, Some(id)) if id < n_vocab as u64 => out.push((id as u32, bias)),
        (Some(text), None) if (1..=STOP_BYTES_MAX).contains(&text.len()) && out.len() < BIAS_TEXTS_MAX => {
            let mut tokens = Vec::new();
            served.tokenizer.encode(text, false, &mut tokens);
            out.extend(tokens.into_iter().map(|id| (id, bias)));
        }
        _ => {
            let text = format!(
                "{at}: needs the id of a token below {n_vocab}, or a text of at most {STOP_BYTES_MAX} bytes, before which there are fewer than {BIAS_TEXTS_MAX}"
            );
            return Err(ApiError::field(at, text).code("out_of_range"));
        }
    }
    Ok(())
}

/// Which tools may be called.
#[derive(Clone, Debug, PartialEq)]
pub enum ToolChoice {
    /// The model decides.
    Auto,
    /// None.
    None,
    /// Some tool.
    Required,
    /// This one.
    Named(String),
    /// These, which are all or none; the prompt has all.
    Allowed(Vec<String>),
}

/// What an answer has to look like.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputFormat {
    /// Text.
    Text,
    /// What this grammar allows; the field it came from.
    Grammar(Grammar, &'static str),
}

/// A chat of any interface.
pub struct Chat {
    /// The messages.
    pub turns: Vec<Turn>,
    /// What the prompt ends with; `None`: what the last message asks for.
    pub ending: Option<Ending>,
    /// The field of the interface that they came in, for errors.
    pub field: &'static str,
    /// The tools, as OpenAI's chat interface describes them.
    pub tools: Vec<Value>,
    /// Which may be called.
    pub choice: ToolChoice,
    /// Several tools may be called at once; `None` if the request does not say.
    pub parallel_calls: Option<bool>,
    /// What the answer looks like.
    pub format: OutputFormat,
    /// How the model is to think.
    pub thinking: Thinking,
    /// Further variables for the template.
    pub variables: Vec<(String, Value)>,
}

/// How a model is to think before it answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thinking {
    /// Whether, if the request says.
    pub enabled: Option<bool>,
    /// How much, in a word.
    pub effort: Option<String>,
    /// How much at most, in tokens.
    pub tokens: Option<usize>,
}

impl Thinking {
    /// How many tokens a thought may take; a word counts where the template does not read it.
    fn budget(&self, template_reads_effort: bool) -> Option<usize> {
        let of_word = |word: &str| match word {
            "minimal" => Some(256),
            "low" => Some(1024),
            "medium" => Some(8192),
            _ => None,
        };
        let effort = self.effort.as_deref();
        let none = (self.enabled == Some(false) || effort == Some("none")).then_some(0);
        none.or(self.tokens).or_else(|| effort.filter(|_| !template_reads_effort).and_then(of_word))
    }

    /// It as templates read it.
    fn variables(&self) -> impl Iterator<Item = (String, Value)> {
        let is_none = self.tokens == Some(0) || self.effort.as_deref() == Some("none");
        let enabled = self.enabled.or(is_none.then_some(false)).map(Value::from);
        let effort = self.effort.clone().map(Value::from);
        let all = [("enable_thinking", enabled), ("reasoning_effort", effort)];
        all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)))
    }
}

/// What is to be generated.
pub struct Job {
    /// The prompt.
    pub prompt: Rc<Vec<u32>>,
    /// How.
    pub options: Options,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// What the answer consists of.
    pub expect: Expect,
    /// What it must look like, and the field that says so.
    pub grammar: Option<(Grammar, &'static str)>,
    /// The grammar speaks of all that is written, thoughts included.
    pub constrains_at_once: bool,
    /// What the prompt has written of the answer already, as far as it tells how to read on.
    pub opened: &'static str,
    /// Tokens after which a thought is ended.
    pub thought_tokens: Option<usize>,
    /// The tokens of the prompt are reported with their logprobs, too.
    pub scores_prompt: bool,
    /// The token that ends an answer is reported as the others are.
    pub reports_end: bool,
}

/// `tools`, checked for what templates rely on.
///
/// # Errors
/// 400 with the field.
pub fn check_tools(tools: &[Value]) -> Result<(), ApiError> {
    if tools.len() > TOOLS_MAX {
        let text = format!("tools: {} tools; the limit is {TOOLS_MAX}", tools.len());
        return Err(ApiError::field("tools", text).code("out_of_range"));
    }
    for (i, tool) in tools.iter().enumerate() {
        let tool = Fields::at(tool, format!("tools[{i}]"))?;
        if let Some(kind) = tool.text("type")?.filter(|kind| *kind != "function") {
            let path = tool.path("type");
            return Err(ApiError::field(&path, format!("{path} is {kind:?}, only \"function\" is supported")));
        }
        let function = tool.object("function")?.ok_or_else(|| tool.missing("function"))?;
        function.need_text("name")?;
        function.text("description")?;
        function.object("parameters")?;
    }
    Ok(())
}

/// A chat whose prompt is written.
pub struct Rendered {
    /// The prompt.
    pub text: String,
    /// The field of the interface that the messages came in.
    field: &'static str,
    expect: Expect,
    grammar: Option<(Grammar, &'static str)>,
    constrains_at_once: bool,
    opened: &'static str,
    thought_tokens: Option<usize>,
}

impl Chat {
    /// A job from the chat.
    ///
    /// # Errors
    /// As [`Chat::rendered`] and [`Job::new`].
    pub async fn into_job(self, served: &Served, options: Options) -> Result<Job, ApiError> {
        let Rendered { text, field, expect, grammar, constrains_at_once, opened, thought_tokens } =
            self.rendered(served).await?;
        if served.config_log_prompts {
            log::info!("prompt: {text:?}");
        }
        let prompt = (field, served.prompt_tokens(text, PromptForm::Chat).await?);
        let job = Job::new(served, prompt, options, expect, grammar)?;
        Ok(Job { opened, thought_tokens, constrains_at_once, ..job })
    }

    /// Renders the chat into a prompt.
    ///
    /// # Errors
    /// 400 where the model has no template, or the template refuses the chat or takes too much; 503 where the system has
    /// no process for it.
    pub async fn rendered(mut self, served: &Served) -> Result<Rendered, ApiError> {
        let ending = self.ending()?;
        check_tools(&self.tools)?;
        let offered = Arc::new(if self.choice == ToolChoice::None { Vec::new() } else { self.tools });
        // The prompt has all tools whichever is to be called, so that it begins as those before and after it.
        let mut callable = Cow::Borrowed(&offered[..]);
        match &self.choice {
            ToolChoice::Named(name) => {
                callable.to_mut().retain(|tool| tool["function"]["name"] == *name);
                if callable.is_empty() {
                    let text = format!("tool_choice names {name:?}, which is not among the tools");
                    return Err(ApiError::field("tool_choice", text));
                }
            }
            ToolChoice::Allowed(names) => {
                callable.to_mut().retain(|tool| names.iter().any(|name| tool["function"]["name"] == *name));
                if !callable.is_empty() && callable.len() < offered.len() {
                    let text = "tool_choice.tools: the model cannot be kept from some of its tools; send those alone \
                                that it may call";
                    return Err(ApiError::field("tool_choice.tools", text).code("unsupported_value"));
                }
            }
            _ => {}
        }
        let Some(template) = served.template(!offered.is_empty()) else {
            let text = "this model has no chat template; use /v1/completions, or start the server with --chat-template";
            return Err(ApiError::bad(text).code("no_chat_template"));
        };
        if self.choice == ToolChoice::Required && offered.is_empty() {
            return Err(ApiError::field("tool_choice", "tool_choice forces a call, but the request has no tools"));
        }
        let has_tools = !offered.is_empty();
        // A template without a place for tools is told of them.
        let is_told = has_tools && !template.takes_tools;
        // Calls of such a template, or of one that has an unknown form for them, are as those of Hermes.
        let is_as_told = is_told || (has_tools && template.family == Family::Plain);
        let family = if is_as_told { Family::Hermes } else { template.family };
        let mut turns = with_names(self.turns);
        if is_told {
            tell_of_tools(&offered, &mut turns);
        }
        if template.has_short_ids {
            shorten_ids(&mut turns);
        }
        let continued = turns.last().map(|turn| turn.message.content.clone());
        let continued = continued.filter(|_| ending == Ending::Continued);
        let conversation = Conversation {
            turns,
            tools: if is_told { Arc::default() } else { Arc::clone(&offered) },
            ending,
            variables: self.thinking.variables().chain(self.variables).collect(),
            bos: served.bos.clone(),
            eos: served.eos.clone(),
        };
        let text = served.render(template, conversation).await?.map_err(|e| unrendered(&e, self.field))?;
        let is_forced = matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_));
        let one_call = self.parallel_calls == Some(false);
        let grammar = constraint(self.format, &self.choice, self.parallel_calls, (family, &callable))?;
        let (in_thought, opened) = begun(family, continued.as_deref(), &text);
        let has_thoughts = template.thinks || family == Family::Harmony;
        let thought_tokens = self.thinking.budget(template.reads_effort).filter(|_| has_thoughts);
        let thinking = template.thinks && in_thought;
        let tools = if callable.is_empty() { Arc::default() } else { offered };
        let expect = Expect { family, tools, thinks: template.thinks, thinking, one_call };
        let constrains_at_once = is_forced && family == Family::Harmony;
        Ok(Rendered { text, field: self.field, expect, grammar, constrains_at_once, opened, thought_tokens })
    }

    /// What the prompt ends with: a last message of the model goes on, unless the request has it otherwise. One that is empty
    /// goes on with the turn that is opened for it.
    fn ending(&mut self) -> Result<Ending, ApiError> {
        let is_empty = |turn: &Turn| {
            let Turn { message, .. } = turn;
            let has_thought = message.reasoning_content.as_ref().is_some_and(|thought| !thought.is_empty());
            message.role == Role::Assistant
                && message.tool_calls.is_empty()
                && message.content.is_empty()
                && !has_thought
        };
        let goes_on = matches!(self.ending, None | Some(Ending::Continued));
        if goes_on && self.turns.len() > 1 && self.turns.last().is_some_and(is_empty) {
            self.turns.pop();
            return Ok(Ending::Opened);
        }
        let Some(Turn { message: last, at }) = self.turns.last() else {
            let text = format!("{} is empty; at least one message is needed", self.field);
            return Err(ApiError::field(self.field, text));
        };
        let has_text = !last.content.is_empty() || last.reasoning_content.is_some();
        let may_go_on = last.role == Role::Assistant && last.tool_calls.is_empty() && has_text;
        match self.ending {
            None if may_go_on => Ok(Ending::Continued),
            None => Ok(Ending::Opened),
            Some(Ending::Continued) if !may_go_on => {
                let text = format!("continue_final_message: {at} has no text of the assistant that could go on");
                Err(ApiError::field("continue_final_message", text).code("invalid_value"))
            }
            Some(ending) => Ok(ending),
        }
    }
}

/// What of the answer the prompt has begun: whether it ends in a thought, and marks that tell how to read on. `continued` is
/// the text of a last message that goes on.
fn begun(family: Family, continued: Option<&str>, prompt: &str) -> (bool, &'static str) {
    let [thought, end] = family.thought();
    let thought = thought.trim_end();
    let in_thought = match continued {
        None => prompt.trim_end().ends_with(thought),
        Some("") => true,
        Some(said) => said.rfind(thought) > said.rfind(end),
    };
    let opened = match (family, continued) {
        (Family::Harmony, Some("")) => "<|channel|>analysis<|message|>",
        (Family::Harmony, Some(_)) => "<|channel|>final<|message|>",
        _ => "",
    };
    (in_thought, opened)
}

/// The same with the names of tools in their answers, which some interfaces leave out.
fn with_names(mut turns: Vec<Turn>) -> Vec<Turn> {
    for i in 0..turns.len() {
        let (before, rest) = turns.split_at_mut(i);
        let Some(answer) = rest.first_mut().map(|turn| &mut turn.message) else { continue };
        if let (Role::Tool, None, Some(id)) = (answer.role, &answer.name, &answer.tool_call_id) {
            let calls = before.iter().rev().flat_map(|turn| turn.message.tool_calls.iter().rev());
            answer.name = calls.filter(|call| call.id == *id).map(|call| call.name.clone()).next();
        }
    }
    turns
}

fn unrendered(e: &Unrendered, field: &'static str) -> ApiError {
    match e {
        Unrendered::Template(why) if why.is_unavailable() => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string()).retry_after(5)
        }
        Unrendered::Template(_) => ApiError::field(field, e.to_string()).code("chat_template"),
        Unrendered::LeftOut(at, _) | Unrendered::NotContinued(at) => {
            ApiError::field(at, e.to_string()).code("chat_template")
        }
    }
}

/// What an answer must look like where it may call tools, or has to.
fn constraint(
    format: OutputFormat,
    choice: &ToolChoice,
    parallel_calls: Option<bool>,
    (family, tools): (Family, &[Value]),
) -> Result<Option<(Grammar, &'static str)>, ApiError> {
    let is_forced = matches!(choice, ToolChoice::Required | ToolChoice::Named(_));
    let calls =
        |or: Option<Value>, many: bool| Grammar::Calls(Box::new(Calls { family, tools: functions(tools), many, or }));
    Ok(match format {
        // A call is no text, of whatever form.
        OutputFormat::Grammar(Grammar::Schema(_), _) | OutputFormat::Text if is_forced => {
            Some((calls(None, *choice == ToolChoice::Required && parallel_calls == Some(true)), "tools"))
        }
        OutputFormat::Grammar(_, param) if is_forced => {
            let text = format!("{param} cannot be combined with a tool_choice that forces a call");
            return Err(ApiError::field(param, text));
        }
        // Harmony writes calls beside the text, on a channel of their own.
        OutputFormat::Grammar(Grammar::Schema(schema), param) if !tools.is_empty() && family != Family::Harmony => {
            Some((calls(Some(schema), parallel_calls != Some(false)), param))
        }
        OutputFormat::Grammar(grammar, param) => Some((grammar, param)),
        OutputFormat::Text => None,
    })
}

/// What grammars of calls need of tools.
fn functions(tools: &[Value]) -> Vec<Value> {
    let function = |tool: &Value| {
        let function = &tool["function"];
        serde_json::json!({"function": {"name": function["name"], "parameters": function["parameters"]}})
    };
    tools.iter().map(function).collect()
}

impl Job {
    /// A job that fits the context; the prompt comes with the field of the interface that it was given in.
    ///
    /// # Errors
    /// 400 for a prompt that leaves no room for the answer.
    pub fn new(
        served: &Served,
        (field, prompt): (&'static str, Vec<u32>),
        options: Options,
        expect: Expect,
        grammar: Option<(Grammar, &'static str)>,
    ) -> Result<Job, ApiError> {
        let room = match options.max_tokens {
            Some(0) => 0,
            _ => served.limits().room(prompt.len()).map_err(|e| ApiError::of_request(&e).at(field))?,
        };
        // An answer that was asked to be longer than there is room is cut off there, with `length`.
        let max_tokens = options.max_tokens.unwrap_or(room).min(room);
        let (prompt, constrains_at_once) = (Rc::new(prompt), false);
        let (opened, thought_tokens, scores_prompt, reports_end) = ("", None, false, false);
        Ok(Job {
            prompt,
            options,
            max_tokens,
            expect,
            grammar,
            constrains_at_once,
            opened,
            thought_tokens,
            scores_prompt,
            reports_end,
        })
    }

    /// What the engine is asked for answer `index`.
    pub fn request(&self, index: usize) -> Box<Request> {
        let sampling = self.options.sampling;
        Box::new(Request {
            prompt: self.prompt.to_vec(),
            output: OutputKind::Tokens(Generate {
                max_tokens: self.max_tokens,
                sampling: SamplingParams { seed: sampling.seed.wrapping_add(index as u64), ..sampling },
                logit_bias: self.options.logit_bias.clone(),
                n_top_logprobs: self.options.n_top_logprobs,
                score_prompt: self.scores_prompt,
                ignore_eos: self.options.ignore_eos,
                constraint: self.grammar.is_some() || self.thought_tokens.is_some(),
            }),
        })
    }
}
