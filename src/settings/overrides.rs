//! What the command line says.

/// What the command line says of the options that every command shares which loads a model. It beats the environment,
/// which beats the board.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The GGUF file.
    pub model: Option<String>,
    /// Name or path of the board.
    pub board: Option<String>,
    /// All regions in explicit huge pages.
    pub hugepages: bool,
    /// Their size: 2M, 1G or auto.
    pub page_size: Option<String>,
    /// Context length in tokens, or auto.
    pub ctx: Option<String>,
    /// Type of the KV cache, or auto.
    pub kv_type: Option<String>,
    /// Worker threads.
    pub threads: Option<u32>,
    /// CPUs the workers are pinned to.
    pub cores: Option<String>,
    /// Kernel tier.
    pub isa: Option<String>,
    /// How weights are read.
    pub io: Option<String>,
    /// The pre-tokenizer to use instead of the file's.
    pub pre: Option<String>,
    /// Say more on stderr.
    pub verbose: bool,
    /// Whether the weights may be those that a `brim hold` keeps.
    pub held: HeldWeights,
}

/// Whether a command may use the weights that a `brim hold` keeps.
#[derive(Clone, Debug, Default)]
pub enum HeldWeights {
    /// It loads its own, whatever environment and board say.
    #[default]
    Unused,
    /// It does where a socket is named: by this flag, else by the environment or the board. An empty flag is the default
    /// socket.
    Allowed(Option<String>),
}
