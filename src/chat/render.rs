//! From a compiled template and a chat to text.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::machinery::{self, Instructions};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, UndefinedBehavior, escape_formatter};

use super::bounds::{Bound, Meter, RECURSION_MAX, STEPS_MAX, VALUE_BYTES_MAX};
use super::error::ChatError;
use super::message::Message;
use super::time::Time;
use super::value::{keep_inside, refuse, size};
use super::{code, filters, json, methods};

/// Longest format that `strftime_now` takes, in bytes.
const TIME_FORMAT_MAX: usize = 4096;

/// Longest message of `raise_exception`, in characters.
const MESSAGE_MAX: usize = 1000;

/// What a template gets to see.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The chat so far.
    pub messages: Vec<Message>,
    /// Tools the model may call, each `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub tools: Arc<Vec<serde_json::Value>>,
    /// Open the assistant's turn.
    pub add_generation_prompt: bool,
    /// The token that begins a text, as the template writes it.
    pub bos: String,
    /// The token that ends it.
    pub eos: String,
    /// What `strftime_now` tells.
    pub now: Time,
    /// Further variables, such as `enable_thinking`; they win over the above.
    pub variables: Vec<(String, serde_json::Value)>,
}

/// A template on its own thread.
pub struct Renderer<'source> {
    environment: Environment<'static>,
    code: Instructions<'source>,
    meter: Arc<Meter>,
    origin: Option<&'source str>,
}

/// Blocks are trimmed.
///
/// # Errors
/// None that is known: the marks are Jinja's own.
pub fn syntax() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

impl<'source> Renderer<'source> {
    /// Compiles a template, on the thread that it is going to be rendered on.
    ///
    /// # Errors
    /// What is wrong with it, and where, or the bound that it is beyond.
    pub fn new(source: &'source str, origin: Option<&'source str>) -> Result<Renderer<'source>, ChatError> {
        let fail = |cause| ChatError::new(origin, &cause);
        let syntax = syntax().map_err(fail)?;
        code::check(source, syntax.clone()).map_err(|bound| ChatError::bound(origin, bound))?;
        let code = code::compile(source, syntax).map_err(fail)?;
        let meter = Arc::new(Meter::default());
        let mut environment = Environment::new();
        environment.set_fuel(Some(STEPS_MAX));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        let [calling, printing] = [(); 2].map(|()| Arc::clone(&meter));
        environment
            .set_unknown_method_callback(move |_, value, method, args| methods::call(&calling, value, method, args));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(move |out, state, value| {
            printing.tick(size(value)?.bytes)?;
            escape_formatter(out, state, value)
        });
        environment.add_test("iterable", methods::is_iterable);
        environment.add_test("sequence", methods::is_sequence);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", |message: &str| -> Result<String, Error> {
            Err(refuse(message.chars().take(MESSAGE_MAX).collect::<String>()))
        });
        filters::install(&mut environment, &meter);
        code::install(&mut environment, &meter);
        Ok(Renderer { environment, code, meter, origin })
    }

    /// The text of a prompt.
    ///
    /// # Errors
    /// What the template refuses or stumbles over, or the bound that it, or what it is given, is beyond.
    pub fn render(&self, prompt: &Prompt) -> Result<String, ChatError> {
        let given = given(prompt).map_err(|cause| ChatError::values(self.origin, &cause))?;
        // What it is given does not count as what it takes.
        self.meter.begin();
        let (mut text, blocks) = (String::new(), BTreeMap::new());
        let mut out = machinery::make_string_output(&mut text);
        let done = machinery::eval(&self.environment, &self.code, given, &blocks, &mut out, AutoEscape::None);
        let done = done.map(|_| ()).and_then(|()| match text.len() {
            0..=VALUE_BYTES_MAX => Ok(()),
            _ => Err(Bound::Size.into()),
        });
        done.map(|()| text).map_err(|cause| ChatError::new(self.origin, &cause))
    }
}

/// The variables of a template.
fn given(prompt: &Prompt) -> Result<Value, Error> {
    let now = prompt.now;
    let none = Value::from(());
    let tools = if prompt.tools.is_empty() { none.clone() } else { Value::from(Serde(&*prompt.tools)) };
    let strftime_now = move |format: &str| match format.len() {
        0..=TIME_FORMAT_MAX => Ok(now.format(format)),
        n => Err(refuse(format!("strftime_now: a format of {n} bytes, at most {TIME_FORMAT_MAX} are taken"))),
    };
    let own = [
        ("messages", keep_inside(Value::from(Serde(&prompt.messages)))?),
        ("tools", keep_inside(tools)?),
        ("documents", none),
        ("add_generation_prompt", prompt.add_generation_prompt.into()),
        ("bos_token", prompt.bos.as_str().into()),
        ("eos_token", prompt.eos.as_str().into()),
        ("strftime_now", Value::from_function(strftime_now)),
    ];
    let own = own.into_iter().map(|(name, value)| Ok((name.to_owned(), value)));
    let further =
        prompt.variables.iter().map(|(name, value)| Ok((name.clone(), keep_inside(Value::from(Serde(value)))?)));
    let all: Vec<(String, Value)> = own.chain(further).collect::<Result<_, Error>>()?;
    Ok(Value::from_pairs(all))
}
