//! One file for each architecture: its keys, its tensors, and its layer, which reads like the paper.
//!
//! A new one is a file with an `ARCHITECTURE`, and a line in [`ALL`]; `src/README.md` says how.

mod afmoe;
mod apertus;
mod arcee;
mod arctic;
mod baichuan;
mod bailingmoe;
mod bailingmoe2;
mod bert;
mod bitnet;
mod chatglm;
mod cohere2;
mod cohere2moe;
mod command_r;
mod dbrx;
mod deci;
mod decoder;
mod deepseek;
mod deepseek2;
mod dots1;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone;
mod exaone4;
mod exaone_moe;
mod falcon_h1;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod gemma_embedding;
mod glm4;
mod glm4moe;
mod gpt_oss;
mod gpts;
mod granite;
mod granite_swa;
mod hunyuan_dense;
mod hunyuan_moe;
mod hy_v3;
mod internlm2;
mod laguna;
mod lfm2;
mod lfm2moe;
mod llama;
mod llama4;
mod maincoder;
mod mamba;
mod mamba2;
mod maple;
mod mellum;
mod mimo2;
mod minicpm;
mod minicpm3;
mod minimax_m2;
mod minimax_m3;
mod mistral3;
mod mistral4;
mod muse_glimmer;
mod nanbeige;
mod nemotron;
mod nemotron_h;
mod olmo;
mod olmo2;
mod olmoe;
mod openelm;
mod orion;
mod pangu_embedded;
mod phi3;
mod phimoe;
mod plamo;
mod plamo3;
mod plm;
mod qwen;
mod qwen2;
mod qwen2moe;
mod qwen2vl;
mod qwen3;
mod qwen35;
mod qwen35moe;
mod qwen3moe;
mod qwen3next;
mod qwen3vl;
mod qwen3vlmoe;
mod seed_oss;
mod smallthinker;
mod smollm3;
mod spark2_5;
mod stablelm;
mod step35;
mod xverse;

use crate::gguf::Metadata;
use crate::model::architecture::Architecture;
use crate::model::cache::check_windows;
use crate::model::config::{Config, FfnConfig, WIDTH_MAX};
use crate::model::error::{Fault, ModelError};
use crate::model::header::Header;
use crate::model::known::Known;

/// All architectures.
const ALL: &[&Architecture] = &[
    &llama::ARCHITECTURE,
    &qwen2::ARCHITECTURE,
    &qwen3::ARCHITECTURE,
    &qwen3moe::ARCHITECTURE,
    &minimax_m2::ARCHITECTURE,
    &gpt_oss::ARCHITECTURE,
    &glm4moe::ARCHITECTURE,
    &gemma3::ARCHITECTURE,
    &phi3::ARCHITECTURE,
    &lfm2::ARCHITECTURE,
    &mistral3::ARCHITECTURE,
    &smollm3::ARCHITECTURE,
    &seed_oss::ARCHITECTURE,
    &olmo2::ARCHITECTURE,
    &glm4::ARCHITECTURE,
    &openelm::ARCHITECTURE,
    &deci::ARCHITECTURE,
    &qwen35::ARCHITECTURE,
    &qwen35moe::ARCHITECTURE,
    &qwen3next::ARCHITECTURE,
    &gpts::GPT2,
    &gpts::STARCODER,
    &gpts::STARCODER2,
    &gpts::CODESHELL,
    &gpts::GPTNEOX,
    &gpts::PHI2,
    &gpts::FALCON,
    &gpts::BLOOM,
    &gpts::MPT,
    &gpts::JAIS,
    &gpts::REFACT,
    &muse_glimmer::ARCHITECTURE,
    &laguna::ARCHITECTURE,
    &llama4::ARCHITECTURE,
    &mimo2::ARCHITECTURE,
    &step35::ARCHITECTURE,
    &exaone4::ARCHITECTURE,
    &exaone_moe::ARCHITECTURE,
    &cohere2::ARCHITECTURE,
    &cohere2moe::ARCHITECTURE,
    &command_r::ARCHITECTURE,
    &afmoe::ARCHITECTURE,
    &granite_swa::ARCHITECTURE,
    &maple::ARCHITECTURE,
    &mellum::ARCHITECTURE,
    &spark2_5::ARCHITECTURE,
    &qwen2moe::ARCHITECTURE,
    &qwen2vl::ARCHITECTURE,
    &qwen3vl::ARCHITECTURE,
    &qwen3vlmoe::ARCHITECTURE,
    &ernie4_5::ARCHITECTURE,
    &ernie4_5_moe::ARCHITECTURE,
    &dots1::ARCHITECTURE,
    &hunyuan_dense::ARCHITECTURE,
    &hunyuan_moe::ARCHITECTURE,
    &hy_v3::ARCHITECTURE,
    &bailingmoe::ARCHITECTURE,
    &bailingmoe2::ARCHITECTURE,
    &olmoe::ARCHITECTURE,
    &deepseek::ARCHITECTURE,
    &dbrx::ARCHITECTURE,
    &smallthinker::ARCHITECTURE,
    &minimax_m3::ARCHITECTURE,
    &granite::ARCHITECTURE,
    &granite::WITH_EXPERTS,
    &phimoe::ARCHITECTURE,
    &arctic::ARCHITECTURE,
    &arcee::ARCHITECTURE,
    &baichuan::ARCHITECTURE,
    &chatglm::ARCHITECTURE,
    &exaone::ARCHITECTURE,
    &internlm2::ARCHITECTURE,
    &minicpm::ARCHITECTURE,
    &nanbeige::ARCHITECTURE,
    &nemotron::ARCHITECTURE,
    &nemotron::JAIS2,
    &orion::ARCHITECTURE,
    &pangu_embedded::ARCHITECTURE,
    &plamo::ARCHITECTURE,
    &plamo3::ARCHITECTURE,
    &qwen::ARCHITECTURE,
    &apertus::ARCHITECTURE,
    &bitnet::ARCHITECTURE,
    &maincoder::ARCHITECTURE,
    &olmo::ARCHITECTURE,
    &stablelm::ARCHITECTURE,
    &xverse::ARCHITECTURE,
    &gemma::ARCHITECTURE,
    &gemma2::ARCHITECTURE,
    &gemma4::ARCHITECTURE,
    &mamba::MAMBA,
    &mamba::JAMBA,
    &mamba2::ARCHITECTURE,
    &nemotron_h::DENSE,
    &nemotron_h::WITH_EXPERTS,
    &granite::HYBRID,
    &falcon_h1::ARCHITECTURE,
    &lfm2moe::ARCHITECTURE,
    &deepseek2::ARCHITECTURE,
    &mistral4::ARCHITECTURE,
    &minicpm3::ARCHITECTURE,
    &plm::ARCHITECTURE,
    &llama::EMBED,
    &bert::BERT,
    &bert::NOMIC_BERT,
    &gemma_embedding::ARCHITECTURE,
];

impl Architecture {
    /// All architectures.
    pub fn all() -> impl Iterator<Item = &'static Architecture> {
        ALL.iter().copied()
    }

    /// That of a header.
    ///
    /// # Errors
    /// One that is not there.
    pub(super) fn of(meta: &Metadata<'_>) -> Result<&'static Architecture, ModelError> {
        let name = meta.required_str("general.architecture")?;
        Architecture::all()
            .find(|architecture| architecture.name == name)
            .ok_or_else(|| Fault::Arch { name: name.chars().take(64).collect(), known: Known::of(name) }.into())
    }

    /// Reads and checks the numbers of a header.
    ///
    /// # Errors
    /// The first number that is missing, out of range, or asks for a feature that is not there.
    pub(super) fn read(&self, meta: &Metadata<'_>) -> Result<Config, ModelError> {
        let header = Header::open(meta, self.name)?;
        let mut config = (self.config)(&header)?;
        config.norm_eps = header.norm_eps(config.norm)?;
        let suppressed = meta.i32s("tokenizer.ggml.suppress_tokens")?.into_iter().flat_map(|ids| ids.iter());
        config.suppressed = suppressed.filter_map(|id| u32::try_from(id).ok()).collect();
        header.read_vectors(&mut config)?;
        header.refuse_unread()?;
        header.refuse_numbers_of_windows(&config)?;
        check_windows(&config)?;
        if config.layers.iter().any(|layer| layer.ffn == FfnConfig::Dense { n_ff: 0 }) {
            header.number("feed_forward_length", WIDTH_MAX)?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_is_known_and_what_does_not_run_says_why() {
        for architecture in ALL {
            let known = Known::of(architecture.name);
            assert!(known.is_some_and(Known::runs), "{} runs, and the list does not say so", architecture.name);
        }
        for (i, known) in Known::all().iter().enumerate() {
            let name = known.name;
            assert!(Known::all()[..i].iter().all(|other| other.name != name), "{name} is listed twice");
            assert_eq!(known.runs(), ALL.iter().any(|architecture| architecture.name == name), "{name}");
            let nearest = known.nearest;
            assert!(nearest.is_empty() || Known::of(nearest).is_some_and(Known::runs), "{nearest} does not run");
        }
    }
}
