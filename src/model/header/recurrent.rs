//! The numbers of layers that keep a state.

use super::Header;
use crate::kernels::STATE_STEP;
use crate::model::config::{
    DELTA_DIM_MAX, DeltaNetConfig, HeadOrder, LAYERS_MAX, Mamba2Config, MambaConfig, RATED_STATE_DIM_MAX,
    STATE_DIM_MAX, TAPS_MAX, WIDTH_MAX,
};
use crate::model::error::{ModelError, range};

impl Header<'_, '_> {
    /// The delta rule that the `ssm` keys tell of.
    pub(in crate::model) fn delta_net(&self, order: HeadOrder) -> Result<DeltaNetConfig, ModelError> {
        let n_key_heads = self.number("ssm.group_count", WIDTH_MAX)?;
        let n_value_heads = self.number("ssm.time_step_rank", WIDTH_MAX)?;
        let head_dim = self.number("ssm.state_size", DELTA_DIM_MAX)?;
        let taps = self.taps()?;
        if !head_dim.is_multiple_of(STATE_STEP) {
            return range("ssm.state_size", head_dim, format!("a multiple of {STATE_STEP}, up to {DELTA_DIM_MAX}"));
        }
        if !n_value_heads.is_multiple_of(n_key_heads) {
            let need = format!("a multiple of ssm.group_count, {n_key_heads}");
            return range("ssm.time_step_rank", n_value_heads, need);
        }
        if 2 * (n_key_heads + n_value_heads) * head_dim > WIDTH_MAX {
            return range("ssm.time_step_rank", n_value_heads, format!("heads of at most {WIDTH_MAX} values together"));
        }
        let inner = self.number("ssm.inner_size", WIDTH_MAX)?;
        if inner != n_value_heads * head_dim {
            let need = format!("ssm.time_step_rank times ssm.state_size, {}", n_value_heads * head_dim);
            return range("ssm.inner_size", inner, need);
        }
        Ok(DeltaNetConfig { n_key_heads, n_value_heads, head_dim, order, taps })
    }

    fn taps(&self) -> Result<usize, ModelError> {
        match self.number("ssm.conv_kernel", TAPS_MAX)? {
            1 => range("ssm.conv_kernel", 1, format!("2 to {TAPS_MAX}")),
            taps => Ok(taps),
        }
    }

    /// The state space of Mamba-2 that the `ssm` keys tell of.
    pub(in crate::model) fn mamba2(&self) -> Result<Mamba2Config, ModelError> {
        let inner = self.number("ssm.inner_size", WIDTH_MAX)?;
        let n_heads = self.number("ssm.time_step_rank", inner)?;
        let n_groups = self.number("ssm.group_count", n_heads)?;
        let state_dim = self.number("ssm.state_size", STATE_DIM_MAX)?;
        let taps = self.taps()?;
        let head_dim = inner / n_heads;
        if inner != n_heads * head_dim || !head_dim.is_multiple_of(STATE_STEP) {
            let need = format!("ssm.time_step_rank, {n_heads}, times a multiple of {STATE_STEP}");
            return range("ssm.inner_size", inner, need);
        }
        if !n_heads.is_multiple_of(n_groups) {
            return range("ssm.time_step_rank", n_heads, format!("a multiple of ssm.group_count, {n_groups}"));
        }
        if !state_dim.is_multiple_of(STATE_STEP) {
            return range("ssm.state_size", state_dim, format!("a multiple of {STATE_STEP}, up to {STATE_DIM_MAX}"));
        }
        let mamba = Mamba2Config { n_heads, head_dim, n_groups, state_dim, taps };
        if mamba.conv_width() > WIDTH_MAX {
            let need = format!("at most {WIDTH_MAX} channels of the convolution");
            return range("ssm.inner_size and ssm.group_count", mamba.conv_width(), need);
        }
        Ok(mamba)
    }

    /// The state space of the first Mamba that the `ssm` keys tell of.
    pub(in crate::model) fn mamba(&self) -> Result<MambaConfig, ModelError> {
        let inner = self.number("ssm.inner_size", WIDTH_MAX)?;
        let state_dim = self.number("ssm.state_size", RATED_STATE_DIM_MAX)?;
        let dt_rank = self.number("ssm.time_step_rank", inner)?;
        if !inner.is_multiple_of(STATE_STEP) {
            return range("ssm.inner_size", inner, format!("a multiple of {STATE_STEP}"));
        }
        Ok(MambaConfig { inner, state_dim, dt_rank, taps: self.taps()?, normed: self.flag("ssm.dt_b_c_rms")? })
    }

    /// Which layers are recurrent: as the file lists them, or all but every so many.
    pub(in crate::model) fn recurrent_layers(&self, usual_interval: usize) -> Result<Vec<bool>, ModelError> {
        let interval = self.optional("full_attention_interval", usual_interval, LAYERS_MAX)?;
        match self.get("attention.recurrent_layers") {
            None => Ok((1..=self.n_layers).map(|n| !n.is_multiple_of(interval)).collect()),
            Some(_) => self.flags("attention.recurrent_layers"),
        }
    }
}
