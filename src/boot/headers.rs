//! Chapter 1: what the files hold. Headers are read, nothing else.

use crate::board;
use crate::error::{Error, Exit, Result};
use crate::kernels::Kernels;
use crate::load::header::ModelFiles;
use crate::load::resident::Manifest;
use crate::memory::PageKind;
use crate::model::weights::Placement;
use crate::model::{Embedding, Form, Model};
use crate::settings::Settings;
use crate::tokenizer::{self, VocabSource};

/// A model whose headers have been read, before anything is planned.
pub struct Headers<'s> {
    /// The files.
    pub files: ModelFiles,
    /// What they hold.
    pub model: Model,
    /// The kernels it will run on.
    pub kernels: &'static Kernels,
    /// What it is started with.
    pub settings: &'s Settings,
    /// Bytes of the vocabulary's region.
    pub(super) vocab_bytes: u64,
}

/// Opens the model file, or the embedded demo model.
///
/// # Errors
/// Exit 4 with what is wrong with the file; exit 2 where there is neither.
pub fn open(model: Option<&str>) -> Result<ModelFiles> {
    match model {
        Some(path) => ModelFiles::open(path),
        #[cfg(feature = "demo")]
        None => ModelFiles::embedded("embedded demo model", super::DEMO),
        #[cfg(not(feature = "demo"))]
        None => Err(Error::usage("no model: give a file with -m; this build was made without the demo model")),
    }
}

impl<'s> Headers<'s> {
    /// Reads the headers of the model that `settings` name.
    ///
    /// # Errors
    /// What is wrong with the file (4), the board's checksums (3), the options (2) or the CPU (6).
    pub fn read(settings: &'s Settings) -> Result<Headers<'s>> {
        if settings.model.is_none() && !settings.board.serve.models.is_empty() {
            return Err(Error::usage(
                "no model: those in serve.models of the board are for `brim serve`; give a file with -m, or with path in \
                 [model] of the board",
            ));
        }
        let kernels = settings.kernels()?;
        let files = open(settings.model.as_deref())?;
        let digests = settings.sha256.len();
        if digests > 0 && digests != files.len() {
            let n = files.len();
            let text = format!("model.sha256 of the board file has {digests} checksums, the model {n} files");
            return Err(Error::new(Exit::Board, text));
        }
        let embedding = match settings.board.memory.embedding {
            board::EmbeddingPlace::Memory => Embedding::InMemory,
            board::EmbeddingPlace::Disk => Embedding::InFile,
        };
        let model = Model::with_embedding(&files.metadata(), files.tensors(), embedding);
        let model = model.map_err(|e| Error::from(e).at(files.name()))?;
        if embedding == Embedding::InFile && model.weights.embedding.form != Form::File {
            log::warn!(
                "{}: the embedding table is also the output matrix, so it stays in memory despite memory.embedding = \"disk\"",
                files.name()
            );
        }
        for stray in tokenizer::stray_ids(&files.metadata()) {
            log::warn!("{}: {stray}", files.name());
        }
        let source = vocabulary(&files, settings)?;
        let vocab_bytes = tokenizer::region_bytes(&source).map_err(|e| Error::from(e).at(files.name()))?;
        Ok(Headers { files, model, kernels, settings, vocab_bytes })
    }

    /// Goes on with a model that makes text.
    ///
    /// # Errors
    /// Exit 2 for one that makes vectors, which `command` has no use for.
    pub fn of_text(self, command: &str) -> Result<Headers<'s>> {
        let Some(vectors) = self.model.config.vectors else { return Ok(self) };
        let route = if vectors.ranks() { "/v1/rerank" } else { "/v1/embeddings" };
        let name = self.files.name();
        Err(Error::usage(format!(
            "{command}: {name} makes vectors of texts, and no text: start it with `brim serve` and ask {route}"
        )))
    }

    /// Bytes that loading reads of the files.
    pub(super) fn file_bytes(&self) -> u64 {
        self.model.weights.placements.iter().map(Placement::file_bytes).sum()
    }

    /// What must be the same in a holder and in those who use its weights.
    pub(super) fn manifest(&self, page: PageKind) -> Manifest {
        let weights = &self.model.weights;
        let tier = self.kernels.tier().name();
        Manifest::new(&self.files, weights.layout_sha256(), tier, weights.bytes as u64, page.bytes())
    }
}

/// The vocabulary of `files`, as slices of their header.
pub(super) fn vocabulary<'f>(files: &'f ModelFiles, settings: &'f Settings) -> Result<VocabSource<'f>> {
    tokenizer::source_from(&files.metadata(), settings.pre.as_deref()).map_err(|e| e.at(files.name()))
}
