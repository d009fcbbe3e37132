//! minijinja's filters and functions where their work or result is not bounded by what they are given.

use std::collections::BTreeSet;
use std::sync::Arc;

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value, filters, functions};

use super::bounds::Meter;
use super::value::{keep_inside, list_bytes, size};

/// Most times that printing may make a text in a list longer: a control character becomes `\u{1}`.
const ESCAPED: usize = 6;

/// Most lists that `slice` makes, and longest that `batch` fills up; `range` has the same bound.
const GROUPS_MAX: usize = 100_000;

/// Puts the bounded ones in the place of minijinja's.
pub fn install(environment: &mut Environment<'_>, meter: &Arc<Meter>) {
    // They show what there is, in a size that nothing bounds, and no prompt is made of that.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
    for (name, filter) in [
        ("map", Value::from_function(filters::map)),
        ("select", Value::from_function(filters::select)),
        ("reject", Value::from_function(filters::reject)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
    ] {
        bound(environment, meter, name, filter, each);
    }
    for (name, filter) in [
        ("sort", Value::from_function(filters::sort)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
        ("sum", Value::from_function(filters::sum)),
        ("unique", Value::from_function(filters::unique)),
        ("groupby", Value::from_function(filters::groupby)),
        ("dictsort", Value::from_function(filters::dictsort)),
    ] {
        bound(environment, meter, name, filter, compared);
    }
    bound(environment, meter, "join", Value::from_function(filters::join), joined);
    bound(environment, meter, "replace", Value::from_function(filters::replace), |args| match args {
        [text, old, new, ..] => Ok(replaced(plain(text), plain(old), plain(new))),
        _ => Ok(0),
    });
    bound(environment, meter, "indent", Value::from_function(filters::indent), indented);
    bound(environment, meter, "format", Value::from_function(filters::format), |args| match args {
        [text, args @ ..] => formatted(plain(text), args, '%'),
        [] => Ok(0),
    });
    bound(environment, meter, "split", Value::from_function(filters::split), pieces);
    bound(environment, meter, "lines", Value::from_function(filters::lines), pieces);
    bound(environment, meter, "list", Value::from_function(filters::list), each);
    bound(environment, meter, "batch", Value::from_function(filters::batch), grouped);
    bound(environment, meter, "slice", Value::from_function(filters::slice), grouped);
    bound(environment, meter, "trim", Value::from_function(trim), sizes);
    environment.add_function("namespace", namespace);
}

/// A filter that runs only where `bytes` of its arguments are bytes that may be made or looked at.
fn bound(
    environment: &mut Environment<'_>,
    meter: &Arc<Meter>,
    name: &'static str,
    filter: Value,
    bytes: impl Fn(&[Value]) -> Result<usize, Error> + Send + Sync + 'static,
) {
    let meter = Arc::clone(meter);
    environment.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        meter.work(bytes(&args)?)?;
        filter.call(state, &args)
    });
}

/// How many items there are, and how large the largest is.
fn items(value: &Value) -> Result<(usize, usize), Error> {
    let (mut n, mut longest) = (0, size_of::<Value>());
    if let Some(text) = value.as_str() {
        return Ok((text.len(), longest));
    }
    let Ok(all) = value.try_iter() else { return Ok((0, 0)) };
    for item in all {
        n += 1;
        longest = longest.max(size(&item)?.bytes);
        if value.kind() == ValueKind::Map {
            longest = longest.max(size(&value.get_item(&item)?)?.bytes);
        }
    }
    Ok((n, longest))
}

/// How large values are together.
pub fn sizes(values: &[Value]) -> Result<usize, Error> {
    values.iter().try_fold(0, |sum, value| Ok(sum + size(value)?.bytes))
}

/// What looks at its arguments for each item.
fn each(args: &[Value]) -> Result<usize, Error> {
    let [list, args @ ..] = args else { return Ok(0) };
    Ok(items(list)?.0.saturating_mul(sizes(args)?).saturating_add(list_bytes(list)))
}

/// What makes as many lists, or as long ones, as it is told.
fn grouped(args: &[Value]) -> Result<usize, Error> {
    match args.get(1).and_then(Value::as_usize) {
        Some(n) if n > GROUPS_MAX => Ok(usize::MAX),
        _ => each(args),
    }
}

/// What compares items with one another, whole, as often as sorting does.
fn compared(args: &[Value]) -> Result<usize, Error> {
    let [list, args @ ..] = args else { return Ok(0) };
    let (n, longest) = items(list)?;
    let times = (usize::BITS - n.leading_zeros()) as usize;
    Ok(n.saturating_mul(times).saturating_mul(longest + sizes(args)?))
}

fn joined(args: &[Value]) -> Result<usize, Error> {
    let [list, args @ ..] = args else { return Ok(0) };
    Ok(items(list)?.0.saturating_mul(sizes(args)?).saturating_add(size(list)?.bytes))
}

/// The text of a value that is one.
fn plain(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Bytes of `text` with `new` in the place of each `old`.
pub fn replaced(text: &str, old: &str, new: &str) -> usize {
    let longer = new.len().saturating_sub(old.len());
    let n = if longer == 0 { 0 } else { text.matches(old).count() };
    n.saturating_mul(longer).saturating_add(text.len())
}

fn indented(args: &[Value]) -> Result<usize, Error> {
    let [text, args @ ..] = args else { return Ok(0) };
    let text = plain(text);
    let named = args.iter().filter(|arg| arg.is_kwargs()).filter_map(|arg| arg.get_attr("width").ok());
    let width = named.chain(args.first().cloned()).filter_map(|width| width.as_usize()).max().unwrap_or(4);
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    Ok(lines.saturating_mul(width).saturating_add(text.len()))
}

/// At most the bytes that come of a format whose places begin with `mark`: each may show the longest argument, and be as
/// wide as the numbers in it say.
pub fn formatted(text: &str, args: &[Value], mark: char) -> Result<usize, Error> {
    let mut longest = 0;
    for arg in args {
        let size = size(arg)?;
        let width = arg.as_usize().filter(|_| text.contains('*')).unwrap_or(0);
        longest = longest.max(size.bytes * if size.levels > 0 { ESCAPED } else { 1 }).max(width);
    }
    let mut bytes = text.len();
    for place in text.split(mark).skip(1) {
        let end = |c: char| if mark == '{' { c == '}' } else { c.is_alphabetic() || c == '(' };
        let numbers = place.split(end).next().unwrap_or_default().split(|c: char| !c.is_ascii_digit());
        let width: usize = numbers
            .filter(|n| !n.is_empty())
            .fold(0, |sum: usize, n| sum.saturating_add(n.parse().unwrap_or(usize::MAX)));
        bytes = bytes.saturating_add(longest).saturating_add(width);
    }
    Ok(bytes)
}

/// What a list of pieces of a text takes: each at least one byte of it, and more as a value.
fn pieces(args: &[Value]) -> Result<usize, Error> {
    let text = args.first().map(plain).unwrap_or_default();
    let n = match args.get(1).and_then(Value::as_str) {
        Some("") => text.len(),
        Some(separator) => text.matches(separator).count(),
        None => text.bytes().filter(u8::is_ascii_whitespace).count(),
    };
    Ok(text.len() + n * size_of::<Value>())
}

/// `trim`, with a set of characters that is looked up, not searched.
fn trim(value: &Value, chars: Option<&str>) -> Value {
    let text = value.to_string();
    let trimmed = match chars.map(CharSet::new) {
        Some(set) => text.trim_matches(|c| set.contains(c)),
        None => text.trim(),
    };
    if value.is_safe() { Value::from_safe_string(trimmed.to_owned()) } else { trimmed.into() }
}

/// Characters of a text.
pub struct CharSet(BTreeSet<char>);

impl CharSet {
    /// The characters of `text`.
    pub fn new(text: &str) -> CharSet {
        CharSet(text.chars().collect())
    }

    /// Whether `c` is one of them.
    pub fn contains(&self, c: char) -> bool {
        self.0.contains(&c)
    }
}

/// `namespace`, which holds copies of other namespaces: so none can hold itself.
fn namespace(defaults: Option<ValueOrKwargs>) -> Result<Value, Error> {
    functions::namespace(defaults.map(|defaults| keep_inside(defaults.into_value()).map(Into::into)).transpose()?)
}
