//! Every name of llama.cpp's list: what goes by it, and why it does not run where it does not.

/// What an architecture is known for.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// `general.architecture`.
    pub name: &'static str,
    /// Models that go by it.
    pub models: &'static str,
    /// What this version lacks for it; empty for what runs.
    pub lacks: &'static str,
    /// The architecture that runs and is most like it, if it does not run.
    pub nearest: &'static str,
}

impl Known {
    /// Whether this version runs it.
    pub fn runs(&self) -> bool {
        self.lacks.is_empty()
    }

    /// All of them, in the order of llama.cpp's list.
    pub fn all() -> &'static [Known] {
        KNOWN
    }

    /// That of a name.
    pub fn of(name: &str) -> Option<&'static Known> {
        KNOWN.iter().find(|known| known.name == name)
    }
}

const fn runs(name: &'static str, models: &'static str) -> Known {
    Known { name, models, lacks: "", nearest: "" }
}

const fn lacks(name: &'static str, models: &'static str, lacks: &'static str, nearest: &'static str) -> Known {
    Known { name, models, lacks, nearest }
}

const ENCODER: &str = "an encoder of another make than BERT's";
const NOT_TEXT: &str = "no language model";
const HELPER: &str = "a helper of another model that drafts tokens for it";
const DIFFUSION: &str = "text that is not written from left to right (diffusion)";
const TIME_MIX: &str = "RWKV's time mixing";
const KDA: &str = "a delta rule with a gate for each channel (KDA)";
/// Multi-head latent attention (arXiv:2405.04434).
const INDEXER: &str = "attention to tokens that an indexer chooses";

const KNOWN: &[Known] = &[
    lacks("clip", "vision and audio towers (mmproj)", NOT_TEXT, ""),
    runs("llama", "Llama 1 to 3, Mistral, Mixtral, SmolLM"),
    runs("llama4", "Llama 4 Scout and Maverick"),
    runs("deci", "Nemotron Super and Ultra 1.x"),
    runs("falcon", "Falcon 7B, 40B"),
    lacks("grok", "Grok 1 and 2", "a dense part and experts whose sum is scaled", "dbrx"),
    runs("gpt2", "GPT-2"),
    lacks("gptj", "GPT-J", "a loader, in llama.cpp as well", "gptneox"),
    runs("gptneox", "GPT-NeoX, Pythia, Dolly, RedPajama"),
    runs("mpt", "MPT"),
    runs("baichuan", "Baichuan 1 and 2"),
    runs("starcoder", "StarCoder, SantaCoder"),
    runs("refact", "Refact"),
    runs("bert", "BERT, BGE, MiniLM, E5: vectors and ranks"),
    lacks("modern-bert", "ModernBERT", ENCODER, ""),
    runs("nomic-bert", "Nomic Embed: vectors"),
    lacks("nomic-bert-moe", "Nomic Embed v2", ENCODER, ""),
    lacks("neo-bert", "NeoBERT", ENCODER, ""),
    lacks("jina-bert-v2", "Jina Embeddings v2", ENCODER, ""),
    lacks("jina-bert-v3", "Jina Embeddings v3", ENCODER, ""),
    lacks("eurobert", "EuroBERT", ENCODER, ""),
    runs("bloom", "BLOOM"),
    runs("stablelm", "StableLM"),
    runs("qwen", "Qwen 1"),
    runs("qwen2", "Qwen 1.5, 2 and 2.5"),
    runs("qwen2moe", "Qwen 1.5 MoE, Qwen2-57B-A14B"),
    runs("qwen2vl", "Qwen2-VL and 2.5-VL, text"),
    runs("qwen3", "Qwen3, Qwen3-Embedding and Qwen3-Reranker"),
    runs("qwen3moe", "Qwen3-30B-A3B, 235B-A22B, Qwen3-Coder"),
    runs("qwen3next", "Qwen3-Next, Qwen3-Coder-Next"),
    runs("qwen3vl", "Qwen3-VL, text"),
    runs("qwen3vlmoe", "Qwen3-VL with experts, text"),
    runs("qwen35", "Qwen3.5, 3.6 and 3.8, dense"),
    runs("qwen35moe", "Qwen3.5 and 3.6 with experts"),
    lacks("qwen4exp", "Qwen3.8-Flash-Next", "hyper-connections and hashed n-gram embeddings", "qwen35moe"),
    runs("phi2", "Phi-1 and Phi-2"),
    runs("phi3", "Phi-3 and Phi-4"),
    runs("phimoe", "Phi-3.5-MoE"),
    runs("plamo", "PLaMo 13B"),
    lacks("plamo2", "PLaMo 2", "Mamba layers with norms of their own", "jamba"),
    runs("plamo3", "PLaMo 3"),
    runs("codeshell", "CodeShell"),
    runs("orion", "Orion 14B"),
    runs("internlm2", "InternLM 2"),
    runs("minicpm", "MiniCPM 1 and 2"),
    runs("minicpm3", "MiniCPM 3"),
    runs("gemma", "Gemma 1, CodeGemma"),
    runs("gemma2", "Gemma 2"),
    runs("gemma3", "Gemma 3"),
    lacks("gemma3n", "Gemma 3n", "streams that predict each other (AltUp)", "gemma4"),
    runs("gemma4", "Gemma 4"),
    lacks("gemma4-assistant", "drafts for Gemma 4", HELPER, "gemma4"),
    runs("gemma-embedding", "EmbeddingGemma: vectors"),
    runs("starcoder2", "StarCoder 2"),
    runs("mamba", "Mamba, Falcon Mamba"),
    runs("mamba2", "Mamba 2, Codestral Mamba"),
    runs("maple", "Maple"),
    runs("jamba", "Jamba"),
    runs("falcon-h1", "Falcon H1"),
    runs("xverse", "XVERSE"),
    runs("command-r", "Command R"),
    runs("cohere2", "Command R7B, Command A"),
    runs("cohere2moe", "Cohere 2 with experts"),
    runs("dbrx", "DBRX"),
    runs("olmo", "OLMo 1"),
    runs("olmo2", "OLMo 2 and 3"),
    runs("olmoe", "OLMoE"),
    runs("muse-glimmer", "Muse Glimmer"),
    runs("openelm", "OpenELM"),
    runs("arctic", "Snowflake Arctic"),
    runs("deepseek", "DeepSeek 1, DeepSeekMoE"),
    runs("deepseek2", "DeepSeek V2, V3, R1, Kimi K2, GLM-4.7-Flash"),
    lacks("deepseek2-ocr", "DeepSeek-OCR", "images", "deepseek"),
    lacks("deepseek32", "DeepSeek V3.2", INDEXER, "deepseek2"),
    lacks("deepseek4", "DeepSeek V4", "compressed caches and hyper-connections", "deepseek2"),
    runs("chatglm", "ChatGLM 3, GLM-4 9B"),
    runs("glm4", "GLM-4-0414, Z1"),
    runs("glm4moe", "GLM-4.5, 4.6, 4.7"),
    lacks("glm-dsa", "GLM-5", INDEXER, "deepseek2"),
    runs("bitnet", "BitNet b1.58"),
    lacks("t5", "T5, Flan-T5", "an encoder beside the decoder", ""),
    lacks("t5encoder", "T5, encoder", ENCODER, ""),
    runs("jais", "Jais"),
    runs("jais2", "Jais 2"),
    runs("nemotron", "Nemotron 4, Minitron"),
    runs("nemotron_h", "Nemotron H, Nano 9B v2"),
    runs("nemotron_h_moe", "Nemotron 3 Nano and Super"),
    runs("exaone", "EXAONE 3"),
    runs("exaone4", "EXAONE 4"),
    runs("exaone-moe", "K-EXAONE"),
    lacks("rwkv6", "RWKV-6", TIME_MIX, "mamba2"),
    lacks("rwkv6qwen2", "QRWKV6", TIME_MIX, "qwen2"),
    lacks("rwkv7", "RWKV-7", TIME_MIX, "mamba2"),
    lacks("arwkv7", "ARWKV-7", TIME_MIX, "qwen2"),
    runs("granite", "Granite 3, dense"),
    runs("granitemoe", "Granite 3 with experts"),
    runs("granitehybrid", "Granite 4"),
    lacks("graniteswitch", "Granite Switch", "adapters that tokens switch", "granitehybrid"),
    runs("granite_swa", "Granite with windows"),
    lacks("chameleon", "Chameleon", "norms of Q and K for each head apart", "llama"),
    lacks("wavtokenizer-dec", "WavTokenizer", NOT_TEXT, ""),
    runs("plm", "PLM 1.8B"),
    runs("bailingmoe", "Ling 1"),
    runs("bailingmoe2", "Ling 2, Ring 2"),
    lacks("bailingmoe3", "Ling 3", KDA, "bailingmoe2"),
    runs("dots1", "dots.llm1"),
    lacks("dots3note", "dots 3", INDEXER, "dots1"),
    runs("arcee", "AFM 4.5B"),
    runs("afmoe", "Trinity"),
    runs("laguna", "Laguna"),
    runs("ernie4_5", "ERNIE 4.5, dense"),
    runs("ernie4_5-moe", "ERNIE 4.5 with experts"),
    runs("hunyuan-moe", "Hunyuan A13B"),
    runs("hunyuan-dense", "Hunyuan, dense"),
    lacks("hunyuan_vl", "HunyuanOCR", "images", "hunyuan-dense"),
    runs("hy_v3", "Hunyuan 3"),
    lacks("hy_v4", "Hunyuan 4", INDEXER, "hy_v3"),
    runs("smollm3", "SmolLM3"),
    runs("gpt-oss", "gpt-oss 20B, 120B"),
    runs("lfm2", "LFM2"),
    runs("lfm2moe", "LFM2 with experts"),
    lacks("dream", "Dream", DIFFUSION, "qwen2"),
    runs("smallthinker", "SmallThinker"),
    lacks("llada", "LLaDA", DIFFUSION, "llama"),
    lacks("llada-moe", "LLaDA with experts", DIFFUSION, "olmoe"),
    runs("seed_oss", "Seed-OSS"),
    lacks("grovemoe", "GroveMoE", "experts that some experts share", "qwen3moe"),
    runs("apertus", "Apertus"),
    lacks("minimax-01", "MiniMax-01, M1", "lightning attention", "minimax-m2"),
    lacks("hrm_text", "HRM Text", "layers that are run several times", "llama"),
    runs("minimax-m2", "MiniMax M2"),
    runs("minimax-m3", "MiniMax M3"),
    lacks("cogvlm", "CogVLM", "a second set of weights for images", "llama"),
    lacks("rnd1", "RND1", DIFFUSION, "qwen3moe"),
    runs("pangu-embedded", "openPangu Embedded"),
    runs("mistral3", "Ministral 3, Devstral 2"),
    lacks("eagle3", "EAGLE-3 heads", HELPER, ""),
    lacks("dflash", "DFlash drafts", HELPER, ""),
    runs("mistral4", "Mistral Small 4"),
    lacks("paddleocr", "PaddleOCR-VL", "images", "ernie4_5"),
    runs("mimo2", "MiMo V2"),
    runs("step35", "Step 3.5"),
    runs("spark2_5", "Spark 2.5"),
    runs("llama-embed", "Llama Embed Nemotron: vectors"),
    runs("maincoder", "Maincoder"),
    lacks("kimi-linear", "Kimi Linear", KDA, "deepseek2"),
    lacks("kimi-k3", "Kimi K3", KDA, "deepseek2"),
    lacks("glm5-next", "GLM-5.3-Flash", KDA, "deepseek2"),
    lacks("talkie", "Talkie", "gains of layers", "llama"),
    runs("mellum", "Mellum 2"),
    runs("nanbeige", "Nanbeige 4"),
    lacks("qwen3tts", "Qwen3-TTS", NOT_TEXT, ""),
    lacks("pockettts", "Pocket TTS", NOT_TEXT, ""),
];
