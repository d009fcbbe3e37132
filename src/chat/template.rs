//! A template, compiled and rendered where it stands; [`super::process`] is for those that strangers wrote.
//!
//! Set up as the templates expect it (the conventions of Hugging Face's `apply_chat_template`): blocks are trimmed,
//! strings have Python's methods, `raise_exception`, `strftime_now` and `tojson` are there, and `{% generation %}`
//! marks nothing.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, Output, State, UndefinedBehavior, escape_formatter};

use super::error::{Cause, ChatError};
use super::prompt::Prompt;
use super::time::Time;
use super::wire::WireReader;
use super::{json, methods};

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: Option<String>,
}

const NAME: &str = "chat";

/// Work a template may do: far above what any published one needs for a chat, and short of a hang.
const FUEL: u64 = 10_000_000;

/// And more for each byte of what it gets to see: some look at all messages for each message.
const FUEL_PER_BYTE: u64 = 256;

impl ChatTemplate {
    /// Compiles a template. `origin` is the file or name it was asked for by, `None` for the model's own.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn compile(source: &str, origin: Option<&str>) -> Result<ChatTemplate, ChatError> {
        let origin = origin.map(str::to_owned);
        match ChatTemplate::compiled(source) {
            Ok(template) => Ok(ChatTemplate { origin, ..template }),
            Err(why) => Err(ChatError { origin, cause: Cause::Fails(why) }),
        }
    }

    /// The text of a prompt.
    ///
    /// # Errors
    /// What the template refuses or stumbles over.
    pub fn render(&self, prompt: &Prompt<'_>) -> Result<String, ChatError> {
        let fail = |why| ChatError { origin: self.origin.clone(), cause: Cause::Fails(why) };
        self.rendered(&prompt.written()).map_err(fail)
    }

    pub(super) fn compiled(source: &str) -> Result<ChatTemplate, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(shown)?;
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(methods::call);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.add_test("iterable", methods::is_iterable);
        environment.add_test("sequence", methods::is_sequence);
        environment.set_formatter(printed);
        environment.add_filter("tojson", json::tojson);
        environment.add_filter("string", |value: &Value| as_python(value).unwrap_or_else(|| value.to_string()));
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        // A source has one kind of line, whatever its file has.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        environment.add_template_owned(NAME, without_generation_marks(&source)).map_err(shown)?;
        Ok(ChatTemplate { environment, origin: None })
    }

    /// The text of what [`Prompt::written`] gave.
    pub(super) fn rendered(&self, written: &[u8]) -> Result<String, String> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_BYTE * written.len() as u64));
        let template = environment.get_template(NAME).map_err(shown)?;
        let mut written = WireReader(written);
        let read = written.number().zip(written.number());
        let read = read.and_then(|(now, n)| Some((Time::from_unix(now), written.pairs(n)?)));
        let (now, pairs) = read.ok_or("the prompt was not understood")?;
        let strftime_now = Value::from_function(move |format: &str| now.format(format));
        let all = std::iter::once(("strftime_now", strftime_now)).chain(pairs);
        template.render(Value::from_pairs(all)).map_err(shown)
    }
}

/// Prints a value. Texts, which most are, go the library's way.
fn printed(out: &mut Output, state: &mut State, value: &Value) -> Result<(), minijinja::Error> {
    match as_python(value) {
        Some(text) => Ok(out.write_str(&text)?),
        None => escape_formatter(out, state, value),
    }
}

/// A number with a fraction as Python prints it; `None` for what the library prints alike.
fn as_python(value: &Value) -> Option<String> {
    let is_float = value.is_number() && !value.is_integer();
    is_float.then(|| f64::try_from(value.clone()).ok().map(json::python_float)).flatten()
}

/// An error with its place in the template.
fn shown(e: minijinja::Error) -> String {
    format!("{e:#}")
}

/// `{% generation %}` and `{% endgeneration %}` as blocks that Jinja has: they only mark, for training, what the model
/// wrote.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        rest = tag;
        let (inside, _) = tag.split_once("%}").unwrap_or((tag, ""));
        let word = inside.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        let instead = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&inside.replace(word, instead));
        rest = &tag[inside.len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::super::message::{Message, Role};
    use super::*;

    fn render(template: &str, messages: &[Message]) -> Result<String, ChatError> {
        let prompt = Prompt {
            messages,
            tools: &[],
            add_generation_prompt: true,
            bos: "<s>",
            eos: "</s>",
            now: Time::from_unix(1_795_438_800),
            variables: &[("extra".to_owned(), serde_json::json!({"a": [1, 2.5]}))],
        };
        ChatTemplate::compile(template, None)?.render(&prompt)
    }

    const CHATML: &str = "{% for m in messages %}\n<|im_start|>{{ m.role }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}\n\
                          {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    #[test]
    fn chatml() {
        let got = render(CHATML, &[Message::text(Role::System, "Be brief."), Message::text(Role::User, "Hi")]).unwrap();
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
            ("{{ strftime_now('%d %b %Y') }} {{ strftime_now('%H:%M') }}", "23 Nov 2026 13:00"),
            ("{{ extra | tojson }}{{ extra | tojson(separators=(',', ':')) }}", "{\"a\": [1, 2.5]}{\"a\":[1,2.5]}"),
            ("{{ 'é\\x7f😀' | tojson(ensure_ascii=True) }}", "\"\\u00e9\\u007f\\ud83d\\ude00\""),
            ("{{ {'b': [], 'a': {}} | tojson(indent=2, sort_keys=true) }}", "{\n  \"a\": {},\n  \"b\": []\n}"),
            ("a\n  {%- generation -%}\n b {% endgeneration %} c", "ab  c"),
            ("{% set n = namespace(x=1) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}", "2"),
            ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
            ("{{ 1e-7 }} {{ 1e22 }} {{ 1e16 }} {{ 123456789.25 }} {{ 2.0 }}", "1e-07 1e+22 1e+16 123456789.25 2.0"),
            ("{{ 1e-7 | string }}|{{ (1e-7 | string) ~ 'x' }}|{{ 7 | string }}", "1e-07|1e-07x|7"),
            ("{{ 'a\\nb\\r\\nc'.splitlines() }}", "['a', 'b', 'c']"),
            ("{{ 'a\\nb\\r\\n\\nc'.splitlines(true) | tojson }}", "[\"a\\n\", \"b\\r\\n\", \"\\n\", \"c\"]"),
            ("{{ 'a\\n'.splitlines(keepends=True) | length }}{{ ''.splitlines() | length }}", "10"),
            ("{% if true %}\r\n x\r\n{% endif %}\r\ny\rz\r\n", " x\ny\nz"),
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
            assert_eq!(render(template, &[Message::text(Role::User, "x")]).unwrap(), want, "{template}");
        }
    }

    #[test]
    fn long_chats_have_fuel_for_templates_that_look_at_all_messages_for_each() {
        let messages: Vec<Message> =
            (0..1500).map(|i| Message::text(Role::User, format!("{i} {}", "x".repeat(200)))).collect();
        let template = "{% for m in messages %}{% set ns = namespace(n=0) %}{% for o in messages %}\
                        {% if o.role == m.role %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}{% endfor %}done";
        assert_eq!(render(template, &messages).unwrap(), "done");
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
