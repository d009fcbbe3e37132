//! Chat templates in Jinja, as published with the models.

mod bounds;
mod error;
mod generic;
mod ids;
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
pub use generic::tools_as_text;
pub use ids::short_ids;
pub use message::{Message, Role, ToolCall};
pub use own::{own, own_names};
pub use prompt::Prompt;
pub use renderer::Renderer;
pub use template::ChatTemplate;
pub use time::Time;
