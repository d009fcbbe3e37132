//! What stands around tool calls, and what following one can come to.

use super::family::Family;

/// What stands around one call, or some.
pub struct CallSyntax {
    /// Before it.
    pub open: &'static str,
    /// After it; empty where it ends by itself.
    pub close: &'static str,
}

impl CallSyntax {
    /// That of a family; `None` where nothing stands around calls.
    pub fn of(family: Family) -> Option<&'static CallSyntax> {
        const HERMES: CallSyntax = CallSyntax { open: "<tool_call>", close: "</tool_call>" };
        const SEED: CallSyntax = CallSyntax { open: "<seed:tool_call>", close: "</seed:tool_call>" };
        const MINIMAX: CallSyntax = CallSyntax { open: "<minimax:tool_call>", close: "</minimax:tool_call>" };
        const DSML: CallSyntax =
            CallSyntax { open: "<｜DSML｜function_calls>", close: "</｜DSML｜function_calls>" };
        const DEEPSEEK: CallSyntax =
            CallSyntax { open: "<｜tool▁calls▁begin｜>", close: "<｜tool▁calls▁end｜>" };
        const KIMI: CallSyntax =
            CallSyntax { open: "<|tool_calls_section_begin|>", close: "<|tool_calls_section_end|>" };
        const MISTRAL: CallSyntax = CallSyntax { open: "[TOOL_CALLS]", close: "" };
        const COHERE: CallSyntax = CallSyntax { open: "<|START_ACTION|>", close: "<|END_ACTION|>" };
        const NEMOTRON: CallSyntax = CallSyntax { open: "<TOOLCALL>", close: "</TOOLCALL>" };
        const LFM2: CallSyntax = CallSyntax { open: "<|tool_call_start|>", close: "<|tool_call_end|>" };
        const GEMMA4: CallSyntax = CallSyntax { open: "<|tool_call>", close: "<tool_call|>" };
        match family {
            Family::Hermes | Family::QwenXml | Family::Glm => Some(&HERMES),
            Family::Seed => Some(&SEED),
            Family::MiniMax => Some(&MINIMAX),
            Family::Dsml => Some(&DSML),
            Family::DeepSeek | Family::DeepSeek31 => Some(&DEEPSEEK),
            Family::Kimi => Some(&KIMI),
            Family::Mistral | Family::Ministral => Some(&MISTRAL),
            Family::Cohere => Some(&COHERE),
            Family::Nemotron => Some(&NEMOTRON),
            Family::Lfm2 => Some(&LFM2),
            Family::Gemma4 => Some(&GEMMA4),
            Family::Llama3 | Family::Harmony | Family::Plain => None,
        }
    }
}

/// What a step came to.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Something was taken.
    More,
    /// Nothing is certain yet.
    Wait,
    /// The calls have ended; what is left comes after them.
    Done,
    /// It is none; the buffer has all that came.
    NoCall,
}
