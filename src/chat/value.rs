//! Lists and mappings that know how large they are.
//!
//! Every list and mapping that an operation of a template makes is [kept](keep): what is computed only when it is looked
//! at is computed, and it gets its [`Size`] from those of its items, which have theirs already. So the sizes of all
//! values are known, and bounded, before anything walks them.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::bounds::{Bound, LEVELS_MAX, Meter, VALUE_BYTES_MAX};

/// What a value counts besides the bytes of its text: about what it takes in a list.
pub const NODE_BYTES: usize = 16;

/// How large a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes, those of what is in it as often as it is in it.
    pub bytes: usize,
    /// Lists and mappings in one another.
    pub levels: usize,
}

impl Size {
    const NODE: Size = Size { bytes: NODE_BYTES, levels: 0 };

    /// With another value in it.
    fn holding(self, item: Size) -> Result<Size, Error> {
        let levels = self.levels.max(item.levels + 1);
        let bytes = self.bytes + item.bytes;
        match () {
            () if levels > LEVELS_MAX => Err(Bound::Levels.into()),
            () if bytes > VALUE_BYTES_MAX => Err(Bound::Size.into()),
            () => Ok(Size { bytes, levels }),
        }
    }
}

/// A list or mapping with its size; all else is that of the object inside.
struct Measured {
    object: DynObject,
    size: Size,
}

impl fmt::Debug for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.object.fmt(f)
    }
}

impl Object for Measured {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        self.object.repr()
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.object.get_value(key)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.object.get_value_by_str(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.object.enumerate()
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.object.enumerator_len()
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.object.is_true()
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        self.object.call(state, args)
    }

    fn call_method(self: &Arc<Self>, state: &mut State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        self.object.call_method(state, method, args)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.object.render(f)
    }
}

/// A value that an operation has made, as the template gets it.
///
/// # Errors
/// A bound: on the value, or on time and memory so far.
pub fn keep(meter: &Meter, value: Value) -> Result<Value, Error> {
    let (value, size) = measured(value, 0)?;
    meter.tick(size.bytes)?;
    Ok(value)
}

/// A value inside of another: namespaces are copied, so that nothing changes its size later.
///
/// # Errors
/// A bound on the value.
pub fn keep_inside(value: Value) -> Result<Value, Error> {
    measured(value, 1).map(|(value, _)| value)
}

/// How large a value is.
///
/// # Errors
/// A bound on values; only namespaces and arguments, which are not kept, can hit one here.
pub fn size(value: &Value) -> Result<Size, Error> {
    match value.as_object() {
        None => plain_size(value),
        Some(object) => match object.downcast_ref::<Measured>() {
            Some(measured) => Ok(measured.size),
            None => measured(value.clone(), 1).map(|(_, size)| size),
        },
    }
}

/// The size of what has no items.
fn plain_size(value: &Value) -> Result<Size, Error> {
    let bytes = value.as_str().map(str::len).or_else(|| value.as_bytes().map(<[u8]>::len)).unwrap_or(0);
    let size = Size { bytes: NODE_BYTES + bytes, levels: 0 };
    if size.bytes > VALUE_BYTES_MAX { Err(Bound::Size.into()) } else { Ok(size) }
}

/// A value that stands `above` levels down in another.
fn measured(value: Value, above: usize) -> Result<(Value, Size), Error> {
    let Some(object) = value.as_object() else { return plain_size(&value).map(|size| (value, size)) };
    if let Some(measured) = object.downcast_ref::<Measured>() {
        let size = measured.size;
        return Ok((value, size));
    }
    if object.repr() == ObjectRepr::Plain || above == 0 && changes(object) {
        return Ok((value, Size::NODE));
    }
    if let Some(size) = object.downcast_ref::<Tuple>().map(|tuple| kept(tuple, above)).transpose()?.flatten() {
        return Ok((value, size));
    }
    let (value, size) = measured_items(&value, above)?;
    let is_tuple = value.is_tuple();
    match value.as_object() {
        // A tuple is told by its type, so it has to stay one.
        Some(object) if !is_tuple => {
            let object = object.clone();
            Ok((Value::from_object(Measured { object, size }), size))
        }
        _ => Ok((value, size)),
    }
}

/// The size of a tuple, where all that is in it is measured.
fn kept(tuple: &Tuple, above: usize) -> Result<Option<Size>, Error> {
    if above > LEVELS_MAX {
        return Err(Bound::Levels.into());
    }
    let mut size = Size { levels: 1, ..Size::NODE };
    for item in tuple.iter() {
        let item = match item.as_object() {
            None => Some(plain_size(item)?),
            Some(object) => match (object.downcast_ref::<Measured>(), object.downcast_ref::<Tuple>()) {
                (Some(measured), _) => Some(measured.size),
                (None, Some(tuple)) => kept(tuple, above + 1)?,
                (None, None) => None,
            },
        };
        let Some(item) = item else { return Ok(None) };
        size = size.holding(item)?;
    }
    Ok(Some(size))
}

/// A list or mapping again, of measured items, and its size.
fn measured_items(value: &Value, above: usize) -> Result<(Value, Size), Error> {
    if above > LEVELS_MAX {
        return Err(Bound::Levels.into());
    }
    let mut size = Size { levels: 1, ..Size::NODE };
    let mut take = |item: Value| -> Result<Value, Error> {
        let (item, item_size) = measured(item, above + 1)?;
        size = size.holding(item_size)?;
        Ok(item)
    };
    if value.kind() == ValueKind::Map {
        let keys = value.try_iter()?.checked();
        let pair = |key: Result<Value, Error>| {
            let key = key?;
            let item = value.get_item(&key)?;
            Ok((take(key)?, take(item)?))
        };
        let pairs: Vec<(Value, Value)> = keys.map(pair).collect::<Result<_, Error>>()?;
        return Ok((Value::from_pairs(pairs), size));
    }
    let items: Vec<Value> = value.try_iter()?.checked().map(|item| take(item?)).collect::<Result<_, Error>>()?;
    let value = match value.as_object() {
        Some(object) if is_group(object) => value.clone(),
        _ if value.is_tuple() => Tuple::from(items).into(),
        _ => items.into(),
    };
    Ok((value, size))
}

/// Whether an object changes while a template is rendered: `namespace()` and `loop`.
fn changes(object: &DynObject) -> bool {
    is_namespace(object) || object.type_name().ends_with("::Loop")
}

fn is_namespace(object: &DynObject) -> bool {
    object.type_name().ends_with("::Namespace")
}

/// Whether it is a group of `groupby`, whose two items also have names.
fn is_group(object: &DynObject) -> bool {
    object.type_name().ends_with("::GroupTuple")
}

/// A value that is about to become an attribute of a namespace; `pair` is the namespace and the value.
///
/// # Errors
/// A bound on the value, or on the namespace with it.
pub fn stored(meter: &Meter, pair: &Value) -> Result<Value, Error> {
    let namespace = pair.get_item_by_index(0)?;
    let value = keep_inside(pair.get_item_by_index(1)?)?;
    if namespace.as_object().is_some_and(is_namespace) {
        let mut bytes = size(&value)?.bytes;
        for name in namespace.try_iter()? {
            bytes += size(&namespace.get_item(&name)?)?.bytes;
        }
        // What it had under that name is counted, too.
        if bytes > 2 * VALUE_BYTES_MAX {
            return Err(Bound::Size.into());
        }
        meter.tick(bytes)?;
    }
    Ok(Tuple::from([namespace, value]).into())
}

/// Looks at the two sides of a `*`; `pair` has them.
///
/// # Errors
/// A bound on what comes of it.
pub fn multiplied(pair: &Value) -> Result<(), Error> {
    let (one, other) = (pair.get_item_by_index(0)?, pair.get_item_by_index(1)?);
    let times = |n: &Value, of: &Value| match (n.as_i64().and_then(|n| usize::try_from(n).ok()), of.as_str()) {
        (Some(n), Some(text)) => Ok(text.len().saturating_mul(n)),
        (Some(n), None) if !of.is_number() => size(of).map(|size| size.bytes.saturating_mul(n)),
        _ => Ok(0),
    };
    if times(&one, &other)?.max(times(&other, &one)?) > VALUE_BYTES_MAX {
        return Err(Bound::Size.into());
    }
    Ok(())
}

/// Looks at lists that are about to become arguments.
///
/// # Errors
/// A bound on how many there are in one.
pub fn spread(meter: &Meter, lists: &Value) -> Result<(), Error> {
    lists.try_iter()?.try_for_each(|list| meter.work(list_bytes(&list)))
}

/// What the items of a value take as a list, of which those of a text are characters.
pub fn list_bytes(value: &Value) -> usize {
    let n = value.as_str().map_or_else(|| value.len().unwrap_or(0), str::len);
    n.saturating_mul(size_of::<Value>())
}

/// Refuses, in a sentence.
pub fn refuse(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}
