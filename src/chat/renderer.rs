//! A chat template as commands have it: where it comes from, and where it is rendered.

use super::error::{Cause, ChatError};
use super::{ChatTemplate, process};
use crate::sys::zygote::SharedZygote;

/// A chat template. One that brim has itself is rendered in this process, any other in a process of its own.
pub struct Renderer {
    source: String,
    origin: Option<String>,
    place: Place,
}

enum Place {
    Here(Box<ChatTemplate>),
    Apart(SharedZygote),
}

impl Renderer {
    /// A template that brim has itself, and trusts. `origin` is the name it was asked for by, `None` for the model's own.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn trusted(source: &str, origin: Option<&str>) -> Result<Renderer, ChatError> {
        let place = Place::Here(Box::new(ChatTemplate::compile(source, origin)?));
        Ok(Renderer { source: source.to_owned(), origin: origin.map(str::to_owned), place })
    }

    /// A template that somebody else wrote; what `zygote` starts renders it. `origin` is the file or name it was asked for
    /// by, `None` for the model's own.
    pub fn confined(source: &str, origin: Option<&str>, zygote: SharedZygote) -> Renderer {
        Renderer { source: source.to_owned(), origin: origin.map(str::to_owned), place: Place::Apart(zygote) }
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether `word` stands somewhere in the template.
    pub fn mentions(&self, word: &str) -> bool {
        self.source.contains(word)
    }

    /// Has it compiled.
    ///
    /// # Errors
    /// What is wrong with it, or with this machine.
    pub fn check(&self) -> Result<(), ChatError> {
        match &self.place {
            Place::Here(_) => Ok(()),
            Place::Apart(zygote) => self.ask(zygote, &[]).map(|_| ()),
        }
    }

    /// The text of a prompt, given as [`Prompt::written`](super::Prompt::written).
    ///
    /// # Errors
    /// What the template refuses or stumbles over, that it takes too much, or that it cannot be had rendered here.
    pub fn render(&self, written: &[u8]) -> Result<String, ChatError> {
        match &self.place {
            Place::Here(template) => template.rendered(written).map_err(|why| self.fail(Cause::Fails(why))),
            Place::Apart(zygote) => self.ask(zygote, written),
        }
    }

    fn ask(&self, zygote: &SharedZygote, written: &[u8]) -> Result<String, ChatError> {
        process::ask(zygote, &self.source, written).map_err(|cause| self.fail(cause))
    }

    fn fail(&self, cause: Cause) -> ChatError {
        ChatError { origin: self.origin.clone(), cause }
    }
}
