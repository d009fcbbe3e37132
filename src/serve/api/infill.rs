//! Prompts for what belongs between two texts.

use super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::model::Served;

/// The prompt of `/infill`, from its texts.
///
/// # Errors
/// 400 for a wrong one, and as [`middle_prompt`].
pub async fn gap(fields: &Fields<'_>, served: &Served) -> Result<Vec<u32>, ApiError> {
    let before = fields.need_text("input_prefix")?.to_owned() + fields.text("prompt")?.unwrap_or_default();
    let behind = fields.need_text("input_suffix")?;
    let mut others = Vec::new();
    for (i, other) in fields.list("input_extra")?.unwrap_or_default().iter().enumerate() {
        let other = Fields::at(other, format!("input_extra[{i}]"))?;
        others.push((other.text("filename")?.unwrap_or("file"), other.need_text("text")?));
    }
    middle_prompt(served, "input_prefix", &others, (&before, behind)).await
}

/// The prompt whose answer belongs between two texts; other files may come before it.
///
/// # Errors
/// 400 for a model that has no tokens for it.
pub async fn middle_prompt(
    served: &Served,
    field: &str,
    others: &[(&str, &str)],
    (before, behind): (&str, &str),
) -> Result<Vec<u32>, ApiError> {
    let Some(fim) = served.about.fim else {
        let text =
            format!("{field}: this model was not made to fill gaps: it has no tokens for prefix, suffix and middle");
        return Err(ApiError::field(field, text).code("infill_not_supported"));
    };
    let mut tokens: Vec<u32> = served.tokenizer.bos().filter(|_| served.tokenizer.add_bos()).into_iter().collect();
    let plain = async |text: &str| served.text_tokens(text.to_owned(), false).await;
    if let (Some(repository), false) = (fim.repository, others.is_empty()) {
        tokens.push(repository);
        tokens.extend(plain("project\n").await?);
    }
    for (name, text) in others {
        match fim.file {
            Some(file) => {
                tokens.push(file);
                tokens.extend(plain(&format!("{name}\n{text}\n")).await?);
            }
            None => tokens.extend(plain(&format!("{text}\n")).await?),
        }
    }
    if let (Some(file), false) = (fim.file, others.is_empty()) {
        tokens.push(file);
        tokens.extend(plain("this\n").await?);
    }
    for (mark, text) in [(fim.prefix, before), (fim.suffix, behind)] {
        tokens.push(mark);
        tokens.extend(plain(text).await?);
    }
    tokens.push(fim.middle);
    Ok(tokens)
}
