//! Families of chat templates, by how they write tool calls.

/// How a family of chat templates writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen.
    Hermes,
    /// `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`: Qwen's coders.
    QwenXml,
    /// `{"name": ..., "parameters": {...}}` as the whole answer: Llama 3.
    Llama3,
    /// Channels and recipients: gpt-oss.
    Harmony,
    /// `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`: GLM.
    Glm,
    /// `<minimax:tool_call><invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke></minimax:tool_call>`.
    MiniMax,
    /// `<|tool_call>call:NAME{KEY:VALUE,...}<tool_call|>`, text between `<|"|>`; thoughts in a channel: Gemma 4.
    Gemma4,
    /// No tools.
    Plain,
}

impl Family {
    /// The family of a template, by the marks it writes.
    pub fn of(mentions: impl Fn(&str) -> bool) -> Family {
        match () {
            () if mentions("<|channel|>") => Family::Harmony,
            () if mentions("<|tool_call>call:") => Family::Gemma4,
            () if mentions("<minimax:tool_call>") => Family::MiniMax,
            () if mentions("<arg_key>") => Family::Glm,
            () if mentions("<function=") => Family::QwenXml,
            () if mentions("<tool_call>") => Family::Hermes,
            () if mentions("<|python_tag|>") || (mentions("<|start_header_id|>") && mentions("parameters")) => {
                Family::Llama3
            }
            () => Family::Plain,
        }
    }

    /// Control tokens that structure its output; others that are generated are not text.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Family::Hermes | Family::QwenXml | Family::Glm => &[
                "<tool_call>",
                "</tool_call>",
                "<think>",
                "</think>",
                "<arg_key>",
                "</arg_key>",
                "<arg_value>",
                "</arg_value>",
            ],
            Family::MiniMax => &["<minimax:tool_call>", "</minimax:tool_call>", "<think>", "</think>"],
            Family::Llama3 => &["<|python_tag|>"],
            Family::Harmony => &["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"],
            Family::Gemma4 => &["<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>", "<|\"|>"],
            Family::Plain => &["<think>", "</think>"],
        }
    }

    /// What stands around a thought.
    pub fn thought(self) -> [&'static str; 2] {
        match self {
            Family::Gemma4 => ["<|channel>thought\n", "<channel|>"],
            _ => ["<think>", "</think>"],
        }
    }
}
