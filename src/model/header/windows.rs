//! Which layers have a sliding window, and what else is another number there.

use super::Header;
use crate::gguf::Value;
use crate::kernels::Window;
use crate::model::config::{Config, HEAD_DIM_MAX, LAYERS_MAX, WIDTH_MAX};
use crate::model::error::{ModelError, range};
use crate::model::rope::Rope;

impl Header<'_, '_> {
    /// The length of sliding windows and which layers have one, in a pattern of which every `usual`th layer sees everything
    /// unless the file has another.
    pub(in crate::model) fn windows(&self, usual: usize) -> Result<Option<(usize, Vec<bool>)>, ModelError> {
        self.windows_by((usual, 0), |n| n - 1)
    }

    /// The same; where the file has no length it is `usual_len`.
    pub(in crate::model) fn windows_or(
        &self,
        usual: usize,
        usual_len: usize,
    ) -> Result<Option<(usize, Vec<bool>)>, ModelError> {
        self.windows_by((usual, usual_len), |n| n - 1)
    }

    /// The same where the first layer of so many sees everything, not the last.
    pub(in crate::model) fn windows_after_first(&self, usual: usize) -> Result<Option<(usize, Vec<bool>)>, ModelError> {
        self.windows_by((usual, 0), |_| 0)
    }

    fn windows_by(
        &self,
        (usual, usual_len): (usize, usize),
        full: fn(usize) -> usize,
    ) -> Result<Option<(usize, Vec<bool>)>, ModelError> {
        let len = match self.get("attention.sliding_window") {
            None => usual_len,
            Some(_) => self.count("attention.sliding_window", 1 << 30)?,
        };
        match len {
            0 => {
                self.accept("attention.sliding_window_pattern");
                Ok(None)
            }
            len => Ok(Some((len, self.window_pattern(usual, full)?))),
        }
    }

    /// The layers of such a pattern that do not see everything.
    pub(in crate::model) fn layers_with_window(&self, usual: usize) -> Result<Vec<bool>, ModelError> {
        self.window_pattern(usual, |n| n - 1)
    }

    /// Those of a pattern of as many layers of which the one with the number `full` sees everything.
    pub(in crate::model) fn window_pattern(
        &self,
        usual: usize,
        full: fn(usize) -> usize,
    ) -> Result<Vec<bool>, ModelError> {
        let key = "attention.sliding_window_pattern";
        let every = |n: usize| (0..self.n_layers).map(|layer| n == 0 || layer % n != full(n)).collect();
        match self.get(key) {
            None => Ok(every(usual)),
            Some(Value::Array(_)) => self.flags(key),
            Some(_) => Ok(every(self.count(key, LAYERS_MAX)?)),
        }
    }

    /// The same of a file that must say how long windows are.
    pub(in crate::model) fn required_windows(&self, usual: usize) -> Result<(usize, Vec<bool>), ModelError> {
        Ok((self.number("attention.sliding_window", 1 << 30)?, self.layers_with_window(usual)?))
    }

    /// The same of a file that must say how long windows are, and list the layers that have one.
    pub(in crate::model) fn listed_windows(&self) -> Result<(usize, Vec<bool>), ModelError> {
        let len = self.number("attention.sliding_window", 1 << 30)?;
        Ok((len, self.flags("attention.sliding_window_pattern")?))
    }

    /// How many values of a head are rotated in layers with a window: by themselves as many as in the others.
    pub(in crate::model) fn rope_dim_of_windows(&self, config: &Config) -> Result<usize, ModelError> {
        let most = config.attention_max(|attention| attention.key_dim);
        match self.optional("rope.dimension_count_swa", config.ropes[0].dim, most)? {
            dim if dim.is_multiple_of(2) => Ok(dim),
            dim => range("rope.dimension_count_swa", dim, "an even number".to_owned()),
        }
    }

    /// Gives the layers of `windows` their window, rotated by `rope` with the base of windows, if the file has one.
    pub(in crate::model) fn set_windows(
        &self,
        config: &mut Config,
        (len, layers): (usize, Vec<bool>),
        rope: impl FnOnce(&Rope, Option<f32>) -> Rope,
    ) -> Result<(), ModelError> {
        let rope = rope(&config.ropes[0], self.float("rope.freq_base_swa")?);
        if rope.base <= 1.0 {
            return self.unsupported("rope.freq_base_swa", rope.base.to_string());
        }
        let own_rope = config.ropes.len();
        config.ropes.push(rope);
        for (layer, has_window) in config.layers.iter_mut().zip(layers) {
            if let Some(attention) = layer.attention_mut().filter(|_| has_window) {
                (attention.window, attention.rope) = (Some(Window::Sliding(len)), Some(own_rope));
            }
        }
        Ok(())
    }

    /// Refuses numbers of layers with a window that nobody has read and that are not those of the other layers.
    pub(in crate::model) fn refuse_numbers_of_windows(&self, config: &Config) -> Result<(), ModelError> {
        let Some(windowed) = config.attentions().find(|attention| attention.window.is_some()) else { return Ok(()) };
        for (key, of_all) in [
            ("rope.dimension_count_swa", config.ropes[0].dim),
            ("attention.key_length_swa", windowed.key_dim),
            ("attention.value_length_swa", windowed.value_dim),
        ] {
            let own = if self.has_read(key) { of_all } else { self.optional(key, of_all, HEAD_DIM_MAX)? };
            if own != of_all {
                return self.unsupported(key, format!("{own} where the other layers have {of_all}"));
            }
        }
        Ok(())
    }

    /// Gives layers with a window heads of their own size.
    pub(in crate::model) fn set_window_heads(&self, config: &mut Config) -> Result<(), ModelError> {
        let dim = self.number("attention.key_length_swa", HEAD_DIM_MAX)?;
        let value_dim = self.optional("attention.value_length_swa", dim, HEAD_DIM_MAX)?;
        if !dim.is_multiple_of(2) || value_dim != dim {
            let need = format!("an even number, as attention.value_length_swa ({value_dim})");
            return range("attention.key_length_swa", dim, need);
        }
        for attn in config.layers.iter_mut().filter_map(|layer| layer.attention_mut()) {
            if attn.window.is_some() {
                (attn.key_dim, attn.value_dim) = (dim, dim);
            }
            if attn.q_width() > WIDTH_MAX {
                let need = format!("heads of at most {WIDTH_MAX} values together");
                return range("attention.head_count", attn.n_heads, need);
            }
        }
        Ok(())
    }
}
