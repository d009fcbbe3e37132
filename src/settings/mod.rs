//! One answer per option: flag, else `BRIM_<OPTION>`, else board, else default; contradictions are refused.
//!
//! [`Settings::resolve`] gives the whole answer in one call: what it returns is complete, and nothing is added to it later.

mod cpus;
mod overrides;
mod source;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::board::{Board, BoardError, Ctx, EMBEDDED, PageSize};
use crate::error::{Error, Exit, Result};
use crate::kernels::{self, Kernels, KvType, Tier, Tile};
use crate::load::{Io, resident};
use crate::memory::{PageKind, Plan};
use crate::sys::cpu::Topology;
pub use overrides::{HeldWeights, Overrides};
pub use source::{Env, env_or, env_or_switch};
use source::{Source, from_env, parse_flag, pick, process_env, refuse, switch_from_env};

/// Type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvChoice {
    /// This one.
    Type(KvType),
    /// f16, or q8_0 where that makes `--ctx auto` longer.
    Auto,
}

impl Default for KvChoice {
    fn default() -> Self {
        KvChoice::Type(KvType::default())
    }
}

impl FromStr for KvChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text {
            "auto" => Ok(KvChoice::Auto),
            _ => text.parse().map(KvChoice::Type).map_err(|e| format!("{e}, or auto with --ctx auto")),
        }
    }
}

/// The settings of a command that loads a model.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The GGUF file; `None` is the embedded demo model.
    pub model: Option<String>,
    /// Whether explicit huge pages were asked for.
    pub hugepages: bool,
    /// The page that huge pages have, or would have if they were asked for.
    pub huge_page: PageKind,
    /// Whether huge pages of 1 GiB come first, and `huge_page` is for the rest.
    pub packed: bool,
    /// Context length, `None` for the model's own.
    pub ctx: Option<Ctx>,
    /// Type of the KV cache.
    pub kv_type: KvChoice,
    /// Socket of a holder whose weights are used instead of loading them.
    pub resident: Option<PathBuf>,
    /// SHA-256 that each file must have; empty if not known.
    pub sha256: Vec<Option<[u8; 32]>>,
    /// The CPU each worker is pinned to, all different: at least one.
    pub cores: Vec<usize>,
    /// The kernel tier that was asked for; to lack it is exit 6.
    pub isa: Option<Tier>,
    /// How weights are read.
    pub io: Io,
    /// The pre-tokenizer to use instead of the file's.
    pub pre: Option<String>,
    /// Say more on stderr.
    pub verbose: bool,
    /// L1 data cache of a core: the board's, else probed.
    pub l1d_bytes: u64,
    /// The board: all defaults if none was asked for.
    pub board: Board,
}

/// Loads a board by embedded name or path.
///
/// # Errors
/// Exit 3 with the name or path in front.
pub fn load_board(name: &str) -> Result<Board> {
    let is_path = name.contains('/') || Path::new(name).extension().is_some_and(|e| e == "toml");
    let known = EMBEDDED.iter().any(|(known, _)| *known == name);
    let parsed = if known || !(is_path || Path::new(name).is_file()) {
        Board::embedded(name)
    } else {
        match std::fs::read_to_string(name) {
            Ok(text) => Board::parse(&text),
            Err(error) => Err(BoardError::Unreadable { cause: error.to_string() }),
        }
    };
    parsed.map_err(|e| Error::from(e).at(format!("board {name}")))
}

/// The board that is asked for, and by which name; all defaults if none is.
fn named_board(overrides: &Overrides, env: Env<'_>) -> Result<(Option<String>, Board)> {
    let name = pick(env, "board", overrides.board.clone(), None)?.map(|(name, _)| name);
    let board = name.as_deref().map_or(Ok(Board::default()), load_board)?;
    Ok((name, board))
}

/// An error in the words of the board that it is the fault of.
fn of_board(error: Error, name: Option<&str>) -> Error {
    match (error.exit(), name) {
        (Exit::Board, Some(name)) => error.at(format!("board {name}")),
        _ => error,
    }
}

/// Why an option is refused beside so many models of a board.
pub fn for_one_model(n: usize) -> String {
    format!(
        "it is for one model, and serve.models of the board names {n}; leave it out and say it there, or leave the board out"
    )
}

impl Settings {
    /// Resolves the shared options against the process's environment, the board and this box.
    ///
    /// # Errors
    /// Exit 2 for bad or contradictory options, exit 3 for the board file.
    pub fn resolve(overrides: &Overrides) -> Result<Settings> {
        Settings::resolve_in(overrides, &process_env, Topology::probe()?)
    }

    /// As [`Settings::resolve`], in another environment and on another box.
    ///
    /// # Errors
    /// As [`Settings::resolve`].
    pub fn resolve_in(overrides: &Overrides, env: Env<'_>, topology: Topology) -> Result<Settings> {
        let (name, board) = named_board(overrides, env)?;
        Settings::with_board(overrides, env, &topology, board).map_err(|e| of_board(e, name.as_deref()))
    }

    /// The settings of each model of a server: of those that the board names for it (`[[serve.models]]`), else of the one
    /// that [`Settings::resolve`] finds. Options are for all of them, and beat what an entry says.
    ///
    /// # Errors
    /// As [`Settings::resolve`]; an option that can only be meant for one model beside several.
    pub fn resolve_served(overrides: &Overrides) -> Result<Vec<Settings>> {
        Settings::resolve_served_in(overrides, &process_env, &Topology::probe()?)
    }

    /// As [`Settings::resolve_served`], in another environment and on another box.
    ///
    /// # Errors
    /// As [`Settings::resolve_served`].
    pub fn resolve_served_in(overrides: &Overrides, env: Env<'_>, topology: &Topology) -> Result<Vec<Settings>> {
        let (name, board) = named_board(overrides, env)?;
        let resolved = match board.serve.models.is_empty() {
            true => Settings::with_board(overrides, env, topology, board).map(|settings| vec![settings]),
            false => Settings::of_each(overrides, env, topology, &board),
        };
        resolved.map_err(|e| of_board(e, name.as_deref()))
    }

    fn of_each(overrides: &Overrides, env: Env<'_>, topology: &Topology, board: &Board) -> Result<Vec<Settings>> {
        let held = match &overrides.held {
            HeldWeights::Allowed(flag) => flag.clone(),
            HeldWeights::Unused => None,
        };
        let resident = board.memory.resident.clone().map(|socket| ("memory.resident", socket));
        let of_one = [("model", &overrides.model, None), ("pre", &overrides.pre, None), ("resident", &held, resident)];
        for (option, flag, named) in of_one {
            if let Some((_, source)) = pick(env, option, flag.clone(), named)? {
                return Err(refuse(option, source, for_one_model(board.serve.models.len())));
            }
        }
        let each = board.served().into_iter().enumerate().map(|(at, alone)| {
            let resolved = Settings::with_board(overrides, env, topology, alone);
            resolved.map_err(|e| e.at(format!("serve.models, model {}", at + 1)))
        });
        each.collect()
    }

    fn with_board(overrides: &Overrides, env: Env<'_>, topology: &Topology, board: Board) -> Result<Settings> {
        let path = board.model.path.clone().map(|path| ("model.path", path));
        let model = pick(env, "model", overrides.model.clone(), path)?.map(|(model, _)| model);
        let (hugepages, huge_page, packed) = huge_pages(overrides, env, &board)?;
        let (ctx, kv_type) = context(overrides, env, &board)?;
        let isa = pick(env, "isa", parse_flag("isa", overrides.isa.as_deref())?, None)?;
        let io = pick(env, "io", parse_flag("io", overrides.io.as_deref())?, None)?;
        let resident = resident(overrides, env, &board)?;
        if resident.is_some() && model.is_none() {
            return Err(Error::usage("--resident: the demo model is in the binary; give the held file with -m"));
        }
        let sha256 = match board.model.sha256.as_ref().filter(|_| model.is_some()) {
            Some(sha256) => sha256.digests()?.into_iter().map(Some).collect(),
            None => Vec::new(),
        };
        Ok(Settings {
            model,
            hugepages,
            huge_page,
            packed,
            ctx,
            kv_type,
            resident,
            sha256,
            cores: cpus::cores(overrides, env, &board, topology)?,
            isa: isa.map(|(isa, _)| isa),
            io: io.map(|(io, _)| io).unwrap_or_default(),
            pre: pick(env, "pre", overrides.pre.clone(), None)?.map(|(pre, _)| pre),
            verbose: overrides.verbose || switch_from_env(env, "BRIM_VERBOSE")?.unwrap_or(false),
            l1d_bytes: board.cpu.l1d_kib.map_or(topology.l1d_bytes, |kib| u64::from(kib) << 10),
            board,
        })
    }

    /// The page of all regions: `Base4K` without huge pages.
    pub fn page(&self) -> PageKind {
        if self.hugepages { self.huge_page } else { PageKind::Base4K }
    }

    /// A plan over the pages that were asked for, without a byte in it.
    pub fn empty_plan(&self) -> Plan {
        if self.hugepages && self.packed { Plan::packed() } else { Plan::new(self.page()) }
    }

    /// Worker threads: one for each of `cores`.
    pub fn threads(&self) -> usize {
        self.cores.len()
    }

    /// Ordinary memory that must stay free.
    pub fn keep_free_bytes(&self) -> u64 {
        self.board.keep_free_bytes()
    }

    /// The kernels that were asked for, or the best that CPU and board allow.
    ///
    /// # Errors
    /// Exit 6: this CPU lacks the tier that was asked for.
    pub fn kernels(&self) -> Result<&'static Kernels> {
        Ok(kernels::select(self.isa, self.board.cpu.isa)?)
    }

    /// The sizes of the board, or what this CPU and its L1d suggest.
    pub fn tile(&self) -> Tile {
        let board = &self.board.tile;
        // 32 rows of k_cols int8 in three quarters of L1d; their scales and the activations take the rest. (Zen 4, Q4_K
        // and Q8_0: 1 to 4 points of the peak above half of it.)
        let from_cache = self.l1d_bytes as usize * 3 / 4 / 32;
        let k_cols = board.k_bytes.map_or(from_cache, |k| k as usize);
        let mut tile = Tile::default();
        if k_cols > 0 {
            tile.k_cols = (k_cols / 256 * 256).clamp(256, 1 << 16);
        }
        for ahead in [&mut tile.ahead, &mut tile.ahead_batch] {
            let bytes = |board: Option<u32>, probed: usize| board.map_or(probed, |bytes| bytes as usize);
            ahead.l1_bytes = bytes(board.ahead_l1_bytes, ahead.l1_bytes);
            ahead.l2_bytes = bytes(board.ahead_l2_bytes, ahead.l2_bytes);
        }
        tile
    }
}

/// Whether there are huge pages, their size, and whether those of 1 GiB come first.
fn huge_pages(overrides: &Overrides, env: Env<'_>, board: &Board) -> Result<(bool, PageKind, bool)> {
    let flag = overrides.hugepages.then_some(true);
    let hugepages = flag.or(switch_from_env(env, "BRIM_HUGEPAGES")?).or(board.memory.hugepages).unwrap_or(false);
    let flag = parse_flag("page-size", overrides.page_size.as_deref())?;
    let (size, source) = match pick(env, "page-size", flag, board.memory.page_size.map(|s| ("memory.page_size", s)))? {
        None => return Ok((hugepages, PageKind::Huge2M, false)),
        Some(picked) => picked,
    };
    // A board may name the size that --hugepages has.
    if !hugepages && !matches!(source, Source::Board(_)) {
        return Err(refuse(
            "page-size",
            source,
            "it sets the size of huge pages, which are not asked for; add --hugepages",
        ));
    }
    Ok(match size {
        PageSize::Auto => (hugepages, PageKind::Huge2M, true),
        PageSize::G1 => (hugepages, PageKind::Huge1G, false),
        PageSize::M2 => (hugepages, PageKind::Huge2M, false),
    })
}

/// How long the context is, and what its cache is made of.
fn context(overrides: &Overrides, env: Env<'_>, board: &Board) -> Result<(Option<Ctx>, KvChoice)> {
    let flag = parse_flag("ctx", overrides.ctx.as_deref())?;
    let ctx = pick(env, "ctx", flag, board.model.ctx.map(|ctx| ("model.ctx", ctx)))?;
    if let Some((Ctx::Tokens(0), source)) = ctx {
        return Err(refuse("ctx", source, "a context of 0 tokens holds nothing; leave it out for the model's own"));
    }
    let ctx = ctx.map(|(ctx, _)| ctx);
    let flag = parse_flag("kv-type", overrides.kv_type.as_deref())?;
    let named = board.model.kv_type.map(|kv_type| ("model.kv_type", KvChoice::Type(kv_type)));
    match pick(env, "kv-type", flag, named)? {
        Some((KvChoice::Auto, source)) if ctx != Some(Ctx::Auto) => {
            Err(refuse("kv-type", source, "auto goes with --ctx auto; name f16, q8_0 or f32"))
        }
        kv_type => Ok((ctx, kv_type.map(|(kv_type, _)| kv_type).unwrap_or_default())),
    }
}

/// The holder's socket, if there is one.
fn resident(overrides: &Overrides, env: Env<'_>, board: &Board) -> Result<Option<PathBuf>> {
    let HeldWeights::Allowed(flag) = &overrides.held else { return Ok(None) };
    // An empty variable counts as unset, an empty flag does not: it is the flag without a path.
    let path = match flag {
        Some(flag) => Some(flag.clone()),
        None => from_env(env, "BRIM_RESIDENT")?.or_else(|| board.memory.resident.clone()),
    };
    Ok(path.map(|path| match path.is_empty() {
        true => resident::default_socket(),
        false => PathBuf::from(path),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two L3 domains of two cores with two threads each: cores 0-3, second threads 4-7.
    fn box8() -> Topology {
        Topology {
            cpus: (0..8).collect(),
            cores: (0..4).collect(),
            l2_bytes: 1 << 20,
            l3_domains: vec![vec![0, 1, 4, 5], vec![2, 3, 6, 7]],
            ..Topology::default()
        }
    }

    fn resolve(args: &Overrides, vars: &[(&str, &str)]) -> Result<Settings> {
        let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Settings::resolve_in(args, &env, box8())
    }

    fn tokens(ctx: u32) -> Option<Ctx> {
        Some(Ctx::Tokens(ctx))
    }

    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn flag_beats_environment_beats_board_beats_default() {
        let path = std::env::temp_dir().join(format!("brim-settings-{}.toml", std::process::id()));
        std::fs::write(&path, "[model]\nctx = 100\nkv_type = \"q8_0\"\npath = \"b.gguf\"\n[memory]\nhugepages = true\n[cpu]\nl1d_kib = 40")
            .unwrap();
        let board = path.to_str().unwrap();
        let mut args = Overrides::default();
        assert_eq!(resolve(&args, &[]).unwrap().ctx, None);
        let settings = resolve(&args, &[("BRIM_BOARD", board), ("BRIM_MODEL", "")]).unwrap();
        let kv_type = KvChoice::Type(KvType::Q8_0);
        assert_eq!((settings.ctx, settings.kv_type, settings.page()), (tokens(100), kv_type, PageKind::Huge2M));
        assert_eq!((settings.model.as_deref(), settings.l1d_bytes), (Some("b.gguf"), 40 << 10));
        args.board = text(board);
        let vars = [("BRIM_CTX", "200"), ("BRIM_HUGEPAGES", "0"), ("BRIM_MODEL", "e.gguf")];
        let settings = resolve(&args, &vars).unwrap();
        assert_eq!((settings.ctx, settings.page()), (tokens(200), PageKind::Base4K));
        assert_eq!((settings.model.as_deref(), settings.hugepages), (Some("e.gguf"), false));
        args.ctx = text("300");
        args.hugepages = true;
        args.page_size = text("1G");
        let settings = resolve(&args, &vars).unwrap();
        assert_eq!((settings.ctx, settings.page()), (tokens(300), PageKind::Huge1G));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn options_are_for_all_models_of_a_board_or_refused() {
        let path = std::env::temp_dir().join(format!("brim-settings-served-{}.toml", std::process::id()));
        let models = "[[serve.models]]\npath = \"a\"\nctx = 64\n[[serve.models]]\npath = \"b\"\nresident = \"/b\"\n";
        std::fs::write(&path, format!("[model]\nctx = 100\n{models}")).unwrap();
        let args = Overrides { board: path.to_str().map(str::to_owned), ..Overrides::default() };
        let all = |args: &Overrides, vars: &[(&str, &str)]| {
            let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
            Settings::resolve_served_in(args, &env, &box8())
        };
        let of = |all: Vec<Settings>| all.into_iter().map(|one| (one.model, one.ctx)).collect::<Vec<_>>();
        assert_eq!(of(all(&args, &[]).unwrap()), [(text("a"), tokens(64)), (text("b"), tokens(100))]);
        let forced = all(&args, &[("BRIM_CTX", "32"), ("BRIM_RESIDENT", "")]).unwrap();
        assert_eq!(of(forced), [(text("a"), tokens(32)), (text("b"), tokens(32))]);
        let held = Overrides { held: HeldWeights::Allowed(None), ..args.clone() };
        let sockets = all(&held, &[]).unwrap().into_iter().map(|one| one.resident);
        assert_eq!(sockets.collect::<Vec<_>>(), [None, Some("/b".into())]);
        for (args, vars, want) in [
            (Overrides { model: text("m"), ..args.clone() }, &[][..], "--model: it is for one model, and serve.models"),
            (args.clone(), &[("BRIM_MODEL", "m")], "BRIM_MODEL: it is for one model"),
            (Overrides { pre: text("gpt-2"), ..args.clone() }, &[], "--pre: it is for one model"),
            (Overrides { held: HeldWeights::Allowed(text("")), ..args }, &[], "--resident: it is for one model"),
        ] {
            let error = all(&args, vars).unwrap_err();
            assert!(error.exit() == Exit::Usage && error.to_string().contains(want), "{error}");
        }
        // Other commands have one model, and it is not one of these.
        assert_eq!(resolve(&held, &[]).unwrap().model, None);
        std::fs::remove_file(path).unwrap();
        assert_eq!(all(&Overrides::default(), &[]).unwrap().len(), 1);
    }

    #[test]
    fn workers_span_the_domains() {
        let cores = |threads, cores: &str| {
            let cores = (!cores.is_empty()).then(|| cores.to_owned());
            resolve(&Overrides { threads, cores, ..Overrides::default() }, &[]).unwrap().cores
        };
        assert_eq!(cores(None, ""), [0, 2, 1, 3]);
        assert_eq!(cores(Some(2), ""), [0, 2]);
        assert_eq!(cores(Some(6), ""), [0, 2, 1, 3, 4, 6]);
        assert_eq!(cores(None, "5,1-2"), [1, 2, 5]);
        assert_eq!(cores(Some(2), "1-3"), [1, 2]);
    }

    #[test]
    fn held_weights_are_for_commands_that_may_use_them() {
        let socket = |held, vars: &[(&str, &str)]| {
            let args = Overrides { model: text("m.gguf"), held, ..Overrides::default() };
            resolve(&args, vars).unwrap().resident
        };
        let env = [("BRIM_RESIDENT", "/e")];
        assert_eq!(socket(HeldWeights::Unused, &env), None);
        assert_eq!(socket(HeldWeights::Allowed(None), &[("BRIM_RESIDENT", "")]), None);
        assert_eq!(socket(HeldWeights::Allowed(None), &env), Some("/e".into()));
        assert_eq!(socket(HeldWeights::Allowed(text("/f")), &env), Some("/f".into()));
        assert_eq!(socket(HeldWeights::Allowed(text("")), &env), Some(resident::default_socket()));
    }

    #[test]
    fn what_the_box_refuses_of_a_board_is_blamed_on_its_key() {
        let path = std::env::temp_dir().join(format!("brim-settings-blame-{}.toml", std::process::id()));
        for (text, want) in [
            ("[cpu]\nthreads = 9", "cpu.threads: 9 threads, but this process may use 8 CPUs"),
            ("[cpu]\ncores = \"8\"", "cpu.cores: 8 names CPU 8"),
        ] {
            std::fs::write(&path, text).unwrap();
            let board = path.to_str().map(str::to_owned);
            let error = resolve(&Overrides { board, ..Overrides::default() }, &[]).unwrap_err();
            assert_eq!(error.exit(), Exit::Board);
            assert!(error.to_string().contains(&format!("board {}: {want}", path.display())), "{error}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        type Change = fn(&mut Overrides);
        type Case<'a> = (Change, &'a [(&'a str, &'a str)], &'a str);
        let cases: &[Case<'_>] = &[
            (|a| a.page_size = text("1G"), &[], "--page-size: it sets the size of huge pages"),
            (|_| (), &[("BRIM_PAGE_SIZE", "2M")], "BRIM_PAGE_SIZE: it sets"),
            (|a| a.page_size = text("4M"), &[], "--page-size 4M: expected 2M, 1G or auto"),
            (|a| a.threads = Some(0), &[], "--threads: at least 1"),
            (|a| a.threads = Some(9), &[], "9 threads, but this process may use 8 CPUs"),
            (|_| (), &[("BRIM_THREADS", "many")], "BRIM_THREADS=many: invalid digit"),
            (|a| a.cores = text("7-8"), &[], "--cores: 7-8 names CPU 8, but this process may use only 0-7"),
            (|a| a.cores = text("99999"), &[], "--cores: 99999 names CPU 99999, but this process may use only 0-7"),
            (|a| a.cores = text("a"), &[], "is not a list of CPUs"),
            (
                |a| {
                    a.cores = text("0-1");
                    a.threads = Some(3)
                },
                &[],
                "3 threads need as many CPUs",
            ),
            (|a| a.io = text("fast"), &[], "--io fast: expected auto, buffered or direct"),
            (|_| (), &[("BRIM_IO", "fast")], "BRIM_IO=fast: expected auto, buffered or direct"),
            (|a| a.isa = text("mmx"), &[], "--isa mmx: no kernel tier `mmx`: use scalar, "),
            (|_| (), &[("BRIM_ISA", "neon")], "BRIM_ISA=neon: no kernel tier `neon`: use scalar, "),
            (|a| a.kv_type = text("q4"), &[], "--kv-type q4: expected f16, q8_0 or f32, or auto with --ctx auto"),
            (|a| a.kv_type = text("auto"), &[], "--kv-type: auto goes with --ctx auto"),
            (|_| (), &[("BRIM_KV_TYPE", "auto")], "BRIM_KV_TYPE: auto goes with --ctx auto"),
            (|a| a.held = HeldWeights::Allowed(text("/s")), &[], "--resident: the demo model is in the binary"),
            (|a| a.ctx = text("0"), &[], "--ctx: a context of 0"),
            (|a| a.ctx = text("all"), &[], "--ctx all: expected a number of tokens, or auto"),
            (|_| (), &[("BRIM_HUGEPAGES", "yes")], "BRIM_HUGEPAGES=yes: expected 1, 0, true or false"),
        ];
        for (change, vars, want) in cases {
            let mut args = Overrides::default();
            change(&mut args);
            let error = resolve(&args, vars).unwrap_err();
            assert!(error.to_string().contains(want), "{want:?} not in {error}");
            assert_eq!(error.exit(), Exit::Usage, "{error}");
        }
    }

    #[test]
    fn a_board_at_fault_is_exit_3() {
        for name in ["nonesuch", "/nonexistent/board.toml"] {
            let error = resolve(&Overrides { board: text(name), ..Overrides::default() }, &[]).unwrap_err();
            assert_eq!(error.exit(), Exit::Board);
            assert!(error.to_string().contains(name));
        }
    }
}
