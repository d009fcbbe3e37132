//! The words that a command knows, which its help lists: what a word that it does not know may have been meant for.

use crate::error::{Error, Result, nearest};

/// Options that say what one call is to do. The environment, which stays, does not set them.
const ONE_CALL: [&str; 14] = [
    "decode", "depth", "ends", "fit", "json", "logits", "markdown", "n-gen", "n-prompt", "null", "repeat", "special",
    "streams", "type",
];

/// What variables begin with that Kubernetes sets where a service has the name `brim`.
const OF_KUBERNETES: [&str; 2] = ["BRIM_SERVICE_", "BRIM_PORT"];

/// A command with its help.
pub struct Helped {
    /// Its name.
    pub command: String,
    /// What `--help` prints.
    pub help: String,
}

/// The names in the left column of a help that lists some below `title`: options without dashes, or commands.
pub fn listed<'a>(help: &'a str, title: &str) -> impl Iterator<Item = &'a str> {
    let lines = help.lines().skip_while(move |line| !line.starts_with(title)).skip(1);
    lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let line = line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?;
        let name = line.split("--").nth(1).unwrap_or(line);
        name.split([' ', ',']).next()
    })
}

/// What a word that `command` does not know was perhaps meant for; `commands` are all there are.
pub fn meant(word: &str, command: Option<&Helped>, commands: &[Helped]) -> Option<String> {
    let names = commands.iter().map(|known| known.command.as_str());
    let Some(command) = command else {
        return nearest(word, names).map(|name| format!("did you mean `{name}`?"));
    };
    let Some(option) = word.strip_prefix("--") else {
        let is_model = word.to_lowercase().ends_with(".gguf");
        return is_model.then(|| format!("a model comes behind -m: `brim {} -m {word}`", command.command));
    };
    let of = |known: &Helped| listed(&known.help, "Options:").any(|name| name == option);
    let others: Vec<&str> = commands.iter().filter(|known| of(known)).map(|known| known.command.as_str()).collect();
    if !others.is_empty() {
        return Some(format!("it is an option of `{}`", others.join("` and `")));
    }
    nearest(option, listed(&command.help, "Options:")).map(|name| format!("did you mean `--{name}`?"))
}

/// Checks that whatever begins with `BRIM_` among the variables' names is an option that some command takes from there.
///
/// # Errors
/// A usage error that names the first that is not, and the nearest that is.
pub fn check_variables(names: impl Iterator<Item = String>, commands: impl Fn() -> Vec<Helped>) -> Result<()> {
    let is_ours =
        |name: &String| name.starts_with("BRIM_") && !OF_KUBERNETES.iter().any(|begin| name.starts_with(begin));
    let mut ours: Vec<String> = names.filter(is_ours).collect();
    if ours.is_empty() {
        return Ok(());
    }
    ours.sort();
    let known: Vec<String> = commands()
        .iter()
        .flat_map(|known| listed(&known.help, "Options:"))
        .filter(|name| *name != "help" && !ONE_CALL.contains(name))
        .map(variable)
        .collect();
    match ours.iter().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let of_one_call = ONE_CALL.into_iter().find(|option| variable(option) == **name);
            let advice = match (of_one_call, nearest(name, known.iter().map(String::as_str))) {
                (Some(option), _) => format!("it is an option of one call: give `--{option}`"),
                (None, Some(near)) => format!("did you mean {near}?"),
                (None, None) => "`brim COMMAND --help` lists the options".to_owned(),
            };
            Err(Error::usage(format!("{name} in the environment is no option of brim; {advice}")))
        }
    }
}

fn variable(option: &str) -> String {
    format!("BRIM_{}", option.replace('-', "_").to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "Usage: brim go [-m <model>]\n\nGoes.\n\nOptions:\n  -m, --model       GGUF file, or\n                    --none\n  \
                        --kv-type         a type\n  --fit             it fits\n  --help, help      this\n\nCommands:\n  \
                        run               Runs\n                    far.\n  stop              Stops.\n";

    fn helped(command: &str) -> Helped {
        Helped { command: command.to_owned(), help: HELP.to_owned() }
    }

    #[test]
    fn a_help_lists_its_words() {
        assert_eq!(listed(HELP, "Options:").collect::<Vec<_>>(), ["model", "kv-type", "fit", "help"]);
        assert_eq!(listed(HELP, "Commands:").collect::<Vec<_>>(), ["run", "stop"]);
    }

    #[test]
    fn a_wrong_word_is_told_the_nearest() {
        let go = helped("go");
        let other = Helped { command: "plan".into(), help: "Options:\n  --pages           n\n".into() };
        let all = [helped("go"), other];
        let said = |word, command| meant(word, command, &all).unwrap_or_default();
        assert_eq!(said("pln", None), "did you mean `plan`?");
        assert_eq!(said("--modle", Some(&go)), "did you mean `--model`?");
        assert_eq!(said("--pages", Some(&go)), "it is an option of `plan`");
        assert_eq!(said("a.GGUF", Some(&go)), "a model comes behind -m: `brim go -m a.GGUF`");
        assert_eq!(said("--xxxxxxxxxxxx", Some(&go)), "");
    }

    #[test]
    fn variables_are_options_or_refused() {
        let check = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned());
            check_variables(names, || vec![helped("go")]).map_err(|e| e.to_string())
        };
        assert_eq!(check(&["PATH", "BRIM_KV_TYPE", "BRIM_MODEL", "XBRIM_A"]), Ok(()));
        assert_eq!(check(&["BRIM_SERVICE_HOST", "BRIM_PORT", "BRIM_PORT_8080_TCP_ADDR"]), Ok(()));
        let wrong = check(&["BRIM_MODLE", "BRIM_KV_TYPE"]).unwrap_err();
        assert_eq!(wrong, "BRIM_MODLE in the environment is no option of brim; did you mean BRIM_MODEL?");
        assert!(check(&["BRIM_FIT"]).unwrap_err().ends_with("it is an option of one call: give `--fit`"));
        assert!(check(&["BRIM_HELP"]).is_err());
    }
}
