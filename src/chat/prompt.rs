//! What a template gets to see.

use serde_json::Value as Json;

use super::message::Message;
use super::time::Time;
use super::wire;

/// What a template gets to see.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// The chat so far.
    pub messages: &'a [Message],
    /// Tools the model may call, each `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub tools: &'a [Json],
    /// Open the assistant's turn.
    pub add_generation_prompt: bool,
    /// The token that begins a text, as the template writes it.
    pub bos: &'a str,
    /// The token that ends it.
    pub eos: &'a str,
    /// What `strftime_now` tells.
    pub now: Time,
    /// Further variables, such as `enable_thinking`; they win over the above.
    pub variables: &'a [(String, Json)],
}

impl Prompt<'_> {
    /// It as bytes, for [`Renderer::render`](super::Renderer::render).
    pub fn written(&self) -> Vec<u8> {
        let mut out = Vec::new();
        wire::number(self.now.unix, &mut out);
        wire::number((8 + self.variables.len()) as u64, &mut out);
        let mut pair = |name: &str, value: &Json| {
            wire::text(name, &mut out);
            wire::value(value, &mut out);
        };
        pair("messages", &self.messages.iter().map(Message::json).collect());
        pair("tools", &if self.tools.is_empty() { Json::Null } else { self.tools.into() });
        pair("documents", &Json::Null);
        pair("add_generation_prompt", &self.add_generation_prompt.into());
        pair("bos_token", &self.bos.into());
        pair("eos_token", &self.eos.into());
        // Days, not seconds: prompts keep their beginning.
        pair("date_string", &self.now.format("%d %b %Y").into());
        pair("datetime", &self.now.format("%b %d %Y").into());
        self.variables.iter().for_each(|(name, value)| pair(name, value));
        out
    }
}
