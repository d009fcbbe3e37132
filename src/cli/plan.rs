//! `brim plan`: what a model takes, page by page, and whether this box has it; exit 5 if not.

use std::fmt::Write;

use log::LevelFilter;
use serde_json::{Value, json};

use super::args::Plan as PlanArgs;
use super::common::{checkpoints, names, out, resolve, resolve_served};
#[cfg(feature = "serve")]
use crate::boot::MappedPlan;
use crate::boot::{Headers, Planned, Serving, Workload, plan_all};
use crate::error::{Error, Result};
use crate::memory::{Grown, Host, Hvo, MemoryError, Packing, PageKind, Plan, PoolState, Region, arena};
use crate::model::{CachePlan, Config};
use crate::settings::env_or;
use crate::units::Human;

/// A plan beside the box it is meant for.
#[derive(Clone, Debug)]
pub struct PlanReport {
    /// The models, at least one.
    pub models: Vec<PlannedModel>,
    /// The plan, of all of them.
    pub plan: Plan,
    /// Which regions lie in pages of 1 GiB.
    pub packing: Packing,
    /// Whether ordinary pages stand for huge ones that could not be had.
    pub is_fallback: bool,
    /// The huge page in use, or the one that would be.
    pub huge_page: PageKind,
    /// The pool of `huge_page`, `None` where the kernel has no such pages.
    pub pool: Option<PoolState>,
    /// HugeTLB Vmemmap Optimization.
    pub hvo: Hvo,
    /// What it has given back on this box already, by the kernel's counters.
    pub given_back_bytes: Option<u64>,
    /// MemTotal.
    pub memory_total_bytes: u64,
    /// MemAvailable.
    pub memory_available_bytes: u64,
    /// Ordinary memory that must stay free.
    pub keep_free_bytes: u64,
    /// Whether the plan fits this box right now.
    pub verdict: std::result::Result<(), MemoryError>,
}

/// One model of a plan.
#[derive(Clone, Debug)]
pub struct PlannedModel {
    /// The name that clients see, of one beside others.
    pub name: String,
    /// The file.
    pub model: String,
    /// Parts of the regions, e.g. `layer 0`, in bytes.
    pub details: Vec<(String, u64)>,
    /// The states of recurrent layers, of a model that has them.
    pub states: Option<States>,
    /// Tokens of context.
    pub ctx: usize,
    /// Type of the KV cache.
    pub kv_type: &'static str,
    /// Decode speed that the board's measured bandwidth allows at most, tokens/s; `None` without a figure.
    pub decode_ceiling: Option<f64>,
    /// What the model makes that makes no text.
    vectors: Option<Makes>,
}

impl PlannedModel {
    fn of(name: String, planned: &Planned<'_>) -> PlannedModel {
        let Planned { headers, sizes, .. } = planned;
        let weights = &headers.model.weights;
        let layers = weights.layer_offsets.windows(2).enumerate();
        let mut details: Vec<(String, u64)> =
            layers.map(|(i, ends)| (format!("layer {i}"), (ends[1] - ends[0]) as u64)).collect();
        let rest = weights.bytes as u64 - details.iter().map(|(_, bytes)| bytes).sum::<u64>();
        details.push(("embedding, output and norms".to_owned(), rest));
        let read_gbs = headers.settings.board.bandwidth.read_gbs;
        PlannedModel {
            name,
            model: headers.files.name().to_string(),
            details,
            states: States::of(&CachePlan::new(&headers.model.config, sizes)),
            ctx: sizes.ctx,
            kv_type: sizes.kv_type.name(),
            decode_ceiling: read_gbs.map(|gbs| gbs * 1e9 / weights.bytes_per_token as f64),
            vectors: Makes::of(&headers.model.config),
        }
    }

    /// The model alone, without its regions.
    fn json(&self) -> Value {
        let details = self.details.iter().map(|(name, bytes)| json!({"name": name, "bytes": bytes}));
        let mut model = json!({
            "model": self.model,
            "ctx": self.ctx,
            "kv_type": self.kv_type,
            "details": details.collect::<Vec<_>>(),
            "predicted_decode_tokens_per_second_at_most": self.decode_ceiling,
            "vectors": self.vectors.as_ref().map(Makes::json),
        });
        if let Some(states) = &self.states {
            model["states"] = states.json();
        }
        model
    }
}

/// States of recurrent layers.
#[derive(Clone, Copy, Debug)]
pub struct States {
    /// Bytes of one.
    pub bytes: u64,
    /// One for each running sequence.
    pub slots: u64,
    /// Copies at ends of pages, from which sequences go on.
    pub checkpoints: u64,
}

impl States {
    fn of(cache: &CachePlan) -> Option<States> {
        let states = States {
            bytes: cache.state_bytes as u64,
            slots: cache.n_live_states as u64,
            checkpoints: cache.n_checkpoints as u64,
        };
        cache.has_states().then_some(states)
    }

    fn json(&self) -> Value {
        json!({
            "bytes_each": self.bytes,
            "slots": self.slots,
            "slots_bytes": self.slots * self.bytes,
            "checkpoints": self.checkpoints,
            "checkpoints_bytes": self.checkpoints * self.bytes,
        })
    }
}

/// What a model makes that makes no text.
#[derive(Clone, Copy, Debug)]
struct Makes {
    /// Values of a vector.
    len: usize,
    ranks: bool,
    in_one_pass: bool,
}

impl Makes {
    fn of(config: &Config) -> Option<Makes> {
        let vectors = config.vectors?;
        Some(Makes { len: vectors.len(config.n_embd), ranks: vectors.ranks(), in_one_pass: config.both_ways })
    }

    fn json(&self) -> Value {
        json!({"values": self.len, "ranks": self.ranks, "in_one_pass": self.in_one_pass})
    }
}

/// Executes `brim plan`: reads headers, nothing else.
///
/// # Errors
/// What is wrong with the file (4), the options (2) or the CPU (6); exit 5 if the plan does not fit.
pub fn execute(args: &PlanArgs) -> Result<()> {
    let mut overrides = args.overrides_with_held();
    if args.fit {
        if overrides.ctx.as_deref().is_some_and(|ctx| ctx != "auto") {
            return Err(Error::usage("plan: --fit looks for the context that --ctx gives; leave one of them out"));
        }
        overrides.ctx = Some("auto".to_owned());
    }
    let given = env_or(args.model.clone(), "BRIM_MODEL")?.is_some();
    let all = match given {
        // It is planned alone, whatever the board serves.
        true => vec![resolve(&overrides, LevelFilter::Warn)?],
        false => resolve_served(&overrides, LevelFilter::Warn)?,
    };
    let is_alone = given || all.iter().any(|settings| settings.board.serve.models.is_empty());
    let names = if is_alone { vec![String::new()] } else { names(&all, None)? };
    let headers = all.iter().map(|settings| {
        let serve = &settings.board.serve;
        let slots = env_or(args.slots, "BRIM_SLOTS")?.or(serve.slots);
        let kv_tokens = env_or(args.kv_tokens, "BRIM_KV_TOKENS")?.or(serve.kv_tokens);
        let workload = match (slots, kv_tokens) {
            (None, None) if is_alone => Workload::default(),
            _ => Serving::new(slots, kv_tokens).into(),
        };
        let workload = Workload { checkpoints: checkpoints(args.checkpoints, settings)?, ..workload };
        let headers = Headers::read(settings)?;
        // A model of vectors is there to be served.
        let vectors = headers.model.config.vectors;
        let serving = vectors.and(workload.serving.is_none().then(|| Serving::new(slots, kv_tokens)));
        let workload = Workload { serving: workload.serving.or(serving), ..workload };
        Ok((headers, workload))
    });
    PlanReport::of(&plan_all(headers.collect::<Result<_>>()?)?, names)?.print(args.json)
}

impl PlanReport {
    /// The report on models that have been planned: at least one, with the names that clients see.
    ///
    /// # Errors
    /// Exit 5 where the sum of their plans cannot be expressed.
    ///
    /// # Panics
    /// If there is no model.
    pub fn of(planned: &[Planned<'_>], names: Vec<String>) -> Result<PlanReport> {
        let plan = Plan::join(planned.iter().map(|each| &each.plan))?;
        let (host, settings) = (Host::default(), planned[0].headers.settings);
        let (keep_free_bytes, board) = (settings.keep_free_bytes(), &settings.board);
        let packing = host.packing(&plan);
        let fits = arena::check_growing(&host, &plan, keep_free_bytes, board.memory.reserve);
        let grows = match board.memory.reserve {
            true => Grown::check(&host, plan.page(), packing.small_pages(&plan), board.memory.hvo),
            false => Ok(()),
        };
        Ok(PlanReport {
            models: names.into_iter().zip(planned).map(|(name, planned)| PlannedModel::of(name, planned)).collect(),
            plan,
            packing,
            is_fallback: false,
            huge_page: settings.huge_page,
            pool: host.pool(settings.huge_page),
            hvo: host.hvo(),
            given_back_bytes: host.memmap_given_back_bytes(),
            memory_total_bytes: host.memory_total_bytes(),
            memory_available_bytes: host.memory_available_bytes(),
            keep_free_bytes,
            verdict: fits.and(grows),
        })
    }

    /// The report once the plan has been mapped: over the pages that could be had, as each model tells of its part. The box
    /// is as it was before.
    ///
    /// # Errors
    /// As [`PlanReport::of`].
    #[cfg(feature = "serve")]
    pub fn mapped(self, mapped: &[&MappedPlan]) -> Result<PlanReport> {
        let plan = Plan::join(mapped.iter().map(|each| &each.plan))?;
        let packing = Packing::join(mapped.iter().map(|each| &each.packing));
        let is_fallback = mapped.iter().any(|each| each.is_fallback);
        Ok(PlanReport { plan, packing, is_fallback, verdict: Ok(()), ..self })
    }

    /// Whether it is over explicit huge pages.
    fn hugepages(&self) -> bool {
        self.plan.page() != PageKind::Base4K
    }

    /// Prints the report to stdout.
    ///
    /// # Errors
    /// Exit 5 with the remedy where the plan does not fit; exit 1 where it cannot be printed.
    pub fn print(self, json: bool) -> Result<()> {
        let text = if json { format!("{:#}", self.json()) } else { self.table() };
        let printed = out(text.trim_end());
        self.verdict?;
        printed
    }

    /// Of a packed plan, the 1 GiB pages it takes and the 2 MiB pages beside them.
    fn packed_pages(&self) -> Option<(u64, u64)> {
        self.plan.is_packed().then(|| (self.packing.giant_pages(), self.packing.small_pages(&self.plan)))
    }

    /// Bytes missing; 0 where the plan fits.
    fn short_bytes(&self) -> u64 {
        match &self.verdict {
            Ok(()) => 0,
            Err(MemoryError::PoolShort { need, pool } | MemoryError::Lost { need, pool, .. }) => {
                need.saturating_sub(pool.available()).saturating_mul(pool.page.bytes())
            }
            Err(MemoryError::CgroupShort { need_bytes, available_bytes, .. }) => {
                need_bytes.saturating_sub(*available_bytes)
            }
            Err(MemoryError::BoxShort { need_bytes, available_bytes, keep_free_bytes }) => {
                need_bytes.saturating_add(*keep_free_bytes).saturating_sub(*available_bytes)
            }
            Err(_) => self.plan.total_bytes(),
        }
    }

    /// Ordinary memory that loading takes: all of it without huge pages, else what the pool must still grow by.
    fn ordinary_bytes(&self) -> u64 {
        match (self.hugepages(), self.pool) {
            (false, _) | (_, None) => self.plan.total_bytes(),
            (true, Some(pool)) => self.plan.shortfall(&pool).saturating_mul(self.huge_page.bytes()),
        }
    }

    /// Ordinary memory after loading; negative where the box has too little.
    fn remaining_bytes(&self) -> i128 {
        i128::from(self.memory_available_bytes) - i128::from(self.ordinary_bytes())
    }

    /// Pages the plan takes as huge pages.
    fn huge_pages(&self) -> Option<u64> {
        self.plan.with_page(self.huge_page).ok().map(|plan| plan.total_pages())
    }

    /// The report as one document; of several models with a list of them.
    pub fn json(&self) -> Value {
        let mut report = match self.models.as_slice() {
            [model] => model.json(),
            models => json!({"models": (0..models.len()).map(|at| self.json_of(at)).collect::<Vec<_>>()}),
        };
        if let (Some(report), Value::Object(rest)) = (report.as_object_mut(), self.box_json()) {
            report.extend(rest);
        }
        report
    }

    /// One model among several, with its own regions and their sum.
    fn json_of(&self, model: usize) -> Value {
        let (PlannedModel { name, .. }, plan) = (&self.models[model], self.plan.of(model));
        let mut report = json!({"name": name});
        if let (Some(report), Value::Object(rest)) = (report.as_object_mut(), self.models[model].json()) {
            report.extend(rest);
        }
        report["regions"] = self.regions_json(&plan, false);
        report["total_bytes"] = plan.total_bytes().into();
        report["total_pages"] = plan.total_pages().into();
        report
    }

    /// What one of the models is told of itself: the report, and beside it the model as if it was alone.
    #[cfg(feature = "serve")]
    pub fn facts_of(&self, model: usize) -> Value {
        let mut facts = self.json();
        if let (Some(facts), Value::Object(rest)) = (facts.as_object_mut(), self.models[model].json()) {
            facts.extend(rest);
        }
        facts
    }

    /// Rows of a plan, with the name of their model where that is to be said.
    fn regions_json(&self, plan: &Plan, is_named: bool) -> Value {
        let regions = plan.regions().map(|region| {
            let Region { model, name, bytes } = region;
            let mut row = json!({"name": name.as_str(), "bytes": bytes, "pages": plan.pages_of(bytes)});
            if is_named {
                row["model"] = self.models[model].name.as_str().into();
            }
            row
        });
        regions.collect()
    }

    /// The plan of all models, and the box.
    fn box_json(&self) -> Value {
        let plan = &self.plan;
        let pool = |field: fn(&PoolState) -> u64| self.pool.as_ref().map_or(0, field);
        json!({
            "hugepages": self.hugepages(),
            "fallback": self.is_fallback,
            "page_bytes": plan.page().bytes(),
            "regions": self.regions_json(plan, self.models.len() > 1),
            "total_bytes": plan.total_bytes(),
            "total_pages": plan.total_pages(),
            "packed": self.packed_pages().map(|(giant, small)| json!({"pages_1g": giant, "pages_2m": small})),
            "pool": {
                "page_bytes": self.huge_page.bytes(),
                "total": pool(|p| p.total),
                "free": pool(|p| p.free),
                "reserved": pool(|p| p.reserved),
            },
            "hvo": {
                "available": self.hvo.available,
                "enabled": self.hvo.enabled,
                "saved_bytes": Hvo::saving_bytes(plan.page(), plan.total_pages()),
                "given_back_bytes": self.given_back_bytes,
            },
            "with_hugepages": { "page_bytes": self.huge_page.bytes(), "total_pages": self.huge_pages() },
            "page_table_saving_bytes": plan.page_table_saving_bytes(),
            "memory_total_bytes": self.memory_total_bytes,
            "memory_available_bytes": self.memory_available_bytes,
            "keep_free_bytes": self.keep_free_bytes,
            "remaining_bytes": i64::try_from(self.remaining_bytes()).unwrap_or(i64::MIN),
            "fits": self.verdict.is_ok(),
            "short_bytes": self.short_bytes(),
            "remedy": self.verdict.as_ref().err().map(MemoryError::to_string),
        })
    }

    fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut text);
        text
    }

    fn write_table(&self, f: &mut String) -> std::fmt::Result {
        for PlannedModel { name, model, ctx, kv_type, vectors, .. } in &self.models {
            let name = if self.models.len() > 1 { format!("{name}: ") } else { String::new() };
            writeln!(f, "model     {name}{model}\ncontext   {ctx} tokens, KV cache {kv_type}")?;
            if let Some(Makes { len, ranks, in_one_pass }) = vectors {
                let what = if *ranks { "ranks of documents, no text" } else { "vectors of texts, no text" };
                let pass =
                    if *in_one_pass { "; a text is read in one pass, so scratch grows with the context" } else { "" };
                writeln!(f, "makes     {what}; values of each: {len}{pass}")?;
            }
            writeln!(f)?;
        }
        self.write_regions(f)?;
        self.write_details(f)?;
        writeln!(f)?;
        self.write_pool(f)?;
        self.write_memory(f)?;
        self.write_verdict(f)
    }

    fn write_regions(&self, f: &mut String) -> std::fmt::Result {
        let plan = &self.plan;
        let label = |Region { model, name, .. }: Region| match self.models.as_slice() {
            [_] => name.to_string(),
            models => format!("{} {name}", models[model].name),
        };
        let width =
            plan.regions().map(|region| label(region).chars().count() + 1).max().map_or(12, |width| width.max(12));
        writeln!(f, "{:<width$}{:>16}{:>12}  pages of {}", "region", "bytes", "size", plan.page())?;
        for region in plan.regions() {
            let (bytes, pages) = (region.bytes, plan.pages_of(region.bytes));
            writeln!(f, "{:<width$}{bytes:>16}{:>12}{pages:>9}", label(region), Human(bytes))?;
        }
        let (bytes, pages) = (plan.total_bytes(), plan.total_pages());
        writeln!(f, "{:<width$}{bytes:>16}{:>12}{pages:>9}", "total", Human(bytes))?;
        if let Some((giant, small)) = self.packed_pages() {
            writeln!(f, "{:<12}{giant} pages of 1 GiB and {small} of 2 MiB", "packed")?;
        }
        Ok(())
    }

    fn write_details(&self, f: &mut String) -> std::fmt::Result {
        for model in &self.models {
            let mut details = runs(&model.details);
            if let Some(States { bytes, slots, checkpoints }) = model.states {
                details.push(("state, each".to_owned(), bytes));
                details.push((format!("states of slots: {slots}"), slots * bytes));
                details.push((format!("checkpoints: {checkpoints}"), checkpoints * bytes));
            }
            if self.models.len() > 1 {
                writeln!(f, "\n{}", model.name)?;
            } else if !details.is_empty() {
                writeln!(f)?;
            }
            for (name, bytes) in details {
                writeln!(f, "  {name:<24}{:>12}", Human(bytes))?;
            }
        }
        Ok(())
    }

    fn write_pool(&self, f: &mut String) -> std::fmt::Result {
        let page = self.huge_page;
        match self.pool {
            None => writeln!(f, "pool      this kernel has no pages of {page}")?,
            Some(pool) => {
                let (free, total, reserved) = (pool.free, pool.total, pool.reserved);
                writeln!(f, "pool      {page} pages: {free} free of {total}, {reserved} reserved by other processes")?;
            }
        }
        let huge_pages = self.huge_pages().unwrap_or(u64::MAX);
        if !self.hugepages() {
            writeln!(f, "          with --hugepages: {huge_pages} pages of {page}")?;
        }
        let gain = Human(Hvo::saving_bytes(page, huge_pages));
        match self.hvo {
            Hvo { available: false, .. } => writeln!(f, "HVO       not in this kernel; it would save {gain}")?,
            Hvo { enabled: true, .. } => writeln!(f, "HVO       on; saves {gain} over {huge_pages} pages of {page}")?,
            _ => writeln!(
                f,
                "HVO       off; would save {gain} over {huge_pages} pages of {page}: run `sysctl -w \
                 vm.hugetlb_optimize_vmemmap=1` before pages are reserved"
            )?,
        }
        if let Some(bytes) = self.given_back_bytes {
            writeln!(f, "          {} given back on this box now, by the kernel's counters", Human(bytes))?;
        }
        if self.hugepages() {
            writeln!(f, "          page tables smaller by {}", Human(self.plan.page_table_saving_bytes()))?;
        }
        Ok(())
    }

    fn write_memory(&self, f: &mut String) -> std::fmt::Result {
        let (available, total) = (Human(self.memory_available_bytes), Human(self.memory_total_bytes));
        writeln!(f, "memory    {available} available of {total}, free huge pages not counted")?;
        let after =
            if self.hugepages() && self.ordinary_bytes() > 0 { "growing the pool and loading" } else { "loading" };
        match u64::try_from(self.remaining_bytes()) {
            Ok(rest) => writeln!(f, "          {} remain after {after}", Human(rest))?,
            Err(_) => {
                let lacking = u64::try_from(-self.remaining_bytes()).unwrap_or(u64::MAX);
                writeln!(f, "          {} short of what {after} needs", Human(lacking))?;
            }
        }
        for PlannedModel { name, decode_ceiling, .. } in &self.models {
            let Some(tokens_per_second) = decode_ceiling else { continue };
            let name = if self.models.len() > 1 { format!("{name}: ") } else { String::new() };
            writeln!(
                f,
                "speed     {name}at most {tokens_per_second:.1} tokens/s in decode, by the board's read bandwidth"
            )?;
        }
        if self.keep_free_bytes > 0 {
            writeln!(f, "          {} must stay free (memory.keep_free_mib)", Human(self.keep_free_bytes))?;
        }
        Ok(())
    }

    fn write_verdict(&self, f: &mut String) -> std::fmt::Result {
        match &self.verdict {
            Ok(()) => writeln!(f, "\nfits"),
            Err(error) => {
                writeln!(f, "\ndoes not fit: short by {}", Human(self.short_bytes()))?;
                match error {
                    MemoryError::PoolShort { need, pool } => writeln!(f, "  {}", pool.remedy_text(*need)),
                    other => writeln!(f, "  {other}"),
                }
            }
        }
    }
}

/// Rows of equal size whose names count up (`layer 0`, `layer 1`) become one: `layer 0-1, each`.
fn runs(details: &[(String, u64)]) -> Vec<(String, u64)> {
    let numbered = |name: &str| {
        let (word, number) = name.rsplit_once(' ')?;
        Some((word.to_owned(), number.parse::<u64>().ok()?))
    };
    let follows = |a: &(String, u64), b: &(String, u64)| match (numbered(&a.0), numbered(&b.0)) {
        (Some(x), Some(y)) => a.1 == b.1 && x.0 == y.0 && x.1.checked_add(1) == Some(y.1),
        _ => false,
    };
    details
        .chunk_by(follows)
        .map(|run| match (run, numbered(&run[run.len() - 1].0)) {
            ([(first, bytes), _, ..], Some((_, last))) => (format!("{first}-{last}, each"), *bytes),
            _ => run[0].clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::RegionName;

    fn report(page: PageKind, free: u64) -> PlanReport {
        let mut plan = Plan::new(page);
        plan.add(RegionName::Weights, 10 << 20).unwrap();
        plan.add(RegionName::Kv, 1).unwrap();
        let pool = PoolState { page: PageKind::Huge2M, total: 9, free, reserved: 1, surplus: 0, overcommit: 0 };
        let verdict = match page {
            PageKind::Base4K => Ok(()),
            _ if plan.shortfall(&pool) == 0 => Ok(()),
            _ => Err(MemoryError::PoolShort { need: plan.total_pages(), pool }),
        };
        PlanReport {
            models: vec![toy("toy")],
            packing: Packing::default(),
            is_fallback: false,
            plan,
            huge_page: PageKind::Huge2M,
            pool: Some(pool),
            hvo: Hvo { available: true, enabled: false },
            given_back_bytes: Some(5 << 20),
            memory_total_bytes: 64 << 30,
            memory_available_bytes: 32 << 30,
            keep_free_bytes: 0,
            verdict,
        }
    }

    fn toy(name: &str) -> PlannedModel {
        let details = [("embedding", 7), ("layer 0", 5), ("layer 1", 5), ("layer 2", 6)];
        PlannedModel {
            name: name.to_owned(),
            model: name.to_owned(),
            details: details.map(|(n, b)| (n.to_owned(), b)).into(),
            states: None,
            ctx: 512,
            kv_type: "f16",
            decode_ceiling: None,
            vectors: None,
        }
    }

    #[test]
    fn several_models_have_rows_of_their_own_and_one_sum() {
        let mut report = report(PageKind::Huge2M, 9);
        report.plan = Plan::join([&report.plan, &report.plan]).unwrap();
        report.models.push(PlannedModel { decode_ceiling: Some(2.5), ..toy("a-longer-name") });
        let table = report.table();
        for part in [
            "model     toy: toy\n",
            "\ntoy weights                   10485760",
            "\na-longer-name weights         10485760",
            "total                         25165824    24.0 MiB       12",
            "\na-longer-name\n  embedding ",
            "speed     a-longer-name: at most 2.5 tokens/s",
        ] {
            assert!(table.contains(part), "{part:?} not in\n{table}");
        }
        let value = report.json();
        assert_eq!((&value["total_pages"], &value["models"][1]["total_pages"]), (&json!(12), &json!(6)));
        assert_eq!(
            value["regions"][2],
            json!({"name": "weights", "bytes": 10 << 20, "pages": 5, "model": "a-longer-name"})
        );
        assert_eq!(value["models"][0]["regions"][1], json!({"name": "kv", "bytes": 1, "pages": 1}));
        assert!(value.get("model").is_none() && value["models"][0]["name"] == "toy");
        assert_eq!(report.facts_of(1)["predicted_decode_tokens_per_second_at_most"], 2.5);
    }

    #[test]
    fn json_has_the_promised_keys() {
        let value = report(PageKind::Huge2M, 9).json();
        assert_eq!(value["model"], "toy");
        assert_eq!(value["page_bytes"], 2 << 20);
        assert_eq!(
            value["regions"],
            json!([{"name": "weights", "bytes": 10 << 20, "pages": 5}, {"name": "kv", "bytes": 1, "pages": 1}])
        );
        assert_eq!((&value["total_bytes"], &value["total_pages"]), (&json!(12 << 20), &json!(6)));
        assert_eq!(value["pool"], json!({"page_bytes": 2 << 20, "total": 9, "free": 9, "reserved": 1}));
        assert_eq!(
            value["hvo"],
            json!({"available": true, "enabled": false, "saved_bytes": 6 * (28 << 10), "given_back_bytes": 5 << 20})
        );
        assert_eq!(value["memory_available_bytes"], 32_u64 << 30);
        assert_eq!((&value["fits"], &value["short_bytes"]), (&json!(true), &json!(0)));
    }

    #[test]
    fn states_and_checkpoints_have_lines_where_there_are_any() {
        let mut report = report(PageKind::Huge2M, 9);
        assert!(!report.table().contains("states") && report.json().get("states").is_none());
        report.models[0].states = Some(States { bytes: 3 << 10, slots: 2, checkpoints: 100 });
        let table = report.table();
        for part in [
            "  state, each                  3.0 KiB\n",
            "  states of slots: 2           6.0 KiB\n",
            "  checkpoints: 100           300.0 KiB\n",
        ] {
            assert!(table.contains(part), "{part:?} not in\n{table}");
        }
        let states = json!({"bytes_each": 3072, "slots": 2, "slots_bytes": 6144, "checkpoints": 100,
            "checkpoints_bytes": 307_200});
        assert_eq!(report.json()["states"], states);
    }

    #[test]
    fn a_short_pool_is_said_with_its_remedy_and_is_exit_5() {
        let report = report(PageKind::Huge2M, 5);
        let value = report.json();
        assert_eq!((&value["fits"], &value["short_bytes"]), (&json!(false), &json!(4 << 20)));
        let table = report.table();
        for part in ["does not fit: short by 4.0 MiB", "sysctl -w vm.nr_hugepages=11", "5 free of 9, 1 reserved"] {
            assert!(table.contains(part), "{part:?} not in\n{table}");
        }
        assert_eq!(report.print(true).unwrap_err().exit(), crate::error::Exit::Memory);
    }

    #[cfg(feature = "serve")]
    #[test]
    fn what_was_mapped_stands_in_the_place_of_what_was_planned() {
        let report = report(PageKind::Huge2M, 5);
        let plan = report.plan.with_page(PageKind::Base4K).unwrap();
        let mapped = MappedPlan { plan, packing: Packing::default(), is_fallback: true };
        let value = report.mapped(&[&mapped]).unwrap().json();
        assert_eq!((&value["page_bytes"], &value["total_pages"]), (&json!(4096), &json!(2561)));
        assert_eq!(
            (&value["hugepages"], &value["fallback"], &value["fits"]),
            (&json!(false), &json!(true), &json!(true))
        );
    }

    #[test]
    fn without_huge_pages_it_says_what_they_would_take() {
        let table = report(PageKind::Base4K, 9).table();
        for part in ["pages of 4 KiB", "with --hugepages: 6 pages of 2 MiB", "\nfits", "layer 0-1, each", "layer 2  "] {
            assert!(table.contains(part), "{part:?} not in\n{table}");
        }
        let value = report(PageKind::Base4K, 9).json();
        assert_eq!((&value["total_pages"], &value["hvo"]["saved_bytes"]), (&json!(2561), &json!(0)));
        assert_eq!(value["with_hugepages"]["total_pages"], 6);
    }
}
