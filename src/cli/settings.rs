//! One answer per option: flag, else `BRIM_<OPTION>`, else board, else default; contradictions are refused.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::args::ModelArgs;
use crate::board::{Board, BoardError, Ctx, EMBEDDED, PageSize, Tile};
use crate::error::{Error, Result};
use crate::kernels::{KvType, Tier};
use crate::load::{Io, Progress, resident};
use crate::memory::PageKind;
use crate::sys::cpu::{ListError, Topology, format_list, parse_list};

/// The settings of a command that loads a model.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The GGUF file; `None` is the embedded demo model.
    pub model: Option<String>,
    /// The page of all regions: `Base4K` without huge pages.
    pub page: PageKind,
    /// Whether pages of 1 GiB come first, and `page` is for the rest.
    pub packed: bool,
    /// Whether explicit huge pages were asked for.
    pub hugepages: bool,
    /// The page that huge pages have, or would have if they were asked for.
    pub huge_page: PageKind,
    /// Context length, `None` for the model's own.
    pub ctx: Option<u32>,
    /// Whether the context is as long as fits instead.
    pub ctx_auto: bool,
    /// Type of the KV cache.
    pub kv_type: KvType,
    /// Whether the type of the KV cache may be another, for a longer context.
    pub kv_auto: bool,
    /// Socket of a holder whose weights are used instead of loading them.
    pub resident: Option<PathBuf>,
    /// SHA-256 that each file must have; empty if not known.
    pub sha256: Vec<Option<[u8; 32]>>,
    /// Whether the weights are sealed for as long as the process lives.
    pub for_good: bool,
    /// Worker threads: at least 1, and as many as `cores`.
    pub threads: usize,
    /// The CPU each worker is pinned to, all different.
    pub cores: Vec<usize>,
    /// The kernel tier that was asked for; to lack it is exit 6.
    pub isa: Option<Tier>,
    /// The highest tier the board wants.
    pub isa_ceiling: Option<Tier>,
    /// How weights are read.
    pub io: Io,
    /// The pre-tokenizer to use instead of the file's.
    pub pre: Option<String>,
    /// Say more on stderr.
    pub verbose: bool,
    /// How far the load is, for whoever wants to watch.
    pub progress: Arc<Progress>,
    /// Tile sizes of the board.
    pub tile: Tile,
    /// Ordinary memory that must stay free.
    pub keep_free_bytes: u64,
    /// CPUs and caches of this box; cache sizes of the board replace probed ones.
    pub topology: Topology,
    /// Name or path of the board, `None` if none was asked for.
    pub board_name: Option<String>,
    /// The board: all defaults if none was asked for.
    pub board: Board,
}

/// Where a value came from, which decides whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Flag,
    Env,
    Board,
}

/// The environment, replaceable in tests.
type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// `flag`, else the value of the environment variable `name`; an empty variable counts as unset.
///
/// # Errors
/// A usage error that names the variable.
pub fn env_or<T: FromStr>(flag: Option<T>, name: &str) -> Result<Option<T>>
where
    T::Err: std::fmt::Display,
{
    match flag {
        Some(flag) => Ok(Some(flag)),
        None => from_env(&process_env, name),
    }
}

/// As [`env_or`] for a switch: the variable may be 1, 0, true or false.
///
/// # Errors
/// As [`env_or`].
pub fn env_or_switch(flag: bool, name: &str) -> Result<bool> {
    Ok(flag || switch_from_env(&process_env, name)?.unwrap_or(false))
}

fn process_env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn from_env<T: FromStr>(env: Env<'_>, name: &str) -> Result<Option<T>>
where
    T::Err: std::fmt::Display,
{
    match env(name).filter(|value| !value.is_empty()) {
        None => Ok(None),
        Some(value) => value.parse().map(Some).map_err(|e| Error::usage(format!("{name}={value}: {e}"))),
    }
}

fn switch_from_env(env: Env<'_>, name: &str) -> Result<Option<bool>> {
    match env(name).as_deref() {
        None | Some("") => Ok(None),
        Some("1" | "true") => Ok(Some(true)),
        Some("0" | "false") => Ok(Some(false)),
        Some(value) => Err(Error::usage(format!("{name}={value}: expected 1, 0, true or false"))),
    }
}

/// Flag, environment or board, with where it came from. `option` is the long option's name.
fn pick<T: FromStr>(env: Env<'_>, option: &str, flag: Option<T>, board: Option<T>) -> Result<Option<(T, Source)>>
where
    T::Err: std::fmt::Display,
{
    if let Some(flag) = flag {
        return Ok(Some((flag, Source::Flag)));
    }
    if let Some(value) = from_env(env, &variable(option))? {
        return Ok(Some((value, Source::Env)));
    }
    Ok(board.map(|value| (value, Source::Board)))
}

fn variable(option: &str) -> String {
    format!("BRIM_{}", option.replace('-', "_").to_uppercase())
}

/// A refusal of the value of `option` in the words of where it came from.
fn refuse(option: &str, source: Source, why: impl std::fmt::Display) -> Error {
    match source {
        Source::Flag => Error::usage(format!("--{option}: {why}")),
        Source::Env => Error::usage(format!("{}: {why}", variable(option))),
        Source::Board => BoardError::Cpus { message: format!("cpu.{option}: {why}") }.into(),
    }
}

fn parse_flag<T: FromStr>(option: &str, flag: Option<&str>) -> Result<Option<T>>
where
    T::Err: std::fmt::Display,
{
    flag.map(|value| value.parse().map_err(|e| Error::usage(format!("--{option} {value}: {e}")))).transpose()
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

impl Settings {
    /// Resolves the shared options against the process's environment, the board and this box.
    ///
    /// # Errors
    /// Exit 2 for bad or contradictory options, exit 3 for the board file.
    pub fn resolve(args: &ModelArgs) -> Result<Settings> {
        Settings::resolve_with(args, &process_env, Topology::probe()?)
    }

    /// Takes the holder's socket from flag, environment or board: an empty one is the default socket.
    ///
    /// # Errors
    /// A usage error that names the variable.
    pub fn resolve_resident(&mut self, flag: Option<&str>) -> Result<()> {
        // An empty variable counts as unset, an empty flag does not: it is the flag without a path.
        let path = match flag {
            Some(flag) => Some(flag.to_owned()),
            None => from_env(&process_env, "BRIM_RESIDENT")?.or(self.board.memory.resident.clone()),
        };
        self.resident = path.map(|path| match path.is_empty() {
            true => resident::default_socket(),
            false => PathBuf::from(path),
        });
        match (&self.resident, &self.model) {
            (Some(_), None) => {
                Err(Error::usage("--resident: the demo model is in the binary; give the held file with -m"))
            }
            _ => Ok(()),
        }
    }

    fn resolve_with(args: &ModelArgs, env: Env<'_>, mut topology: Topology) -> Result<Settings> {
        let board_name = pick(env, "board", args.board.clone(), None)?.map(|(name, _)| name);
        let board = board_name.as_deref().map_or(Ok(Board::default()), load_board)?;
        let at_board = |e: Error| e.at(format!("board {}", board_name.as_deref().unwrap_or("(none)")));

        let flag = args.hugepages.then_some(true);
        let hugepages = flag.or(switch_from_env(env, "BRIM_HUGEPAGES")?).or(board.memory.hugepages).unwrap_or(false);
        let (huge_page, packed) = huge_page(args, env, &board, hugepages)?;
        let kv_auto = from_env::<String>(env, "BRIM_KV_TYPE")?;
        let kv_auto = args.kv_type.as_deref().or(kv_auto.as_deref()) == Some("auto");
        let kv_type = match kv_auto {
            true => None,
            false => pick(env, "kv-type", parse_flag("kv-type", args.kv_type.as_deref())?, board.model.kv_type)?,
        };
        let ctx = pick(env, "ctx", parse_flag("ctx", args.ctx.as_deref())?, board.model.ctx)?;
        let ctx_auto = matches!(ctx, Some((Ctx::Auto, _)));
        if let Some((Ctx::Tokens(0), source)) = ctx {
            return Err(refuse("ctx", source, "a context of 0 tokens holds nothing; leave it out for the model's own"));
        }
        let isa = pick(env, "isa", parse_flag("isa", args.isa.as_deref())?, None)?;
        let io = pick(env, "io", parse_flag("io", args.io.as_deref())?, None)?;
        let cores = cores(args, env, &board, &topology).map_err(|e| match e.exit() {
            crate::error::Exit::Board => at_board(e),
            _ => e,
        })?;
        let kib = |board: Option<u32>, probed: u64| board.map_or(probed, |kib| u64::from(kib) << 10);
        topology.l1d_bytes = kib(board.cpu.l1d_kib, topology.l1d_bytes);
        topology.l2_bytes = kib(board.cpu.l2_kib, topology.l2_bytes);
        topology.l3_bytes = kib(board.cpu.l3_kib, topology.l3_bytes);
        Ok(Settings {
            model: pick(env, "model", args.model.clone(), board.model.path.clone())?.map(|(model, _)| model),
            page: if hugepages { huge_page } else { PageKind::Base4K },
            packed: packed && hugepages,
            hugepages,
            huge_page,
            ctx: ctx.and_then(|(ctx, _)| match ctx {
                Ctx::Tokens(tokens) => Some(tokens),
                Ctx::Auto => None,
            }),
            ctx_auto,
            kv_auto,
            resident: None,
            sha256: match &board.model.sha256 {
                Some(sha256) => sha256.digests()?.into_iter().map(Some).collect(),
                None => Vec::new(),
            },
            for_good: false,
            kv_type: kv_type.map(|(kv_type, _)| kv_type).unwrap_or_default(),
            threads: cores.len(),
            cores,
            isa: isa.map(|(isa, _)| isa),
            isa_ceiling: board.cpu.isa,
            io: io.map(|(io, _)| io).unwrap_or_default(),
            pre: pick(env, "pre", args.pre.clone(), None)?.map(|(pre, _)| pre),
            verbose: args.verbose || switch_from_env(env, "BRIM_VERBOSE")?.unwrap_or(false),
            progress: Arc::default(),
            tile: board.tile.clone(),
            keep_free_bytes: board.keep_free_bytes(),
            topology,
            board_name,
            board,
        })
    }
}

/// The size of huge pages, and whether those of 1 GiB come first.
fn huge_page(args: &ModelArgs, env: Env<'_>, board: &Board, hugepages: bool) -> Result<(PageKind, bool)> {
    let flag = parse_flag("page-size", args.page_size.as_deref())?;
    match pick(env, "page-size", flag, board.memory.page_size)? {
        Some((_, source @ (Source::Flag | Source::Env))) if !hugepages => {
            Err(refuse("page-size", source, "it sets the size of huge pages, which are not asked for; add --hugepages"))
        }
        Some((PageSize::Auto, _)) => Ok((PageKind::Huge2M, true)),
        Some((PageSize::G1, _)) => Ok((PageKind::Huge1G, false)),
        Some((PageSize::M2, _)) | None => Ok((PageKind::Huge2M, false)),
    }
}

/// The CPU of each worker.
fn cores(args: &ModelArgs, env: Env<'_>, board: &Board, topology: &Topology) -> Result<Vec<usize>> {
    let threads = pick(env, "threads", args.threads, board.cpu.threads)?;
    if let Some((0, source)) = threads {
        return Err(refuse("threads", source, "at least 1 thread is needed"));
    }
    let have = topology.cpus.len();
    if let Some((asked, source)) = threads.filter(|&(asked, _)| asked as usize > have) {
        let why = format!(
            "{asked} threads, but this process may use {have} CPUs, and more threads than CPUs only get in each other's \
             way; use at most {have}, or leave it out for one per physical core"
        );
        return Err(refuse("threads", source, why));
    }
    let Some((list, source)) = pick(env, "cores", args.cores.clone(), board.cpu.cores.clone())? else {
        let mut cores = topology.spread();
        cores.truncate(threads.map_or(topology.cores.len().max(1), |(threads, _)| threads as usize));
        return Ok(cores);
    };
    let not_ours = |missing: String| {
        let allowed = format_list(&topology.cpus);
        let why = format!(
            "{list} names CPU {missing}, but this process may use only {allowed}; name some of those, or leave it out"
        );
        refuse("cores", source, why)
    };
    let mut cores = parse_list(&list).map_err(|e| match e {
        ListError::Malformed => refuse("cores", source, format!("{list:?} is no list of CPUs such as 0-7,16")),
        ListError::Beyond(cpu) => not_ours(cpu.to_string()),
    })?;
    let missing: Vec<usize> = cores.iter().copied().filter(|cpu| !topology.cpus.contains(cpu)).collect();
    if !missing.is_empty() {
        return Err(not_ours(format_list(&missing)));
    }
    if let Some((threads, threads_source)) = threads {
        let count = cores.len();
        if count < threads as usize {
            let why = format!(
                "{threads} threads need as many CPUs, but cores = {list} names {count}; use at most {count} threads, or \
                 name more CPUs"
            );
            return Err(refuse("threads", threads_source, why));
        }
        cores.truncate(threads as usize);
    }
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

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

    fn resolve(args: &ModelArgs, vars: &[(&str, &str)]) -> Result<Settings> {
        let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Settings::resolve_with(args, &env, box8())
    }

    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn flag_beats_environment_beats_board_beats_default() {
        let path = std::env::temp_dir().join(format!("brim-settings-{}.toml", std::process::id()));
        std::fs::write(&path, "[model]\nctx = 100\nkv_type = \"q8_0\"\npath = \"b.gguf\"\n[memory]\nhugepages = true\n[cpu]\nl2_kib = 512")
            .unwrap();
        let board = path.to_str().unwrap();
        let mut args = ModelArgs::default();
        assert_eq!(resolve(&args, &[]).unwrap().ctx, None);
        let settings = resolve(&args, &[("BRIM_BOARD", board), ("BRIM_MODEL", "")]).unwrap();
        assert_eq!((settings.ctx, settings.kv_type, settings.page), (Some(100), KvType::Q8_0, PageKind::Huge2M));
        assert_eq!((settings.model.as_deref(), settings.topology.l2_bytes), (Some("b.gguf"), 512 << 10));
        args.board = text(board);
        let vars = [("BRIM_CTX", "200"), ("BRIM_HUGEPAGES", "0"), ("BRIM_MODEL", "e.gguf")];
        let settings = resolve(&args, &vars).unwrap();
        assert_eq!((settings.ctx, settings.page), (Some(200), PageKind::Base4K));
        assert_eq!((settings.model.as_deref(), settings.hugepages), (Some("e.gguf"), false));
        args.ctx = text("300");
        args.hugepages = true;
        args.page_size = text("1G");
        let settings = resolve(&args, &vars).unwrap();
        assert_eq!((settings.ctx, settings.page), (Some(300), PageKind::Huge1G));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn workers_span_the_domains() {
        let cores = |threads, cores: &str| {
            let cores = (!cores.is_empty()).then(|| cores.to_owned());
            resolve(&ModelArgs { threads, cores, ..ModelArgs::default() }, &[]).unwrap().cores
        };
        assert_eq!(cores(None, ""), [0, 2, 1, 3]);
        assert_eq!(cores(Some(2), ""), [0, 2]);
        assert_eq!(cores(Some(6), ""), [0, 2, 1, 3, 4, 6]);
        assert_eq!(cores(None, "5,1-2"), [1, 2, 5]);
        assert_eq!(cores(Some(2), "1-3"), [1, 2]);
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        type Change = fn(&mut ModelArgs);
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
            (|a| a.cores = text("a"), &[], "no list of CPUs"),
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
            (|a| a.kv_type = text("q4"), &[], "--kv-type q4: expected f16 or q8_0"),
            (|a| a.ctx = text("0"), &[], "--ctx: a context of 0"),
            (
                |a| a.ctx = text("all"),
                &[],
                "--ctx all: invalid digit found in string; expected a number of tokens, or auto",
            ),
            (|_| (), &[("BRIM_HUGEPAGES", "yes")], "BRIM_HUGEPAGES=yes: expected 1, 0, true or false"),
        ];
        for (change, vars, want) in cases {
            let mut args = ModelArgs::default();
            change(&mut args);
            let error = resolve(&args, vars).unwrap_err();
            assert!(error.to_string().contains(want), "{want:?} not in {error}");
            assert_eq!(error.exit(), Exit::Usage, "{error}");
        }
    }

    #[test]
    fn a_board_at_fault_is_exit_3() {
        for name in ["nonesuch", "/nonexistent/board.toml"] {
            let error = resolve(&ModelArgs { board: text(name), ..ModelArgs::default() }, &[]).unwrap_err();
            assert_eq!(error.exit(), Exit::Board);
            assert!(error.to_string().contains(name));
        }
    }
}
