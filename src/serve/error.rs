//! What a client is told when a request fails: status, and a sentence in the form its interface has.

use hyper::StatusCode;
use hyper::header::HeaderName;
use serde_json::{Value, json};

use crate::engine::RequestError;

/// A refusal or a failure, before it takes a form. In a box: what hands it on is a hundred functions, and all but none fail.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError(Box<Failure>);

/// What there is to say of a failure.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The status.
    pub status: StatusCode,
    /// What failed, found against needed, what to do.
    pub message: String,
    /// The field at fault, as a path: `messages[1].content`.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// Seconds after which to try again.
    pub retry_after_s: Option<u32>,
    /// What HTTP asks for beside the status.
    pub header: Option<(HeaderName, &'static str)>,
    /// The sentence in Anthropic's form, where clients look for other words there.
    anthropic: Option<String>,
}

impl std::ops::Deref for ApiError {
    type Target = Failure;

    fn deref(&self) -> &Failure {
        &self.0
    }
}

impl ApiError {
    /// An error with a status and a sentence.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        let message = message.into();
        let failure =
            Failure { status, message, param: None, code: None, retry_after_s: None, header: None, anthropic: None };
        ApiError(Box::new(failure))
    }

    /// 400: the request is at fault.
    pub fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400 with the field that is at fault.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::bad(message).at(param)
    }

    /// 500: brim is at fault.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 400: the engine cannot serve this request. A context that is too short is told in the words that clients of either
    /// interface know it by.
    pub fn of_request(error: &RequestError) -> ApiError {
        let (found, most, advice) = match *error {
            RequestError::PromptLength { found, limit } => (found, limit + 1, "use a shorter prompt"),
            RequestError::Context { prompt, max_tokens, limit } => {
                (prompt.saturating_add(max_tokens), limit, "use a shorter prompt or ask for fewer tokens")
            }
            _ => return ApiError::bad(error.to_string()),
        };
        let text = format!(
            "this model's maximum context length is {most} tokens, the request needs {found}{}; {advice}, or have the server \
             started with a larger --ctx",
            if found == most { " and one for an answer" } else { "" },
        );
        let anthropic = Some(format!("prompt is too long: {found} tokens > {} maximum", most - 1));
        let mut error = ApiError::bad(text).code("context_length_exceeded");
        error.0.anthropic = anthropic;
        error
    }

    /// With the field that is at fault.
    #[must_use]
    pub fn at(mut self, param: impl Into<String>) -> ApiError {
        self.0.param = Some(param.into());
        self
    }

    /// With a word for programs.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> ApiError {
        self.0.code = Some(code);
        self
    }

    /// To be tried again after so many seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> ApiError {
        self.0.retry_after_s = Some(seconds);
        self
    }

    /// With a header that goes with the status.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &'static str) -> ApiError {
        self.0.header = Some((name, value));
        self
    }

    /// OpenAI's form.
    pub fn openai(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            501 => "not_implemented",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }

    /// Anthropic's form.
    pub fn anthropic(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        let message = match &self.param {
            _ if self.anthropic.is_some() => self.anthropic.clone().unwrap_or_default(),
            Some(param) if !self.message.starts_with(param.as_str()) => format!("{param}: {}", self.message),
            _ => self.message.clone(),
        };
        json!({"type": "error", "error": {"type": kind, "message": message}})
    }
}

/// Whose form errors take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorForm {
    /// OpenAI's.
    OpenAi,
    /// Anthropic's.
    Anthropic,
    /// Ollama's.
    Ollama,
}

impl ApiError {
    /// Ollama's form.
    pub fn ollama(&self) -> Value {
        json!({"error": self.message})
    }

    /// In a form.
    pub fn document(&self, form: ErrorForm) -> Value {
        match form {
            ErrorForm::OpenAi => self.openai(),
            ErrorForm::Anthropic => self.anthropic(),
            ErrorForm::Ollama => self.ollama(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_the_field() {
        let error = ApiError::field("top_p", "expected a number");
        assert_eq!(error.openai()["error"]["param"], "top_p");
        assert_eq!(error.openai()["error"]["type"], "invalid_request_error");
        assert_eq!(error.anthropic()["error"]["message"], "top_p: expected a number");
        assert_eq!(ApiError::internal("x").anthropic()["error"]["type"], "api_error");
    }
}
