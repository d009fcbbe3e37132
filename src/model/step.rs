//! The operations an architecture file is written in.
//!
//! Work on rows, except activations, runs on the calling thread if the rows are few; everything else is handed to the team,
//! one barrier per operation. A pass is in [`pass`], the residual stream in [`stream`], heads in [`heads`] and
//! [`attend`], latent attention in [`latent`], convolutions in [`conv`], the delta rule in [`delta`], state spaces in [`mamba`] and [`mamba2`], what they
//! share in [`recurrent`], feed-forward parts in [`feed_forward`], [`experts`] and [`apart`], embeddings of single layers in
//! [`per_layer`], what becomes of the pooled vectors of texts in [`pooled`], products in [`product`]; the
//! memory of it all in [`buffers`].

mod activations;
mod apart;
mod attend;
mod buffers;
mod carver;
mod conv;
mod delta;
mod experts;
mod feed_forward;
mod heads;
mod latent;
mod lists;
mod mamba;
mod mamba2;
mod partials;
mod pass;
mod per_layer;
mod pooled;
mod product;
mod recurrent;
mod rotation;
mod routing;
mod rows;
mod stream;

pub use crate::kernels::Activation;
pub use crate::model::config::Pairing;
pub use buffers::{Buffers, scratch_bytes};
pub use pass::{ForwardPass, OutputRows};
