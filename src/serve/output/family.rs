//! Families of chat templates, by how they write tool calls.

use serde::{Deserialize, Serialize};

/// How a family of chat templates writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen.
    Hermes,
    /// `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`: Qwen's coders.
    QwenXml,
    /// The same between `<seed:tool_call>` and `</seed:tool_call>`: Seed-OSS.
    Seed,
    /// `{"name": ..., "parameters": {...}}` as the whole answer: Llama 3.
    Llama3,
    /// Channels and recipients: gpt-oss.
    Harmony,
    /// `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`: GLM.
    Glm,
    /// `<minimax:tool_call><invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke></minimax:tool_call>`.
    MiniMax,
    /// The same with `<｜DSML｜` before the names of tags, and with what is text marked as such: DeepSeek V3.2.
    Dsml,
    /// `<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME`, and arguments fenced as JSON: DeepSeek V3, R1.
    DeepSeek,
    /// `<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜>`: DeepSeek V3.1.
    DeepSeek31,
    /// `<|tool_call_begin|>functions.NAME:N<|tool_call_argument_begin|>{...}<|tool_call_end|>`: Kimi K2.
    Kimi,
    /// `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`: Mistral.
    Mistral,
    /// `[TOOL_CALLS]NAME[ARGS]{...}`: Ministral 3, Magistral, later Mistral Small.
    Ministral,
    /// `<|START_ACTION|>[{"tool_name": ..., "parameters": {...}}]<|END_ACTION|>`; thoughts and answers have marks too:
    /// Command R7B and later, with and without experts.
    Cohere,
    /// `<TOOLCALL>[{"name": ..., "arguments": {...}}]</TOOLCALL>`: Nemotron Nano 2.
    Nemotron,
    /// `<|tool_call_start|>[NAME(KEY=VALUE, ...)]<|tool_call_end|>`, as Python: LFM2.
    Lfm2,
    /// `<|tool_call>call:NAME{KEY:VALUE,...}<tool_call|>`, text between `<|"|>`; thoughts in a channel: Gemma 4.
    Gemma4,
    /// No form of its own.
    Plain,
}

impl Family {
    /// The family of a template, by the marks it writes.
    pub fn of(mentions: impl Fn(&str) -> bool) -> Family {
        match () {
            () if mentions("<|channel|>") => Family::Harmony,
            () if mentions("<|tool_call>call:") => Family::Gemma4,
            () if mentions("<minimax:tool_call>") => Family::MiniMax,
            () if mentions("｜DSML｜") => Family::Dsml,
            () if mentions("<｜tool▁call▁begin｜>") && mentions("```json") => Family::DeepSeek,
            () if mentions("<｜tool▁call▁begin｜>") => Family::DeepSeek31,
            () if mentions("<|tool_call_argument_begin|>") || mentions("<|im_system|>tool_declare") => Family::Kimi,
            () if mentions("<|START_ACTION|>") => Family::Cohere,
            () if mentions("<|tool_call_start|>") || mentions("<|tool_list_start|>") => Family::Lfm2,
            () if mentions("<seed:tool_call>") => Family::Seed,
            () if mentions("<arg_key>") => Family::Glm,
            () if mentions("<function=") => Family::QwenXml,
            () if mentions("<tool_call>") => Family::Hermes,
            () if mentions("<TOOLCALL>") => Family::Nemotron,
            () if mentions("[TOOL_CALLS]") && mentions("[ARGS]") => Family::Ministral,
            () if mentions("[TOOL_CALLS]") => Family::Mistral,
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
            Family::Seed => &["<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>"],
            Family::MiniMax => &["<minimax:tool_call>", "</minimax:tool_call>", "<think>", "</think>"],
            Family::Dsml => &["｜DSML｜", "<think>", "</think>"],
            Family::DeepSeek | Family::DeepSeek31 => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁end｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁sep｜>",
                "<think>",
                "</think>",
            ],
            Family::Kimi => &[
                "<|tool_calls_section_begin|>",
                "<|tool_calls_section_end|>",
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
                "<think>",
                "</think>",
            ],
            Family::Mistral | Family::Ministral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"],
            Family::Cohere => &["<|START_ACTION|>", "<|END_ACTION|>", "<|START_THINKING|>", "<|END_THINKING|>"],
            Family::Nemotron => &["<TOOLCALL>", "</TOOLCALL>", "<think>", "</think>"],
            Family::Lfm2 => &["<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>"],
            Family::Llama3 => &["<|python_tag|>"],
            Family::Harmony => &["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"],
            Family::Gemma4 => &["<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>", "<|\"|>"],
            Family::Plain => &["<think>", "</think>"],
        }
    }

    /// What a model writes between the last word of a thought and the first of its answer.
    pub fn end_of_thought(self) -> &'static str {
        match self {
            Family::Harmony => "<|end|><|start|>assistant<|channel|>final<|message|>",
            Family::Gemma4 => "<channel|>",
            Family::Mistral | Family::Ministral => "[/THINK]",
            Family::Cohere => "<|END_THINKING|>",
            Family::Seed => "</seed:think>",
            _ => "\n</think>\n\n",
        }
    }

    /// What stands around a thought.
    pub fn thought(self) -> [&'static str; 2] {
        match self {
            Family::Gemma4 => ["<|channel>thought\n", "<channel|>"],
            Family::Mistral | Family::Ministral => ["[THINK]", "[/THINK]"],
            Family::Cohere => ["<|START_THINKING|>", "<|END_THINKING|>"],
            Family::Seed => ["<seed:think>", "</seed:think>"],
            _ => ["<think>", "</think>"],
        }
    }
}
