//! Board files: sizes and policy of one kind of box. No hardware access, no files: text in, [`Board`] out.
//!
//! Every key is optional; an unknown one is an error with its line and the nearest known key. A key whose
//! feature this version does not have is refused when it asks for that feature: a setting is obeyed or
//! refused, never ignored.

mod embedded;
mod error;
mod values;

pub use embedded::EMBEDDED;
pub use error::BoardError;

use std::str::FromStr;

use toml::de::DeValue;

use crate::kernels::{KvType, Tier};
use values::{Found, FromBoard, Section, fill, section};

/// Context length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ctx {
    /// So many tokens.
    Tokens(u32),
    /// As many as fit the memory there is.
    Auto,
}

impl FromStr for Ctx {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Ctx::Auto),
            _ => text.parse().map(Ctx::Tokens).map_err(|_| "expected a number of tokens, or auto"),
        }
    }
}

impl FromBoard for Ctx {
    fn read(found: &Found<'_>) -> Result<Self, BoardError> {
        const EXPECTED: &str = "a number of tokens, or \"auto\"";
        match found.value() {
            DeValue::String(text) if text == "auto" => Ok(Ctx::Auto),
            DeValue::Integer(_) => {
                let tokens = found.integer().and_then(|tokens| u32::try_from(tokens).ok());
                tokens.map(Ctx::Tokens).ok_or_else(|| found.invalid("value", EXPECTED))
            }
            DeValue::String(_) => Err(found.invalid("value", EXPECTED)),
            _ => Err(found.invalid("type", EXPECTED)),
        }
    }
}

/// One SHA-256 in hexadecimal, or one for each file of a split set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sha256 {
    /// Of the only file.
    One(String),
    /// Of every file of a split set, in order.
    Each(Vec<String>),
}

impl Sha256 {
    /// The checksums as bytes.
    ///
    /// # Errors
    /// [`BoardError::NotSha256`] with the first that is none.
    pub fn digests(&self) -> Result<Vec<[u8; 32]>, BoardError> {
        let texts = match self {
            Sha256::One(text) => std::slice::from_ref(text),
            Sha256::Each(texts) => texts,
        };
        let digest = |text: &String| -> Option<[u8; 32]> {
            let mut digest = [0; 32];
            for (i, byte) in digest.iter_mut().enumerate() {
                *byte = u8::from_str_radix(text.get(i * 2..i * 2 + 2)?, 16).ok()?;
            }
            (text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(digest)
        };
        texts.iter().map(|text| digest(text).ok_or(BoardError::NotSha256 { found: text.clone() })).collect()
    }
}

impl FromBoard for Sha256 {
    fn read(found: &Found<'_>) -> Result<Self, BoardError> {
        match found.value() {
            DeValue::Array(_) => FromBoard::read(found).map(Sha256::Each),
            _ => FromBoard::read(found).map(Sha256::One),
        }
    }
}

/// Size of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 2 MiB.
    M2,
    /// 1 GiB.
    G1,
    /// 1 GiB first, the rest in 2 MiB.
    Auto,
}

impl FromStr for PageSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "2M" => Ok(PageSize::M2),
            "1G" => Ok(PageSize::G1),
            "auto" => Ok(PageSize::Auto),
            _ => Err("expected 2M, 1G or auto"),
        }
    }
}

/// What happens when the pool is short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// Exit 5.
    #[default]
    Refuse,
    /// Ordinary pages instead.
    SmallPages,
}

/// Where memory comes from on a box of several NUMA nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numa {
    /// From all nodes in turn.
    #[default]
    Interleave,
    /// As the kernel likes: from the node of whoever touches a page first.
    Local,
}

/// Where the embedding table of an untied model lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EmbeddingPlace {
    /// In the arena.
    #[default]
    Memory,
    /// In the file, one row read per token.
    Disk,
}

/// How the board names the values of a type.
macro_rules! named {
    ($of:ident { $($value:ident = $name:literal),* }) => {
        impl FromBoard for $of {
            fn read(found: &Found<'_>) -> Result<Self, BoardError> {
                found.one_of([$($of::$value),*], |value| match value {
                    $($of::$value => $name,)*
                })
            }
        }
    };
}
named!(PageSize { M2 = "2M", G1 = "1G", Auto = "auto" });
named!(Fallback { Refuse = "refuse", SmallPages = "small-pages" });
named!(Numa { Interleave = "interleave", Local = "local" });
named!(EmbeddingPlace { Memory = "memory", Disk = "disk" });

impl FromBoard for Tier {
    fn read(found: &Found<'_>) -> Result<Self, BoardError> {
        found.one_of(Tier::ALL, Tier::name)
    }
}

impl FromBoard for KvType {
    fn read(found: &Found<'_>) -> Result<Self, BoardError> {
        found.one_of(KvType::ALL, KvType::name)
    }
}

section! {
    /// One board file.
    Board {
        /// Cores, threads and caches.
        cpu: CpuSection,
        /// Pages and what must stay free.
        memory: MemorySection,
        /// Measured bandwidth.
        bandwidth: Bandwidth,
        /// Tile sizes of the matrix kernels.
        tile: TileSection,
        /// The model this box runs.
        model: ModelSection,
        /// The server.
        serve: ServeSection,
    }
}

section! {
    /// `[cpu]`
    CpuSection {
        /// Highest kernel tier to use; what the CPU or this build lacks is never used anyway.
        isa: Option<Tier>,
        /// CPUs the workers are pinned to, e.g. `0-7,16`.
        cores: Option<String>,
        /// Worker threads.
        threads: Option<u32>,
        /// L1 data cache of a core.
        l1d_kib: Option<u32>,
        /// L2 cache of a core.
        l2_kib: Option<u32>,
        /// L3 cache of one domain.
        l3_kib: Option<u32>,
    }
}

section! {
    /// `[memory]`
    MemorySection {
        /// All regions in explicit huge pages.
        hugepages: Option<bool>,
        /// Their size.
        page_size: Option<PageSize>,
        /// Grow the pool at start.
        reserve: bool,
        /// Switch HVO on first.
        hvo: bool,
        /// When the pool is short.
        fallback: Fallback,
        /// Ordinary memory that must stay free.
        keep_free_mib: Option<u32>,
        /// Where the embedding table lives.
        embedding: EmbeddingPlace,
        /// Where memory comes from on a box of several NUMA nodes.
        numa: Numa,
        /// Socket of a `brim hold` whose weights to use.
        resident: Option<String>,
    }
}

section! {
    /// `[bandwidth]`
    Bandwidth {
        /// Read bandwidth of all cores together, in GB/s (10^9 bytes).
        read_gbs: Option<f64>,
        /// Who measured it.
        source: Option<String>,
        /// When.
        date: Option<String>,
    }
}

section! {
    /// `[tile]`; `k_bytes` and the distances follow from the probed CPU where they are absent.
    TileSection {
        /// Tokens of a prefill pass, at most.
        tokens: Option<u32>,
        /// Bytes of one weight row that are worked on at a time.
        k_bytes: Option<u32>,
        /// How far ahead of its use decode asks for weights in L1; 0: not at all.
        ahead_l1_bytes: Option<u32>,
        /// The same for L2.
        ahead_l2_bytes: Option<u32>,
    }
}

section! {
    /// `[model]`
    ModelSection {
        /// The GGUF file.
        path: Option<String>,
        /// Context length.
        ctx: Option<Ctx>,
        /// Type of the KV cache.
        kv_type: Option<KvType>,
        /// Expected SHA-256 of the file, or of each file of a split set.
        sha256: Option<Sha256>,
    }
}

section! {
    /// `[serve]`
    ServeSection {
        /// Address and port, or `unix:PATH`; several with commas between.
        listen: Option<String>,
        /// Sequences served at once.
        slots: Option<u32>,
        /// Tokens that the KV cache holds for all of them together.
        kv_tokens: Option<u32>,
        /// Checkpoints of recurrent states.
        checkpoints: Option<u32>,
        /// File with the API keys, one a line.
        keys_file: Option<String>,
        /// The origin whose pages may talk to the server, or `*`.
        cors_origin: Option<String>,
        /// Hosts that are answered without a key besides localhost and addresses, or `*`.
        hosts: Vec<String>,
        /// Prompts are written to the log.
        log_prompts: bool,
        /// Where the prompt cache is kept from one start to the next.
        cache_dir: Option<String>,
        /// Most MiB that it takes there.
        cache_mib: Option<u32>,
        /// Limits on what one client can take.
        limits: LimitsSection,
        /// The models of the server, where it has several.
        models: Vec<ServedModel>,
    }
}

section! {
    /// `[[serve.models]]`; what is absent is as `[model]` and `[serve]` say.
    ServedModel {
        /// The GGUF file; each model has one.
        path: Option<String>,
        /// Its name as clients see it.
        name: Option<String>,
        /// Further names that requests may ask for it by.
        aliases: Vec<String>,
        /// Context length.
        ctx: Option<Ctx>,
        /// Type of the KV cache.
        kv_type: Option<KvType>,
        /// Sequences served at once.
        slots: Option<u32>,
        /// Tokens that the KV cache holds for all of them together.
        kv_tokens: Option<u32>,
        /// Checkpoints of recurrent states.
        checkpoints: Option<u32>,
        /// Chat template: a file, or a name.
        chat_template: Option<String>,
        /// Socket of a `brim hold` whose weights to use.
        resident: Option<String>,
        /// Expected SHA-256 of the file, or of each file of a split set.
        sha256: Option<Sha256>,
    }
}

impl FromBoard for Vec<ServedModel> {
    fn read(found: &Found<'_>) -> Result<Self, BoardError> {
        found.each("an array of tables")
    }
}

/// Most models of one server.
pub const MODELS_MAX: usize = 16;

section! {
    /// `[serve] limits`
    LimitsSection {
        /// Connections at once.
        connections: Option<u32>,
        /// KiB of a request's header.
        header_kib: Option<u32>,
        /// Seconds that a header may take.
        header_s: Option<u32>,
        /// KiB of a request's body.
        body_kib: Option<u32>,
        /// Seconds that a body may take.
        body_s: Option<u32>,
        /// Seconds that a connection may be idle.
        idle_s: Option<u32>,
        /// Seconds that a client may let its answer wait.
        write_s: Option<u32>,
        /// Seconds until the first token.
        first_token_s: Option<u32>,
        /// Requests that may wait for a slot.
        queue: Option<u32>,
        /// Seconds that requests have to end after SIGTERM.
        drain_s: Option<u32>,
    }
}

impl Board {
    /// Reads and validates a board file.
    ///
    /// # Errors
    /// A [`BoardError`] that names the line or the key.
    pub fn parse(text: &str) -> Result<Board, BoardError> {
        let mut board = Board::default();
        fill(text, &mut board)?;
        board.validate()?;
        Ok(board)
    }

    /// The embedded board of that name.
    ///
    /// # Errors
    /// [`BoardError::NoSuchBoard`].
    pub fn embedded(name: &str) -> Result<Board, BoardError> {
        match EMBEDDED.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Board::parse(text),
            None => Err(BoardError::NoSuchBoard { name: name.to_owned() }),
        }
    }

    /// For each model of the server a board on which it stands alone: what its entry says is there in `[model]`, `[serve]`
    /// and `[memory]`, and the entry itself is the only one of `serve.models`.
    #[must_use]
    pub fn served(&self) -> Vec<Board> {
        let alone = |entry: &ServedModel| {
            let mut board = self.clone();
            let ServedModel { path, ctx, kv_type, slots, kv_tokens, checkpoints, resident, sha256, .. } = entry.clone();
            let (model, serve) = (&mut board.model, &mut board.serve);
            (model.path, model.sha256, board.memory.resident) = (path, sha256, resident);
            (model.ctx, model.kv_type) = (ctx.or(model.ctx), kv_type.or(model.kv_type));
            serve.slots = slots.or(serve.slots);
            serve.kv_tokens = kv_tokens.or(serve.kv_tokens);
            serve.checkpoints = checkpoints.or(serve.checkpoints);
            serve.models = vec![entry.clone()];
            board
        };
        self.serve.models.iter().map(alone).collect()
    }

    fn validate(&self) -> Result<(), BoardError> {
        let tokens = |ctx| match ctx {
            Ctx::Tokens(tokens) => Some(tokens),
            Ctx::Auto => None,
        };
        let limits = &self.serve.limits;
        let of_models = self.serve.models.iter().flat_map(|model| {
            [
                ("serve.models.ctx", model.ctx.and_then(tokens), 1, 1 << 24),
                ("serve.models.slots", model.slots, 1, 64),
                ("serve.models.kv_tokens", model.kv_tokens, 1, 1 << 30),
                ("serve.models.checkpoints", model.checkpoints, 0, 1 << 24),
            ]
        });
        let ranges = [
            ("cpu.threads", self.cpu.threads, 1, 1024),
            ("cpu.l1d_kib", self.cpu.l1d_kib, 4, 4 << 10),
            ("cpu.l2_kib", self.cpu.l2_kib, 16, 1 << 20),
            ("cpu.l3_kib", self.cpu.l3_kib, 0, 4 << 20),
            ("memory.keep_free_mib", self.memory.keep_free_mib, 0, 64 << 20),
            ("tile.tokens", self.tile.tokens, 1, 1 << 12),
            ("tile.k_bytes", self.tile.k_bytes, 32, 1 << 24),
            ("tile.ahead_l1_bytes", self.tile.ahead_l1_bytes, 0, 1 << 20),
            ("tile.ahead_l2_bytes", self.tile.ahead_l2_bytes, 0, 1 << 20),
            ("model.ctx", self.model.ctx.and_then(tokens), 1, 1 << 24),
            ("serve.slots", self.serve.slots, 1, 64),
            ("serve.kv_tokens", self.serve.kv_tokens, 1, 1 << 30),
            ("serve.checkpoints", self.serve.checkpoints, 0, 1 << 24),
            ("serve.cache_mib", self.serve.cache_mib, 1, 1 << 20),
            ("serve.limits.connections", limits.connections, 1, 1 << 12),
            ("serve.limits.header_kib", limits.header_kib, 1, 256),
            ("serve.limits.header_s", limits.header_s, 1, 3600),
            ("serve.limits.body_kib", limits.body_kib, 1, 256 << 10),
            ("serve.limits.body_s", limits.body_s, 1, 3600),
            ("serve.limits.idle_s", limits.idle_s, 1, 86400),
            ("serve.limits.write_s", limits.write_s, 1, 3600),
            ("serve.limits.first_token_s", limits.first_token_s, 1, 86400),
            ("serve.limits.queue", limits.queue, 1, 1024),
            ("serve.limits.drain_s", limits.drain_s, 0, 3600),
        ];
        for (key, value, min, max) in ranges.into_iter().chain(of_models) {
            if let Some(found) = value.filter(|value| !(min..=max).contains(value)) {
                return Err(BoardError::Range { key, found: found.into(), min: min.into(), max: max.into() });
            }
        }
        if let Some(found) = self.bandwidth.read_gbs.filter(|gbs| !(0.1..=100_000.0).contains(gbs)) {
            return Err(BoardError::Range { key: "bandwidth.read_gbs", found, min: 0.1, max: 100_000.0 });
        }
        self.model.sha256.as_ref().map(Sha256::digests).transpose()?;
        self.validate_models()?;
        self.refuse_missing_features()
    }

    /// What each model must have, and none may share with another.
    fn validate_models(&self) -> Result<(), BoardError> {
        let models = &self.serve.models;
        let refused = |why| Err(BoardError::Refused { key: "serve.models", why });
        if models.len() > MODELS_MAX {
            return refused(format!("{} models; at most {MODELS_MAX} share one server", models.len()));
        }
        for (at, model) in models.iter().enumerate() {
            let nth = at + 1;
            if model.path.as_deref().is_none_or(str::is_empty) {
                return refused(format!("model {nth} has no path; name its GGUF file"));
            }
            if model.name.iter().chain(&model.aliases).any(String::is_empty) {
                return refused(format!("model {nth} has an empty name; leave it out for that of its file"));
            }
            if let Err(e) = model.sha256.as_ref().map_or(Ok(Vec::new()), Sha256::digests) {
                return refused(format!("model {nth}: {e}"));
            }
        }
        Ok(())
    }

    fn refuse_missing_features(&self) -> Result<(), BoardError> {
        match cfg!(feature = "serve") || self.serve == ServeSection::default() {
            true => Ok(()),
            false => Err(BoardError::NotSupported { setting: "serve" }),
        }
    }

    /// Ordinary memory that must stay free, in bytes.
    pub fn keep_free_bytes(&self) -> u64 {
        u64::from(self.memory.keep_free_mib.unwrap_or(0)) << 20
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_board_parses() {
        for (name, _) in EMBEDDED {
            Board::embedded(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let error = Board::embedded("strix-halo-12").unwrap_err().to_string();
        assert!(error.contains("did you mean strix-halo-128"), "{error}");
    }

    #[test]
    fn nothing_is_required() {
        assert_eq!(Board::parse("").unwrap(), Board::default());
    }

    #[test]
    fn refusals_name_line_and_way_out() {
        for (text, want) in [
            ("[cpu]\nthreads = 4\nthread = 5", "line 3: unknown key `thread`; did you mean `threads`?"),
            ("[mem]\n", "line 1: unknown key `mem`; did you mean `memory`?"),
            ("[zzzzzzzzz]\n", "line 1: unknown key `zzzzzzzzz`; known: cpu,"),
            ("[cpu]\n\nthreads = \"four\"", "line 3: invalid type"),
            ("[cpu]\nthreads =", "line 2: "),
            ("[cpu]\nthreads = -1", "line 2: "),
            ("[cpu]\nthreads = 0", "cpu.threads is 0; it must be 1 to 1024"),
            (
                "[cpu]\nisa = \"neon\"",
                "line 2: unknown value `neon`; known: scalar, avx2, avx2vnni, avx512, avx512bf16",
            ),
            ("[cpu]\nisa = \"avx3\"", "unknown value `avx3`; did you mean `avx2`?"),
            ("[cpu]\nisa = 2", "line 2: invalid type"),
            ("[model]\nkv_type = \"q4_0\"", "line 2: unknown value `q4_0`; did you mean `q8_0`?"),
            ("[bandwidth]\nread_gbs = nan", "bandwidth.read_gbs is NaN"),
            ("[memory]\nfallback = \"big\"", "unknown value `big`"),
            ("[model]\nsha256 = \"00\"", "model.sha256 is \"00\": needs 64 hexadecimal digits"),
            ("[model]\nsha256 = [\"zz\"]", "model.sha256 is \"zz\""),
            (
                "[model]\nctx = \"big\"",
                "line 2: invalid value: string \"big\", expected a number of tokens, or \"auto\"",
            ),
            ("[model]\nctx = -1", "line 2: invalid value"),
            ("[model]\nctx = 0", "model.ctx is 0"),
            ("[serve]\nslots = 65", "serve.slots is 65; it must be 1 to 64"),
            ("[serve]\ncheckpoints = 16777217", "serve.checkpoints is 16777217; it must be 0 to 16777216"),
            ("[serve.limits]\nx = 4", "unknown key `x`"),
            ("[serve]\nlimits = { idle_s = 0 }", "serve.limits.idle_s is 0"),
            (
                "[[serve.models]]\npath = \"a\"\n[[serve.models]]\npth = \"b\"",
                "line 4: unknown key `pth`; did you mean `path`?",
            ),
            ("[[serve.models]]\npath = \"a\"\nkv_type = \"f15\"", "line 3: unknown value `f15`; did you mean `f16`?"),
            ("[serve]\nmodels = [3]", "line 2: invalid type: integer `3`, expected a table"),
            ("[serve]\nmodels = \"a\"", "line 2: invalid type: string \"a\", expected an array of tables"),
            ("[[serve.models]]\nname = \"a\"", "serve.models: model 1 has no path"),
            ("[[serve.models]]\npath = \"a\"\naliases = [\"\"]", "serve.models: model 1 has an empty name"),
            ("[[serve.models]]\npath = \"a\"\nslots = 65", "serve.models.slots is 65; it must be 1 to 64"),
            ("[[serve.models]]\npath = \"a\"\nctx = 0", "serve.models.ctx is 0"),
            (
                "[[serve.models]]\npath = \"a\"\nsha256 = \"00\"",
                "serve.models: model 1: model.sha256 is \"00\": needs 64",
            ),
        ] {
            let error = Board::parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text:?}: {want:?} not in {error:?}");
        }
    }

    #[test]
    fn what_a_model_does_not_say_is_as_the_sections_say() {
        let text = "[model]\npath = \"own\"\nsha256 = \"@\"\nctx = 100\n[memory]\nresident = \"/s\"\n[serve]\nslots = 3\ncheckpoints = 5\n\
                    [[serve.models]]\npath = \"a\"\nctx = \"auto\"\nslots = 2\nresident = \"/a\"\n\
                    [[serve.models]]\npath = \"b\"\nname = \"bee\"\nkv_type = \"q8_0\"\ncheckpoints = 0\n";
        let text = text.replace('@', &"0".repeat(64));
        let board = Board::parse(&text).unwrap();
        let served = board.served();
        let paths = served.iter().map(|board| board.model.path.as_deref()).collect::<Vec<_>>();
        assert_eq!(paths, [Some("a"), Some("b")]);
        assert_eq!(
            served.iter().map(|board| board.model.ctx).collect::<Vec<_>>(),
            [Some(Ctx::Auto), Some(Ctx::Tokens(100))]
        );
        let of = |i: usize| {
            let (serve, board) = (&served[i].serve, &served[i]);
            (serve.slots, serve.checkpoints, board.memory.resident.as_deref(), board.model.kv_type)
        };
        assert_eq!(of(0), (Some(2), Some(5), Some("/a"), None));
        assert_eq!(of(1), (Some(3), Some(0), None, Some(KvType::Q8_0)));
        assert!(served.iter().all(|board| board.model.sha256.is_none() && board.serve.models.len() == 1));
        assert_eq!(served[1].serve.models[0].name.as_deref(), Some("bee"));
        assert!(Board::parse("").unwrap().served().is_empty());
        let many = "[[serve.models]]\npath = \"a\"\n".repeat(MODELS_MAX + 1);
        assert!(Board::parse(&many).unwrap_err().to_string().contains("17 models; at most 16"));
    }
}
