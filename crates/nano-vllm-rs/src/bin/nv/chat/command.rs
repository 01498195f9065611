//! What a user may say besides messages.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// What `/help` prints.
pub(super) const HELP: &str = r#"/reset              begin a new conversation; the system prompt and the settings stay
/system TEXT        tell the model how to behave; without TEXT, no more
/set                show the settings
/set NAME VALUE     change one, such as /set temperature 0.7
/save FILE          write the conversation to FILE, as JSON
/quit               end, as Ctrl-D does
/help               this

A line that ends in \ goes on in the next one. Text between """ and """ may have many lines. What is pasted is one message, where the
terminal tells pasted text from typed; else each of its lines is one.
A message that begins with / is written with two of them. Ctrl-C stops an answer."#;

/// A line as what it asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Command<'a> {
    /// An empty line.
    Nothing,
    Message(String),
    Help,
    Reset,
    /// `None` if there is to be no system prompt.
    System(Option<String>),
    ShowSettings,
    Set {
        name: &'a str,
        value: &'a str,
    },
    Save(&'a Path),
    Quit,
}

/// Tells commands from messages.
///
/// # Errors
/// For commands that there are not, and those that lack something or have too much.
pub(super) fn parse(text: &str) -> Result<Command<'_>> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Ok(Command::Nothing);
    }
    let Some(command) = trimmed.strip_prefix('/') else {
        return Ok(Command::Message(text.to_owned()));
    };
    if command.starts_with('/') {
        return Ok(Command::Message(command.to_owned()));
    }
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    if matches!(name, "help" | "reset" | "quit") {
        ensure!(rest.is_empty(), "/{name}: expected nothing after it, found `{rest}`");
    }
    Ok(match name {
        "help" => Command::Help,
        "reset" => Command::Reset,
        "quit" => Command::Quit,
        "system" => Command::System((!rest.is_empty()).then(|| rest.to_owned())),
        "set" if rest.is_empty() => Command::ShowSettings,
        "set" => {
            let (name, value) = rest
                .split_once(char::is_whitespace)
                .with_context(|| format!("/set: expected a name and a value, found `{rest}`"))?;
            Command::Set { name, value: value.trim() }
        }
        "save" => {
            ensure!(!rest.is_empty(), "/save: expected the name of a file");
            Command::Save(Path::new(rest))
        }
        _ => bail!("there is no /{name}: /help lists the commands, // begins a message with /"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_messages() {
        let check = |text, expected| assert_eq!(parse(text).unwrap(), expected, "{text:?}");
        let message = |text: &str| Command::Message(text.to_owned());
        check("", Command::Nothing);
        check(" \t", Command::Nothing);
        check("Hello /help", message("Hello /help"));
        check("  indented\n", message("  indented\n"));
        check("//etc/hosts", message("/etc/hosts"));
        check(" /help ", Command::Help);
        check("/reset", Command::Reset);
        check("/quit", Command::Quit);
        check("/system Be\nbrief.", Command::System(Some("Be\nbrief.".to_owned())));
        check("/system", Command::System(None));
        check("/set", Command::ShowSettings);
        check("/set  top_k   5 ", Command::Set { name: "top_k", value: "5" });
        check("/save my file.json", Command::Save(Path::new("my file.json")));
    }

    #[test]
    fn what_is_no_command_is_an_error() {
        let check = |text, expected| assert_eq!(parse(text).unwrap_err().to_string(), expected);
        check("/helo", "there is no /helo: /help lists the commands, // begins a message with /");
        check("/reset now", "/reset: expected nothing after it, found `now`");
        check("/set top_k", "/set: expected a name and a value, found `top_k`");
        check("/save", "/save: expected the name of a file");
    }
}
