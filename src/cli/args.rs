//! The words of the command line, as argh sees them, and their `BRIM_*` twins.

use argh::FromArgs;

use super::known::{Helped, listed, meant};
use crate::error::{Error, Result};
use crate::settings::{HeldWeights, Overrides};

/// brim: large language models in huge pages, on the CPU.
#[derive(FromArgs, Debug)]
struct Top {
    #[argh(subcommand)]
    command: Option<Command>,
    /// print the version and exit
    #[argh(switch, short = 'V')]
    version: bool,
}

/// One command with its options.
#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub enum Command {
    /// generates text
    Run(Run),
    /// the OpenAI-compatible server
    #[cfg(feature = "serve")]
    Serve(Serve),
    /// keeps loaded weights resident for later processes
    Hold(Hold),
    /// the memory plan
    Plan(Plan),
    /// metadata and tensors of a GGUF file
    Inspect(Inspect),
    /// the architectures that run
    Models(Models),
    /// what this box has and how to mend it
    Doctor(Doctor),
    /// measures this box against its own ceilings
    #[cfg(feature = "bench")]
    Bench(Bench),
    /// perplexity and logits
    Eval(Eval),
    /// text to token ids and back
    Tokenize(Tokenize),
    /// power-on self-test
    #[cfg(feature = "demo")]
    Selftest(Selftest),
}

/// Declares a command that loads a model: its own options, then those that every such command shares.
macro_rules! model_command {
    ($(#[$meta:meta])* $name:ident { $($own:tt)* }) => {
        #[derive(FromArgs, Debug)]
        $(#[$meta])*
        pub struct $name {
            $($own)*
            /// GGUF file; of a split set the first file (default: the embedded demo model)
            #[argh(option, short = 'm')]
            pub model: Option<String>,
            /// board by name or path of its TOML file
            #[argh(option)]
            pub board: Option<String>,
            /// all regions in explicit huge pages
            #[argh(switch)]
            pub hugepages: bool,
            /// huge-page size: 2M, 1G or auto
            #[argh(option)]
            pub page_size: Option<String>,
            /// context length in tokens, or auto: as long as fits
            #[argh(option)]
            pub ctx: Option<String>,
            /// KV cache type: f16, q8_0 or, for comparisons, f32; with --ctx auto also auto
            #[argh(option)]
            pub kv_type: Option<String>,
            /// worker threads
            #[argh(option, short = 't')]
            pub threads: Option<u32>,
            /// CPUs the workers are pinned to, e.g. 0-7,16
            #[argh(option)]
            pub cores: Option<String>,
            /// kernel tier: scalar, avx2, avx2vnni, avx512 or avx512bf16
            #[argh(option)]
            pub isa: Option<String>,
            /// how weights are read: auto, buffered or direct
            #[argh(option)]
            pub io: Option<String>,
            /// cut text as this pre-tokenizer does, whichever the file names
            #[argh(option)]
            pub pre: Option<String>,
            /// say more on stderr
            #[argh(switch, short = 'v')]
            pub verbose: bool,
        }

        impl $name {
            /// What it says of the options that every such command shares.
            pub fn overrides(&self) -> Overrides {
                Overrides {
                    model: self.model.clone(),
                    board: self.board.clone(),
                    hugepages: self.hugepages,
                    page_size: self.page_size.clone(),
                    ctx: self.ctx.clone(),
                    kv_type: self.kv_type.clone(),
                    threads: self.threads,
                    cores: self.cores.clone(),
                    isa: self.isa.clone(),
                    io: self.io.clone(),
                    pre: self.pre.clone(),
                    verbose: self.verbose,
                    held: HeldWeights::Unused,
                }
            }
        }
    };
}

/// Adds the option of commands that may use the weights which a `brim hold` keeps.
macro_rules! may_use_held_weights {
    ($($name:ident),*) => {$(
        impl $name {
            /// As `overrides`, with the holder's socket where one is named.
            pub fn overrides_with_held(&self) -> Overrides {
                Overrides { held: HeldWeights::Allowed(self.resident.clone()), ..self.overrides() }
            }
        }
    )*};
}

may_use_held_weights!(Run, Plan);
#[cfg(feature = "serve")]
may_use_held_weights!(Serve);
#[cfg(feature = "bench")]
may_use_held_weights!(Bench);

model_command! {
/// Generates text; without a prompt on a terminal it is a chat.
#[argh(subcommand, name = "run")]
Run {
    /// the prompt
    #[argh(option, short = 'p')]
    pub prompt: Option<String>,
    /// file with the prompt
    #[argh(option, short = 'f')]
    pub file: Option<String>,
    /// use the weights that a `brim hold` keeps, at its socket (default: brim.sock in $XDG_RUNTIME_DIR or /run)
    #[argh(option)]
    pub resident: Option<String>,
    /// most tokens to generate (default: until the model stops or the context is full)
    #[argh(option, short = 'n')]
    pub n_predict: Option<u32>,
    /// checkpoints of recurrent states, after which later prompts go on (default: as `brim plan` shows)
    #[argh(option)]
    pub checkpoints: Option<u32>,
    /// take the prompt as it is, without the chat template
    #[argh(switch)]
    pub raw: bool,
    /// with --raw: control tokens in the prompt are text like any other
    #[argh(switch)]
    pub plain: bool,
    /// system message
    #[argh(option)]
    pub system: Option<String>,
    /// chat template: a file, or a name such as chatml (default: the model's own)
    #[argh(option)]
    pub chat_template: Option<String>,
    /// temperature; 0 is greedy
    #[argh(option)]
    pub temp: Option<f32>,
    /// keep the K likeliest tokens; 0 keeps all
    #[argh(option)]
    pub top_k: Option<u32>,
    /// keep the likeliest tokens that together reach this probability
    #[argh(option)]
    pub top_p: Option<f32>,
    /// drop tokens less likely than this share of the likeliest
    #[argh(option)]
    pub min_p: Option<f32>,
    /// divide the logits of recent tokens by this
    #[argh(option)]
    pub repeat_penalty: Option<f32>,
    /// seed of the sampler; same seed, same text
    #[argh(option)]
    pub seed: Option<u64>,
}
}

#[cfg(feature = "serve")]
model_command! {
/// Serves the model over HTTP: the interfaces of OpenAI and Anthropic, a status page at /.
#[argh(subcommand, name = "serve")]
Serve {
    /// where to listen: ADDRESS:PORT or unix:PATH, several with commas between (default: 127.0.0.1:8080)
    #[argh(option)]
    pub listen: Option<String>,
    /// sequences served at once (default: 4)
    #[argh(option)]
    pub slots: Option<u32>,
    /// tokens the KV cache holds for all of them together (default: slots times --ctx)
    #[argh(option)]
    pub kv_tokens: Option<u32>,
    /// checkpoints of recurrent states, after which later prompts go on (default: as `brim plan` shows)
    #[argh(option)]
    pub checkpoints: Option<u32>,
    /// file with the API keys, one a line (default: nobody needs one)
    #[argh(option)]
    pub keys_file: Option<String>,
    /// name of the model as clients see it (default: that of its file)
    #[argh(option)]
    pub name: Option<String>,
    /// use the weights that a `brim hold` keeps, at its socket (default: brim.sock in $XDG_RUNTIME_DIR or /run)
    #[argh(option)]
    pub resident: Option<String>,
    /// chat template: a file, or a name such as chatml (default: the model's own)
    #[argh(option)]
    pub chat_template: Option<String>,
    /// report readiness on this descriptor, as s6 has it
    #[argh(option)]
    pub ready_fd: Option<i32>,
    /// write prompts to the log
    #[argh(switch)]
    pub log_prompts: bool,
}
}

model_command! {
/// Loads weights once and keeps them for any number of `run --resident`, until SIGTERM.
#[argh(subcommand, name = "hold")]
Hold {
    /// where to listen; owner and group may connect (default: brim.sock in $XDG_RUNTIME_DIR or /run)
    #[argh(option)]
    pub socket: Option<String>,
}
}

model_command! {
/// Prints the memory plan: regions, pages, pool, what is left; exit 5 if it does not fit.
#[argh(subcommand, name = "plan")]
Plan {
    /// find the largest context that fits, and plan that; the same as --ctx auto
    #[argh(switch)]
    pub fit: bool,
    /// plan for weights that a `brim hold` keeps
    #[argh(option)]
    pub resident: Option<String>,
    /// plan for `brim serve` with so many slots
    #[argh(option)]
    pub slots: Option<u32>,
    /// plan for `brim serve` with a KV cache of so many tokens
    #[argh(option)]
    pub kv_tokens: Option<u32>,
    /// checkpoints of recurrent states, after which later prompts go on (default: as `brim plan` shows)
    #[argh(option)]
    pub checkpoints: Option<u32>,
    /// one JSON document on stdout
    #[argh(switch)]
    pub json: bool,
}
}

model_command! {
/// Perplexity of a text, and its logits.
#[argh(subcommand, name = "eval")]
Eval {
    /// the text
    #[argh(option, short = 'f')]
    pub file: String,
    /// also write raw little-endian f32 logits, [n_tokens, n_vocab]
    #[argh(option)]
    pub logits: Option<String>,
    /// one JSON document on stdout
    #[argh(switch)]
    pub json: bool,
}
}

#[cfg(feature = "bench")]
model_command! {
/// Measures this box: model, kernels, memory or load.
#[argh(subcommand, name = "bench")]
Bench {
    /// what to measure: model, kernels, memory or load
    #[argh(positional)]
    pub what: String,
    /// prompt tokens, or some counts: 128,512,2048 (default: 512; of kernels 1,2,4,8,64,512)
    #[argh(option, short = 'p')]
    pub n_prompt: Option<String>,
    /// generated tokens, after the first prompt
    #[argh(option, short = 'n', default = "64")]
    pub n_gen: u32,
    /// tokens already in the context before the prompt
    #[argh(option, short = 'd', default = "0")]
    pub depth: u32,
    /// repetitions
    #[argh(option, short = 'r', default = "3")]
    pub repeat: u32,
    /// of model: so many sequences at once instead, e.g. 1,2,4,8; -p is then the prompt that comes in beside them
    #[argh(option)]
    pub streams: Option<String>,
    /// of load: also with the weights that a `brim hold` keeps, at its socket
    #[argh(option)]
    pub resident: Option<String>,
    /// weight types of kernels, e.g. Q4_K,Q8_0 (default: all)
    #[argh(option, long = "type")]
    pub types: Option<String>,
    /// one JSON document on stdout
    #[argh(switch)]
    pub json: bool,
}
}

/// Prints metadata and tensors of a GGUF file; of a split set, the first file stands for all.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "inspect")]
pub struct Inspect {
    /// the GGUF file
    #[argh(positional)]
    pub file: String,
    /// one JSON document on stdout
    #[argh(switch)]
    pub json: bool,
}

/// Lists the architectures by their names in `general.architecture`: those that run, and why others do not.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "models")]
pub struct Models {
    /// one JSON document on stdout
    #[argh(switch)]
    pub json: bool,
    /// a table in Markdown, as README has it
    #[argh(switch)]
    pub markdown: bool,
}

/// Reports huge-page pools, HVO, cgroup limits, CPU tier and cores; each finding with the line that mends it.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "doctor")]
pub struct Doctor {
    /// board by name or path of its TOML file
    #[argh(option)]
    pub board: Option<String>,
    /// one JSON document on stdout
    #[argh(switch)]
    pub json: bool,
}

/// Standard input to token ids on one line, or back.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "tokenize")]
pub struct Tokenize {
    /// GGUF file (default: the embedded demo model)
    #[argh(option, short = 'm')]
    pub model: Option<String>,
    /// token ids on stdin to text
    #[argh(switch)]
    pub decode: bool,
    /// parse control tokens in the text
    #[argh(switch)]
    pub special: bool,
    /// texts on stdin end with a zero byte, and each gives a line of ids
    #[argh(switch)]
    pub null: bool,
    /// only the ids of the tokens that end generation, whatever stdin holds
    #[argh(switch)]
    pub ends: bool,
    /// cut text as this pre-tokenizer does, whichever the file names
    #[argh(option)]
    pub pre: Option<String>,
}

/// Known prompts on every kernel tier of this CPU, compared with recorded answers.
#[cfg(feature = "demo")]
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "selftest")]
pub struct Selftest {
    /// one JSON document on stdout
    #[argh(switch)]
    pub json: bool,
}

/// What the words came to.
#[derive(Debug)]
pub enum Parsed {
    /// A command to execute.
    Command(Box<Command>),
    /// Help or version: print and be done.
    Text(String),
}

/// Options without a value.
const SWITCHES: [&str; 15] = [
    "--help",
    "--version",
    "-V",
    "--hugepages",
    "--verbose",
    "-v",
    "--raw",
    "--plain",
    "--json",
    "--decode",
    "--special",
    "--null",
    "--ends",
    "--fit",
    "--log-prompts",
];

/// Parses the words after the program's name. `--option=value` is read as `--option value`, `-h` as `--help`.
///
/// # Errors
/// A usage error with argh's sentence.
pub fn parse(words: &[String]) -> Result<Parsed> {
    let mut split = Vec::with_capacity(words.len() + 4);
    // A word behind an option that takes a value is that value, whatever it looks like.
    let mut is_value = false;
    for (index, word) in words.iter().enumerate() {
        // The only option whose value may be left out: the default socket then.
        if !is_value && word == "--resident" && words.get(index + 1).is_none_or(|next| next.starts_with('-')) {
            split.extend(["--resident", ""]);
            continue;
        }
        if !is_value && word == "-h" {
            split.push("--help");
            continue;
        }
        match word.split_once('=') {
            Some((option, value)) if option.starts_with("--") && !is_value => {
                split.extend([option, value]);
                is_value = false;
            }
            _ => {
                split.push(word.as_str());
                is_value = !is_value && word.starts_with('-') && !SWITCHES.contains(&word.as_str());
            }
        }
    }
    match Top::from_args(&["brim"], &split) {
        Ok(Top { version: true, .. }) => Ok(Parsed::Text(format!("brim {}", env!("CARGO_PKG_VERSION")))),
        Ok(Top { command: Some(command), .. }) => Ok(Parsed::Command(Box::new(command))),
        Ok(Top { command: None, .. }) => Err(Error::usage("which command? `brim --help` lists them")),
        Err(exit) if exit.status.is_ok() => Ok(Parsed::Text(exit.output)),
        Err(exit) => {
            let said: Vec<&str> = exit.output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            let said = said.join(" ");
            let commands = commands();
            let command = split.first().and_then(|word| commands.iter().find(|known| known.command == *word));
            let meant = said.strip_prefix("Unrecognized argument: ").and_then(|word| meant(word, command, &commands));
            let meant = meant.map(|meant| format!("; {meant}")).unwrap_or_default();
            let brim = command.map_or("brim".to_owned(), |command| format!("brim {}", command.command));
            Err(Error::usage(format!("{said}{meant}; see `{brim} --help`")))
        }
    }
}

/// What `--help` prints behind `words`.
fn help(words: &[&str]) -> String {
    Top::from_args(&["brim"], &[words, &["--help"]].concat()).err().map(|exit| exit.output).unwrap_or_default()
}

/// Every command with its help.
pub fn commands() -> Vec<Helped> {
    let all = help(&[]);
    listed(&all, "Commands:").map(|name| Helped { command: name.to_owned(), help: help(&[name]) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Run {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        match parse(&words) {
            Ok(Parsed::Command(command)) => match *command {
                Command::Run(run) => run,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_behind_an_equals_sign_and_values_that_look_like_options() {
        let both = run(&["run", "--ctx=64", "--hugepages", "--prompt=a=b", "-n", "3"]);
        assert_eq!(
            (both.ctx.clone(), both.hugepages, both.prompt.as_deref(), both.n_predict),
            (Some("64".to_owned()), true, Some("a=b"), Some(3))
        );
        assert_eq!(run(&["run", "--resident", "-p", "a"]).resident.as_deref(), Some(""));
        assert_eq!(run(&["run", "-p", "a", "--resident"]).resident.as_deref(), Some(""));
        assert_eq!(run(&["run", "--resident", "/s", "-p", "--resident"]).resident.as_deref(), Some("/s"));
        assert_eq!(run(&["run", "-p", "--a=b c"]).prompt.as_deref(), Some("--a=b c"));
        assert_eq!(run(&["run", "--raw", "--temp=0.5"]).temp, Some(0.5));
    }

    #[test]
    fn a_short_word_for_help_is_help_but_where_it_is_a_value() {
        let text = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            match parse(&words) {
                Ok(Parsed::Text(text)) => text,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(text(&["-h"]), text(&["--help"]));
        assert_eq!(text(&["run", "-h"]), text(&["run", "--help"]));
        assert_eq!(text(&["run", "--raw", "-h"]), text(&["run", "--help"]));
        assert_eq!(run(&["run", "-p", "-h"]).prompt.as_deref(), Some("-h"));
        assert_eq!(run(&["run", "--prompt=-h"]).prompt.as_deref(), Some("-h"));
    }
}
