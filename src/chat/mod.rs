//! Chat templates in Jinja, as published with the models.

mod bounds;
mod error;
mod json;
mod message;
mod methods;
mod own;
pub mod process;
mod prompt;
mod renderer;
mod template;
mod time;
mod wire;

pub use error::ChatError;
pub use message::{Message, Role, ToolCall};
pub use own::{own, own_names};
pub use prompt::Prompt;
pub use renderer::Renderer;
pub use template::ChatTemplate;
pub use time::Time;
