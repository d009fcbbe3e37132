//! From the messages of a chat to its prompt, with nothing left out. Templates drop what they have no place for, without a
//! word: a second system message, results of tools, all calls but the first. So each prompt is looked through for the text
//! of every message. What a template leaves out or refuses is given to it in another form, and where there is none the
//! request is refused.

mod ids;
mod repair;
mod said;
mod tools;
mod turn;

use std::sync::Arc;

use serde_json::Value;

use crate::chat::{Message, Prompt, Renderer, Role, Time};
use repair::Repair;

pub use ids::shorten_ids;
pub use tools::tell_of_tools;
pub use turn::{Turn, Unrendered};

/// What a prompt ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model's turn is opened.
    Opened,
    /// Nothing more than the messages.
    Bare,
    /// The last message, which is the model's, goes on.
    Continued,
}

/// All that a prompt is made of.
pub struct Conversation {
    /// The messages.
    pub turns: Vec<Turn>,
    /// The tools, as OpenAI's chat interface describes them.
    pub tools: Arc<Vec<Value>>,
    /// What it ends with.
    pub ending: Ending,
    /// Further variables of the template.
    pub variables: Vec<(String, Value)>,
    /// The token that begins a text, as templates write it.
    pub bos: String,
    /// The token that ends it.
    pub eos: String,
}

/// Stands where the last message goes on; it is cut off with what follows.
const GOES_ON: &str = "zq-goes-on-here-zq";

impl Conversation {
    /// The prompt.
    ///
    /// # Errors
    /// Why there is none.
    pub fn rendered(mut self, renderer: &Renderer) -> Result<String, Unrendered> {
        if !renderer.mentions("developer") {
            let developers = self.turns.iter_mut().filter(|turn| turn.message.role == Role::Developer);
            developers.for_each(|turn| turn.message.role = Role::System);
        }
        let failure = match self.attempt(renderer, &self.turns) {
            Ok(text) => return Ok(text),
            Err(failure) => failure,
        };
        // Where it is not known what is wrong, one of them alone changes least.
        let is_unknown = matches!(failure, Unrendered::Template(_));
        for repair in Repair::ALL.into_iter().filter(|_| is_unknown) {
            let mut turns = self.turns.clone();
            if repair.helps(&failure)
                && repair.apply(&mut turns)
                && let Ok(text) = self.attempt(renderer, &turns)
            {
                return Ok(text);
            }
        }
        self.repaired(renderer, failure)
    }

    /// The prompt after several repairs, each on top of those before, or why there was none at `first`: that is what the
    /// template says of the chat as the client has sent it.
    fn repaired(&self, renderer: &Renderer, first: Unrendered) -> Result<String, Unrendered> {
        let mut turns = self.turns.clone();
        let mut last = None;
        for repair in Repair::ALL {
            if repair.helps(last.as_ref().unwrap_or(&first)) && repair.apply(&mut turns) {
                match self.attempt(renderer, &turns) {
                    Ok(text) => return Ok(text),
                    Err(failure) => last = Some(failure),
                }
            }
        }
        Err(first)
    }

    fn attempt(&self, renderer: &Renderer, turns: &[Turn]) -> Result<String, Unrendered> {
        let text = self.render(renderer, turns)?;
        if said::all_in_order(turns, &text) {
            return Ok(text);
        }
        let (marked, marks) = said::marked(turns);
        let left_out = match self.render(renderer, &marked) {
            Ok(probe) => said::lost(&marks, &probe),
            // It does not take marks, so all there is is the text.
            Err(_) => said::left_out(turns, &text),
        };
        match left_out {
            None => Ok(text),
            Some((turn, part)) => Err(Unrendered::LeftOut(turns[turn].at.clone(), part)),
        }
    }

    fn render(&self, renderer: &Renderer, turns: &[Turn]) -> Result<String, Unrendered> {
        let mut messages: Vec<Message> = turns.iter().map(|turn| turn.message.clone()).collect();
        let continued = self.ending == Ending::Continued;
        if let Some(last) = messages.last_mut().filter(|_| continued) {
            match &mut last.reasoning_content {
                Some(thought) if last.content.is_empty() => thought.push_str(GOES_ON),
                _ => last.content.push_str(GOES_ON),
            }
        }
        let prompt = Prompt {
            messages: &messages,
            tools: &self.tools,
            add_generation_prompt: self.ending == Ending::Opened,
            bos: &self.bos,
            eos: &self.eos,
            now: Time::now(),
            variables: &self.variables,
        };
        let mut text = renderer.render(&prompt.written()).map_err(Unrendered::Template)?;
        if continued {
            let end = text.rfind(GOES_ON);
            let at = || turns.last().map(|turn| turn.at.clone()).unwrap_or_default();
            text.truncate(end.ok_or_else(|| Unrendered::NotContinued(at()))?);
        }
        Ok(text)
    }
}
