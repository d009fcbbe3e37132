//! The model's own chat template, in Jinja, as published with the model.
//!
//! Set up as the templates expect it (the conventions of Hugging Face's `apply_chat_template`): blocks are trimmed,
//! strings have Python's methods, `raise_exception` and `strftime_now` exist.

use std::fmt;

use crate::error::{Error, Exit};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// What was said.
    pub content: String,
}

/// A template that does not compile, or fails on these messages.
#[derive(Debug)]
pub struct ChatError(minijinja::Error);

impl fmt::Display for ChatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the model's chat template fails: {:#}; use --raw and write the whole prompt yourself", self.0)
    }
}

impl std::error::Error for ChatError {}

impl From<ChatError> for Error {
    fn from(e: ChatError) -> Self {
        Error::new(Exit::Model, e)
    }
}

/// Tokens as the template writes them.
#[derive(Clone, Debug, Default)]
pub struct ChatTokens {
    /// Beginning of sequence.
    pub bos: String,
    /// End of sequence.
    pub eos: String,
}

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
}

const NAME: &str = "chat";

/// Work a template may do: far above what any published one needs for a long chat, and short of a hang.
const FUEL: u64 = 10_000_000;

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn compile(source: &str) -> Result<ChatTemplate, ChatError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(ChatError)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(|_, value, method, args| string_method(value, method, args));
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, source.to_owned()).map_err(ChatError)?;
        Ok(ChatTemplate { environment })
    }

    /// The prompt for these messages; `add_generation_prompt` opens the assistant's turn. `date` answers
    /// `strftime_now`, whatever format is asked for.
    ///
    /// # Errors
    /// What the template refuses or stumbles over.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        tokens: &ChatTokens,
        date: &str,
    ) -> Result<String, ChatError> {
        let template = self.environment.get_template(NAME).map_err(ChatError)?;
        let date = date.to_owned();
        let now = Value::from_function(move |_format: String| date.clone());
        let messages: Vec<Value> = messages
            .iter()
            .map(|m| Value::from_pairs([("role", Value::from(m.role)), ("content", Value::from(m.content.as_str()))]))
            .collect();
        template
            .render(context! {
                messages => messages,
                add_generation_prompt => add_generation_prompt,
                bos_token => tokens.bos.as_str(),
                eos_token => tokens.eos.as_str(),
                strftime_now => now,
            })
            .map_err(ChatError)
    }
}

/// Python's string methods, as far as published templates use them.
fn string_method(value: &Value, method: &str, args: &[Value]) -> Result<Value, minijinja::Error> {
    let unknown =
        || minijinja::Error::new(ErrorKind::UnknownMethod, format!("no method `{method}` on {}", value.kind()));
    let arg = |i: usize| args.get(i).and_then(Value::as_str);
    if let ("items", true) = (method, value.kind() == minijinja::value::ValueKind::Map) {
        let pairs: Result<Vec<Value>, _> = value
            .try_iter()?
            .map(|key| Ok::<_, minijinja::Error>(Value::from(vec![key.clone(), value.get_item(&key)?])))
            .collect();
        return Ok(Value::from(pairs?));
    }
    if let ("get", true) = (method, value.kind() == minijinja::value::ValueKind::Map) {
        let found = value.get_item(args.first().ok_or_else(unknown)?)?;
        return Ok(if found.is_undefined() { args.get(1).cloned().unwrap_or_default() } else { found });
    }
    let text = value.as_str().ok_or_else(unknown)?;
    let trim = |text: &str, left: bool, right: bool| {
        let set: Option<Vec<char>> = arg(0).map(|set| set.chars().collect());
        let inside = |c: char| set.as_ref().map_or(c.is_whitespace(), |set| set.contains(&c));
        let text = if left { text.trim_start_matches(inside) } else { text };
        let text = if right { text.trim_end_matches(inside) } else { text };
        text.to_owned()
    };
    Ok(match method {
        "startswith" => Value::from(text.starts_with(arg(0).ok_or_else(unknown)?)),
        "endswith" => Value::from(text.ends_with(arg(0).ok_or_else(unknown)?)),
        "strip" => Value::from(trim(text, true, true)),
        "lstrip" => Value::from(trim(text, true, false)),
        "rstrip" => Value::from(trim(text, false, true)),
        "upper" => Value::from(text.to_uppercase()),
        "lower" => Value::from(text.to_lowercase()),
        "title" | "capitalize" => {
            let mut chars = text.chars();
            let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
            Value::from(first + &chars.as_str().to_lowercase())
        }
        "replace" => Value::from(text.replace(arg(0).ok_or_else(unknown)?, arg(1).ok_or_else(unknown)?)),
        "find" => {
            let at = text.find(arg(0).ok_or_else(unknown)?).map(|at| text[..at].chars().count());
            Value::from(at.map_or(-1, |at| i64::try_from(at).unwrap_or(i64::MAX)))
        }
        "count" => Value::from(text.matches(arg(0).ok_or_else(unknown)?).count()),
        "split" => match arg(0) {
            Some(separator) if !separator.is_empty() => Value::from_iter(text.split(separator).map(str::to_owned)),
            _ => Value::from_iter(text.split_whitespace().map(str::to_owned)),
        },
        _ => return Err(unknown()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(role: &'static str, content: &str) -> Message {
        Message { role, content: content.to_owned() }
    }

    fn render(template: &str, messages: &[Message]) -> Result<String, ChatError> {
        let tokens = ChatTokens { bos: "<s>".into(), eos: "</s>".into() };
        ChatTemplate::compile(template)?.render(messages, true, &tokens, "23 Nov 2026")
    }

    const CHATML: &str = "{% for m in messages %}\n<|im_start|>{{ m.role }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}\n\
                          {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    #[test]
    fn chatml() {
        let got = render(CHATML, &[say("system", "Be brief."), say("user", "Hi")]).unwrap();
        let want = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(got, want);
    }

    #[test]
    fn python_methods_and_functions() {
        for (template, want) in [
            ("{{ '  a b '.strip() }}", "a b"),
            ("{{ 'xxaxx'.strip('x') }}", "a"),
            ("{{ 'a,b'.split(',')[1] }}", "b"),
            ("{{ 'think</t>say'.split('</t>')[-1].lstrip('\\n') }}", "say"),
            ("{{ 'abc'.startswith('ab') }}", "True"),
            ("{{ 'abc'.upper() ~ 'DEF'.lower() ~ 'ghi'.title() }}", "ABCdefGhi"),
            ("{{ strftime_now('%d %b %Y') }}", "23 Nov 2026"),
            ("{% set n = namespace(x=1) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}", "2"),
            ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
            ("{{ messages[0].role | tojson }}", "\"user\""),
            ("{{ messages[0].get('name', 'nobody') }}", "nobody"),
            ("{{ messages[::-1][0].content }}", "x"),
        ] {
            assert_eq!(render(template, &[say("user", "x")]).unwrap(), want, "{template}");
        }
    }

    #[test]
    fn refusals_and_mistakes_are_errors() {
        let e = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert!(e.to_string().contains("roles must alternate"), "{e}");
        assert!(render("{% for %}", &[]).is_err());
        assert!(render("{{ 'a'.nonsense() }}", &[]).is_err());
        assert!(
            render("{% for i in range(9999) %}{% for j in range(9999) %}{{ j }}{% endfor %}{% endfor %}", &[]).is_err()
        );
    }
}
