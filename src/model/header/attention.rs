//! The numbers of attention beyond those that every decoder has.

use super::Header;
use crate::model::config::{
    AttentionConfig, Config, HEAD_DIM_MAX, LatentConfig, LayerConfig, QueryTemperature, WIDTH_MAX,
};
use crate::model::error::{ModelError, range};
use crate::model::rope::Rope;
use crate::quant::PANEL_ROWS;

impl Header<'_, '_> {
    /// The latent attention of every layer, of a decoder whose attention was read as if it had none.
    pub(in crate::model) fn latent(&self, config: &Config) -> Result<LatentConfig, ModelError> {
        let plain = config.layers[0].attention().expect("Header::decoder gives every layer attention");
        if config.attentions().any(|attention| attention != plain) {
            return self.unsupported("attention.head_count", "numbers that differ from layer to layer".to_owned());
        }
        let kv_rank = self.number("attention.kv_lora_rank", HEAD_DIM_MAX)?;
        let q_rank = self.count("attention.q_lora_rank", WIDTH_MAX)?;
        // Files whose maps are not split give the sizes of heads, others those of what is kept of a position.
        let key_dim = self.optional("attention.key_length_mla", plain.key_dim, HEAD_DIM_MAX)?;
        let value_dim = self.optional("attention.value_length_mla", plain.value_dim, HEAD_DIM_MAX)?;
        let (rope_dim, n_heads) = (config.ropes[0].dim, plain.n_heads);
        if key_dim <= rope_dim {
            let need = format!("more than the {rope_dim} values of a head that are rotated");
            return range("attention.key_length_mla", key_dim, need);
        }
        for (what, found) in [("attention.kv_lora_rank", kv_rank), ("rope.dimension_count", rope_dim)] {
            if !found.is_multiple_of(PANEL_ROWS) || kv_rank + rope_dim > HEAD_DIM_MAX {
                let need = format!("a multiple of {PANEL_ROWS}, both together at most {HEAD_DIM_MAX}");
                return range(what, found, need);
            }
        }
        if n_heads * (kv_rank + rope_dim).max(key_dim).max(value_dim) > WIDTH_MAX {
            return range("attention.head_count", n_heads, format!("heads of at most {WIDTH_MAX} values together"));
        }
        let (plain_dim, scale) = (key_dim - rope_dim, (key_dim as f32).sqrt().recip());
        Ok(LatentConfig { n_heads, q_rank, kv_rank, plain_dim, rope_dim, value_dim, scale, temperature: None })
    }

    /// What scores of latent attention are multiplied by where contexts are stretched by YaRN. Files have a tenth of the
    /// strength of that; `length` is what they mean cosines and sines to be multiplied by then.
    pub(in crate::model) fn latent_stretch(
        &self,
        rope: &mut Rope,
        length: impl FnOnce(&Rope, f32) -> f32,
    ) -> Result<f32, ModelError> {
        let strength = 10.0 * self.float("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
        if rope.yarn.is_none() && rope.scale != 1.0 {
            return self.unsupported("rope.scaling.factor", format!("{} without YaRN", rope.scale));
        }
        if rope.yarn.is_some() && strength != 0.0 {
            rope.magnitude = self.float("rope.scaling.attn_factor")?.unwrap_or(1.0) * length(rope, strength);
        }
        Ok((rope.magnitude * rope.length(strength)).powi(2))
    }

    /// Lets the last layers, as many as the file says, read the keys and values of those before them: of the last of these
    /// without a window, or of the one before it, which has one.
    pub(in crate::model) fn share_kv(&self, config: &mut Config) -> Result<(), ModelError> {
        let key = "attention.shared_kv_layers";
        let first = config.n_layers() - self.count(key, config.n_layers() - 1)?;
        for layer in first..config.n_layers() {
            let Some(own) = config.layers[layer].attention().copied() else { continue };
            let behind = if own.window.is_some() { 2 } else { 1 };
            let of = first.checked_sub(behind).and_then(|of| Some((of, config.layers[of].attention()?)));
            let kind = |attn: &AttentionConfig| (attn.window, attn.n_kv_heads, attn.key_dim, attn.value_dim);
            match of.filter(|(_, attn)| kind(attn) == kind(&own)) {
                Some((of, _)) => config.layers[layer].attention_mut().expect("it has attention").kv_of = Some(of),
                None => {
                    let found =
                        format!("{} where layer {layer} is unlike that {behind} before", config.n_layers() - first);
                    return self.unsupported(key, found);
                }
            }
        }
        Ok(())
    }

    /// The factor of dot products of queries and keys, if the file has one of its own.
    pub(in crate::model) fn set_attention_scale(&self, config: &mut Config) -> Result<(), ModelError> {
        if let Some(scale) = self.positive("attention.scale")? {
            config
                .layers
                .iter_mut()
                .filter_map(LayerConfig::attention_mut)
                .for_each(|attention| attention.scale = scale);
        }
        Ok(())
    }

    /// Refuses sections of the rotated pairs, in turn of time, height and width, that leave out a pair: it would not be
    /// rotated. Where none is left out, text, whose three positions are the same, is rotated as if there were none.
    pub(in crate::model) fn check_interleaved_sections(&self, n_pairs: usize) -> Result<(), ModelError> {
        let suffix = "rope.dimension_sections";
        let sections: Vec<i32> = self.meta.i32s(&self.key(suffix))?.into_iter().flat_map(|n| n.iter()).collect();
        let pairs_of = |axis: usize| sections.get(axis).map_or(0, |&n| usize::try_from(n).unwrap_or(0));
        let covers = |pair: usize| pair < 3 * pairs_of(pair % 3);
        match (0..n_pairs).all(covers) || sections.iter().all(|&n| n == 0) {
            true => Ok(()),
            false => self.unsupported(suffix, format!("{sections:?} for {n_pairs} pairs")),
        }
    }

    /// The scale of queries by position, if the file has one.
    pub(in crate::model) fn query_temperature(&self, length: usize) -> Result<Option<QueryTemperature>, ModelError> {
        let length = self.optional("attention.temperature_length", length, 1 << 30)?;
        let beta = self.positive("attention.temperature_scale")?;
        Ok(beta.map(|beta| QueryTemperature { beta, length, offset: 0 }))
    }

    /// Refuses YaRN where layers with a window have a rotation of their own: what its magnitude would be there is not known.
    pub(in crate::model) fn refuse_yarn(&self, config: &Config) -> Result<(), ModelError> {
        match config.ropes[0].yarn {
            None => Ok(()),
            Some(_) => self.unsupported("rope.scaling.type", "yarn".to_owned()),
        }
    }
}
