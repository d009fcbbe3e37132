//! Apertus (arXiv:2509.14233): Qwen3's attention, and a feed-forward part without a gate whose activation (xIELU,
//! arXiv:2411.13010) has numbers of its own in every layer.

use super::{decoder, qwen3};
use crate::kernels::Xielu;
use crate::model::architecture::Architecture;
use crate::model::config::Config;
use crate::model::error::{ModelError, range};
use crate::model::header::Header;
use crate::model::step::{Activation, ForwardPass, Pairing};
use crate::model::weights::Layer;

pub(super) const ARCHITECTURE: Architecture =
    Architecture { config, tensors: qwen3::tensors, ..Architecture::new("apertus", layer) };

fn config(header: &Header<'_, '_>) -> Result<Config, ModelError> {
    let mut config = header.decoder()?;
    (config.style.pairing, config.gated_ffn) = (Pairing::Halves, false);
    let [negative, positive, slope, most] =
        ["xielu.alpha_n", "xielu.alpha_p", "xielu.beta", "xielu.eps"].map(|key| header.signed_floats(key));
    let (negative, positive, slope, most) = (negative?, positive?, slope?, most?);
    // Values above 0 are taken to be beyond it as well.
    if let Some(most) = most.iter().find(|most| !(-1e-3..=0.0).contains(*most)) {
        return range("xielu.eps", most, "-0.001 to 0".to_owned());
    }
    let softplus = |x: f32| if x > 20.0 { x } else { x.exp().ln_1p() };
    let activation = |i: usize| Xielu {
        negative: slope[i] + softplus(negative[i]),
        positive: softplus(positive[i]),
        slope: slope[i],
        most: most[i],
    };
    config.activations = (0..config.n_layers()).map(|i| Activation::Xielu(activation(i))).collect();
    Ok(config)
}

/// One layer.
fn layer(pass: &mut ForwardPass<'_, '_>, index: usize, w: &Layer) {
    let mut style = pass.config.style;
    style.activation = pass.config.activations[index];
    decoder::layer_in(style, pass, index, w);
}
