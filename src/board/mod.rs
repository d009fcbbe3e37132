//! Board files: sizes and policy of one kind of box. No hardware access, no files: text in, [`Board`] out.
//!
//! Every key is optional; an unknown one is an error with its line and the nearest known key. A key whose
//! feature this version does not have is refused when it asks for that feature: a setting is obeyed or
//! refused, never ignored.

mod embedded;
mod error;

pub use embedded::EMBEDDED;
pub use error::BoardError;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::kernels::{KvType, Tier};

/// Context length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ctx {
    /// So many tokens.
    Tokens(u32),
    /// As many as fit the memory there is.
    Auto,
}

impl FromStr for Ctx {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Ctx::Auto),
            _ => text.parse().map(Ctx::Tokens).map_err(|e| format!("{e}; expected a number of tokens, or auto")),
        }
    }
}

impl<'de> Deserialize<'de> for Ctx {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Ctx;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of tokens, or \"auto\"")
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Ctx, E> {
                let out_of_range = |_| E::invalid_value(serde::de::Unexpected::Signed(value), &self);
                u32::try_from(value).map(Ctx::Tokens).map_err(out_of_range)
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Ctx, E> {
                match value {
                    "auto" => Ok(Ctx::Auto),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// One SHA-256 in hexadecimal, or one for each file of a split set.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
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

/// Size of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum PageSize {
    /// 2 MiB.
    #[serde(rename = "2M")]
    M2,
    /// 1 GiB.
    #[serde(rename = "1G")]
    G1,
    /// 1 GiB first, the rest in 2 MiB.
    #[serde(rename = "auto")]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// Exit 5.
    #[default]
    Refuse,
    /// Ordinary pages instead.
    SmallPages,
}

/// Where memory comes from on a box of several NUMA nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Numa {
    /// From all nodes in turn.
    #[default]
    Interleave,
    /// As the kernel likes: from the node of whoever touches a page first.
    Local,
}

/// Where the embedding table of an untied model lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmbeddingPlace {
    /// In the arena.
    #[default]
    Memory,
    /// In the file, one row read per token.
    Disk,
}

/// The one of `known` that the board names, in the words of serde where it names none of them.
fn one_of<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    known: impl Iterator<Item = T>,
    name: impl Fn(&T) -> &'static str,
) -> Result<Option<T>, D::Error> {
    let found = String::deserialize(deserializer)?;
    let mut names = Vec::new();
    for one in known {
        if name(&one) == found {
            return Ok(Some(one));
        }
        names.push(name(&one));
    }
    let text = format!("unknown variant `{found}`, expected one of `{}`", names.join("`, `"));
    Err(serde::de::Error::custom(text))
}

fn tier<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Tier>, D::Error> {
    one_of(deserializer, Tier::ALL.into_iter(), |tier| tier.name())
}

fn kv_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<KvType>, D::Error> {
    one_of(deserializer, KvType::ALL.into_iter(), |kv_type| kv_type.name())
}

/// One board file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Board {
    /// Cores, threads and caches.
    pub cpu: CpuSection,
    /// Pages and what must stay free.
    pub memory: MemorySection,
    /// Measured bandwidth.
    pub bandwidth: Bandwidth,
    /// Tile sizes of the matrix kernels.
    pub tile: TileSection,
    /// The model this box runs.
    pub model: ModelSection,
    /// The server.
    pub serve: ServeSection,
}

/// `[cpu]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuSection {
    /// Highest kernel tier to use; what the CPU or this build lacks is never used anyway.
    #[serde(deserialize_with = "tier")]
    pub isa: Option<Tier>,
    /// CPUs the workers are pinned to, e.g. `0-7,16`.
    pub cores: Option<String>,
    /// Worker threads.
    pub threads: Option<u32>,
    /// L1 data cache of a core.
    pub l1d_kib: Option<u32>,
    /// L2 cache of a core.
    pub l2_kib: Option<u32>,
    /// L3 cache of one domain.
    pub l3_kib: Option<u32>,
}

/// `[memory]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemorySection {
    /// All regions in explicit huge pages.
    pub hugepages: Option<bool>,
    /// Their size.
    pub page_size: Option<PageSize>,
    /// Grow the pool at start.
    pub reserve: bool,
    /// Switch HVO on first.
    pub hvo: bool,
    /// When the pool is short.
    pub fallback: Fallback,
    /// Ordinary memory that must stay free.
    pub keep_free_mib: Option<u32>,
    /// Where the embedding table lives.
    pub embedding: EmbeddingPlace,
    /// Where memory comes from on a box of several NUMA nodes.
    pub numa: Numa,
    /// Socket of a `brim hold` whose weights to use.
    pub resident: Option<String>,
}

/// `[bandwidth]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bandwidth {
    /// Read bandwidth of all cores together, in GB/s (10^9 bytes).
    pub read_gbs: Option<f64>,
    /// Who measured it.
    pub source: Option<String>,
    /// When.
    pub date: Option<String>,
}

/// `[tile]`; `k_bytes` and the distances follow from the probed CPU where they are absent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TileSection {
    /// Tokens of a prefill pass, at most.
    pub tokens: Option<u32>,
    /// Bytes of one weight row that are worked on at a time.
    pub k_bytes: Option<u32>,
    /// How far ahead of its use decode asks for weights in L1; 0: not at all.
    pub ahead_l1_bytes: Option<u32>,
    /// The same for L2.
    pub ahead_l2_bytes: Option<u32>,
}

/// `[model]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// The GGUF file.
    pub path: Option<String>,
    /// Context length.
    pub ctx: Option<Ctx>,
    /// Type of the KV cache.
    #[serde(deserialize_with = "kv_type")]
    pub kv_type: Option<KvType>,
    /// Expected SHA-256 of the file, or of each file of a split set.
    pub sha256: Option<Sha256>,
}

/// `[serve]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeSection {
    /// Address and port, or `unix:PATH`.
    pub listen: Option<String>,
    /// Sequences served at once.
    pub slots: Option<u32>,
    /// Tokens that the KV cache holds for all of them together.
    pub kv_tokens: Option<u32>,
    /// Checkpoints of recurrent states.
    pub checkpoints: Option<u32>,
    /// File with the API keys, one a line.
    pub keys_file: Option<String>,
    /// The origin whose pages may talk to the server, or `*`.
    pub cors_origin: Option<String>,
    /// Hosts that are answered without a key besides localhost and addresses, or `*`.
    pub hosts: Vec<String>,
    /// Prompts are written to the log.
    pub log_prompts: bool,
    /// Where the prompt cache is kept from one start to the next.
    pub cache_dir: Option<String>,
    /// Most MiB that it takes there.
    pub cache_mib: Option<u32>,
    /// Limits on what one client can take.
    pub limits: LimitsSection,
}

/// `[serve] limits`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Connections at once.
    pub connections: Option<u32>,
    /// KiB of a request's header.
    pub header_kib: Option<u32>,
    /// Seconds that a header may take.
    pub header_s: Option<u32>,
    /// KiB of a request's body.
    pub body_kib: Option<u32>,
    /// Seconds that a body may take.
    pub body_s: Option<u32>,
    /// Seconds that a connection may be idle.
    pub idle_s: Option<u32>,
    /// Seconds that a client may let its answer wait.
    pub write_s: Option<u32>,
    /// Seconds until the first token.
    pub first_token_s: Option<u32>,
    /// Requests that may wait for a slot.
    pub queue: Option<u32>,
    /// Seconds that requests have to end after SIGTERM.
    pub drain_s: Option<u32>,
}

impl Board {
    /// Reads and validates a board file.
    ///
    /// # Errors
    /// A [`BoardError`] that names the line or the key.
    pub fn parse(text: &str) -> Result<Board, BoardError> {
        let board: Board = toml::from_str(text).map_err(|e| BoardError::from_toml(text, &e))?;
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

    fn validate(&self) -> Result<(), BoardError> {
        let tokens = |ctx| match ctx {
            Ctx::Tokens(tokens) => Some(tokens),
            Ctx::Auto => None,
        };
        let limits = &self.serve.limits;
        for (key, value, min, max) in [
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
        ] {
            if let Some(found) = value.filter(|value| !(min..=max).contains(value)) {
                return Err(BoardError::Range { key, found: found.into(), min: min.into(), max: max.into() });
            }
        }
        if let Some(found) = self.bandwidth.read_gbs.filter(|gbs| !(0.1..=100_000.0).contains(gbs)) {
            return Err(BoardError::Range { key: "bandwidth.read_gbs", found, min: 0.1, max: 100_000.0 });
        }
        self.model.sha256.as_ref().map(Sha256::digests).transpose()?;
        self.refuse_missing_features()
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
        ] {
            let error = Board::parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text:?}: {want:?} not in {error:?}");
        }
    }
}
