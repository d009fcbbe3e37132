//! Chat templates in Jinja, as published with the models.
//!
//! Set up as the templates expect it (the conventions of Hugging Face's `apply_chat_template`): blocks are trimmed,
//! strings have Python's methods, `raise_exception`, `strftime_now` and `tojson` are there, and `{% generation %}`
//! marks nothing. What a template may take is in [`bounds`]; each lives on a [thread](ChatTemplate) of its own.

mod bounds;
mod code;
mod error;
mod filters;
#[cfg(test)]
mod hostile;
mod json;
mod message;
mod methods;
mod render;
mod time;
mod value;

use std::sync::mpsc::{Receiver, Sender, channel};

pub use error::{ChatError, Fault};
pub use message::{Message, Role, ToolCall};
pub use render::{Prompt, Renderer};
pub use time::Time;

use crate::sys::signal;

/// A compiled template. It lives on a thread of its own, whose stack suffices for what it may do, and which ends with it.
pub struct ChatTemplate {
    jobs: Sender<Job>,
    source: String,
    origin: Option<String>,
}

/// What is done on a template's thread.
type Job = Box<dyn FnOnce(&mut Renderer<'_>) + Send>;

/// The templates that brim has itself, by name: the formats that many models share.
const OWN: [(&str, &str); 5] = [
    ("chatml", include_str!("templates/chatml.jinja")),
    ("gemma", include_str!("templates/gemma.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
    ("phi3", include_str!("templates/phi3.jinja")),
];

/// The names of [`ChatTemplate::own`], as a sentence has them.
pub fn own_names() -> String {
    OWN.map(|(name, _)| name).join(", ")
}

impl ChatTemplate {
    /// Compiles a template. `origin` is the file or name it was asked for by, `None` for the model's own.
    ///
    /// # Errors
    /// What is wrong with it, and where; the bound that it is beyond; what the system says of one more thread.
    pub fn compile(source: &str, origin: Option<&str>) -> Result<ChatTemplate, ChatError> {
        // Before it is copied.
        if source.len() > bounds::SOURCE_BYTES_MAX {
            return Err(ChatError::bound(origin, bounds::Bound::Source(source.len())));
        }
        let source = without_generation_marks(source);
        let (jobs, queue) = channel();
        let (ready, is_ready) = channel();
        let (on_thread, origin_there) = (source.clone(), origin.map(str::to_owned));
        let thread = std::thread::Builder::new().name("brim-template".to_owned()).stack_size(bounds::STACK_BYTES);
        let live = move || live(&on_thread, origin_there.as_deref(), &ready, queue);
        // They are for the threads that wait for them.
        signal::blocked(|| thread.spawn(live)).map_err(|e| ChatError::system(origin, e))?;
        is_ready.recv().map_err(|_| ChatError::system(origin, "it has ended"))??;
        Ok(ChatTemplate { jobs, source, origin: origin.map(str::to_owned) })
    }

    /// The template that brim has under this name.
    pub fn own(name: &str) -> Option<Result<ChatTemplate, ChatError>> {
        let (_, source) = OWN.iter().find(|(own, _)| *own == name)?;
        Some(ChatTemplate::compile(source, Some(name)))
    }

    /// Whether `word` stands somewhere in the template.
    pub fn mentions(&self, word: &str) -> bool {
        self.source.contains(word)
    }

    /// Does something on the template's thread, after what was asked for before. Where the thread has ended, `job` is
    /// dropped.
    pub fn run(&self, job: impl FnOnce(&mut Renderer<'_>) + Send + 'static) {
        let _ = self.jobs.send(Box::new(job));
    }

    /// The text of a prompt; waits for it.
    ///
    /// # Errors
    /// What the template refuses or stumbles over.
    pub fn render(&self, prompt: Prompt) -> Result<String, ChatError> {
        let (done, result) = channel();
        self.run(move |renderer| drop(done.send(renderer.render(&prompt))));
        result.recv().unwrap_or_else(|_| Err(self.lost()))
    }

    /// What to say where a job was dropped.
    pub fn lost(&self) -> ChatError {
        ChatError::system(self.origin.as_deref(), "it has ended")
    }
}

/// The life of a template's thread.
fn live(source: &str, origin: Option<&str>, ready: &Sender<Result<(), ChatError>>, queue: Receiver<Job>) {
    let mut renderer = match Renderer::new(source, origin) {
        Ok(renderer) => renderer,
        Err(e) => return drop(ready.send(Err(e))),
    };
    if ready.send(Ok(())).is_ok() {
        queue.into_iter().for_each(|job| job(&mut renderer));
    }
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
    use std::sync::Arc;

    use super::*;

    fn render(template: &str, messages: &[Message]) -> Result<String, ChatError> {
        let prompt = Prompt {
            messages: messages.to_vec(),
            tools: Arc::default(),
            add_generation_prompt: true,
            bos: "<s>".to_owned(),
            eos: "</s>".to_owned(),
            now: Time::from_unix(1_795_438_800),
            variables: vec![("extra".to_owned(), serde_json::json!({"a": [1, 2.5]}))],
        };
        ChatTemplate::compile(template, None)?.render(prompt)
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
