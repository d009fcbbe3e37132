//! A request's JSON, read field by field: unknown fields are ignored, wrong types and values are refused with the path of
//! the field. `null` is as if the field were not there.

use serde_json::{Map, Value};

use super::error::ApiError;

/// Most values of one document. Each takes 32 bytes or more in memory, and a blank and a comma on the wire.
const VALUES_MAX: usize = 1 << 17;

/// Reads a body as one JSON document.
///
/// # Errors
/// 400 with the place of what is no UTF-8 or no JSON; 413 for more values than a request can mean.
pub fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(body).map_err(|e| {
        ApiError::bad(format!("the body is not UTF-8 at byte {}", e.valid_up_to())).code("invalid_json")
    })?;
    // Counted before anything is allocated; what stands in strings is counted too, which only makes the limit stricter
    // for documents that are text throughout.
    let mut in_string = false;
    let mut escaped = false;
    let mut n_values = 0usize;
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => n_values += 1,
            _ => {}
        }
    }
    if n_values > VALUES_MAX {
        let text = format!("the body has {n_values} JSON values; the limit is {VALUES_MAX}");
        return Err(ApiError::new(hyper::StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    serde_json::from_str(text)
        .map_err(|e| ApiError::bad(format!("the body is not valid JSON: {e}")).code("invalid_json"))
}

/// An object and where it stands in the request.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    at: String,
    map: &'a Map<String, Value>,
}

/// What a value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The refusal of `value` at `path`, where `need` was expected.
pub fn wrong(path: &str, value: &Value, need: &str) -> ApiError {
    ApiError::field(path, format!("{path}: expected {need}, got {}", kind(value))).code("invalid_type")
}

impl<'a> Fields<'a> {
    /// The request itself.
    ///
    /// # Errors
    /// 400 if it is not an object.
    pub fn of(document: &'a Value) -> Result<Fields<'a>, ApiError> {
        match document {
            Value::Object(map) => Ok(Fields { at: String::new(), map }),
            other => Err(ApiError::bad(format!("the body has to be a JSON object, got {}", kind(other)))),
        }
    }

    /// An object at `at` inside the request.
    ///
    /// # Errors
    /// 400 if it is not an object.
    pub fn at(value: &'a Value, at: impl Into<String>) -> Result<Fields<'a>, ApiError> {
        let at = at.into();
        match value {
            Value::Object(map) => Ok(Fields { at, map }),
            other => Err(wrong(&at, other, "an object")),
        }
    }

    /// The path of a field.
    pub fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    /// A field as it is.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// A field that was left out.
    pub fn missing(&self, name: &str) -> ApiError {
        let path = self.path(name);
        ApiError::field(&path, format!("{path} is missing; the request needs it")).code("missing_field")
    }

    fn typed<T>(
        &self,
        name: &str,
        need: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| wrong(&self.path(name), value, need))
    }

    /// A text.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.typed(name, "a string", Value::as_str)
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// 400 for another type, or none.
    pub fn need_text(&self, name: &str) -> Result<&'a str, ApiError> {
        self.text(name)?.ok_or_else(|| self.missing(name))
    }

    /// True or false; false if it is not there.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn is_set(&self, name: &str) -> Result<bool, ApiError> {
        Ok(self.boolean(name)?.unwrap_or(false))
    }

    /// True or false.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "a boolean", Value::as_bool)
    }

    /// A list.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        self.typed(name, "an array", |value| value.as_array().map(Vec::as_slice))
    }

    /// An object.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(name).map(|value| Fields::at(value, self.path(name))).transpose()
    }

    /// A number from `least` to `most`.
    ///
    /// # Errors
    /// 400 for another type, or out of range.
    pub fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let Some(found) = self.typed(name, "a number", Value::as_f64)? else { return Ok(None) };
        if (least..=most).contains(&found) {
            return Ok(Some(found as f32));
        }
        let path = self.path(name);
        Err(ApiError::field(&path, format!("{path} is {found}; it must be {least} to {most}")).code("out_of_range"))
    }

    /// A whole number from `least` to `most`.
    ///
    /// # Errors
    /// 400 for another type, or out of range.
    pub fn integer(&self, name: &str, least: i64, most: i64) -> Result<Option<i64>, ApiError> {
        // 64.0 is a whole number to a client whose language has one kind of number.
        let whole = |value: &Value| value.as_i64().or(value.as_f64().filter(|x| x.fract() == 0.0).map(|x| x as i64));
        let Some(found) = self.typed(name, "an integer", whole)? else { return Ok(None) };
        if (least..=most).contains(&found) {
            return Ok(Some(found));
        }
        let path = self.path(name);
        Err(ApiError::field(&path, format!("{path} is {found}; it must be {least} to {most}")).code("out_of_range"))
    }

    /// The same as a size.
    ///
    /// # Errors
    /// As [`Fields::integer`].
    pub fn size(&self, name: &str, least: usize, most: usize) -> Result<Option<usize>, ApiError> {
        let bound = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        Ok(self.integer(name, bound(least), bound(most))?.map(|n| n as usize))
    }

    /// The items of an object.
    pub fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wrong_types_name_the_field_and_null_is_absent() {
        let document = json!({"a": {"b": "x", "n": 3, "f": 2.5, "w": 64.0, "z": null}, "list": [1]});
        let a = Fields::of(&document).unwrap().object("a").unwrap().unwrap();
        assert_eq!(a.text("b").unwrap(), Some("x"));
        assert_eq!(a.text("z").unwrap(), None);
        assert_eq!(a.integer("w", 0, 100).unwrap(), Some(64));
        for error in [
            a.text("n").unwrap_err(),
            a.integer("f", 0, 9).unwrap_err(),
            a.integer("n", 0, 2).unwrap_err(),
            a.number("f", 0.0, 2.0).unwrap_err(),
            a.need_text("z").unwrap_err(),
        ] {
            let param = error.param.as_deref().unwrap();
            assert!(param.starts_with("a.") && error.message.contains(param), "{param}: {}", error.message);
            assert_eq!(error.status, 400);
        }
        assert!(Fields::of(&json!([])).is_err());
    }

    #[test]
    fn what_is_no_json_or_too_much_of_it_is_refused() {
        assert!(parse(b"\xff{}").unwrap_err().message.contains("byte 0"));
        assert!(parse(b"{\"a\":").unwrap_err().message.contains("line 1"));
        let deep = [b'['; 100_000];
        assert_eq!(parse(&deep).unwrap_err().status, 400, "deeper than serde_json goes");
        let wide = [&b"["[..], &b"0,".repeat(VALUES_MAX), b"0]"].concat();
        assert_eq!(parse(&wide).unwrap_err().status, 413);
        assert!(parse(&[&b"[\""[..], &b"\\\",".repeat(VALUES_MAX), b"\"]"].concat()).is_ok(), "text is one value");
    }
}
