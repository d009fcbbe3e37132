//! A tiny model with a vocabulary as large as those of today.

use crate::gguf::Gguf;

/// Tokens of the vocabularies of Qwen.
pub const N_TOKENS: usize = 151_936;

/// The last tokens, which no merge makes.
const NAMED: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The texts of bytes, as GPT-2 writes them: those that are not letters take the characters from 256 on.
fn bytes() -> Vec<String> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut further = 255;
    let mut shown = |byte: u32| {
        if printable(byte) {
            return byte;
        }
        further += 1;
        further
    };
    (0..256u32).map(|byte| char::from_u32(shown(byte)).unwrap().to_string()).collect()
}

/// All tokens, and the merges that all but bytes and the last come of.
fn tokens_and_merges() -> (Vec<String>, Vec<String>) {
    let mut tokens = bytes();
    let mut merges: Vec<String> = Vec::new();
    let mut join = |left: &str, right: &str, tokens: &mut Vec<String>| {
        merges.push(format!("{left} {right}"));
        tokens.push(format!("{left}{right}"));
    };
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let all_pairs = |lefts: &[String], rights: &[String]| -> Vec<(String, String)> {
        lefts.iter().flat_map(|l| rights.iter().map(move |r| (l.clone(), r.clone()))).collect()
    };
    // Pairs of letters, the same after a blank, then four letters, seven with the blank, eight; never one text by two ways.
    let mut level = |candidates: Vec<(String, String)>, n: usize, tokens: &mut Vec<String>| -> Vec<String> {
        let step = (candidates.len() / n).max(1);
        let chosen: Vec<_> = candidates.into_iter().step_by(step).take(n).collect();
        chosen.iter().for_each(|(left, right)| join(left, right, tokens));
        chosen.iter().map(|(left, right)| format!("{left}{right}")).collect()
    };
    let pairs = level(all_pairs(&letters, &letters), 676, &mut tokens);
    let blank = level(all_pairs(&["Ġ".to_owned()], &letters), 26, &mut tokens);
    let words = level(all_pairs(&blank, &letters), 676, &mut tokens);
    let quads = level(all_pairs(&pairs, &pairs), 50_000, &mut tokens);
    level(all_pairs(&words[..120], &quads[..700]), 70_000, &mut tokens);
    let left = N_TOKENS - NAMED.len() - tokens.len();
    level(all_pairs(&quads[..200], &quads[..200]), left, &mut tokens);
    tokens.extend(NAMED.map(str::to_owned));
    assert_eq!(tokens.len(), N_TOKENS);
    (tokens, merges)
}

/// The file: one layer of 32 columns; every token but bytes comes of a merge.
pub fn model() -> Vec<u8> {
    let (tokens, merges) = tokens_and_merges();
    let n_text = N_TOKENS - NAMED.len();
    let kinds: Vec<i32> = (0..N_TOKENS).map(|id| if id < n_text { 1 } else { 3 }).collect();
    let strings = |values: &[String]| values.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let (tokens, merges) = (strings(&tokens), strings(&merges));

    let mut random = 1u32;
    let mut weights = |rows: usize, cols: usize| -> Vec<u8> {
        let mut block = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 24) as u8
        };
        // Q8_0: a scale of 2^-7 in f16, then 32 bytes.
        (0..rows * cols / 32).flat_map(|_| [0x00, 0x20].into_iter().chain([0; 32].map(|_| block()))).collect()
    };
    let ones: Vec<u8> = [1f32; 32].iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut file = Gguf::new()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 1024)
        .u32("llama.embedding_length", 32)
        .u32("llama.feed_forward_length", 64)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "qwen2")
        .strings("tokenizer.ggml.tokens", &tokens.split('\n').collect::<Vec<_>>())
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strings("tokenizer.ggml.merges", &merges.split('\n').collect::<Vec<_>>())
        .u32("tokenizer.ggml.eos_token_id", N_TOKENS as u32 - 1)
        .str("tokenizer.chat_template", TEMPLATE)
        .tensor("token_embd.weight", &[32, N_TOKENS as u64], 8, &weights(N_TOKENS, 32))
        .tensor("output_norm.weight", &[32], 0, &ones)
        .tensor("blk.0.attn_norm.weight", &[32], 0, &ones)
        .tensor("blk.0.ffn_norm.weight", &[32], 0, &ones);
    for (name, rows, cols) in [
        ("attn_q", 32, 32),
        ("attn_k", 16, 32),
        ("attn_v", 16, 32),
        ("attn_output", 32, 32),
        ("ffn_gate", 64, 32),
        ("ffn_up", 64, 32),
        ("ffn_down", 32, 64),
    ] {
        let name = format!("blk.0.{name}.weight");
        file = file.tensor(&name, &[cols as u64, rows as u64], 8, &weights(rows, cols));
    }
    file.build()
}
