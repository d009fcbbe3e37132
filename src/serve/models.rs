//! The models of the server, and which of them a request is for.

use std::rc::Rc;

use hyper::StatusCode;

use super::error::ApiError;
use super::model::Served;

/// The models, at least one.
pub struct Models(Vec<Rc<Served>>);

impl Models {
    /// `None` where there is no model.
    pub fn new(served: Vec<Rc<Served>>) -> Option<Models> {
        (!served.is_empty()).then_some(Models(served))
    }

    /// All, in their order.
    pub fn all(&self) -> &[Rc<Served>] {
        &self.0
    }

    /// Whether there is more than one.
    pub fn are_several(&self) -> bool {
        self.0.len() > 1
    }

    /// The one that goes by this name, with `:latest` behind it or not.
    pub fn called(&self, name: &str) -> Option<&Rc<Served>> {
        let called = |name: &str| {
            let is_it = |served: &&Rc<Served>| served.name == name || served.aliases.iter().any(|alias| alias == name);
            self.0.iter().find(is_it)
        };
        called(name).or_else(|| called(name.strip_suffix(":latest")?))
    }

    /// The one for requests that name none: the first that suits them.
    ///
    /// # Errors
    /// Where none does, why the first does not.
    pub fn first(&self, suits: impl Fn(&Served) -> Result<(), ApiError>) -> Result<&Rc<Served>, ApiError> {
        match self.0.iter().find(|served| suits(served).is_ok()) {
            Some(served) => Ok(served),
            None => suits(&self.0[0]).map(|()| &self.0[0]),
        }
    }

    /// The one that a request asks for by its name; `None` where it names none, and where there is only one, which goes by
    /// every name.
    ///
    /// # Errors
    /// 404 with the names that there are.
    pub fn asked(&self, name: Option<&str>) -> Result<Option<&Rc<Served>>, ApiError> {
        let name = name.filter(|name| self.are_several() && !name.is_empty());
        name.map(|name| self.called(name).ok_or_else(|| self.unknown(name))).transpose()
    }

    /// 404: none goes by this name.
    pub fn unknown(&self, name: &str) -> ApiError {
        let names: Vec<&str> = self.0.iter().map(|served| served.name.as_str()).collect();
        let name: String = name.chars().take(80).collect();
        let text = format!("model {name} not found; this server has {}", names.join(", "));
        ApiError::new(StatusCode::NOT_FOUND, text).code("model_not_found")
    }
}
