//! The model's own chat template, in Jinja, as published with the model.
//!
//! Set up as the templates expect it (the conventions of Hugging Face's `apply_chat_template`): blocks are trimmed,
//! strings have Python's methods, `raise_exception` and `strftime_now` exist.

mod json;
mod methods;

use std::fmt;

use crate::error::{Error, Exit};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, context};

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
        environment.set_unknown_method_callback(methods::call);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.add_filter("tojson", json::tojson);
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
            ("{{ 'a b'.startswith(('x', 'a')) }}{{ 'a,b,c'.split(',', 1)[1] }}", "Trueb,c"),
            ("{{ 'a,b,c'.rsplit(',', 1)[0] }}|{{ ' a  b c '.split(none, 1)[1] }}|", "a,b|b c |"),
            ("{{ 'it\\'s ONE two'.title() }}|{{ 'oNE two'.capitalize() }}", "It'S One Two|One two"),
            ("{{ 'aXbX'.replace('X', '-', 1) }}{{ ', '.join(['p', 'q']) }}", "a-bXp, q"),
            ("{{ 'pre-x'.removeprefix('pre-') }}{{ '12'.isdigit() }}{{ 'héx'.find('x') }}", "xTrue2"),
            ("{{ {'a': [1, 'é<&>\\n'], 'b': none} | tojson }}", "{\"a\": [1, \"é<&>\\n\"], \"b\": null}"),
            ("{{ {'a': [1]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ]\n}"),
            (
                "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}{{ {'a': 1}.keys() | list }}",
                "a1b2['a']",
            ),
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
