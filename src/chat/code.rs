//! From a template's source to instructions that keep within the [bounds](super::bounds).

use std::sync::Arc;

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, Value};

use super::bounds::{BRANCHES_MAX, Bound, Meter, SOURCE_BYTES_MAX, TAG_TOKENS_MAX};
use super::value::{keep, multiplied, size, spread, stored};

/// The name of every template, in messages.
const NAME: &str = "chat";

/// The filters that [`bounded`] puts between instructions. No template can write these names between its own `|`.
const KEEP: &str = "(keep)";
const LOOK: &str = "(look)";
const MULTIPLY: &str = "(multiply)";
const STORE: &str = "(store)";
const SPREAD: &str = "(spread)";

/// Filters that minijinja finds by number; the others it looks up by name.
const NUMBERED_MAX: u8 = 50;

/// Adds what the instructions of [`compile`] call.
pub fn install(environment: &mut Environment<'_>, meter: &Arc<Meter>) {
    let [keeping, looking, storing, spreading] = [(); 4].map(|()| Arc::clone(meter));
    environment.add_filter(KEEP, move |value: Value| keep(&keeping, value));
    environment.add_filter(LOOK, move |value: Value| looking.tick(size(&value)?.bytes));
    environment.add_filter(STORE, move |pair: Value| stored(&storing, &pair));
    environment.add_filter(SPREAD, move |lists: Value| spread(&spreading, &lists).map(|()| lists));
    environment.add_filter(MULTIPLY, |pair: Value| multiplied(&pair).map(|()| pair));
}

/// Compiles a source that is within its bounds, see [`check`].
///
/// # Errors
/// What is wrong with it, and where.
pub fn compile<'source>(source: &'source str, syntax: SyntaxConfig) -> Result<Instructions<'source>, Error> {
    let tree = parse(source, NAME, syntax)?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&tree);
    let (instructions, _) = generator.finish();
    Ok(bounded(&instructions))
}

/// Counts what the parser recurses over.
///
/// # Errors
/// The bound that the source is beyond.
pub fn check(source: &str, syntax: SyntaxConfig) -> Result<(), Bound> {
    if source.len() > SOURCE_BYTES_MAX {
        return Err(Bound::Source(source.len()));
    }
    let (mut in_tag, mut branches) = (0, 0);
    // What is no token ends the count; the parser says so.
    for (token, span) in tokenize(source, false, syntax).map_while(Result::ok) {
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => in_tag = 0,
            _ => in_tag += 1,
        }
        branches += usize::from(in_tag == 1 && matches!(token, Token::Ident("elif")));
        if in_tag > TAG_TOKENS_MAX {
            return Err(Bound::Tag(span.start_line.into()));
        }
        if branches > BRANCHES_MAX {
            return Err(Bound::Branches);
        }
    }
    Ok(())
}

/// The instructions with calls between them: what makes a value is followed by one that keeps it, what walks values is
/// preceded by one that looks at their sizes.
fn bounded<'source>(plain: &Instructions<'source>) -> Instructions<'source> {
    let all: Vec<&Instruction<'source>> = (0..).map_while(|at| plain.get(at)).collect();
    let mut is_target = vec![false; all.len() + 1];
    all.iter().filter_map(|instruction| target(instruction)).for_each(|at| is_target[at as usize] = true);
    let numbered = all.iter().filter_map(|instruction| match instruction {
        Instruction::ApplyFilter(_, _, number) if *number < NUMBERED_MAX => Some(*number + 1),
        _ => None,
    });
    let calls = Calls { first: numbered.max().unwrap_or(0) };
    let around: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(at, instruction)| {
            // What is on top of the stack, where no jump can have put something else there.
            let top = at.checked_sub(1).filter(|_| !is_target[at]).map(|before| all[before]);
            let constant = match top {
                Some(Instruction::LoadConst(value)) => Some(value),
                _ => None,
            };
            (calls.before(instruction, constant), calls.after(instruction, constant))
        })
        .collect();
    // Where each instruction, with what comes before it, is going to be.
    let mut places = Vec::with_capacity(all.len() + 1);
    let mut place = 0;
    for (before, after) in &around {
        places.push(place);
        place += before.len() as u32 + 1 + after.len() as u32;
    }
    places.push(place);
    let mut out = Instructions::new(plain.name(), plain.source());
    for (at, (instruction, (before, after))) in all.into_iter().zip(around).enumerate() {
        let mut instruction = instruction.clone();
        if let Some(target) = target_mut(&mut instruction) {
            *target = places[*target as usize];
        }
        let line = plain.get_line(at as u32).unwrap_or(0) as u16;
        for instruction in before.into_iter().chain([instruction]).chain(after) {
            out.add_with_line(instruction, line);
        }
    }
    out
}

/// Where an instruction may jump to, or a macro begins.
fn target(instruction: &Instruction<'_>) -> Option<u32> {
    let mut copy = instruction.clone();
    target_mut(&mut copy).copied()
}

fn target_mut<'a>(instruction: &'a mut Instruction<'_>) -> Option<&'a mut u32> {
    match instruction {
        Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) => Some(target),
        _ => None,
    }
}

/// The calls of our filters.
struct Calls {
    /// The first number that no filter of the template has.
    first: u8,
}

impl Calls {
    fn call(&self, name: &'static str) -> Instruction<'static> {
        let number = [KEEP, LOOK, MULTIPLY, STORE, SPREAD].iter().position(|known| *known == name).unwrap_or(0) as u8;
        let number = self.first.saturating_add(number);
        Instruction::ApplyFilter(name, Some(1), if number < NUMBERED_MAX { number } else { !0 })
    }

    /// A call with the two values on top of the stack, which it leaves there.
    fn call_with_both(&self, name: &'static str) -> Vec<Instruction<'static>> {
        vec![Instruction::Swap, Instruction::BuildTuple(Some(2)), self.call(name), Instruction::UnpackList(2)]
    }

    fn before(&self, instruction: &Instruction<'_>, top: Option<&Value>) -> Vec<Instruction<'static>> {
        match instruction {
            // The right side, the container or the key: no more of the other is looked at than of this.
            Instruction::Eq
            | Instruction::Ne
            | Instruction::Gt
            | Instruction::Gte
            | Instruction::Lt
            | Instruction::Lte
            | Instruction::In
            | Instruction::CompareAndPreserve(_)
            | Instruction::GetItem
                if top.is_none() =>
            {
                vec![Instruction::DupTop, self.call(LOOK), Instruction::DiscardTop]
            }
            // A tuple is unpacked in reverse.
            Instruction::UnpackLists(n) => {
                let (pack, unpack) = (Instruction::BuildTuple(Some(*n)), Instruction::UnpackList(*n));
                vec![pack.clone(), self.call(SPREAD), unpack.clone(), pack, unpack]
            }
            Instruction::Mul => self.call_with_both(MULTIPLY),
            Instruction::SetAttr(_) => self.call_with_both(STORE),
            _ => Vec::new(),
        }
    }

    fn after(&self, instruction: &Instruction<'_>, top: Option<&Value>) -> Vec<Instruction<'static>> {
        match instruction {
            Instruction::BuildList(_)
            | Instruction::BuildMap(_)
            | Instruction::BuildTuple(_)
            | Instruction::Slice
            | Instruction::Add
            | Instruction::Mul
            | Instruction::StringConcat
            | Instruction::ApplyFilter(..)
            | Instruction::CallFunction(..)
            | Instruction::CallMethod(..)
            | Instruction::CallObject(_)
            | Instruction::EndCapture
            | Instruction::Iterate(_) => vec![self.call(KEEP)],
            // A test of two values compares or searches them.
            Instruction::PerformTest(_, n, _) if *n != Some(1) => vec![self.call(KEEP)],
            // Characters of a text are counted from its beginning.
            Instruction::GetItem if top.is_none_or(|key| key.as_str().is_none()) => vec![self.call(KEEP)],
            _ => Vec::new(),
        }
    }
}
