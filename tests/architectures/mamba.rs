//! Headers of state spaces and their hybrids, and of Granite.

use brim::kernels::Activation;
use brim::model::config::{Experts, FfnConfig, Gating, Mamba2Config, MambaConfig, MixerConfig, Pairing};

use super::writer::Gguf;
use super::{U32, attention, config, experts, header, refused, with_eps, words};

const MAMBA: Mamba2Config = Mamba2Config { n_heads: 6, head_dim: 16, n_groups: 2, state_dim: 32, taps: 4 };

/// A header with the keys of [`MAMBA`], with `changed` instead of what it usually has.
pub(super) fn with_mamba(arch: &str, changed: &[(&str, u32)]) -> Gguf {
    let usual = [
        ("ssm.conv_kernel", 4),
        ("ssm.inner_size", 6 * 16),
        ("ssm.state_size", 32),
        ("ssm.time_step_rank", 6),
        ("ssm.group_count", 2),
    ];
    let kept = usual.into_iter().filter(|(key, _)| !changed.iter().any(|(changed, _)| changed == key));
    let keys = kept.chain(changed.iter().copied());
    keys.fold(base(arch), |file, (key, value)| file.u32(&format!("{arch}.{key}"), value))
}

/// A header of six layers: hybrids say by arrays which are what.
fn base(arch: &str) -> Gguf {
    let file = Gguf::new().str("general.architecture", arch).u32(&format!("{arch}.block_count"), 6);
    let file = with_eps(file, arch);
    let file = file.u32(&format!("{arch}.embedding_length"), 32).u32(&format!("{arch}.attention.head_count"), 4);
    let file = file.array(&format!("{arch}.attention.head_count_kv"), U32, 6, &words(&[0, 0, 2, 0, 0, 0]));
    let key = format!("{arch}.feed_forward_length");
    match arch.starts_with("nemotron") {
        true => file.array(&key, U32, 6, &words(&[0, 24, 0, 0, 24, 0])),
        false => file.u32(&key, 24),
    }
}

#[test]
fn a_mamba2_has_state_spaces_alone_whose_sizes_fit() {
    let mamba2 = config(with_mamba("mamba2", &[])).unwrap();
    assert!(
        mamba2.layers.iter().all(|layer| layer.mixer == MixerConfig::Mamba2(MAMBA) && layer.ffn == FfnConfig::None)
    );
    assert_eq!(
        (MAMBA.inner(), MAMBA.conv_width(), MAMBA.conv_state_len(), MAMBA.ssm_state_len()),
        (96, 224, 672, 3072)
    );
    let is_refused = |key: &str, value: u32, parts: &[&str]| refused(with_mamba("mamba2", &[(key, value)]), parts);
    is_refused("ssm.inner_size", 95, &["ssm.inner_size is 95", "6, times a multiple of 16"]);
    is_refused("ssm.inner_size", 6 * 24, &["ssm.inner_size is 144"]);
    is_refused("ssm.time_step_rank", 0, &["ssm.time_step_rank is 0"]);
    is_refused("ssm.group_count", 4, &["ssm.time_step_rank is 6", "a multiple of ssm.group_count, 4"]);
    is_refused("ssm.state_size", 24, &["ssm.state_size is 24", "a multiple of 16"]);
    is_refused("ssm.state_size", 2048, &["ssm.state_size is 2048", "1 to 1024"]);
    is_refused("ssm.conv_kernel", 1, &["ssm.conv_kernel is 1", "2 to 16"]);
    is_refused("ssm.conv_kernel", 17, &["ssm.conv_kernel is 17"]);
    refused(base("mamba2"), &["mamba2.ssm.inner_size"]);
    // No head at all, in a stream that is wider than a head may be.
    let headless = Gguf::new().str("general.architecture", "mamba2").u32("mamba2.block_count", 2);
    let headless = headless.u32("mamba2.embedding_length", 2048).u32("mamba2.attention.head_count", 0);
    let headless = headless.u32("mamba2.ssm.conv_kernel", 4).u32("mamba2.ssm.inner_size", 4096);
    let headless = headless.u32("mamba2.ssm.state_size", 128).u32("mamba2.ssm.time_step_rank", 64);
    config(with_eps(headless.u32("mamba2.ssm.group_count", 1), "mamba2")).unwrap();
}

#[test]
fn a_mamba_has_rates_for_every_channel_and_jamba_experts_where_it_has_a_router() {
    let of = |arch: &str, inner: u32, rank: u32| {
        let keys = [("conv_kernel", 4), ("inner_size", inner), ("state_size", 16), ("time_step_rank", rank)];
        keys.iter().fold(base(arch), |file, (key, value)| file.u32(&format!("{arch}.ssm.{key}"), *value))
    };
    let plain = MambaConfig { inner: 64, state_dim: 16, dt_rank: 2, taps: 4, normed: false };
    assert_eq!((plain.selection_width(), plain.conv_state_len(), plain.ssm_state_len()), (34, 192, 1024));
    let mamba = config(of("mamba", 64, 2)).unwrap();
    assert!(mamba.layers.iter().all(|layer| layer.mixer == MixerConfig::Mamba(plain) && layer.ffn == FfnConfig::None));
    let falcon = config(of("mamba", 64, 2).bool("mamba.ssm.dt_b_c_rms", true)).unwrap();
    assert_eq!(falcon.layers[0].mixer, MixerConfig::Mamba(MambaConfig { normed: true, ..plain }));
    refused(of("mamba", 72, 2), &["ssm.inner_size is 72", "a multiple of 16"]);
    refused(of("mamba", 64, 65), &["ssm.time_step_rank is 65", "1 to 64"]);
    let keys = |n| of("jamba", 64, 2).u32("jamba.expert_count", n).u32("jamba.expert_used_count", 2);
    let jamba = config(keys(4)).unwrap();
    assert_eq!((jamba.layers[0].mixer, attention(&jamba, 2).rope), (MixerConfig::Mamba(plain), None));
    let moe = experts(&jamba, 1);
    assert_eq!((moe.n_ff, moe.gating, moe.normalised), (24, Gating::Softmax, false));
    assert_eq!(jamba.layers[1].ffn, FfnConfig::ExpertsIfRouted(moe));
    assert_eq!(config(keys(0)).unwrap().layers[1].ffn, FfnConfig::Dense { n_ff: 24 });
}

#[test]
fn layers_of_nemotron_h_are_one_of_three() {
    let nemotron = config(with_mamba("nemotron_h", &[])).unwrap();
    for (i, layer) in nemotron.layers.iter().enumerate() {
        match i {
            2 => assert_eq!((layer.attention().unwrap().rope, layer.ffn), (None, FfnConfig::None)),
            1 | 4 => assert_eq!((layer.mixer, layer.ffn), (MixerConfig::None, FfnConfig::Dense { n_ff: 24 })),
            _ => assert_eq!((layer.mixer, layer.ffn), (MixerConfig::Mamba2(MAMBA), FfnConfig::None)),
        }
    }
    assert_eq!((nemotron.gated_ffn, nemotron.style.activation), (false, Activation::ReluSquared));
    let arch = "nemotron_h_moe";
    let of = |keys: &[(&str, u32)]| {
        let file = with_mamba(arch, &[]).u32(&format!("{arch}.expert_count"), 8);
        keys.iter().fold(file, |file, (key, value)| file.u32(&format!("{arch}.{key}"), *value))
    };
    let plain = [("expert_used_count", 3), ("expert_feed_forward_length", 20)];
    let shared = ("expert_shared_feed_forward_length", 40);
    let moe = config(of(&[plain[0], plain[1], shared])).unwrap();
    let Experts { count, used, n_ff, n_ff_shared, gating, latent, .. } = experts(&moe, 4);
    assert_eq!((count, used, n_ff, n_ff_shared, gating, latent), (8, 3, 20, 40, Gating::Sigmoid, None));
    let narrow = config(of(&[plain[0], plain[1], shared, ("moe_latent_size", 16)])).unwrap();
    assert_eq!((experts(&narrow, 1).latent, experts(&narrow, 1).width(32)), (Some(16), 16));
    // Without a width of their own experts share that of the layer.
    assert_eq!(experts(&config(of(&plain[..1])).unwrap(), 1).n_ff, 8);
    refused(of(&[]), &["expert_used_count is 0", "1 to 8"]);
    refused(of(&[("expert_used_count", 9)]), &["expert_used_count is 9", "1 to 8"]);
    // Pruned: other experts in every layer.
    let array = |file: Gguf, key: &str, values: [u32; 6]| file.array(&format!("{arch}.{key}"), U32, 6, &words(&values));
    let pruned = array(of(&[]), "expert_used_count", [0, 3, 0, 0, 2, 0]);
    let pruned = config(array(pruned, "expert_feed_forward_length", [0, 20, 0, 0, 12, 0])).unwrap();
    let [first, second] = [1, 4].map(|layer| experts(&pruned, layer));
    assert_eq!((first.used, first.n_ff, second.used, second.n_ff), (3, 20, 2, 12));
    refused(header("llama").u32("llama.moe_latent_size", 16), &["moe_latent_size` = 16"]);
}

#[test]
fn granite_has_factors_everywhere_and_state_spaces_where_it_has_no_heads() {
    for arch in ["granite", "granitemoe", "granitehybrid"] {
        let file = || if arch == "granitehybrid" { with_mamba(arch, &[]) } else { header(arch) };
        let scaled = file().f32(&format!("{arch}.embedding_scale"), 12.0).f32(&format!("{arch}.residual_scale"), 0.25);
        let scaled = scaled.f32(&format!("{arch}.logit_scale"), 8.0).f32(&format!("{arch}.attention.scale"), 0.0625);
        let granite = config(scaled).unwrap();
        assert_eq!((granite.embedding_scale, granite.residual_scale, granite.logit_scale), (12.0, 0.25, 0.125));
        let of_attention = attention(&granite, 2);
        assert_eq!((of_attention.scale, of_attention.rope), (0.0625, Some(0)), "{arch}");
        let unrotated = config(file().bool(&format!("{arch}.rope.scaling.finetuned"), false)).unwrap();
        assert_eq!(attention(&unrotated, 2).rope, None);
        let state_spaces = granite.layers.iter().filter(|layer| layer.mixer == MixerConfig::Mamba2(MAMBA)).count();
        assert_eq!(state_spaces, if arch == "granitehybrid" { 5 } else { 0 });
    }
    let moe = header("granitemoe").u32("granitemoe.expert_count", 8).u32("granitemoe.expert_used_count", 2);
    let moe = experts(&config(moe.u32("granitemoe.expert_shared_feed_forward_length", 20)).unwrap(), 3);
    assert_eq!((moe.n_ff, moe.n_ff_shared, moe.gating, moe.normalised), (48, 20, Gating::Softmax, true));
}

#[test]
fn falcon_h1_has_attention_and_a_state_space_in_every_layer() {
    let keys = [("conv_kernel", 4), ("inner_size", 96), ("state_size", 32), ("time_step_rank", 6), ("group_count", 2)];
    let file =
        keys.iter().fold(header("falcon-h1"), |file, (key, value)| file.u32(&format!("falcon-h1.ssm.{key}"), *value));
    let falcon = config(file).unwrap();
    for layer in 0..12 {
        let expected = MixerConfig::AttentionAndMamba2(attention(&falcon, layer), MAMBA);
        assert_eq!(falcon.layers[layer].mixer, expected);
    }
    assert_eq!(falcon.style.pairing, Pairing::Halves);
}

#[test]
fn lfm2moe_has_experts_behind_its_dense_layers() {
    let file = header("lfm2moe").u32("lfm2moe.shortconv.l_cache", 3).u32("lfm2moe.expert_count", 8);
    let file = file.u32("lfm2moe.expert_used_count", 2).u32("lfm2moe.expert_feed_forward_length", 20);
    let lfm2 = config(file.u32("lfm2moe.leading_dense_block_count", 2).u32("lfm2moe.expert_gating_func", 2)).unwrap();
    assert_eq!(lfm2.layers[1].ffn, FfnConfig::Dense { n_ff: 48 });
    let moe = experts(&lfm2, 2);
    assert_eq!((moe.count, moe.n_ff, moe.gating, moe.normalised), (8, 20, Gating::Sigmoid, true));
}
